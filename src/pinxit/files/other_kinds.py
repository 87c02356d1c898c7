"""What a file without a concept is: an archive, a web page, a network of another kind."""

import re
from collections.abc import Iterable

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


# Networks by the name of a tensor that each has in the files of its programs, and what to do.
_NETWORKS = {
    r"to_k_ip\.weight$|^image_proj$": (
        "an IP-Adapter",
        "pinxit has none: train a concept on the images instead, with `pinxit train`",
    ),
    r"(^|\.)(input_hint_block\.0|control\w*_(cond|x)_embed\w+(\.conv_in|\.2-1)?)\.weight$"
    r"|^lora_controlnet$": (
        "a ControlNet",
        "use it with: pinxit transfer --control controlnet --weights FILE",
    ),
    r"motion_modules\.": ("a motion module", "it is for videos, which pinxit does not generate"),
    r"(^|\.)(conv_first\.weight$|sub\.0\.RDB1\.)|^params(_ema)?$": (
        "an upscaler",
        "pinxit has none: enlarge generated images with the program that it is for",
    ),
    r"(^|\.)vision_model\.embeddings\.": (
        "an image encoder",
        "a concept is a LoRA, an embedding or a run folder",
    ),
    r"(^|\.)decoder\.conv_in\.weight$": ("a VAE", "give it with --vae"),
    r"(^|\.)(embed_tokens\.|token_embedding|block\.0\.layer\.0\.SelfAttention\.)": (
        "a text encoder",
        "give it with --text-encoder, beside a base model that is one file",
    ),
}


def network_kind(names: Iterable[str]) -> tuple[str, str] | None:
    """What a file with tensors of these names is, and what to do with it; None if not known."""
    lines = "\n".join(names)
    found = (kind for name, kind in _NETWORKS.items() if re.search(name, lines, re.MULTILINE))
    return next(found, None)
