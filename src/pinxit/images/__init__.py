"""A folder of training images: decoding, checks, cropping, captions and masks.

Nothing here knows about models; what training does with images belongs in `training`.
"""
