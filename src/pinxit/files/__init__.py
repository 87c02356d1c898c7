"""Reading and writing bytes safely: atomic writes, checksums, safetensors, torch's pickle files.

Nothing here knows about models, images or training. What a file means is decided in the package
of that meaning.
"""
