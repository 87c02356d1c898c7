"""Style sheet, scripts and icon: their addresses contain their content, so that they never age."""

import hashlib
from functools import cache
from importlib.resources import files

TYPES = {
    "icon.svg": "image/svg+xml",
    "studio.css": "text/css",
    "studio.js": "text/javascript",
    "generate.js": "text/javascript",
    "editor.js": "text/javascript",
}


@cache
def static_content(name: str) -> bytes:
    """The content of a file in `TYPES`."""
    return (files("pinxit.studio") / "static" / name).read_bytes()


@cache
def static_address(name: str) -> str:
    """The address of a file, with a hash of its content."""
    return f"/static/{name}?{hashlib.sha256(static_content(name)).hexdigest()[:8]}"
