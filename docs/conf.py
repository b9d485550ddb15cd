"""The documentation site: ``python -m sphinx -W -c docs . build/site``, from the root of the repository.

The root is the source directory, so that every page lies where the git host shows it. A link between two pages is
then the same relative link on both. Nothing on the built pages is asked of another server.
"""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import outgrow
from outgrow.knowledge import RULES
from outgrow.losses import DETECTOR_LOSSES, LOSSES
from outgrow.training.config import Config, describe_fields

ROOT = Path(__file__).resolve().parents[1]
CARDS = ["table", *sorted({rule().name for rule in RULES.values()}), *sorted({**LOSSES, **DETECTOR_LOSSES})]

NAVIGATION: dict[str, dict[str, dict[str, str]]] = {
    "README": {
        "Start": {
            "First distillation": "docs/start",
            "Questions": "docs/faq",
        },
        "Guides": {
            "Your own images": "docs/guide/your-own-data",
            "Is the teacher worth it?": "docs/guide/audit",
            "Choosing a loss and a rule": "docs/guide/choosing",
            "The objective": "docs/guide/objective",
            "A teacher's bias": "docs/guide/correction",
            "Weight and temperature": "docs/guide/tune",
            "Training options": "docs/guide/training",
            "Comparing methods": "docs/guide/compare",
            "Deploying the student": "docs/guide/deploy",
            "Runs and resuming": "docs/guide/runs",
            "Detection": "docs/guide/detection",
            "Many GPUs and machines": "docs/guide/many-processes",
            "The teacher cache": "docs/guide/teacher-cache",
            "Your own loop": "docs/guide/your-own-loop",
            "Speed": "docs/guide/speed",
        },
        "Methods": {
            "All losses and rules": "docs/methods/README",
        },
        "The paper": {
            "Line by line": "docs/paper",
            "Paper, released code, this library": "docs/guide/differences",
        },
        "Results": {
            "Overview": "results/README",
            "The study": "results/study",
            "The demo": "results/demo",
            "Detection": "results/detection",
            "Speed": "results/speed",
            "Reliability": "results/reliability",
            "Short trainings": "results/short-trainings",
        },
        "API reference": {
            "outgrow": "docs/api/outgrow",
            "outgrow.teacher": "docs/api/teacher",
            "outgrow.knowledge": "docs/api/knowledge",
            "outgrow.losses": "docs/api/losses",
            "outgrow.objective": "docs/api/objective",
            "outgrow.data": "docs/api/data",
            "outgrow.models": "docs/api/models",
            "outgrow.training": "docs/api/training",
        },
        "The project": {
            "Changes": "CHANGELOG",
            "Contributing": "CONTRIBUTING",
            "Contracts": "docs/guide/contracts",
        },
    },
    "docs/methods/README": {"Cards": {card: f"docs/methods/{card}" for card in CARDS}},
}
"""What the sidebar holds, by the page that it hangs on. It is here and not on the pages, which the git host shows."""

project = "Outgrow"
author = "The Outgrow authors"
copyright = author
version = release = outgrow.__version__

root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "results/*.md"]
exclude_patterns = ["src", "tests", "build", "runs", ".*"]

# --- pages

source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 4  # the anchors of the git host
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "none"  # an indented block has no language of its own

# --- the reference, from the docstrings

nitpicky = True
nitpick_ignore_regex = [
    # other libraries: their references are on other servers
    (r"py:.*", r"(torch|jaxtyping|collections|typing|pathlib|PIL|pydantic|numpy|abc)\..*"),
    (r"py:class", r"outgrow\.data\.plan\.ImageLoader"),  # what a caller needs of it is Loader
    (r"py:.*", r"outgrow\.data\.mixed\.(Shuffled|B|B_co)"),  # the same: what make_loader returns
    (r"py:.*", r"(Tensor|nn\.Module|Module|Callable|Image|ast|outgrow\.spec\.T)"),
]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # torch's are not ours
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

# --- the look

html_title = "Outgrow"
html_theme = "furo"
html_favicon = "site/icon.svg"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["site"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Hang the sidebar's entries on a page."""
    for caption, entries in NAVIGATION.get(page, {}).items():
        lines = [f"{title} </{target}>" for title, target in entries.items()]
        source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```\n"])


def add_fields(app: Sphinx, page: str, source: list[str]) -> None:
    """List every field of a configuration on its page: what ``outgrow list fields`` prints."""
    if page == "docs/api/training":
        for name, kind, default, about in describe_fields(Config):
            meaning = about.replace("`", "``")
            source[0] += f"\n.. confval:: {name}\n\n   ``{kind}``, default ``{default}``. {meaning}\n"


def tidy_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, args: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """A module without a constructor of its own shows torch's; a field with a factory is no Python."""
    if args is None:
        return None
    return "" if args.startswith("(*args: ~typing.Any") else args.replace("<factory>", "..."), returns


def add_front_page(app: Sphinx, error: Exception | None) -> None:
    """A server answers with index.html where no page is named."""
    if error is None and app.builder.format == "html":
        start = f"{root_doc}.html"
        text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={start}"><a href="{start}">Outgrow</a>'
        (app.outdir / "index.html").write_text(text)


def find_by_last_names(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """Resolve ``kd_loss`` or ``Target.index`` in a docstring of another file: the one object whose name ends so."""
    if node.get("refdomain") != "py":
        return None
    domain, end = env.domains.python_domain, node["reftarget"]
    names = [name for name, entry in domain.objects.items() if not entry.aliased]
    for base in ["", *(f"{cls.__name__}." for cls in bases(node))]:  # a method may be that of a base class
        found = [name for name in names if name.endswith(f".{base}{end}")]
        if len(found) == 1:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], found[0], node, text
            )
    return None


def bases(node: addnodes.pending_xref) -> tuple[type, ...]:
    """The class whose docstring a reference stands in, and its bases."""
    module = sys.modules.get(node.get("py:module") or "")
    return getattr(getattr(module, (node.get("py:class") or "").rpartition(".")[2], None), "__mro__", ())


def formula(text: str, *, block: bool) -> str:
    sized = re.sub(
        r"\\([bB]ig)(?![a-zA-Z])", r"\\\1l", text
    )  # docutils knows delimiters of a size by their side only
    return latex2mathml.tex2mathml(sized, as_block=block)


def show_inline(self: Any, node: nodes.math) -> None:
    self.body.append(formula(node.astext(), block=False))
    raise nodes.SkipNode


def show_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{formula(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_navigation)
    app.connect("source-read", add_fields)
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("build-finished", add_front_page)
    app.connect("missing-reference", find_by_last_names)
    # every browser draws MathML; Sphinx's own renderer would fetch MathJax from a server
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
    return {"parallel_read_safe": True}
