"""Checks of HTML pages."""

from html.parser import HTMLParser


def must_be_well_formed(page: str) -> None:
    """Fail if tags are not properly nested, or an image has no alternative text."""
    checker = _Checker()
    checker.feed(page)
    assert not checker.open


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "img" or dict(attrs)["alt"]
        if tag not in ("img", "input", "link", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
