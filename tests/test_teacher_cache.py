"""The cache gives back what the teacher said, or says why not."""

import numpy as np
import pytest
import torch

import outgrow
from outgrow import Teacher
from outgrow.config import build_config, merge
from outgrow.knowledge import top_class
from outgrow.run import distill, fill_cache
from outgrow.teacher_cache import CachedTeacher, TeacherCache, digest, to_half
from tests.test_run import SMALL


def make(folder, **facts):
    return TeacherCache(folder, {"teacher": "a", **facts}, num_indices=10, num_classes=4)


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
        assert b["loss"] == a["loss"]
        assert c["loss"] == pytest.approx(a["loss"], rel=2e-3)  # float16
        assert c["wrong_rate"] == pytest.approx(a["wrong_rate"], abs=1e-6)


def test_filling_it_beforehand(tmp_path, teacher):
    config = build_config(merge(SMALL, {"teacher": {"cache": str(tmp_path)}, "method": {"preset": "kd"}}))
    filled = fill_cache(config, epochs=3, teacher=teacher)
    assert filled["epochs"] == 3
    assert len(list(tmp_path.rglob("epoch*.npy"))) == 3
    assert filled["bytes"] == sum(f.stat().st_size for f in tmp_path.rglob("epoch*.npy")) - 3 * 128
    record = distill(config, teacher=teacher)
    assert record["epochs"]


def test_features_cannot_be_cached(tmp_path, teacher):
    config = build_config(
        merge(SMALL, {"teacher": {"cache": str(tmp_path)}, "method": {"preset": "kd", "loss": "crd"}})
    )
    with pytest.raises(ValueError, match=r"teacher\.cache keeps logits, and this objective reads features"):
        distill(config, teacher=teacher)
