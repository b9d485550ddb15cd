"""The structure keeps its promises: imports point up the list, names agree three times, starts are lean."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from outgrow.knowledge import RULES
from outgrow.losses import DETECTOR_LOSSES, LOSSES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "outgrow"

# Reading order is data-flow order; the README's map is the same list.
ORDER = [
    "outputs",
    "spec",
    "machine",
    "data",
    "models",
    "teacher",
    "knowledge",
    "losses",
    "objective",
    "training",
    "report",
    "classification",
    "detection",
    "run",
]
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE)
# the version stands in the package itself
ALLOWED_DOWN = {("training", "__init__"), ("run", "__init__")}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of this package that a file imports at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "outgrow":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "outgrow"]
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if len(parts) > 1 and parts[1] in ORDER else "__init__")
    return found


def test_imports_point_up():
    files = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE]
    assert len(files) > 50
    assert {room(path) for path in files} == set(ORDER)
    for path in files:
        here = room(path)
        for other in imports(path):
            if (here, other) in ALLOWED_DOWN:
                continue
            assert other in ORDER, f"{path.relative_to(ROOT)} imports {other}"
            assert ORDER.index(other) <= ORDER.index(here), (
                f"{path.relative_to(ROOT)} imports {other}, which stands below it"
            )


def test_the_top_level_is_small():
    names = [path.name for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(names) <= 16, sorted(names)


def test_tasks_do_not_know_each_other():
    """A third task is a folder and a line: nothing but the registry names a task's room."""
    tasks = {"classification", "detection"}
    assert all((SOURCE / task / "task.py").is_file() for task in tasks)
    for task in tasks:
        for path in (SOURCE / task).rglob("*.py"):
            assert not imports(path) & (tasks - {task}), path


def test_tasks_are_built_alike():
    for name in ("student", "teacher", "lesson", "scores", "evaluation", "task"):
        assert (SOURCE / "classification" / f"{name}.py").is_file()
        assert (SOURCE / "detection" / f"{name}.py").is_file()


def test_what_commands_import_by_a_tasks_name_is_there():
    """``import_module(f"outgrow.{task}.NAME")`` is seen by no linter, so a moved file would fail only when it is used."""
    runs = "".join(path.read_text() for path in (SOURCE / "run").glob("*.py"))
    names = set(re.findall(r'import_module\(f"outgrow\.\{[^}]*\}\.(\w+)"\)', runs))
    assert names >= {"audit", "export", "predict", "task"}
    for task in ("classification", "detection"):
        for name in names:
            assert find_spec(f"outgrow.{task}.{name}") is not None, (task, name)


def test_the_rooms_of_detection_know_what_comes_before_them():
    """A layout and a family need a run as little as a loss does."""
    known = {"layouts": {"layouts", "boxes"}, "families": {"families", "boxes"}}
    for name, allowed in known.items():
        files = list((SOURCE / "detection" / name).glob("*.py"))
        assert len(files) > 6
        for path in files:
            modules = re.findall(r"^ *from outgrow\.detection\.(\w+)", path.read_text(), re.M)
            assert set(modules) <= allowed, path


def test_the_map_in_the_readme_is_the_same_list():
    readme = (ROOT / "README.md").read_text()
    places = [
        readme.find(f"  {name}.py ") if (SOURCE / f"{name}.py").is_file() else readme.find(f"  {name}/ ")
        for name in ORDER
    ]
    missing = [name for name, place in zip(ORDER, places, strict=True) if place < 0]
    assert not missing, f"the README's map lacks {missing}"
    assert places == sorted(places)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_the_map_of_a_package_names_each_of_its_files_once(package):
    """A package of rules or losses says that there is one in each file, and names the other files."""
    registered = [*LOSSES.values(), *DETECTOR_LOSSES.values(), *(type(rule()) for rule in RULES.values())]
    one_each = {SOURCE.parent / f"{entry.__module__.replace('.', '/')}.py" for entry in registered}
    files = set(package.glob("*.py")) - one_each - {package / "__init__.py"}
    folders = {path.parent for path in package.glob("*/__init__.py")}
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = re.findall(r"\b\w+\.py\b|(?<!\S)\w+/(?!\S)", text)
    missing = {path.name for path in files} | {f"{path.name}/" for path in folders}
    assert sorted(missing - set(named)) == []
    assert [name for name in named if not (package / name).exists()] == []
    assert [name for name in named if named.count(name) > 1] == []


def test_the_files_that_docstrings_name_are_there():
    files = {path.name for path in SOURCE.rglob("*.py")}
    for path in SOURCE.rglob("*.py"):
        named = re.findall(r"\b\w+\.py\b", ast.get_docstring(ast.parse(path.read_text())) or "")
        assert set(named) <= files, path


@pytest.mark.parametrize("name", [*LOSSES, *DETECTOR_LOSSES])
def test_a_loss_is_named_three_times(name):
    assert (SOURCE / "losses" / f"{name}.py").is_file()
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    own = ROOT / "tests" / "losses" / f"test_{name}.py"
    reference = "".join(path.read_text() for path in (ROOT / "tests" / "reference").glob("*.py"))
    assert own.is_file() or f"def {name}(" in reference
    assert f"({name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()


@pytest.mark.parametrize("name", sorted({rule().name for rule in RULES.values()}))
def test_a_rule_has_its_file_and_its_card(name):
    assert (SOURCE / "knowledge" / f"{name}.py").is_file()
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    assert f"({name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()


def test_import_is_lean():
    heavy = [
        "torchvision",
        "timm",
        "transformers",
        "matplotlib",
        "sklearn",
        "pyarrow",
        "typer",
        "rich",
        "accelerate",
        "jinja2",
        "scipy",
    ]
    code = f"import sys, outgrow; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sources_are_ascii():
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert path.read_text().isascii(), path
