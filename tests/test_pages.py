"""What the pages show works: every block of code in README and guides is run, read from the page itself.

python     is run, a page's blocks in one namespace, after :data:`PRELUDE`
diff       both sides are run and give the same loss
console    each `outgrow` command is run, with the :data:`SUBSTITUTIONS` and :data:`QUICK` options
options    (a block that starts with ``--``) make a configuration and a method
included   (a comment before it names a file and a part) is the file's own lines, which tests/examples runs

What is none of these stands in :data:`NOT_CODE` or :data:`NOT_RUN`, with the reason.
"""

import ast
import re
import shlex
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt

from outgrow.run import cli
from tests.detection import coco_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/start.md",
    "docs/faq.md",
    "docs/paper.md",
    "docs/methods/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "guide").glob("*.md")),
]

PRELUDE = """
import torch, outgrow
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
num_classes, epochs, progress = 5, 2, 0.5

def net(width):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), pool, nn.Linear(width, num_classes))

teacher, student = net(16), net(8)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
data = TensorDataset(torch.rand(40, 3, 32, 32), torch.randint(num_classes, (40,)))
loader = DataLoader(data, batch_size=20)
images, target = next(iter(loader))

label, index = data.tensors[1], torch.arange(40)
outputs = outgrow.Outputs(torch.randn(40, num_classes))
other_outputs, other_label = outgrow.Outputs(torch.randn(40, num_classes)), label
"""
"""What a reader has before the first block of a page: networks, data, an optimiser, a teacher's outputs."""

SUBSTITUTIONS = {
    "--set teacher.pretrained=true": "--teacher-weights resnet50.safetensors",
    "--student timm/mobilenetv3_small_100": "--student timm/mobilenetv3_small_100 --student-weights mnv3.safetensors",
    "size=320": "size=128",
    "weights: lite0.safetensors}": "weights: lite0.safetensors, input_size: 32}",
    "--data digits": "--data digits --set data.train_rows=300",
}
"""Nothing is downloaded: random weights stand for published ones. Pictures are smaller, and digits are fewer."""

FEW = "--set data.workers=0 --set train.max_steps=2 --set teacher_train.epochs=1 --set teacher_train.max_steps=2"
SMALL = (
    "--set data.size=32 --set teacher.input_size=32 --set student.input_size=32 --set teacher.correct_views=2"
)
QUICK = {
    "distill": f"--epochs 1 {FEW}",
    "cache": f"--epochs 1 {FEW}",
    "tune": f"--epochs 1 --trials 2 {FEW}",
    "audit": "--rows 20 --set data.workers=0 --set data.size=32 --set teacher.input_size=32",
    "evaluate": "--workers 0",
    "list": "",
}
"""Options that a command gets behind its own, by its first word: a few steps instead of an afternoon."""

BEFORE = {
    "docs/guide/teacher-cache.md": [
        "outgrow distill --data digits --teacher cifar/resnet8 --train-teacher --student cifar/resnet8 --preset kd --out runs/kd"
    ],
}
"""Commands that a page's reader has typed before."""

NOT_RUN = {
    "outgrow demo": "trains 33 networks in two minutes; a shorter one is in tests/run/test_demo.py",
    "outgrow compare": "many trainings; tests/run/test_compare.py makes such comparisons",
    "outgrow export": "of a run that a page has not made; tests/run/test_export.py exports some",
    "outgrow predict": "the same; tests/run/test_predict.py",
    "torchrun": "several processes; tests/training/test_processes.py starts some",
    "accelerate launch": "the same",
    "python3 -m venv": "an environment: what CI does first",
    "pip install": "the same",
    "source .venv/bin/activate": "the same",
    "python -m sphinx": "tests/test_site.py builds the site",
    "pytest": "this is it",
    "ruff": "CI runs it",
    "mypy": "CI runs it",
}
"""Beginnings of commands that are not run, and why. Those of `outgrow` are parsed all the same."""

NOT_CODE = {
    "docs/guide/your-own-data.md: outgrow: data: needs one label column in train-00000-of-00005.parquet, got fine_label, "
    "coarse_label; choose one of them with": "an error, in tests/data/test_labels.py",
    "README.md: src/outgrow/": "the map, which tests/test_architecture.py compares with the folders",
    "docs/guide/tune.md: best      weight 2.47, temperature 4.36: 61.20 %": "what a search prints",
    "docs/start.md: photos/train/<class>/*.jpg        photos/val/<class>/*.jpg": "folders",
    **{
        f"docs/paper.md: {first}": "a formula of the paper, with its code and tests by name, which a test below finds"
        for first in (
            "right: argmax z = y        wrong: argmax z != y",
            "t'_a = (t_a + 1) / 2        t'_b = t_b / 2        the other classes unchanged",
            "easy = mean over the right rows of T^2 KL(t || p)        hard = mean over the wrong rows of T^2 KL(q || p)",
            "g = completed epochs / all epochs        weights: task 1 - g, easy 1 - g, hard g",
            "L = (1 - g) (CE(s, y) + easy) + g hard",
        )
    },
    "docs/guide/compare.md: 4 methods x 3 seeds: 12 trainings": "a plan, in tests/run/test_compare.py",
    "docs/guide/compare.md: recipe: finetune": "a comparison's file, in tests/run/test_compare.py",
    "docs/guide/correction.md: the teacher is right on 100.0% of the rows to fit but on 41.6% of held-out rows: it has "
    "memorised the former, which say": "a warning",
    "docs/guide/correction.md: correction                   ridge  accuracy      nll   (out of fold, 3000 images)": "a report",
    "docs/guide/correction.md: correction                ridge  accuracy      nll   (out of fold, 600 images)": "a report",
    "docs/guide/correction.md: as it is                           52.17%   1.2389 <- chosen": "a report's end",
    "docs/guide/correction.md: noise of the labels   map                           prior      rate      nll   (out of fold)": "a report",
    "docs/guide/detection.md: fasterrcnn:torchvision/resnet50": "names of detectors, made by a test below",
    "docs/guide/detection.md: student(images, truth)        its rows, outputs for them, and the detector's own losses: the task": (
        "a summary of outgrow.detection.lesson"
    ),
    "docs/guide/objective.md: total = w_task * task_weight * task": "a formula, replayed by tests/objective",
    "docs/guide/objective.md: objective: the loss 'kd' reads the teacher at temperature 4.0, got knowledge rectified at "
    "2.0; build both with": "an error, raised by a test below",
    "docs/guide/teacher-cache.md: cache: logits (100) and features layer2 (32 x 16 x 16), penultimate (64) in "
    "teachers/3f...: 796.9 MiB per epoch, ...": "what a run says, in tests/run/test_cli.py",
    "docs/guide/your-own-data.md: photos/train/<class>/*.jpg        photos/val/<class>/*.jpg": "folders",
    "docs/guide/your-own-data.md: teacher,data": "a list, whose like the desk below has",
    "docs/guide/your-own-data.md: teacher: fitting a correction of its systematic errors, scored out of fold ...": (
        "what a run says of its teacher"
    ),
}
"""Blocks that are not code, by page and first line, and what they are."""

COMMANDS = ("outgrow", "torchrun", "python", "python3", "pytest", "pip", "accelerate", "ruff", "mypy")
INCLUDED = re.compile(r"<!-- the lines of (\S+): (\w+) -->")


@dataclass(frozen=True)
class Block:
    """A block of code of a page; ``line`` is its first."""

    page: str
    line: int
    kind: str
    text: str
    source: str = ""

    @property
    def key(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0].strip()}"


def kind_of(info: str, text: str) -> str:
    first = text.split()[0]
    if info in ("python", "diff"):
        return info
    if info in ("console", "sh", "bash") or (Path(first).name in COMMANDS and not first.endswith("/")):
        return "console"
    return "options" if first.startswith("--") else "text"


def read_blocks(page: str) -> list[Block]:
    blocks, before = [], ""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text()):
        if token.type in ("fence", "code_block"):
            found = INCLUDED.search(before)
            kind = "included" if found else kind_of(token.info.strip(), token.content)
            source = " ".join(found.groups()) if found else ""
            assert token.map is not None
            blocks.append(Block(page, token.map[0] + 1, kind, token.content, source))
        before = token.content if token.type == "html_block" else ""
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def commands(text: str) -> list[list[str]]:
    r"""The words of each command.

    >>> commands("a \\\n  'b c'  # d\ne && f")
    [['a', 'b c'], ['e'], ['f']]
    """
    lines = text.replace("\\\n", " ").splitlines()
    parts = [
        part for line in lines for part in " ".join(shlex.split(line, comments=True, posix=False)).split("&&")
    ]
    return [shlex.split(part.strip().removeprefix("$ ")) for part in parts if part.strip()]


def plain(words: list[str]) -> str:
    """A command without the folder that its program lies in."""
    return " ".join([Path(words[0]).name, *words[1:]])


def why_not_run(words: list[str]) -> str | None:
    return next((why for start, why in NOT_RUN.items() if plain(words).startswith(start)), None)


ALL_COMMANDS = [words for block in of_kind("console") for words in commands(block.text)]


# --- nothing is left out


def test_the_pages_are_read():
    assert len(PAGES) > 10
    assert {block.kind for block in BLOCKS} == {"python", "diff", "console", "options", "included", "text"}


def test_what_is_not_code_is_listed():
    assert {block.key for block in of_kind("text")} == set(NOT_CODE)


def test_every_command_is_known():
    for words in ALL_COMMANDS:
        assert Path(words[0]).name == "outgrow" or why_not_run(words), words


def test_the_tables_have_nothing_stale():
    texts = [plain(words) for words in ALL_COMMANDS]
    for text in [*SUBSTITUTIONS, *NOT_RUN]:
        assert any(text in command for command in texts), text
    programs = {words[1] for words in ALL_COMMANDS if Path(words[0]).name == "outgrow"}
    assert programs <= {*QUICK, "demo", "compare", "export", "predict"}
    assert set(BEFORE) <= set(PAGES)


def test_the_tests_that_pages_name_are_there():
    named = [word for words in ALL_COMMANDS for word in words if word.startswith("tests/")]
    assert named
    for word in named:
        assert (ROOT / word).exists(), word


FILES = re.compile(r"`((?:src|tests|docs|benchmarks|examples)/[\w/.-]+)`")
LINKS = re.compile(r"\]\(([^)#:=\s]+)(?:#[^)]*)?\)")


def test_files_that_pages_speak_of_are_there():
    """In code and behind links, in all pages and all cards."""
    pages = [*(ROOT / page for page in PAGES), *(ROOT / "docs" / "methods").glob("*.md")]
    seen = 0
    for page in pages:
        text = page.read_text()
        paths = [ROOT / name for name in FILES.findall(text)]
        paths += [page.parent / name for name in LINKS.findall(text)]
        for path in (path for path in paths if "NAME" not in path.as_posix()):
            assert path.exists(), f"{page.relative_to(ROOT)} speaks of {path}"
        seen += len(paths)
    assert seen > 100


PLACES = re.compile(r"`((?:src|tests)/[\w/.-]+)::(\w+)`")


def test_what_the_page_of_the_paper_names_is_there():
    """Every ``file::name`` of a formula is a function, class or table of that file."""
    places = PLACES.findall((ROOT / "docs/paper.md").read_text())
    assert len(places) > 20
    for file, name in places:
        text = (ROOT / file).read_text()
        assert re.search(rf"^ *(def {name}\(|class {name}\b|{name}: )", text, flags=re.MULTILINE), (
            f"{file}::{name}"
        )


def test_no_merge_is_left_unfinished():
    """In any file that is written by hand: a page shows such lines to its reader."""
    files = [ROOT / page for page in PAGES]
    for folder in ("docs", "results", "src", "tests", "benchmarks", "examples"):
        files += [
            path
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".md", ".rst", ".py", ".html", ".css")
        ]
    assert len(files) > 500
    for path in files:
        found = re.search("^(<{7}|>{7}) .*", path.read_text(), flags=re.MULTILINE)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_the_changelog_and_the_citation_are_of_this_version():
    import importlib.util

    import yaml

    import outgrow

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format asks for
    assert citation["version"] == outgrow.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {outgrow.__version__}" in changelog
    moved = re.findall(r"^\| (`outgrow.*?) \| (.*?) \|$", changelog, flags=re.MULTILINE)
    assert len(moved) > 20
    for _, now in moved:
        first, *others = re.findall(r"`([\w.]+)`", now)
        room = first.rpartition(".")[0]
        for name in [first, *(o if o.startswith("outgrow.") else f"{room}.{o}" for o in others)]:
            assert importlib.util.find_spec(name), name


# --- what is said in words


def test_the_error_about_two_temperatures_is_the_one_that_is_shown():
    import outgrow

    block = next(b for b in of_kind("text") if b.text.startswith("objective: the loss 'kd'"))
    rectify = outgrow.Rectifier("pair", temperature=2.0)
    _, objective = outgrow.preset("paper")
    knowledge = rectify(torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="temperature") as error:
        objective(torch.randn(2, 3), knowledge, torch.tensor([0, 1]), 0.0)
    assert " ".join(block.text.split()) == " ".join(str(error.value).split())


def test_the_detectors_that_are_named_can_be_made():
    from outgrow.detection.families.create import create_detector

    block = next(b for b in of_kind("text") if b.text.startswith("fasterrcnn:"))
    with torch.device("meta"):
        for name in block.text.split():
            create_detector(name, ("cell",))


# --- lines of examples


def part_of(file: str, name: str) -> str:
    """A class or function of a file by its name, or what stands between ``# guide: name`` and ``# guide: end``."""
    text = (ROOT / file).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(text, node) + "\n"
    found = re.search(rf"^ *# guide: {name}\n(.*?)^ *# guide: end$", text, flags=re.DOTALL | re.MULTILINE)
    assert found, f"{file} has no part {name}"
    return textwrap.dedent(found.group(1))


@pytest.mark.parametrize("block", of_kind("included"), ids=lambda block: block.source)
def test_an_included_block_is_the_lines_of_its_file(block):
    assert block.text == part_of(*block.source.split())


def test_every_example_is_shown_or_linked():
    guide = (ROOT / "docs/guide/your-own-loop.md").read_text()
    shown = {block.source.split()[0] for block in of_kind("included")}
    files = [path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(files) == 5
    for path in files:
        assert f"(../../examples/{path.name})" in guide, path
        assert path.suffix == ".ipynb" or f"examples/{path.name}" in shown, path


# --- options


@pytest.mark.parametrize("block", of_kind("options"), ids=lambda block: block.key)
def test_options_make_a_configuration_and_a_method(block, monkeypatch):
    from outgrow.run.distillation import method_of

    seen = []
    monkeypatch.setattr("outgrow.run.distill", lambda config, **_: seen.append(config))
    options = re.findall(r"(--[\w-]+) (.*?)(?=\s+--|\s*$)", block.text, flags=re.MULTILINE)
    assert options
    for name, values in options:
        for value in values.split(" | "):
            base = ["distill", "--data", "digits", "--student", "cifar/resnet8"]
            cli.app([*base, name, *shlex.split(value)], standalone_mode=False)
            rectify, objective = method_of(seen[-1])
            assert rectify.rule.name
            assert objective is not None
    assert seen


# --- both sides of a diff


def sides(text: str) -> tuple[str, str]:
    """The code before and after.

    >>> sides(" a\\n-b\\n+c\\n")
    ('a\\nb\\n', 'a\\nc\\n')
    """
    lines = text.splitlines(keepends=True)
    before, after = ("".join(line[1:] or "\n" for line in lines if line[0] != other) for other in "+-")
    return before, after


@pytest.mark.parametrize("block", of_kind("diff"), ids=lambda block: block.key)
def test_both_sides_of_a_diff_run_and_agree_without_a_correction(block):
    """As it stands it runs; with plain distillation for its preset it has the loss and weights of the loop before."""
    before, after = sides(block.text)
    plainly, count = re.subn(r"outgrow\.preset\([^)]*\)", 'outgrow.preset("kd")', after)
    assert count == 1
    results = []
    for code in (before, after, plainly):
        names = {}
        exec(PRELUDE + code, names)
        results.append((names["loss"].detach(), [p.detach() for p in names["student"].parameters()]))
    (loss, weights), (corrected, _), (same, same_weights) = results
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same_weights, weights, rtol=1e-5, atol=1e-6)
    assert corrected.isfinite()
    assert not torch.allclose(corrected, loss)  # some rows of a random teacher are wrong


# --- a page from top to bottom


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The files that pages speak of: photographs, boxes, weights, a model of one's own."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from outgrow.models import create_model, save_student

    folder = tmp_path_factory.mktemp("desk")
    digits = load_digits()
    for number, name in enumerate(("bird", "dog", "food", "insect", "monkey", "reptile")):
        pictures = digits.images[digits.target == number] * 15
        for i, picture in enumerate(pictures[:19]):
            path = folder / "photos" / ("train" if i < 10 else "val") / name / f"{i}.jpg"
            path = path if i < 15 else folder / "more" / f"{name}{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype("uint8")).convert("RGB").resize((40, 32)).save(path)

    for number, split in enumerate(("train", "val")):
        images = [coco_files.image(10 * number + i) for i in range(2)]
        boxes = [coco_files.annotation(n, entry["id"], [5, 5, 30, 40]) for n, entry in enumerate(images, 1)]
        coco_files.write_json(folder / "bccd" / "annotations" / f"instances_{split}.json", images, boxes)
        coco_files.write_pictures(folder / "bccd" / split, images)

    weights = {"resnet50": "resnet50", "lite0": "tf_efficientnet_lite0"}
    weights |= {"mnv3": "mobilenetv3_small_100", "mnv1": "mobilenetv1_025_128"}
    torch.manual_seed(0)
    for file, name in weights.items():
        save_student(create_model(f"timm/{name}", 1000), folder / f"{file}.safetensors")

    lines = [
        "teacher,data",
        "golden retriever,dog",
        "n02085620,dog",
        '"robin, American robin, Turdus migratorius",bird',
        *("cheeseburger,food", "bee,insect", "howler monkey,monkey", "box turtle,reptile"),
    ]
    (folder / "kinds.csv").write_text("\n".join(lines))
    (folder / "net.py").write_text(
        "from torch import nn\n\n\ndef small(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(8, num_classes))\n"
    )
    return folder


def run_command(words: list[str]) -> None:
    text = shlex.join(words[1:])
    for shown, used in SUBSTITUTIONS.items():
        text = text.replace(shown, used)
    text = f"{text} {QUICK[words[1]]}"
    if words[1] in ("distill", "tune") and "coco:" not in text:
        text = f"{text} {SMALL}"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a command says them in a line: a head that is replaced, two test images
        cli.app(shlex.split(text), standalone_mode=False)


@pytest.mark.parametrize(
    "page", sorted({block.page for block in BLOCKS if block.kind in ("python", "console")})
)
def test_a_page_runs_from_top_to_bottom(page, desk, tmp_path, monkeypatch):
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    exec(PRELUDE, names)
    for command in BEFORE.get(page, []):
        run_command(shlex.split(command))
    for block in (block for block in BLOCKS if block.page == page):
        if block.kind == "python":
            exec(compile(block.text, f"{page}, from line {block.line}", "exec"), names)
        elif block.kind == "console":
            for words in commands(block.text):
                if not why_not_run(words):
                    run_command(words)


@pytest.mark.parametrize(
    "words", [w for w in ALL_COMMANDS if Path(w[0]).name == "outgrow" and why_not_run(w)], ids=plain
)
def test_a_command_that_is_not_run_is_parsed(words):
    from typer.main import get_command

    command = get_command(cli.app).commands[words[1]]
    command.make_context(words[1], words[2:])
