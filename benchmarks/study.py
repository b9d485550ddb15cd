"""The study of results/study.md: regimes of teachers x methods x seeds, at a long and a short budget.

    python -m benchmarks.study prepare --cifar100 DIR --weights FILE --out OUT   # splits, teachers
    python -m benchmarks.study train --out OUT [--epochs 216] [--seeds 0 1 2] [--regimes weak biased] [--methods kd outgrow]
    python -m benchmarks.study train --out OUT --few [--unlabelled 0 20000] [--student cifar/resnet20] ...
    python -m benchmarks.study train --out OUT --epochs 648 --seeds 0 --regimes     # students alone, three times as long
    python -m benchmarks.study table --out OUT       # or of the committed runs: --out results/records/study
    python -m benchmarks.study page                  # writes the tables of the committed runs into results/study.md

CIFAR-100's 20 coarse classes, cut once into parts that share no image:

    student      10,000 images, of which a seed draws 5,000
    teacher      20,000, on which teachers are trained
    unlabelled   20,000, without labels

A student, ResNet-8, takes steps of 64 images for 216 epochs (17,000 steps), or for 72 (5,700). The teachers:

    strong    ResNet-20 on all 20,000
    weak      ResNet-8 on 5,000 of them
    biased    the strong one, with a head that was fitted on labels of which 45 % are the next class
    memorised ResNet-20 on the 10,000 images of which the students have some
    foreign   MobileNetV1 0.25 with the ImageNet weights of ``--weights``, on images enlarged to 128 pixels
    noisy     the strong one; of the labels of its students 20 % are wrong
    second    the student of ``outgrow, weight 4, unlabelled`` from the biased teacher (with ``--few``)

With ``--few`` a student has 500 labels and 2,500 steps (``--steps``), and each method runs with and without the unlabelled
images, which are then three quarters of a batch. ``--unlabelled 500 2500`` takes so many of them instead.

All methods of a seed have the same rows, views, initial student and teacher. Finished runs are kept, so a study that
was interrupted continues. Convergence is checked with students alone at three times the budget.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from textwrap import indent
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from benchmarks.records import slug
from outgrow.classification.data import eval_loader
from outgrow.data import open_data
from outgrow.models import create_model, save_student
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.report import formats
from outgrow.report.statistics import contrasts
from outgrow.report.table import Records, compare, scores_of
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import TrainConfig, merge
from outgrow.training.progress import make_reporter
from outgrow.training.record import read_record

Layer = dict[str, Any]

PAGE = Path(__file__).resolve().parents[1] / "results" / "study.md"
RECORDS = PAGE.parent / "records" / "study"
EPOCHS = 216
"""Of a student."""
SHORT = 72
"""Of a student at the short budget, and of the weak teacher."""
ROWS = 5_000
FEW = 500
FEW_STEPS = 2_500
LONG_STEPS = (7_500, 22_500)
"""To see whether ``FEW_STEPS`` are enough."""
SHARE = 0.75
"""Of unlabelled images in a batch."""
AMOUNTS = (500, 2_500, 10_000, 20_000)
"""Of unlabelled images in the tables, the last being all."""
PARTS = {"student": 10_000, "teacher": 20_000, "unlabelled": 20_000}
TEACHERS: dict[str, Layer] = {
    "strong": {"student": {"name": "cifar/resnet20"}, "train": {"epochs": 40, "batch_size": 128}},
    "weak": {"student": {"name": "cifar/resnet8"}, "data": {"train_rows": ROWS}, "train": {"epochs": SHORT}},
    "memorised": {"student": {"name": "cifar/resnet20"}, "train": {"epochs": 48, "batch_size": 128}},
}
MODELS = {
    "strong": "cifar/resnet20",
    "weak": "cifar/resnet8",
    "biased": "cifar/resnet20",
    "memorised": "cifar/resnet20",
    "foreign": "timm/mobilenetv1_025_128",
    "noisy": "cifar/resnet20",
    "second": "cifar/resnet8",
}
"""Of the teacher of each regime."""
SECOND_OF = ("few-biased", "outgrow, weight 4, unlabelled")
FLIPPED = 0.45
WRONG = 0.2
"""Of the labels in the regime ``noisy``."""
STUDENT = "cifar/resnet8"
METHODS: dict[str, Layer] = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd"},
    "outgrow": {"preset": "outgrow"},
    "pair": {"preset": "kd", "rule": "pair"},
    "paper": {"preset": "paper"},
    "kd, weight 0.5": {"preset": "kd", "weight": 0.5},
    "kd, weight 2": {"preset": "kd", "weight": 2.0},
    "kd, weight 4": {"preset": "kd", "weight": 4.0},
    "outgrow, weight 2": {"preset": "outgrow", "weight": 2.0},
    "outgrow, weight 4": {"preset": "outgrow", "weight": 4.0},
    "outgrow + pair": {"preset": "outgrow", "rule": "pair"},
    "standardize": {"preset": "kd", "loss": "9*standardize"},
    "outgrow + standardize": {"preset": "outgrow", "loss": "9*standardize"},
    "dkd": {"preset": "kd", "loss": "dkd"},
    "outgrow + dkd": {"preset": "outgrow", "loss": "dkd"},
    "features": {"preset": "kd", "loss": "kd + 100*fitnet"},
    "outgrow + features": {"preset": "outgrow", "loss": "kd + 100*fitnet"},
    "swap": {"preset": "kd", "rule": "swap"},
    "project": {"preset": "kd", "rule": "project"},
    "drop": {"preset": "drop"},
    "released": {"preset": "released"},
    "pair, weight 4": {"preset": "kd", "rule": "pair", "weight": 4.0},
    "outgrow + pair, weight 4": {"preset": "outgrow", "rule": "pair", "weight": 4.0},
    "swap, weight 4": {"preset": "kd", "rule": "swap", "weight": 4.0},
    "project, weight 4": {"preset": "kd", "rule": "project", "weight": 4.0},
    "drop, weight 4": {"preset": "drop", "weight": 4.0},
    "features, weight 4": {"preset": "kd", "loss": "kd + 25*fitnet", "weight": 4.0},
    "outgrow + features, weight 4": {"preset": "outgrow", "loss": "kd + 25*fitnet", "weight": 4.0},
    "slam": {"preset": "kd", "loss": "slam"},
    "slam, weight 4": {"preset": "kd", "loss": "slam", "weight": 4.0},
    "outgrow + slam": {"preset": "outgrow", "loss": "slam"},
    "outgrow + slam, weight 4": {"preset": "outgrow", "loss": "slam", "weight": 4.0},
    "semiparametric": {"preset": "kd", "loss": "semiparametric"},
    "semiparametric, weight 4": {"preset": "kd", "loss": "semiparametric", "weight": 4.0},
    "outgrow + semiparametric, weight 4": {"preset": "outgrow", "loss": "semiparametric", "weight": 4.0},
    "ppi, weight 0.1": {"preset": "kd", "loss": "ppi", "weight": 0.1},
    "outgrow, trust, weight 4": {"preset": "outgrow", "trust": "reliability", "weight": 4.0},
    # with labels that look wrong, else the same as `outgrow`
    "outgrow, label as task": {"preset": "outgrow", "task": "label"},
    "outgrow, label as task, weight 4": {"preset": "outgrow", "task": "label", "weight": 4.0},
    "posterior, weight 4": {"preset": "outgrow", "rule": "posterior", "task": "label", "weight": 4.0},
    "posterior as task, weight 4": {
        "preset": "outgrow",
        "rule": "posterior",
        "task": "posterior",
        "weight": 4.0,
    },
    # the paper's loss, one factor at a time
    "paper: constant": {"preset": "paper", "schedule": "constant"},
    "paper: only drops": {"preset": "drop", "normalize": "subset"},
    "paper: only corrects": {"preset": "kd", "rule": "pair", "normalize": "subset"},
    "paper: only schedule": {"preset": "paper", "rule": "identity"},
    "paper: by rows": {"preset": "paper", "normalize": "rows"},
    "paper: task stays": {"preset": "paper", "schedule": "linear_keep"},
}


PUBLISHED_FEW = (
    "kd, weight 4, unlabelled",
    "pair, weight 4, unlabelled",
    "swap, weight 4, unlabelled",
    "project, weight 4, unlabelled",
    "drop, weight 4, unlabelled",
    "standardize, unlabelled",
    "slam, weight 4, unlabelled",
    "semiparametric, weight 4, unlabelled",
    "paper, unlabelled",
)
PUBLISHED = ("kd", "pair", "swap", "project", "drop", "standardize", "paper")
"""Ours is compared with them. A foreign teacher is mapped to the students' classes under every method, so there plain KD is ours."""
CONTRASTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "published": (
        "few-biased",
        [("outgrow, weight 4, unlabelled", name) for name in PUBLISHED_FEW],
    ),
    "published, 5,000 labels": (f"biased-{SHORT}", [("outgrow", name) for name in PUBLISHED]),
    "losses": (
        f"biased-{SHORT}",
        [("outgrow", "kd")]
        + [(f"outgrow + {name}", name) for name in ("pair", "standardize", "dkd", "features")],
    ),
    "parts": (
        f"biased-{SHORT}",
        [
            ("paper", "paper: only schedule"),
            ("paper: only corrects", "paper"),
            ("paper: task stays", "paper"),
            ("paper: by rows", "paper"),
        ],
    ),
}
"""Pairs of methods of a regime by the name of their block on the page. The intervals of a block hold together: each block is one
question."""
OTHERS = (
    "outgrow + pair",
    "standardize",
    "outgrow + standardize",
    "dkd",
    "outgrow + dkd",
    "features",
    "outgrow + features",
    "swap",
    "project",
    "drop",
)
"""Rules and losses that were tried with 5,000 labels: three seeds under the biased teacher, one under the others."""
FACTORS = ("released", *(name for name in METHODS if name.startswith("paper: ")))


def base_of(out: Path, part: str = "student", epochs: int = SHORT, student: str = STUDENT) -> Layer:
    own = {
        "recipe": "cifar100-small",
        "data": {
            "source": f"parquet:{out / 'data' / part}",
            "label": "coarse_label",
            "train_rows": ROWS,
            "val_fraction": 0.0,
            "workers": 0,
        },
        "teacher": {"name": "none", "train": False},
        "student": {"name": student},
        "train": {"epochs": epochs, "eval_every": epochs // 3},
    }
    return merge(RECIPES["cifar100-small"].layer, own)


def part_of(regime: str) -> str:
    return "noisy" if regime == "noisy" else "student"


def prepare(cifar100: Path, out: Path, weights: Path | None) -> None:
    """Cut the data, and train the teachers. ``weights`` is the file of the foreign one, None for none."""
    train = pa.concat_tables(pq.read_table(file) for file in sorted(cifar100.glob("**/train-*.parquet")))
    test = pa.concat_tables(pq.read_table(file) for file in sorted(cifar100.glob("**/test-*.parquet")))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2026))
    for part, rows in zip(PARTS, order.split(list(PARTS.values())), strict=True):
        folder = out / "data" / part
        folder.mkdir(parents=True, exist_ok=True)
        table = train.take(pa.array(rows.sort().values.numpy()))
        if part == "unlabelled":
            table = table.drop_columns(["fine_label", "coarse_label"])
        else:
            pq.write_table(test, folder / "test-00000-of-00001.parquet")
        pq.write_table(table, folder / "train-00000-of-00001.parquet")
    spoil(out)
    for name, layer in TEACHERS.items():
        part = "student" if name == "memorised" else "teacher"
        layer = merge(base_of(out, part), {"data": {"train_rows": None}}, layer)
        layer["train"]["eval_every"] = layer["train"]["epochs"]
        run_study(layer, {name: METHODS["none"]}, [100], out=out / "teachers", reporter=make_reporter())
    bias(out)
    if weights is not None:
        foreign = weights_of(out, "foreign")
        foreign.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, foreign)


def weights_of(out: Path, regime: str, seed: int = 0) -> Path:
    if regime == "second":
        return out.joinpath(*SECOND_OF) / f"seed{seed}" / "student.safetensors"
    return out / "teachers" / ("strong" if regime == "noisy" else regime) / "seed100" / "student.safetensors"


def spoil(out: Path) -> None:
    """Copy the students' images with a share ``WRONG`` of the training labels replaced by any other class."""
    source, folder = out / "data" / "student", out / "data" / "noisy"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "test-00000-of-00001.parquet", folder)
    table = pq.read_table(source / "train-00000-of-00001.parquet")
    place = table.column_names.index("coarse_label")
    labels = torch.tensor(table["coarse_label"].to_pylist())
    generator = torch.Generator().manual_seed(1)
    classes = int(labels.max()) + 1
    others = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    labels = torch.where(torch.rand(len(labels), generator=generator) < WRONG, others, labels)
    table = table.set_column(
        place, table.schema.field(place), pa.array(labels.numpy(), table.schema.types[place])
    )
    pq.write_table(table, folder / "train-00000-of-00001.parquet")


def bias(out: Path) -> None:
    """Fit the strong teacher's head anew on labels of which a share ``FLIPPED`` is the next class."""
    data = open_data(base_of(out, "teacher")["data"]["source"], label="coarse_label")
    network = create_model(MODELS["strong"], classes=data.classes, weights=weights_of(out, "strong"))
    assert data.train is not None
    tapped = Taps(network.eval(), (PENULTIMATE,))
    features = []
    with torch.no_grad():
        for batch in eval_loader(
            data.train, network, TrainConfig(batch_size=256), torch.device("cpu"), 0
        ).epoch(0):
            features.append(tapped(batch.images).features[PENULTIMATE])
    x, y = torch.cat(features), data.train.labels
    generator = torch.Generator().manual_seed(0)
    head = network.net.get_submodule("fc")
    y = torch.where(torch.rand(len(y), generator=generator) < FLIPPED, (y + 1) % data.num_classes, y)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(30):
        for rows in torch.randperm(len(y), generator=generator).split(512):
            loss = F.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    file = weights_of(out, "biased")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_student(network, file)


def teacher_of(out: Path, regime: str, seed: int, cache: str | None) -> Layer:
    where = None if cache is None else str(out / "cache" / cache)
    return {
        "teacher": {"name": MODELS[regime], "weights": str(weights_of(out, regime, seed)), "cache": where},
        # the views of the student, whatever the teacher makes of them
        "data": {"size": 32} if regime == "foreign" else {},
    }


def train(out: Path, regime: str, methods: Mapping[str, Layer], seed: int, epochs: int, student: str) -> None:
    base = base_of(out, part_of(regime), epochs, student)
    folder = out / f"{regime}-{epochs}{_size(student)}"
    if regime != "alone":
        train_alone(base, folder, seed, regime)
        base = merge(base, teacher_of(out, regime, seed, f"{regime}-seed{seed}"))
    _run(base, methods, seed, folder)


def train_alone(base: Layer, folder: Path, seed: int, regime: str) -> None:
    """The null of a regime that has labels of its own."""
    if regime == "noisy":
        run_study(base, {"none": METHODS["none"]}, [seed], out=folder, reporter=make_reporter())


def train_few(
    out: Path,
    regime: str,
    methods: Mapping[str, Layer],
    seed: int,
    amounts: Sequence[int],
    steps: int,
    student: str,
) -> None:
    """500 labels; each method with a teacher also with unlabelled images, in as many steps of as many images."""
    base = merge(base_of(out, part_of(regime), student=student), {"data": {"train_rows": FEW}})
    batch = base["train"]["batch_size"]
    alone = {"train": _steps(steps, FEW, batch)}
    folder = out / f"few-{regime}{'' if steps == FEW_STEPS else f'-{steps}'}{_size(student)}"
    layers: dict[str, Layer] = {}
    if regime == "alone":
        layers[""] = alone
    else:
        train_alone(merge(base, alone), folder, seed, regime)
        training = _steps(steps, FEW, batch - round(batch * SHARE))
        for amount in amounts:
            own = alone
            if amount:
                data = {"unlabelled": f"parquet:{_some(out, amount)}", "unlabelled_share": SHARE}
                own = {"data": data, "train": training}
            cache = f"few-{regime}-{amount}-seed{seed}" if amount == PARTS["unlabelled"] else None
            layers[_suffix(amount)] = merge(own, teacher_of(out, regime, seed, cache))
    for suffix, layer in layers.items():
        named = {f"{name}{suffix}": method for name, method in methods.items()}
        _run(merge(base, layer), named, seed, folder)


def _run(base: Layer, methods: Mapping[str, Layer], seed: int, folder: Path) -> None:
    """Without the cache where a loss reads features: those of all views would fill the disk."""
    for name, method in methods.items():
        layer = merge(base, {"teacher": {"cache": None}}) if "fitnet" in str(method.get("loss")) else base
        run_study(layer, {name: method}, [seed], out=folder, reporter=make_reporter())


def _size(student: str) -> str:
    return "" if student == STUDENT else f"-{student.partition('/')[2]}"


def _suffix(amount: int) -> str:
    if not amount:
        return ""
    return ", unlabelled" if amount == PARTS["unlabelled"] else f", {amount:,} unlabelled"


def _order() -> list[str]:
    """The names of all methods with all amounts of unlabelled images, as tables list them."""
    return [f"{name}{_suffix(amount)}" for amount in (0, *AMOUNTS) for name in METHODS]


def _some(out: Path, amount: int) -> Path:
    """The folder with so many of the unlabelled images."""
    whole = out / "data" / "unlabelled"
    if amount == PARTS["unlabelled"]:
        return whole
    folder = out / "data" / f"unlabelled-{amount}"
    if not folder.is_dir():
        table = pq.read_table(whole).slice(0, amount)  # CIFAR-100 is in random order
        folder.mkdir()
        pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


def _steps(steps: int, rows: int, batch: int) -> Layer:
    """Epochs for so many steps."""
    epochs = round(steps / -(-rows // batch))
    return {"epochs": epochs, "eval_every": epochs}


@dataclass(frozen=True)
class Question:
    """One group of tables: the names of its regimes, the methods that it is about, and those that stand beside them."""

    regimes: str
    methods: Sequence[str]
    beside: Sequence[str] = ()


def groups_of_tables() -> dict[str, Question]:
    """The groups. Each answers its own question, so each is corrected by itself."""
    short, everything = f"5,000 labels, {SHORT} epochs", _order()
    main = [name for name in everything if name not in (*OTHERS, *FACTORS)]
    return {
        f"5,000 labels, {EPOCHS} epochs": Question(f"{{}}-{EPOCHS}", everything),
        short: Question(f"{{}}-{SHORT}", main),
        f"{short}: other rules and losses": Question(f"{{}}-{SHORT}", OTHERS, ("none", "kd", "outgrow")),
        f"{short}: the paper's loss in parts": Question(
            f"{{}}-{SHORT}", FACTORS, ("none", "kd", "outgrow", "paper")
        ),
        "500 labels": Question("few-{}", everything),
        **{f"500 labels, {steps:,} steps": Question(f"few-{{}}-{steps}", everything) for steps in LONG_STEPS},
        "500 labels, a ResNet-20 as student": Question("few-{}-resnet20", everything),
    }


Group = dict[str, Records]
"""Records by regime, of regimes whose intervals are widened together."""


def read_runs(out: Path) -> dict[str, Records]:
    """Finished runs by regime and method.

    ``out`` is the folder of a study, or of its records as :mod:`benchmarks.records` copies them.
    """
    names = {slug(name): name for name in _order()}
    runs = [(file.parent, file) for file in out.glob("*/*/seed*/record.json")]
    runs += [(file.with_suffix(""), file) for file in out.glob("*/*/seed*.json")]
    found: dict[str, Records] = {}
    for run, file in sorted(runs, key=lambda found: int(found[0].name[4:])):
        regime, method = run.parts[-3:-1]
        found.setdefault(regime, {}).setdefault(names.get(slug(method), method), []).append(read_record(file))
    return found


def collect(found: Mapping[str, Records]) -> dict[str, Group]:
    """``found`` by group, regime and method; the student alone stands beside each."""
    groups: dict[str, Group] = {}
    for title, question in groups_of_tables().items():
        names = {*question.methods, *question.beside}
        for regime in (question.regimes.format(name) for name in MODELS):
            if found.get(regime, {}).keys() & {*question.methods}:
                both = {**found.get(question.regimes.format("alone"), {}), **found[regime]}
                records = {name: both[name] for name in _order() if name in both and name in names}
                groups.setdefault(title, {})[regime] = records
    return groups


def overview(group: Group) -> str:
    """Mean top-1 of every method under every teacher; in brackets the number of seeds."""
    methods = {name for records in group.values() for name in records}
    head = ["", *(regime.removeprefix("few-").partition("-")[0] for regime in group)]
    lines = [head, ["---", *("---:" for _ in group)]]
    for name in (name for name in _order() if name in methods):
        scores = [[run.student_score for run in records.get(name, [])] for records in group.values()]
        lines.append([name, *(f"{fmean(found):.1f} ({len(found)})" if found else "" for found in scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_seed(found: Mapping[str, Records]) -> str:
    """Top-1 of seed 0, which all rules and losses have been run with: 5,000 labels, :data:`SHORT` epochs."""
    alone = found.get(f"alone-{SHORT}", {})
    regimes = {name: {**alone, **found[f"{name}-{SHORT}"]} for name in MODELS if f"{name}-{SHORT}" in found}
    methods = [name for name in _order() if name in ("none", "kd", "outgrow", "pair", *OTHERS)]
    lines = [["", *regimes], ["---", *("---:" for _ in regimes)]]
    for name in methods:
        scores = [
            [f"{run.student_score:.1f}" for run in records.get(name, []) if run.config.seed == 0]
            for records in regimes.values()
        ]
        lines.append([name, *("".join(score) for score in scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def contrast(found: Mapping[str, Records], block: str) -> str:
    """The pairs of a block of :data:`CONTRASTS` that have been run, on the same teachers and seeds; intervals hold for all lines
    together."""
    regime, pairs = CONTRASTS[block]
    runs = found.get(regime, {})
    known = [(one, other) for one, other in pairs if one in runs and other in runs]
    differences = contrasts("", [scores_of(runs[one], runs[other]) for one, other in known])
    first = max((len(one) for one, _ in known), default=0)
    wide = max((len(other) for _, other in known), default=0) + 2
    lines = []
    for (one, other), difference in zip(known, differences, strict=True):
        p = "" if difference.p_holm is None else f"  p {formats.p_value(difference.p_holm)}"
        count = difference.together.n
        seeds = "" if count == 1 else f"  {count} seeds"
        lines.append(f"{one:{first}} over {other:{wide}}{difference.together}{seeds}{p}")
    return "\n".join(lines)


def table(out: Path) -> str:
    found = read_runs(out)
    blocks = [
        f"# {title}\n\n{overview(group)}\n\n{formats.text(compare(group))}"
        for title, group in collect(found).items()
    ]
    blocks += [f"# {block}\n\n{lines}" for block in CONTRASTS if (lines := contrast(found, block))]
    return "\n\n".join(blocks)


def blocks_of_page(records: Path) -> dict[str, str]:
    """What the page has from the records, by the name of the comments around it."""
    found = read_runs(records)
    groups = collect(found)
    return {
        "means": "\n\n".join(f"### {title}\n\n{overview(group)}" for title, group in groups.items()),
        **{block: indent(contrast(found, block), "    ") for block in CONTRASTS},
        "first seed": first_seed(found),
        "tables": "\n\n".join(
            f"### {title}\n\n{indent(formats.text(compare(group)), '    ')}"
            for title, group in groups.items()
        ),
    }


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """``page`` with the text between ``<!-- name -->`` and ``<!-- end of name -->`` replaced.

    >>> fill("<!-- a -->old<!-- end of a -->.", {"a": "new"})
    '<!-- a -->\\n\\nnew\\n\\n<!-- end of a -->.'
    """
    for name, block in blocks.items():
        head, tail = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(head)
        _, closed, after = rest.partition(tail)
        if not (found and closed):
            raise ValueError(f"{PAGE}: needs {head} and {tail}")
        page = f"{before}{head}\n\n{block}\n\n{tail}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["prepare", "train", "table", "page"])
    parser.add_argument("--out", type=Path, help="folder of the study; for a page, of its records")
    parser.add_argument("--cifar100", type=Path, help="folder of the train-* and test-*.parquet of CIFAR-100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=Path, help="file of MobileNetV1 0.25 with ImageNet weights")
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--steps", type=int, default=FEW_STEPS, help="with --few")
    parser.add_argument("--regimes", nargs="*", default=["strong", "weak", "biased"], choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=["kd", "outgrow", "pair", "paper"], choices=METHODS)
    parser.add_argument("--few", action="store_true", help="500 labels, with and without unlabelled images")
    parser.add_argument("--unlabelled", type=int, nargs="+", default=[0, AMOUNTS[-1]], choices=(0, *AMOUNTS))
    args = parser.parse_args()
    if args.out is None and args.step != "page":
        parser.error(f"{args.step} needs --out")
    none = {"none": METHODS["none"]}
    if args.step == "prepare":
        prepare(args.cifar100, args.out, args.weights)
    elif args.step == "table":
        print(table(args.out))
    elif args.step == "page":
        blocks = blocks_of_page(args.out or RECORDS)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    else:
        step = partial(train, epochs=args.epochs)
        if args.few:
            step = partial(train_few, amounts=args.unlabelled, steps=args.steps)
        step = partial(step, student=args.student)
        for seed in args.seeds:
            step(args.out, "alone", none, seed)
            for regime in args.regimes:
                step(args.out, regime, {name: METHODS[name] for name in args.methods}, seed)


if __name__ == "__main__":
    main()
