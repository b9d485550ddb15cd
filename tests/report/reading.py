"""Reads a page as a browser would, without one."""

import re
from html.parser import HTMLParser

GLUED = re.compile(r"[a-z%)][.:;][A-Z][a-z]+ ")
"""Two sentences without a space between them: a template drops the line break after a tag of its own."""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The visible text, the tags with their attributes, and whether every tag is closed in order and sentences are apart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            assert not GLUED.search(data), data
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).replace("\u2212", "-").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]
