"""A hook of mkdocs: links from the docs to files outside them lead to the repository."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: object) -> str:
    """Replace relative links that leave the folder of the docs."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        inside = path.startswith("docs/")
        return link[0] if inside else f"]({config.repo_url.rstrip('/')}/blob/main/{path})"

    return _LINK.sub(replaced, markdown)
