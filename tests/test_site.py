"""The documentation site is built without a warning, holds every public name, and asks nothing of another server."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import outgrow
from outgrow.knowledge import RULES
from outgrow.losses import DETECTOR_LOSSES, LOSSES

for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed, reason="the site needs pip install '.[docs]'")

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("teacher", "knowledge", "losses", "objective", "data", "models")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A link to a page, a heading or a name that is not there is a warning, and so an error."""
    folder = tmp_path_factory.mktemp("site")
    # in a process of its own: the tests' checks of shapes would wrap every function
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    names = {name for kind, entries in inventory.data.items() if kind.startswith("py:") for name in entries}
    public, found = {f"outgrow.{name}" for name in outgrow.__all__}, 0
    for room in ROOMS:
        module = importlib.import_module(f"outgrow.{room}")
        for name in module.__all__:  # one that the package has itself, or a loss, is where it is at home
            own = getattr(module, name)
            home = f"{getattr(own, '__module__', '')}.{getattr(own, '__qualname__', '')}"
            places = {f"outgrow.{name}", f"outgrow.{room}.{name}", home}
            assert places & names, places
            found += 1
    for entry in [*LOSSES.values(), *DETECTOR_LOSSES.values(), *(type(rule()) for rule in RULES.values())]:
        public.add(f"{entry.__module__}.{entry.__qualname__}")
    assert len(public) > 50
    assert found > 50
    assert sorted(public - names) == []


def test_every_field_of_a_configuration_is_in_the_reference(site):
    from outgrow.training.config import Config, describe_fields

    page = (site / "docs" / "api" / "training.html").read_text()
    fields = describe_fields(Config)
    assert len(fields) > 60
    for name, *_ in fields:
        assert f'id="confval-{name}"' in page, name


ASKED = re.compile(r"<(?:script|link|img|iframe|source)[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*\"")
ASKED_IN_STYLE = re.compile(r"url\(\s*['\"]?(?:https?:)?//|@import")


def test_nothing_is_asked_of_another_server(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 60
    assert styles
    for page in pages:
        assert not ASKED.findall(page.read_text()), page
    for style in styles:
        assert not ASKED_IN_STYLE.findall(style.read_text()), style


def test_front_page_and_formulas(site):
    assert 'url=README.html"' in (site / "index.html").read_text()
    formulas = (site / "docs" / "api" / "losses.html").read_text()
    assert formulas.count("<math") > 30
    assert "\\Big" not in formulas


def find(site: Path, words: str) -> tuple[str, str]:
    """The page of results, and what the browser's console says. Opened from a file, so without any server."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
    ]
    command = [chromium, *options, "--dump-dom", f"file://{site}/search.html?q={words}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not done.stdout:
        pytest.skip(f"chromium does not start here: {done.stderr[-300:]}")
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize(
    "words, page",
    [
        ("rectify", "docs/api/outgrow.html#outgrow.rectify"),
        ("memorised", "docs/guide/correction.html"),
        ("dkd_loss", "docs/api/losses.html#outgrow.losses.dkd.dkd_loss"),
    ],
)
def test_the_search_finds_without_a_server(site, words, page):
    results, console = find(site, words)
    assert f'href="{page}' in results
    assert console == ""


def test_the_index_of_the_search_is_a_script(site):
    """Browsers fetch no other file for a page that is opened from a file."""
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    for word in ("rectif", "memoris", "checkpoint"):
        assert word in index, word
