"""Audits of constructed teachers, whose faults are known: each gets the verdict that it deserves."""

import csv
import shlex
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from outgrow.classification.audit import label_errors
from outgrow.classification.audit.audit import choose_rows
from outgrow.classification.audit.label_errors import find_label_errors
from outgrow.classification.audit.normalisation import map_out_of_fold
from outgrow.classification.data import open_run_data
from outgrow.run.audit import audit_teacher, options
from outgrow.training.audit import read_audit
from outgrow.training.config import assignments, build_config
from tests.report.reading import Page

CLASSES = ("<b>bee", "ant", "cat", "dog", "eel")  # sorted, as folders are; one with a tag in it
NUM = {"train": 100, "val": 40, "test": 4}
PLAIN = {"crop_padding": 0, "flip": False}


class Table(nn.Module):
    """A teacher by heart: a picture's colour is its number, and the table has its logits."""

    def __init__(self, logits, mean=0.0, std=1.0):
        super().__init__()
        self.register_buffer("logits", logits)
        self.mean, self.std = mean, std
        self.head = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, images):
        pixels = ((images * self.std + self.mean)[:, :, 0, 0] * 255).round().clamp(0, 255).long()
        return self.head(self.logits[(pixels[:, 0] * 256 + pixels[:, 1]) % len(self.logits)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of pictures whose labels are drawn from calibrated beliefs; the beliefs, and the label of each picture."""
    root = tmp_path_factory.mktemp("world")
    generator = torch.Generator().manual_seed(0)
    label, beliefs, number, split_of = [], [], 0, []
    for split, count in NUM.items():
        for place, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                # numbers spread over both colours, so that another normalisation reads another row
                colour = (number // 4, 64 * (number % 4), 7)
                Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(folder / f"{k:03d}.png")
                label.append(place)
                split_of.append(split)
                number += 1
    label = torch.tensor(label)
    # calibrated: a belief of 0.8 in the top class, which is the label for 80 % of the pictures
    sure = torch.rand(len(label), generator=generator) < 0.8
    other = (label + torch.randint(1, 5, (len(label),), generator=generator)) % 5
    top = torch.where(sure, label, other)
    beliefs = torch.full((len(label), 5), 0.05)
    beliefs[torch.arange(len(label)), top] = 0.8
    return root, beliefs.log(), label, split_of


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def by_picture(world, logits):
    """The table of :class:`Table` for logits in the order of the pictures."""
    table = torch.zeros(256 * 256, 5)
    number = torch.arange(len(logits))
    table[(number // 4) * 256 + 64 * (number % 4)] = logits
    return table


def audit(world, logits, out=None, rows=2000, mean=0.0, std=1.0, **layer):
    data = {"source": f"folder:{world[0]}", "workers": 0, "augment": PLAIN}
    config = {"data": data, **layer, **({} if out is None else {"out": str(out)})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes by position
        return audit_teacher(config, rows=rows, teacher=Table(by_picture(world, logits), mean, std))


def kinds(record):
    return [one.kind for one in record.verdicts]


def test_an_honest_teacher_is_good(world):
    record = audit(world, world[1])
    assert kinds(record)[0] == "good"
    numbers = record.classification
    assert numbers.held_out_from == "validation"
    assert numbers.held_out.raw.top1.rows == 200
    assert numbers.training.raw.top1.rows == 500
    assert numbers.training.corrected is None
    assert not numbers.memorised
    assert numbers.held_out.raw.ece < 6
    assert not any(one.better for one in numbers.normalisations)
    assert "--preset kd" in record.verdicts[0].command
    # a cat taken for a dog as often as for an eel: everything that it says of an image is in the table
    right = int((world[1][:500].argmax(1) == world[2][:500]).sum())
    assert numbers.training.raw.top1.right == right
    by_rule = {one.name: one for one in numbers.rules}
    assert by_rule["swap"].changed == pytest.approx(100 * (500 - right) / 500)


def test_a_last_batch_of_one_image(world):
    """Training leaves it out, for its batch norms; what looks at a teacher does not."""
    numbers = audit(world, world[1], rows=65).classification
    assert numbers.training.raw.top1.rows == 65
    assert numbers.label_errors.found == 0
    assert numbers.label_errors.rows == 65


def test_a_biased_teacher_is_corrected(world):
    confused = world[1][:, [1, 0, 2, 4, 3]]  # ants and bees, dogs and eels are exchanged
    record = audit(world, confused)
    assert kinds(record)[0] in ("order", "biased")
    assert "biased" in kinds(record)
    numbers = record.classification
    assert numbers.training.corrected.top1.accuracy > numbers.training.raw.top1.accuracy + 20
    assert numbers.held_out.corrected.top1.accuracy > numbers.held_out.raw.top1.accuracy + 20
    assert numbers.training.p < 1e-6
    assert numbers.rules_raw is not None


def test_bias_from_wrong_labels_of_one_class_is_called_that(world):
    flipped = world[1].clone()
    flipped[:, 3] += 3.5  # dogs everywhere
    record = audit(world, flipped)
    assert kinds(record)[0] == "biased"
    assert "--preset outgrow" in record.verdicts[0].command


def test_a_memorised_teacher_is_found_out(world):
    logits = world[1].clone()
    train = torch.tensor([split == "train" for split in world[3]])
    logits[train] = 9.0 * torch.eye(5)[world[2][train]]
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2))
    logits[~train] = torch.where(
        torch.rand(len(logits), 1, generator=torch.Generator().manual_seed(3)) < 0.5, noise, logits
    )[~train]
    record = audit(world, logits)
    assert kinds(record)[0] == "memorised"
    assert record.classification.memory_p < 1e-6
    assert record.classification.label_errors.found is None
    assert "memorised" in record.classification.label_errors.how


def test_wrong_normalisation_comes_before_everything(world):
    record = audit(world, world[1], mean=0.5, std=0.5)
    assert kinds(record) == ["normalisation"]
    better = next(one for one in record.classification.normalisations if one.better)
    assert better.name == "0.5"
    assert "'teacher.mean=[0.5, 0.5, 0.5]'" in record.verdicts[0].command
    assert "'teacher.std=[0.5, 0.5, 0.5]'" in record.verdicts[0].command
    assert record.classification.label_errors.found is None
    again = audit(world, world[1], mean=0.5, std=0.5, teacher={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert kinds(again)[0] == "good"


def test_always_the_first_class_is_no_better_normalisation(world):
    """Pictures of a folder are sorted by class: the first ones are all of one."""
    constant = torch.zeros(len(world[1]), 5)
    constant[:, 0] = 1
    noise = torch.randn(len(world[1]), 5, generator=torch.Generator().manual_seed(4))
    for logits in (constant, noise):
        assert kinds(audit(world, logits))[0] == "below_majority"


def test_a_teacher_that_knows_nothing(world):
    logits = torch.randn(len(world[1]), 5, generator=torch.Generator().manual_seed(1))
    record = audit(world, logits)
    assert kinds(record)[0] == "below_majority"
    assert "--preset none" in record.verdicts[0].command
    assert record.classification.label_errors.found is None


def test_right_nearly_everywhere_leaves_rules_nothing(world):
    record = audit(world, 3.0 * torch.eye(5)[world[2]])
    assert kinds(record)[0] == "nothing_to_correct"
    assert "no rule for rows can matter" in record.verdicts[0].text


def test_few_images_are_said(world):
    record = audit(
        world,
        world[1],
        data={"source": f"folder:{world[0]}", "workers": 0, "augment": PLAIN, "train_rows": 100},
    )
    assert "few_labels" in kinds(record)
    assert record.data.train == 100


@pytest.mark.parametrize("more", [None, "folder:more"])
def test_images_without_labels_are_not_measured_but_are_known(world, more):
    """Nor are they read. Commands to go on with have all options of the training."""
    data = {"source": f"folder:{world[0]}", "workers": 0, "train_rows": 100, "unlabelled": more}
    record = audit(world, world[1], data={**data, "augment": {**PLAIN, "mixup": 0.2}})
    few = [one for one in record.verdicts if one.kind == "few_labels"]
    command = record.verdicts[0].command
    assert "outgrow distill" in command
    assert "--set data.augment.mixup=0.2" in command
    if more is None:
        assert few[0].text.startswith("All images are labelled and few")
        assert "--unlabelled SRC" in few[0].command
        assert "data.unlabelled" not in command
    else:
        assert not few
        assert """--set 'data.unlabelled="folder:more"'""" in command
    parsed = build_config(assignments([w for w in shlex.split(command) if w.startswith("data.")]))
    assert parsed.data.unlabelled == more


def test_other_classes_are_mapped(world):
    six = torch.cat([world[1], world[1][:, :1] - 1], dim=1)[:, [5, 4, 3, 2, 1, 0]]
    table = torch.zeros(256 * 256, 6)
    number = torch.arange(len(six))
    table[(number // 4) * 256 + 64 * (number % 4)] = six
    data = {"source": f"folder:{world[0]}", "workers": 0, "augment": PLAIN}
    from outgrow.classification.data import PLAIN as SPEC
    from outgrow.models import Network

    network = Network(Table(table), name="six", num_classes=6, input_spec=SPEC)
    record = audit_teacher({"data": data}, teacher=network)
    assert kinds(record)[0] == "mapped"
    numbers = record.classification
    assert numbers.training.raw is None
    assert numbers.training.corrected.top1.accuracy > 70
    assert numbers.memory_p is None
    assert all(one.before is None for one in numbers.wrong)


def test_a_map_from_other_classes_is_judged_out_of_fold():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (400,), generator=generator)
    own = 2 * label + torch.randint(2, (400,), generator=generator)  # two of eight classes for each of four
    logits = 3.0 * torch.eye(8)[own] + torch.randn(400, 8, generator=generator)
    assert (map_out_of_fold(logits, label, 4) == label).float().mean() > 0.8
    noise = torch.randn(400, 1000, generator=generator)  # more inputs than rows: in fold all would be right
    assert (map_out_of_fold(noise, label, 4) == label).float().mean() < 0.35


def test_rows_bound_the_work(world):
    record = audit(world, world[1], rows=60)
    assert record.classification.training.raw.top1.rows == 60
    assert record.classification.held_out.raw.top1.rows == 60


# --- which rows


def opened(world, **data):
    return open_run_data(build_config({"data": {"source": f"folder:{world[0]}", "workers": 0, **data}}))


def test_the_test_images_are_never_looked_at(world, tmp_path):
    """Neither where there are validation images, nor where there are none, nor where nothing names a split."""
    for name, splits in (
        ("both", ("train", "val", "test")),
        ("no-val", ("train", "test")),
        ("flat", ("train",)),
    ):
        root = tmp_path / name
        root.mkdir()
        for split in splits:
            (root / (split if name != "flat" else "x")).symlink_to(world[0] / split)
        source = f"folder:{root / 'x' if name == 'flat' else root}"
        config = build_config({"data": {"source": source, "workers": 0}})
        data = open_run_data(config)
        chosen = choose_rows(data, 2000, config)
        assert chosen.held_out_from == ("validation" if name == "both" else "training")
        assert ("held out" in chosen.note) is (name != "both")
        train, held = set(chosen.train.index.tolist()), set(chosen.held_out.index.tolist())
        if name != "both":
            assert not train & held
        if name == "flat":
            assert not (train | held) & set(data.test.index.tolist())
        else:
            assert chosen.held_out.images is not data.test.images


def test_a_part_that_is_cut_off_by_the_configuration_is_used(world):
    config = build_config({"data": {"source": f"folder:{world[0]}", "workers": 0}})
    data = opened(world)
    assert choose_rows(data, 2000, config).held_out is not data.train
    assert len(choose_rows(data, 2000, config).held_out) == 200


# --- labels


def test_contradicted_labels_are_found():
    pytest.importorskip("cleanlab")
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(4, (400,), generator=generator)
    label = true.clone()
    wrong = torch.randperm(400, generator=generator)[:40]
    label[wrong] = (label[wrong] + 1) % 4
    sure = 0.999 * torch.eye(4)[true] + 0.001 / 4
    unsure = torch.full((400, 4), 0.25)
    found = find_label_errors(label, torch.where((torch.arange(400) % 2 == 0)[:, None], sure, unsure))
    assert set(found) == {row for row in wrong.tolist() if row % 2 == 0}


def test_without_cleanlab_the_section_says_how_to_install_it(world, monkeypatch):
    monkeypatch.setattr(label_errors, "find_spec", lambda name: None)
    record = audit(world, world[1])
    assert record.classification.label_errors.found is None
    assert "pip install 'outgrow[audit]'" in record.classification.label_errors.how


def test_the_list_goes_back_into_training(world, tmp_path):
    pytest.importorskip("cleanlab")
    sure = 0.99 * torch.eye(5)[world[2]] + 0.002
    wrong = [3, 120, 410]
    sure[wrong] = sure[wrong].roll(1, dims=1)
    record = audit(world, sure.log(), tmp_path / "out")
    found = record.classification.label_errors
    names = [f"train/{CLASSES[row // 100]}/{row % 100:03d}.png" for row in wrong]
    assert {one.name for one in found.candidates} == set(names)
    with (tmp_path / "out" / "label_errors.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["file", "label", "suggested", "confidence"]
    assert {line[0] for line in lines[1:]} == set(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = opened(world, exclude=str(tmp_path / "out" / "label_errors.csv"))
    assert (run.excluded, len(run.train)) == (3, 497)
    assert not set(run.train.index.tolist()) & set(wrong)
    verdict = next(one for one in record.verdicts if one.kind == "label_errors")
    assert str(tmp_path / "out" / "label_errors.csv") in verdict.command


# --- the folder and the page


def test_the_folder_holds_the_page_the_numbers_and_the_list(world, tmp_path):
    confused = world[1].clone()
    confused[:, 3] += 3.5
    record = audit(world, confused, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"index.html", "audit.json"} <= names
    assert read_audit(tmp_path / "out" / "audit.json") == record
    html = (tmp_path / "out" / "index.html").read_text()
    page = Page(html)
    assert record.verdicts[0].text in page.text
    assert "<script" not in html
    assert "javascript:" not in html
    assert "http-equiv" not in html
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            value = attrs.get(key) or ""
            assert not value or value.startswith(("data:image/", "#")), (tag, value)
        assert not any(key.startswith("on") for key in attrs)
    assert "<b>bee" not in html  # a class's name is text
    assert "<b>bee" in page.text
    titles = [tag for tag, _ in page.tags].count("h2")
    assert titles >= 7
    with pytest.raises(ValueError, match=r"needs an empty folder, got one with an audit; .*--overwrite"):
        audit(world, confused, tmp_path / "out")


def test_a_changed_record_is_refused(world, tmp_path):
    audit(world, world[1], tmp_path / "out")
    path = tmp_path / "out" / "audit.json"
    path.write_text(path.read_text().replace("good", "evil"))
    with pytest.raises(ValueError, match="was changed or damaged"):
        read_audit(path)
    with pytest.raises(ValueError, match=r"needs an audit.json"):
        read_audit(tmp_path / "none.json")


def test_other_files_are_not_touched(world, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"needs an empty folder, got one with mine\.txt; give another"):
        audit(world, world[1], tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["mine.txt"]


def test_errors_say_what_to_do(world):
    data = {"source": f"folder:{world[0]}", "workers": 0}
    with pytest.raises(ValueError, match=r"--rows: needs 20 or more, got 3; 2000"):
        audit_teacher({"data": data, "teacher": {"name": "cifar/resnet8"}}, rows=3)
    with pytest.raises(
        ValueError, match=r"needs a teacher that is there, got one that is to be trained .*; train it"
    ):
        audit_teacher({"data": data, "teacher": {"name": "cifar/resnet8", "train": True}})
    with pytest.raises(ValueError, match=r"--teacher: needs a model .*, got none; name"):
        audit_teacher({"data": data})
    with pytest.raises(ValueError, match="needs weights, got none; give --teacher-weights"):
        audit_teacher({"data": data, "teacher": {"name": "cifar/resnet8"}})
    broken = Table(torch.full((256 * 256, 5), torch.nan))
    with pytest.raises(
        ValueError, match="needs finite logits, got NaN or infinity for 500 of 500 images; check"
    ):
        audit_teacher({"data": {**data, "augment": PLAIN}}, teacher=broken)


def test_options_make_the_same_configuration_again():
    from typer.testing import CliRunner

    from outgrow.run import cli

    config = build_config(
        {
            "recipe": "finetune",
            "data": {"source": "folder:my photos", "val_fraction": 0.25, "augment": {"flip": False}},
            "teacher": {"name": "timm/resnet50", "pretrained": True, "mean": (0.5, 0.5, 0.5)},
            "train": {"class_weights": {"a cat": 2.0, "v1.5": 0.5}},
        }
    )
    text = options(config)
    assert "--set 'teacher.mean=[0.5, 0.5, 0.5]'" in text
    assert "--set data.val_fraction=0.25" in text
    assert "--data 'folder:my photos'" in text
    seen = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("outgrow.run.audit.audit_teacher", lambda config, **_: seen.append(config))
        result = CliRunner().invoke(cli.app, ["audit", *shlex.split(text)], catch_exceptions=False)
    assert result.exit_code == 0
    assert seen[0].teacher == config.teacher
    assert seen[0].data.source == config.data.source
    assert seen[0].data.val_fraction == 0.25
    assert seen[0].data.augment.flip is False
    assert seen[0].train == config.train
