"""The cache gives back what the teacher said, or says why not."""

import re
import shutil
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import outgrow
from outgrow import PENULTIMATE, Teacher
from outgrow.knowledge import RULES, top_class
from outgrow.losses import LOSSES
from outgrow.machine.files import NotWritten
from outgrow.models import create_model
from outgrow.run import distill, fill_cache
from outgrow.teacher import BiasCorrection, CorrectedTeacher
from outgrow.teacher.cache import (
    CachedTeacher,
    TeacherCache,
    check_cache_folder,
    check_room,
    digest,
    feature_half,
    to_half,
)
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from tests.run.test_distill import SMALL


def make(folder, features=None, **facts):
    return TeacherCache(folder, {"teacher": "a", **facts}, num_indices=10, num_classes=4, features=features)


class Notes(Reporter):
    """Keeps what it is told, and asks ``look`` at each note."""

    def __init__(self, look=lambda: None):
        self.notes, self.seen, self.look, self.bars = [], [], look, {}

    def note(self, text):
        self.notes.append(text)
        self.seen.append(self.look())

    @contextmanager
    def bar(self, label, total):
        self.bars[label] = (0, total)

        def advance(done):
            self.bars[label] = (done, total)

        yield advance


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.flatten(1)[:, :4]


def test_asked_once_a_view(tmp_path):
    inner = Counts()
    images, index = torch.randn(6, 4), torch.tensor([3, 1, 9, 0, 2, 5])
    teacher = CachedTeacher(Teacher(inner), make(tmp_path))
    teacher.at(0)
    first = teacher(images, index=index).logits
    teacher.at(None)
    again = CachedTeacher(Teacher(inner), make(tmp_path))
    again.at(0)
    order = torch.tensor([2, 0, 5])  # another order and batch size
    second = again(images[order], index=index[order]).logits
    assert inner.calls == 1
    torch.testing.assert_close(second, first[order], rtol=1e-3, atol=1e-3)
    again(images[:1], index=torch.tensor([4]))  # a sample that the epoch had not seen
    assert inner.calls == 2
    again.at(1)
    again(images, index=index)
    again(images)
    assert inner.calls == 4


def test_an_unfinished_epoch_does_not_count(tmp_path):
    cache = make(tmp_path)
    teacher = CachedTeacher(Teacher(Counts()), cache)
    teacher.at(0)
    teacher(torch.randn(2, 4), index=torch.tensor([0, 1]))
    assert cache.read(0) is None
    teacher.at(None)
    assert cache.read(0) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_wrong_and_top_survive_rounding(dtype):
    """Near ties, exact ties, ties with several classes: half precision must not make a wrong row right."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(4000, 6, generator=generator) * 8).round()
    logits = (base + 1e-4 * torch.randint(-1, 2, (4000, 6), generator=generator)).to(dtype)
    label = torch.randint(6, (4000,), generator=generator)
    half = to_half(logits)
    before, after = outgrow.rectify(logits, label), outgrow.rectify(half, label)
    plain = outgrow.rectify(logits.half(), label)
    if dtype == torch.float32:
        assert not torch.equal(before.wrong, plain.wrong)  # the trap is there
    assert torch.equal(before.wrong, after.wrong)
    assert torch.equal(top_class(logits, label), top_class(half, label))
    torch.testing.assert_close(half.float(), logits.float(), rtol=1e-3, atol=1e-2)


class TestRefusals:
    def test_truncated(self, tmp_path):
        cache = make(tmp_path)
        held = cache.start(0)
        cache.finish(0, held)
        path = cache.path(0)
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match="cut short"):
            cache.read(0)

    def test_foreign_shape(self, tmp_path):
        cache = make(tmp_path)
        np.save(cache.path(0), np.zeros((3, 4), np.float16))
        with pytest.raises(ValueError, match=r"shape \(10, 4\), got float16 of shape \(3, 4\)"):
            cache.read(0)

    def test_facts_that_differ(self, tmp_path):
        cache = make(tmp_path)
        (cache.folder / "facts.json").write_text('{"teacher": "b"}')
        with pytest.raises(ValueError, match=r"differing: format, shape, teacher\); delete"):
            make(tmp_path)

    @pytest.mark.parametrize("damage", ["", '{"teacher": "a', "[]", "\xff"])
    def test_facts_that_cannot_be_read(self, tmp_path, damage):
        """A kill while they were written; a bad disk."""
        (make(tmp_path).folder / "facts.json").write_bytes(damage.encode("latin1"))
        with pytest.raises(
            ValueError, match=r"cache: needs .* in .*facts\.json, got a damaged .*; delete the folder"
        ):
            make(tmp_path)

    def test_an_empty_file(self, tmp_path):
        cache = make(tmp_path)
        cache.path(0).touch()
        with pytest.raises(ValueError, match="cut short"):
            cache.read(0)

    def test_features_cut_short(self, tmp_path):
        cache = make(tmp_path, {"a.b": (3, 2, 2)})
        cache.finish(0, cache.start(0, "a.b"), "a.b")
        path = cache.path(0, "a.b")
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match=r"needs a whole file, got .*epoch00000-a\.b\.npy cut short"):
            CachedTeacher(Teacher(Counts()), cache).at(0)

    def test_features_of_another_shape(self, tmp_path):
        cache = make(tmp_path, {"a": (3, 2, 2)})
        cache.finish(0, cache.start(0, "a"), "a")
        other = make(tmp_path, {"a": (3, 4, 4)})
        assert other.folder == cache.folder
        with pytest.raises(ValueError, match=r"float16 a of shape \(10, 3, 4, 4\), got .* \(10, 3, 2, 2\)"):
            CachedTeacher(Teacher(Counts()), other).at(0)

    def test_features_that_do_not_fit(self):
        with pytest.raises(ValueError, match="features within float16, got up to 1e\\+06 at 'layer1'"):
            feature_half(torch.tensor([[1e6, 0.0]]), "layer1")

    def test_a_disk_that_is_too_small(self, tmp_path, monkeypatch):
        cache = make(tmp_path, {"a": (3, 2, 2)})
        size = 2 * 10 * (4 + 12)
        assert cache.bytes_per_epoch() == size
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size))
        check_room([cache], 2)
        with pytest.raises(
            ValueError, match=r"needs .* for 3 epochs of logits \(4\) and features a .*, got .* free"
        ):
            check_room([cache], 3)
        cache.finish(0, cache.start(0, "a"), "a")  # what is there needs no room
        assert cache.bytes_missing(3) == 3 * size - 2 * 10 * 12
        cache.finish(0, cache.start(0))
        check_room([cache], 3)

    def test_logits_that_do_not_fit(self):
        with pytest.raises(ValueError, match="within float16, got up to 1e\\+06"):
            to_half(torch.tensor([[1e6, 0.0]]))


def test_other_facts_are_another_folder(tmp_path):
    assert make(tmp_path, seed="1").folder != make(tmp_path, seed="2").folder
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert digest(a) != digest(b)
    b.load_state_dict(a.state_dict())
    assert digest(a) == digest(b)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))


@pytest.mark.parametrize("augment", [{}, {"mixup": 1.0}])
def test_a_run_from_the_cache_is_the_online_run(tmp_path, teacher, augment):
    layer = {"method": {"preset": "paper"}, "data": {"augment": augment}, "train": {"epochs": 2}}
    online = distill(build_config(merge(SMALL, layer)), teacher=teacher)
    cached = merge(SMALL, layer, {"teacher": {"cache": str(tmp_path)}})
    first = distill(build_config(cached), teacher=teacher)
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 2
    stamps = [f.stat().st_mtime_ns for f in files]
    second = distill(build_config(cached), teacher=teacher)
    assert [f.stat().st_mtime_ns for f in files] == stamps
    for a, b, c in zip(online["epochs"], first["epochs"], second["epochs"], strict=True):
        assert c["loss"] == b["loss"]  # the run that fills it has no more digits than those that read it
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)  # float16
        assert b["wrong_rate"] == pytest.approx(a["wrong_rate"], abs=1e-6)


def test_filling_it_beforehand(tmp_path, teacher):
    config = build_config(merge(SMALL, {"teacher": {"cache": str(tmp_path)}, "method": {"preset": "kd"}}))
    filled = fill_cache(config, epochs=3, teacher=teacher)
    assert filled["epochs"] == 3
    assert len(list(tmp_path.rglob("epoch*.npy"))) == 3
    assert filled["bytes"] == sum(f.stat().st_size for f in tmp_path.rglob("epoch*.npy")) - 3 * 128
    record = distill(config, teacher=teacher)
    assert record["epochs"]


@pytest.fixture(scope="module")
def confused():
    """A teacher of the digits, trained a little, that takes some classes for others."""
    torch.manual_seed(0)
    teacher = create_model("cifar/resnet8", 10)
    layer = {"method": {"preset": "none"}, "train": {"epochs": 8}, "data": {"train_rows": 600}}
    distill(build_config(merge(SMALL, layer)), student=teacher)
    head = teacher.net.get_submodule("fc")
    with torch.no_grad():
        for value in (head.weight, head.bias):
            value[:6] = value[[1, 0, 3, 2, 5, 4]].clone()
    return teacher


def written(folder):
    """The contents of the files of a cache, by what they depend on."""
    return {
        (path.parent / "facts.json").read_text() + path.name: path.read_bytes()
        for path in folder.rglob("epoch*.npy")
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fused", [False, True])
def test_filled_beforehand_it_has_the_bits_of_a_training(tmp_path, confused, precision, fused):
    """With the teacher in the layout and with the fused norms of a training, so that `compare` has the same numbers with
    one worker and with several."""
    teacher = {"cache": str(tmp_path / "beforehand"), "correct": "never", "fold": False}
    train = {"channels_last": True, "fused_norms": fused, "precision": precision, "epochs": 1}
    layer = merge(SMALL, {"teacher": teacher, "train": train, "method": {"preset": "kd"}})
    fill_cache(build_config(layer), teacher=deepcopy(confused))  # a training moves it to its layout
    elsewhere = build_config(merge(layer, {"teacher": {"cache": str(tmp_path / "trained")}}))
    distill(elsewhere, teacher=deepcopy(confused))
    assert written(tmp_path / "beforehand") == written(tmp_path / "trained")


@pytest.mark.parametrize(
    "preset, correct, caches",
    [("outgrow", "auto", 2), ("outgrow", "never", 1), ("kd", "auto", 1)],
)
def test_a_corrected_run_keeps_what_a_plain_one_reads(tmp_path, confused, preset, correct, caches):
    """The same bits under the same facts as those that the plain run writes itself."""

    def fill(folder, preset, **options):
        section = {"train": False, "rows": "same", "cache": str(tmp_path / folder), **options}
        config = build_config(merge(SMALL, {"teacher": section, "method": {"preset": preset}}))
        fill_cache(config, epochs=2, teacher=confused)
        return written(tmp_path / folder)

    plain = fill("plain", "kd")
    alone = fill("alone", preset, correct=correct)
    both = fill("both", preset, correct=correct, cache_plain=True)
    assert len(plain) == len(alone) == 2
    assert both == alone | plain
    assert len(both) == 2 * caches
    assert fill("both", "kd") == both  # nothing is missing


def test_a_teacher_that_was_left_as_it_is_shares_its_cache(tmp_path, taught):
    for preset in ("kd", "outgrow"):
        section = {"train": False, "rows": "same", "cache": str(tmp_path)}
        layer = {"data": {"train_rows": 30}, "teacher": section, "method": {"preset": preset}}
        config = build_config(merge(SMALL, layer))
        record = distill(config, teacher=taught)
    assert not record["correction"]["used"]
    assert len(list(tmp_path.glob("*/facts.json"))) == 1


@pytest.fixture
def moved():
    """A teacher on tensors, and a correction that moves it."""
    torch.manual_seed(0)
    logits, label = torch.randn(200, 4) * 3, torch.randint(4, (200,))
    shown = logits[:, [1, 0, 3, 2]] + 6 * F.one_hot(label, 4)[:, [1, 0, 3, 2]]
    return CorrectedTeacher(Teacher(torch.nn.Flatten()), BiasCorrection(4).fit(shown, label))


def test_logits_before_a_correction_are_kept_only_with_those_after(tmp_path, moved):
    """An epoch that is read from the cache is not computed, so nothing is known of what was before the correction."""
    assert not moved.correction.is_identity
    images, index = torch.randn(10, 4), torch.arange(10)
    cache, plain = make(tmp_path), make(tmp_path, before="yes")
    first = CachedTeacher(moved, cache)
    first.at(0)
    after = first(images, index=index).logits
    first.at(None)
    second = CachedTeacher(moved, cache, plain=plain)
    for epoch in (0, 1):
        second.at(epoch)
        assert torch.equal(second(images, index=index).logits, after)
    second.at(None)
    assert plain.read(0) is None
    assert torch.equal(torch.from_numpy(np.array(plain.read(1))), to_half(images))


def test_logits_that_fit_only_after_the_correction_are_kept_there(tmp_path, moved):
    cache, plain = make(tmp_path), make(tmp_path, before="yes")
    with torch.no_grad():
        moved.correction.scale.zero_()
        moved.correction.weight.zero_()
    teacher = CachedTeacher(moved, cache, plain=plain)
    teacher.at(0)
    teacher(torch.randn(10, 4) * 1e6, index=torch.arange(10))
    teacher.at(None)
    assert cache.read(0) is not None
    assert not list(plain.folder.glob("*epoch*"))


def test_a_disk_that_fills_up_leaves_neither_cache_half_written(tmp_path, moved, monkeypatch):
    cache, plain = make(tmp_path), make(tmp_path, before="yes")
    teacher = CachedTeacher(moved, cache, plain=plain)

    def full(*args, **options):
        raise NotWritten(28, "a full disk")

    with monkeypatch.context() as patch:
        patch.setattr(plain, "start", full)
        with pytest.raises(NotWritten):
            teacher.at(0)
    assert not list(tmp_path.rglob("*epoch*"))
    teacher.at(0)
    teacher(torch.randn(10, 4), index=torch.arange(10))
    with monkeypatch.context() as patch:
        patch.setattr(plain, "finish", full)
        with pytest.raises(NotWritten):
            teacher.at(None)
    assert cache.read(0) is None  # or the epoch would not be computed again, and never be kept


FEATURES = "kd + 10*fitnet + 50*at + rkd"


@pytest.fixture(scope="module")
def taught():
    """A teacher of more layers than the student, trained a little on the digits."""
    torch.manual_seed(0)
    teacher = create_model("cifar/resnet14", 10)
    layer = {"method": {"preset": "none"}, "train": {"epochs": 3}}
    distill(build_config(merge(SMALL, layer)), student=teacher)
    return teacher


def with_cache(folder, **layers):
    cached = {"teacher": {"cache": str(folder), "cache_features": True}}
    base = {"method": {"preset": "kd", "loss": FEATURES}, "train": {"epochs": 2}}
    return build_config(merge(SMALL, base, cached, layers))


@pytest.fixture(scope="module")
def filled(taught, tmp_path_factory):
    """The first two epochs of the teacher's logits and features, and what was said of them."""
    folder, notes = tmp_path_factory.mktemp("cache"), Notes()
    return folder, fill_cache(with_cache(folder), epochs=2, teacher=taught, reporter=notes), notes


def losses(record):
    return [epoch["loss"] for epoch in record["epochs"]]


# posterior corrects the teacher, so what it caches is another teacher's
@pytest.mark.parametrize("rule", sorted({rule().name for rule in RULES.values()} - {"posterior"}))
def test_features_from_the_cache_give_the_online_losses(taught, filled, rule):
    config = with_cache(filled[0], method={"rule": rule})
    online = distill(build_config(config.model_dump(), {"teacher": {"cache": None}}), teacher=taught)
    stamps = {f: f.stat().st_mtime_ns for f in filled[0].rglob("*.npy")}
    assert len(stamps) > 4
    cached = distill(config, teacher=taught)
    assert stamps == {f: f.stat().st_mtime_ns for f in filled[0].rglob("*.npy")}
    for ours, theirs in zip(cached["epochs"], online["epochs"], strict=True):
        assert set(ours["terms"]) == {"task", "kd", "fitnet", "at", "rkd"}
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)  # measured: 1.1e-3 in the second
        assert ours["wrong_rate"] == pytest.approx(theirs["wrong_rate"], abs=1e-6)
    first = zip(cached["epochs"][0]["terms"].items(), online["epochs"][0]["terms"].values(), strict=True)
    for (name, ours), theirs in first:
        assert ours == pytest.approx(theirs, rel=2e-3), name  # float16; measured: 1e-3
    assert losses(cached) != losses(online)  # it was the cache that spoke


def test_the_run_that_writes_features_is_the_one_that_reads_them(taught, tmp_path):
    config = with_cache(tmp_path)
    online = distill(build_config(config.model_dump(), {"teacher": {"cache": None}}), teacher=taught)
    first = distill(config, teacher=taught)
    assert losses(first) == losses(distill(config, teacher=taught))
    assert losses(first) == pytest.approx(losses(online), rel=5e-3)


def test_what_is_said_before_anything_is_written(taught, tmp_path):
    notes = Notes(lambda: len(list(tmp_path.rglob("*.npy*"))))
    told = fill_cache(with_cache(tmp_path), epochs=3, teacher=taught, reporter=notes)
    said = [(text, files) for text, files in zip(notes.notes, notes.seen, strict=True) if "cache:" in text]
    ((text, files),) = said
    assert files == 0
    assert re.search(
        r"logits \(10\) and features .*layer\d \(\d+ x \d+ x \d+\), .*penultimate \(64\) in ", text
    )
    assert "for 3 epochs" in text
    assert told["bytes"] == sum(f.stat().st_size - 128 for f in tmp_path.rglob("*.npy"))


def test_only_what_the_losses_read_is_kept(taught, tmp_path):
    """Relations of penultimate features take a hundredth of what maps take."""
    fill_cache(with_cache(tmp_path, method={"loss": "rkd"}), epochs=1, teacher=taught)
    assert {f.name for f in tmp_path.rglob("*.npy")} == {"epoch00000.npy", f"epoch00000-{PENULTIMATE}.npy"}
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")}
    fill_cache(with_cache(tmp_path, method={"loss": "rkd + fitnet"}), epochs=1, teacher=taught)  # other taps
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in stamps.items())
    assert len(list(tmp_path.rglob("*.npy"))) == len(stamps) + 1
    fill_cache(with_cache(tmp_path, method={"loss": "kd"}), epochs=1, teacher=taught)  # logits are shared
    assert len(list(tmp_path.rglob("*.npy"))) == len(stamps) + 1


ON_FEATURES = sorted(name for name, loss in LOSSES.items() if "features" in getattr(loss, "reads", ()))


def test_there_are_losses_on_features():
    assert len(ON_FEATURES) > 10
    assert {"fitnet", "crd", "rkd", "reviewkd"} <= set(ON_FEATURES)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_loss_on_features_finds_what_it_reads(taught, tmp_path, name):
    """From a cached teacher, which says nothing but what is kept."""
    few = {"crd": "(dim=16, negatives=32)", "reviewkd": "(mid_channels=16)"}
    config = with_cache(
        tmp_path, method={"loss": f"{name}{few.get(name, '')}"}, train={"epochs": 1, "max_steps": 1}
    )
    online = distill(build_config(config.model_dump(), {"teacher": {"cache": None}}), teacher=taught)
    first = losses(distill(config, teacher=taught))
    assert losses(distill(config, teacher=taught)) == first
    assert first == pytest.approx(losses(online), rel=5e-3)


def test_an_interrupted_filling_goes_on(taught, tmp_path, monkeypatch):
    """In the middle of the second epoch, and once more with the files of one tap lost."""
    asked, ask = [], CachedTeacher.forward

    def interrupted(self, images, *, index=None):
        if self.epoch is not None:
            asked.append(self.epoch)
            if len(asked) == 5:
                raise KeyboardInterrupt
        return ask(self, images, index=index)

    config = with_cache(tmp_path / "a")
    monkeypatch.setattr(CachedTeacher, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(config, epochs=3, teacher=taught)
    assert asked == [0, 0, 0, 1, 1]
    monkeypatch.setattr(CachedTeacher, "forward", ask)
    whole = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.npy")}
    assert whole
    assert {f.name[:10] for f in whole} == {"epoch00000"}
    notes = Notes()
    fill_cache(config, epochs=3, teacher=taught, reporter=notes)
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in whole.items())
    assert any("of which" in text for text in notes.notes)
    assert notes.bars["teacher"] == (192, 192)  # of the two epochs that were missing
    assert not list(tmp_path.rglob("*.part"))
    for lost in (tmp_path / "a").rglob("epoch00001-layer*.npy"):
        lost.unlink()
    fill_cache(config, epochs=3, teacher=taught)
    fill_cache(with_cache(tmp_path / "b"), epochs=3, teacher=taught)
    ours, theirs = ({f.name: np.load(f) for f in (tmp_path / name).rglob("*.npy")} for name in ("a", "b"))
    assert len(ours) >= 9
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    assert not np.array_equal(theirs["epoch00000.npy"], theirs["epoch00001.npy"], equal_nan=True)


def test_an_interrupted_run_goes_on(taught, tmp_path, monkeypatch):
    """In the middle of its second epoch: the first one's file and checkpoint are there, the second's are not."""
    config = with_cache(tmp_path / "cache", out=str(tmp_path / "run"))
    whole = distill(
        build_config(config.model_dump(), {"teacher": {"cache": str(tmp_path / "whole")}, "out": None}),
        teacher=taught,
    )
    ask = CachedTeacher.forward

    def interrupted(self, images, *, index=None):
        said = ask(self, images, index=index)
        if self.epoch == 1:
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr(CachedTeacher, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(config, teacher=taught)
    cache = tmp_path / "cache"
    assert not list(cache.rglob("epoch00001*.npy"))
    monkeypatch.setattr(CachedTeacher, "forward", ask)
    assert losses(distill(config, teacher=taught, resume=True)) == losses(whole)
    assert len(list(cache.rglob("epoch00001*.npy"))) == len(list(cache.rglob("epoch00000*.npy"))) > 3


def test_a_run_refuses_features_cut_short(taught, tmp_path):
    config = with_cache(tmp_path)
    fill_cache(config, epochs=1, teacher=taught)
    path = next(tmp_path.rglob(f"epoch00000-{PENULTIMATE}.npy"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="cut short"):
        distill(config, teacher=taught)


def test_features_are_kept_only_when_asked_for(tmp_path, teacher):
    config = build_config(
        merge(SMALL, {"teacher": {"cache": str(tmp_path)}, "method": {"preset": "kd", "loss": "crd"}})
    )
    with pytest.raises(ValueError, match=r"reads features; set teacher\.cache_features=true"):
        distill(config, teacher=teacher)
    layer = {"teacher": {"cache_features": True}, "method": {"preset": "kd"}, "train": {"epochs": 1}}
    notes = Notes()
    distill(build_config(merge(SMALL, layer)), teacher=teacher, reporter=notes)
    assert any("cache_features is ignored" in text for text in notes.notes)


def test_a_run_that_the_disk_has_no_room_for(taught, tmp_path, monkeypatch):
    notes = Notes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"teacher\.cache: needs .* for 2 epochs .* got 1000 bytes free"):
        distill(with_cache(tmp_path), teacher=taught, reporter=notes)
    assert any(text.startswith("cache: logits (10)") for text in notes.notes)  # said first
    assert not list(tmp_path.rglob("*.npy*"))


def test_a_flipped_bit_is_seen(tmp_path):
    cache = make(tmp_path)
    held = cache.start(0)
    held[:] = 1.5
    cache.finish(0, held)
    assert cache.read(0) is not None
    path = cache.path(0)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"needs the file as it was written, got .*damaged .*; delete it"):
        cache.read(0)
    path.with_name(f"{path.name}.crc32").unlink()  # as an older version left it
    assert cache.read(0) is not None


def test_two_runs_fill_one_cache(tmp_path, monkeypatch):
    first, second = make(tmp_path), make(tmp_path)
    held = first.start(0)
    monkeypatch.setattr("os.getpid", lambda: 1)
    other = second.start(0)
    held[:], other[:] = 1.0, 1.0
    second.finish(0, other)
    monkeypatch.undo()
    first.finish(0, held)
    assert make(tmp_path).read(0) is not None
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_is_removed_while_it_is_used_is_begun_again(tmp_path):
    cache = make(tmp_path)
    shutil.rmtree(cache.folder)
    held = cache.start(0)
    held[:] = 1.5
    shutil.rmtree(cache.folder)
    cache.finish(0, held)  # these are lost and are computed again
    assert cache.read(0) is None
    held = cache.start(1)
    held[:] = 1.5
    cache.finish(1, held)
    assert make(tmp_path).read(1) is not None
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_fills_up_is_a_message(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(NotWritten, match=r"needs .* for .*, got No space left on device; free some room"):
        make(tmp_path).start(0)
    assert not list(tmp_path.rglob("*.part"))


def test_runs_that_start_at_once_do_not_disturb_one_another(tmp_path):
    """Each looks whether the folder of the cache can be made; none of them makes or removes it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            folder = tmp_path / str(number) / "cache"
            list(pool.map(check_cache_folder, [folder] * 8))
            assert not folder.parent.exists()
    assert list(tmp_path.iterdir()) == []


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.hidden, self.head = nn.Linear(192, 8), nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(torch.ACTIVATION(self.hidden(images.flatten(1))))
"""


def test_other_code_with_the_same_weights_is_another_net(tmp_path):
    """A teacher of the user's: its cache is not read after its file was changed, and its run is not resumed."""
    file = tmp_path / "nets.py"
    config = build_config(
        {
            "data": {"source": "digits", "train_rows": 96, "workers": 0},
            "teacher": {"name": f"py:{file}:Net", "train": True, "cache": str(tmp_path / "cache")},
            "teacher_train": {"epochs": 1},
            "student": {"name": f"py:{file}:Net"},
            "method": {"preset": "kd"},
            "train": {"epochs": 1, "batch_size": 32},
            "out": str(tmp_path / "run"),
        }
    )
    file.write_text(NET.replace("ACTIVATION", "relu"))
    distill(config)
    weights = {
        "name": f"py:{file}:Net",
        "weights": str(tmp_path / "run" / "teacher.safetensors"),
        "train": False,
    }
    again = merge(config.model_dump(), {"teacher": weights, "out": str(tmp_path / "again")})
    distill(build_config(again))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    file.write_text(NET.replace("ACTIVATION", "tanh"))
    distill(build_config(merge(again, {"out": None})))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    # a teacher that was trained there is looked at first
    for layer, who in ((config.model_dump(), "teacher"), (again, "student")):
        with pytest.raises(ValueError, match=rf"got other values of {who}.name \(was py:.*, is py:"):
            distill(build_config(merge(layer, {"train": {"epochs": 2}})), resume=True)
