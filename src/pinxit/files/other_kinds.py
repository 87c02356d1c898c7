"""What a file that cannot be opened is: an archive, a web page, or something else."""

START_BYTES = 262  # up to the end of tar's mark
# What files of other kinds begin with, as a download may give them; more bytes are not compared.
_OTHER_KINDS = {
    b"PK": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"GGUF": "a GGUF file: these hold parts of base models",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page: the download needs a login or another address",
    b"version https://git-lfs": "a pointer of git-lfs: the file itself is not downloaded",
    b"{": "JSON text: the answer of a server, or settings",
}


def other_kind(start: bytes) -> str:
    """What a file that holds no tensors is, by its first START_BYTES bytes."""
    if not start.strip(b"\0"):
        return "a file of zeros" if start else "an empty file"
    if start.endswith(b"ustar"):
        return "a tar archive"
    text = start.lstrip()
    kinds = (kind for prefix, kind in _OTHER_KINDS.items() if text.startswith(prefix))
    return next(kinds, "damaged, or of a kind not known")
