"""Convert a matplotlib figure to an SVG element of a page. Text stays text; colours are the page's variables."""

import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from outgrow.report.palette import LIGHT, PALETTE

_NAMES = {light: name for name, light in LIGHT.items()}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML does not allow."""


def titled(titles: Iterable[str]) -> str:
    """The tooltips of a line's markers, encoded as a gid that :func:`inline_svg` decodes."""
    return json.dumps(list(titles))


def inline_svg(figure: Any, kind: str, name: str, title: str, description: str) -> Markup:
    """A figure as an SVG element of a page, the same bytes every time.

    All ids begin with ``name``, so that they are unique on the page.
    """
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(_NO_XML.sub(" ", file.getvalue()))
    root.remove(root[0])  # its CSS rules would apply to the whole page
    svg = {"class": f"plot {kind}", "viewBox": root.attrib["viewBox"], "role": "img"}
    svg |= {"aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-desc"}
    svg |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib = svg
    for element in list(root.iter()):
        _settle(element, name)
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(0, element)
    return Markup(_NO_XML.sub(" ", ElementTree.tostring(root, encoding="unicode")))


def _settle(element: ElementTree.Element, name: str) -> None:
    """Prepare one element for a page: no XML namespaces, unique ids, the page's font and colours."""
    old = element.attrib
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = new = {}
    element.tail = None
    if element.tag != "text":
        element.text = None
    for key, value in old.items():
        key = key.rpartition("}")[2]
        if key == "id":
            if element.tag == "g":  # nothing refers to a group
                if value.startswith("["):
                    _title_marks(element, json.loads(value))
                continue
            value = f"{name}-{value}"
        elif key in ("href", "clip-path"):
            value = value.replace("#", f"#{name}-")
        elif key == "style":
            value = re.sub("'DejaVu Sans'[^;]*", "var(--font)", value)
            value = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{_NAMES[found[0]]})", value)
        elif key in ("d", "x", "y", "width", "height"):
            value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", value)
            value = " ".join(value.split())
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        new[key] = value


def _title_marks(line: ElementTree.Element, titles: Sequence[str]) -> None:
    marks = [element for element in line.iter() if element.tag.endswith("use")]
    for mark, title in zip(marks, titles, strict=True):
        ElementTree.SubElement(mark, "title").text = title


def standalone(svg: str, font_size: float = 12.5) -> str:
    """An SVG element of a page as a complete file, with the colours of light and dark mode."""
    light, dark = (
        " ".join(f"--{name}: {shades[shade]};" for name, shades in PALETTE.items()) for shade in (0, 1)
    )
    rules = (
        f"svg {{ {light} --font: system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; "
        f"font-size: {font_size}px }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{rules}</style>{rest}\n'
