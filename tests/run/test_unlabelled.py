"""Runs with unlabelled images: labels there are never read, and all else holds as without them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.reliability import three_parts
from PIL import Image
from safetensors.torch import load_file

from outgrow import UNLABELLED, Objective, Outputs, Target, rectify
from outgrow.classification.data import open_run_data, train_loader
from outgrow.data import ArraySplit, DataWarning, open_data
from outgrow.data.unlabelled import open_unlabelled
from outgrow.losses import LOSSES, make_loss
from outgrow.report.parts import conditions
from outgrow.run import distill
from outgrow.run.export import export_run
from outgrow.training.config import build_config, merge
from outgrow.training.record import read_record
from outgrow.training.unlabelled import without_labels
from tests import contract
from tests.classification.test_names import Notes
from tests.run.stops import stopped_after
from tests.run.test_distill import SMALL

EXTRA = {"data": {"unlabelled": "digits", "unlabelled_rows": 300}, "train": {"epochs": 2}}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    distill(build_config(merge(SMALL, {"out": str(folder), "train": {"epochs": 1}})))
    return folder / "teacher.safetensors"


def run(teacher_file, *layers, **options):
    teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    with pytest.warns(DataWarning, match="also training images, byte for byte"):
        return distill(build_config(merge(SMALL, teacher, EXTRA, *layers)), **options)


def weights(folder):
    return load_file(folder / "student.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("option", ["train_rows", "unlabelled_rows"])
def test_more_images_than_there_are_is_said(option):
    source = EXTRA if option == "unlabelled_rows" else {}
    with pytest.warns(DataWarning) as said:
        data = open_run_data(build_config(merge(SMALL, source, {"data": {option: 5000}})))
    left = len(data.unlabelled.split) if data.unlabelled is not None else len(data.train)
    assert f"data.{option}: 5,000 images are wanted, got {left:,} from digits; all of them are used." in {
        str(one.message) for one in said
    }


@pytest.mark.parametrize(
    ("layer", "got"),
    [
        ({"data": {"unlabelled_rows": 5}}, "got 5 of 21: there are 96 images with a label and 5 without"),
        ({"train": {"batch_size": 240}}, "got 120 of 216: there are 96 images with a label and 300 without"),
        (
            {"data": {"unlabelled_share": 0.99}},
            "got 30 of 32: there are 96 images with a label and 300 without",
        ),
        ({}, None),
    ],
)
def test_another_share_than_was_asked_for_is_said(teacher_file, layer, got):
    notes = Notes()
    run(teacher_file, layer, {"method": {"preset": "kd"}, "train": {"epochs": 1}}, reporter=notes)
    said = [note for note in notes.said if "data.unlabelled_share: " in note]
    assert [note.partition("is wanted, ")[2] for note in said] == ([] if got is None else [got])


def test_the_record_counts_them(teacher_file, tmp_path):
    record = run(teacher_file, {"out": str(tmp_path), "method": {"preset": "kd", "rule": "pair"}})
    assert record["data"]["unlabelled"] == 300
    assert record["data"]["train"] == 96
    for epoch in record["epochs"]:
        assert epoch["stats"]["unlabelled"] == pytest.approx(0.5, abs=0.05)
        assert 0 <= epoch["wrong_rate"] <= 1
    assert "300 without labels" in (tmp_path / "index.html").read_text()


def test_the_share_of_wrong_rows_is_of_all_labelled_images_alike(teacher_file):
    """The last batch has fewer of them than the others, and as many without a label."""
    record = run(teacher_file, {"method": {"preset": "kd"}, "data": {"train_rows": 90}})
    assert record["data"]["train"] % 8
    for epoch in record["epochs"]:
        wrong = epoch["wrong_rate"] * record["data"]["train"]
        assert wrong == pytest.approx(round(wrong), abs=1e-4)


def test_a_student_alone_takes_the_same_steps_without_them(teacher_file):
    alone = run(teacher_file, {"method": {"preset": "none"}})
    with_teacher = run(teacher_file, {"method": {"preset": "kd"}})
    assert alone["epochs"][0]["stats"]["unlabelled"] == 0
    config = build_config(merge(SMALL, EXTRA, {"method": {"preset": "none"}}))
    with pytest.warns(DataWarning):
        data = open_run_data(config)
    loader = train_loader(
        config, config.train, data.train, [], torch.device("cpu"), unlabelled=data.unlabelled.split
    )
    assert len(loader) == 6
    assert max(len(batch.images) for batch in loader.epoch(0)) == 16
    assert with_teacher["data"]["unlabelled"] == alone["data"]["unlabelled"]


def test_a_student_alone_is_said_to_learn_without_them(teacher_file, tmp_path):
    """On the run's page, on the card of its export, and on the way; a comparison's page says what the taught ones see."""
    (tmp_path / "alone").mkdir()
    notes = Notes()
    run(teacher_file, {"method": {"preset": "none"}, "out": str(tmp_path / "alone")}, reporter=notes)
    (said,) = [note for note in notes.said if "data.unlabelled" in note]
    assert three_parts(said)
    assert "the 300 images without labels are left out" in said
    run(teacher_file, {"method": {"preset": "kd"}, "out": str(tmp_path / "kd")})
    words = "300 without labels"
    assert words not in (tmp_path / "alone" / "index.html").read_text()
    export_run(tmp_path / "alone", out=tmp_path / "of-alone")
    export_run(tmp_path / "kd", out=tmp_path / "of-kd")
    assert words not in (tmp_path / "of-alone" / "README.md").read_text()
    assert words in (tmp_path / "of-kd" / "README.md").read_text()
    alone, taught = (read_record(tmp_path / name / "record.json") for name in ("alone", "kd"))
    assert dict(conditions([alone]))["rows"] == ("96 for training, 901 for testing",)
    assert dict(conditions([alone, taught]))["rows"] == (f"96 for training, {words}, 901 for testing",)


def test_they_change_the_student(teacher_file, tmp_path):
    run(teacher_file, {"out": str(tmp_path / "with"), "method": {"preset": "kd"}})
    teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    distill(build_config(merge(SMALL, teacher, {"train": {"epochs": 2}, "out": str(tmp_path / "without")})))
    assert not same(weights(tmp_path / "with"), weights(tmp_path / "without"))


@pytest.mark.parametrize("loss", ["kd", "kd + 0.8*crd(dim=8, negatives=16)"])
def test_resumed_in_the_middle_of_an_epoch(teacher_file, tmp_path, loss):
    layers = {"method": {"preset": "kd", "loss": loss}, "train": {"checkpoint_steps": 2}}
    run(teacher_file, layers, {"out": str(tmp_path / "whole")})
    out = {"out": str(tmp_path / "cut")}
    with stopped_after(2):
        run(teacher_file, layers, out)
    run(teacher_file, layers, out, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_teacher_cache_holds_them(teacher_file, tmp_path):
    cache = {"teacher": {"cache": str(tmp_path / "cache")}, "method": {"preset": "kd"}}
    run(teacher_file, cache, {"out": str(tmp_path / "first")})
    run(teacher_file, cache, {"out": str(tmp_path / "again")})
    assert same(weights(tmp_path / "first"), weights(tmp_path / "again"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    run(teacher_file, cache, {"data": {"unlabelled_share": 0.25}, "out": str(tmp_path / "other")})
    assert len(list((tmp_path / "cache").iterdir())) == 2  # other images in other steps


@pytest.mark.parametrize("text", [*LOSSES, "standardize(base='dkd')"])
def test_a_loss_that_leaves_out_images_without_a_label_is_told(text):
    """Every loss is tried on a batch of which a half has no label, with numbers that its memory does not know."""
    built = contract.loss(text) if text in LOSSES else make_loss(text).double()
    objective = Objective(built, task_weight=0.0).eval()
    goal = contract.target(6)
    label, index = goal.label.clone(), goal.index.clone()
    label[3:], index[3:] = UNLABELLED, contract.NUM_SAMPLES + torch.arange(3)
    goal = Target(label, index=index)
    student, leaves = contract.leaves(contract.outputs(6))
    knowledge = rectify(
        contract.outputs(6, seed=5), goal, rule="identity", temperature=objective.temperature or 4.0
    )
    total = objective(student, knowledge, goal, 0.5).total
    grads = [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]
    adds = any(bool((g[3:] != 0).any()) for g in grads)
    config = build_config(merge(SMALL, EXTRA))
    assert (without_labels(config, objective) is None) == adds


def test_the_weight_of_such_a_loss_is_as_it_is_told():
    objective = Objective("dkd", task_weight=0.0)
    rows = torch.arange(6).remainder(3)  # the rows without a label repeat those with one
    few, all_rows = contract.outputs(3), contract.take(contract.outputs(3), rows)
    label = torch.tensor([0, 1, 2])
    values = []
    for student, target in ((few, label), (all_rows, torch.cat([label, torch.full((3,), UNLABELLED)]))):
        teacher = Outputs(student.logits.roll(1, dims=1))
        knowledge = rectify(teacher, target, temperature=objective.temperature)
        values.append(objective(student, knowledge, target, 0.5).total)
    assert values[1] == pytest.approx(values[0] / 2)
    half = without_labels(build_config(merge(SMALL, EXTRA)), objective)
    assert "weight on labelled images is about 0.5 of that without --unlabelled" in half


def test_a_run_says_that_the_weight_decides_much_unless_somebody_has_set_it(teacher_file):
    def said(**method) -> int:
        report = Notes()
        run(teacher_file, {"method": method, "train": {"epochs": 1}}, reporter=report)
        return sum("--weight auto finds one for your data" in text for text in report.said)

    assert said(preset="kd") == said(preset="outgrow") == 1
    assert said(preset="kd", weight=1.0) == said(preset="none") == 0


def test_a_run_says_what_a_loss_does_on_images_without_a_label(teacher_file):
    def said(loss: str, **more) -> list[str]:
        report = Notes()
        run(
            teacher_file,
            {"method": {"preset": "kd", "loss": loss, **more}, "train": {"epochs": 1}},
            reporter=report,
        )
        return [text for text in report.said if "adds nothing on images without a label" in text]

    (alone,) = said("dkd")
    assert alone.startswith("warning: dkd, which needs a label, adds nothing")
    assert '--loss "kd + dkd"' in alone
    (beside,) = said("kd + nkd", normalize="subset")
    assert beside == "nkd, which needs a label, adds nothing on images without a label; kd counts them."
    (memory,) = said("crd(dim=8, negatives=16)")
    assert memory.startswith("warning: crd, whose memory has only labelled images, adds nothing")
    assert not said("kd")
    report = Notes()
    labelled = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    distill(
        build_config(merge(SMALL, labelled, {"method": {"preset": "kd", "loss": "dkd"}})), reporter=report
    )
    assert not any("without a label" in text for text in report.said)


def test_other_unlabelled_images_are_another_run(teacher_file, tmp_path):
    run(teacher_file, {"out": str(tmp_path)})
    teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    other = {"out": str(tmp_path), "data": {"unlabelled_rows": 200}}
    with pytest.raises(ValueError, match=r"other values of data.unlabelled_rows \(was 300, is 200\)"):
        distill(build_config(merge(SMALL, teacher, EXTRA, other)), resume=True)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains_with_them(teacher_file, loss):
    text = loss if "logits" in LOSSES[loss]().reads else f"kd + 0.1*{loss}"
    if loss == "crd":
        text = "kd + 0.1*crd(dim=8, negatives=16)"
    record = run(
        teacher_file, {"method": {"preset": "kd", "loss": text}, "train": {"epochs": 1, "max_steps": 2}}
    )
    assert torch.tensor(record["epochs"][0]["loss"]).isfinite()


@pytest.mark.parametrize("loss", ["ppi", "standardize(base='ppi')"])
def test_a_loss_on_both_kinds_of_rows_needs_both(loss):
    name = loss.split("(")[0]
    with pytest.raises(
        ValueError, match=rf"{name}: needs images with and without labels, got labels for all; add"
    ):
        distill(build_config(merge(SMALL, {"method": {"preset": "kd", "loss": loss}})))


def test_mixup_blends_labelled_rows_alone(teacher_file):
    record = run(teacher_file, {"data": {"augment": {"mixup": 0.5, "cutmix": 1.0}}})
    assert record["epochs"][0]["stats"]["unlabelled"] == pytest.approx(0.5, abs=0.05)


class TestSources:
    def photos(self, root, seed, names):
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(path)
        return root

    def test_pictures_at_any_depth(self, tmp_path):
        root = self.photos(tmp_path / "more", 0, ["a.png", "b/c.png", "b/d/e.png"])
        (root / "notes.txt").write_text("no picture")
        found = open_unlabelled(f"folder:{root}", cache_dir=tmp_path / "cache")
        assert len(found.split) == 3
        assert found.split.labels.tolist() == [-1, -1, -1]

    def test_of_a_folder_with_splits_train_alone(self, tmp_path):
        root = self.photos(tmp_path / "more", 0, ["Train/a/1.png", "Train/b/2.png", "test/a/3.png"])
        found = open_unlabelled(f"folder:{root}", cache_dir=tmp_path / "cache")
        assert len(found.split) == 2
        assert "Train" in found.notes[0]

    def test_what_has_a_label_or_is_a_test_image_is_left_out(self, tmp_path):
        names = [f"train/{c}/{i}.png" for c in "ab" for i in range(4)]
        names += [f"test/{c}/{i}.png" for c in "ab" for i in range(2)]
        root = self.photos(tmp_path / "photos", 0, names)
        more = self.photos(tmp_path / "more", 1, ["x.png", "y.png"])
        shutil.copy(root / "train/a/0.png", more / "seen.png")
        shutil.copy(root / "test/b/1.png", more / "asked.png")
        config = build_config({"data": {"source": f"folder:{root}", "unlabelled": f"folder:{more}"}})
        with pytest.warns(DataWarning, match="also (training|test) images, byte for byte"):
            data = open_run_data(config)
        assert len(data.unlabelled.split) == 2
        for image in ("train/a/0.png", "test/b/1.png"):
            (more / "only").mkdir(exist_ok=True)
            shutil.copy(root / image, more / "only" / image.replace("/", "-"))
        config = build_config({"data": {"source": f"folder:{root}", "unlabelled": f"folder:{more / 'only'}"}})
        with pytest.raises(
            ValueError, match=r"--unlabelled .*: needs images that are not in the labelled data, got 2"
        ):
            open_run_data(config)

    def test_a_poisoned_label_changes_no_bit(self, tmp_path, teacher_file):
        """Shards of the same images with other labels, and with none."""
        digits, num = open_data("digits").train, 300
        outs = []
        for name, labels in {
            "true": digits.labels[:num].tolist(),
            "poison": [7] * num,
            "none": None,
        }.items():
            folder = tmp_path / name
            folder.mkdir()
            encoded = []
            for i in range(num):
                file = tmp_path / "one.png"
                Image.fromarray(digits.image(i).permute(1, 2, 0).numpy()).save(file)
                encoded.append({"bytes": file.read_bytes(), "path": f"{i}.png"})
            columns = {"image": encoded} | ({} if labels is None else {"label": labels})
            pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
            out = tmp_path / f"out-{name}"
            teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
            layer = {"data": {"unlabelled": f"parquet:{folder}"}, "train": {"epochs": 1}, "out": str(out)}
            with pytest.warns(DataWarning, match="it was not checked"):
                distill(build_config(merge(SMALL, teacher, layer)))
            outs.append(weights(out))
        assert same(outs[0], outs[1])
        assert same(outs[0], outs[2])

    def test_what_could_not_be_compared_is_said(self, tmp_path):
        """Pixels of the digits, and encoded files."""
        more = self.photos(tmp_path / "more", 1, ["x.png", "y.png"])
        config = build_config({"data": {"source": "digits", "unlabelled": f"folder:{more}"}})
        with pytest.warns(
            DataWarning, match=r"it was not checked whether unlabelled images of .* are also training or test"
        ):
            open_run_data(config)

    def test_images_that_are_not_square_beside_other_sizes(self):
        labelled = ArraySplit.of(torch.zeros(4, 3, 8, 12, dtype=torch.uint8), torch.arange(4) % 2)
        config = build_config({"train": {"batch_size": 4}})
        device = torch.device("cpu")
        same = train_loader(config, config.train, labelled, [], device, unlabelled=labelled)
        assert next(same.epoch(0)).images.shape == (4, 3, 8, 12)
        other = ArraySplit.of(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)
        with pytest.raises(
            ValueError, match=r"--unlabelled: needs images of 8x12 beside labelled ones .* set data.size"
        ):
            train_loader(config, config.train, labelled, [], device, unlabelled=other)
        mixed = train_loader(config, config.train, other, [], device, unlabelled=labelled)
        assert next(mixed.epoch(0)).images.shape == (4, 3, 8, 8)

    @pytest.mark.parametrize(
        "data, message",
        [
            ({"unlabelled": "nothing:x"}, "data: needs one of"),
            ({"unlabelled": "folder:absent"}, "which does not exist"),
            ({"unlabelled": "digits", "unlabelled_share": 1.0}, "unlabelled_share"),
        ],
    )
    def test_errors(self, data, message):
        with pytest.raises(ValueError, match=message):
            open_run_data(build_config(merge(SMALL, {"data": data})))


def test_a_batch_needs_room_for_both(teacher_file):
    with pytest.raises(ValueError, match=r"--unlabelled: needs train\.batch_size of at least 3"):
        run(teacher_file, {"train": {"batch_size": 2}})


def test_json_is_plain(teacher_file, tmp_path):
    run(teacher_file, {"out": str(tmp_path)})
    assert json.loads((tmp_path / "record.json").read_text())["data"]["unlabelled"] == 300
