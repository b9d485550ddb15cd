"""Runs in which rows are weighed by the teacher's confidence or reliability."""

import pytest
import torch
from safetensors.torch import load_file

from outgrow.data import DataWarning
from outgrow.knowledge.trust import Confidence, Reliability
from outgrow.run import distill
from outgrow.run.distillation import method_of
from outgrow.training.config import MethodConfig, build_config, merge
from outgrow.training.noise import with_noise
from tests.run.stops import stopped_after
from tests.run.test_distill import SMALL, Notes

EXTRA = {"data": {"unlabelled": "digits", "unlabelled_rows": 300}, "train": {"epochs": 2}}
WAYS = ["confidence(0.5)", "reliability", "reliability(rows=all)"]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    distill(build_config(merge(SMALL, {"out": str(folder), "train": {"epochs": 1}})))
    return folder / "teacher.safetensors"


def run(teacher_file, *layers, **options):
    teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    with pytest.warns(DataWarning, match="also training images, byte for byte"):
        return distill(build_config(merge(SMALL, teacher, EXTRA, *layers)), **options)


def trusting(way, **method):
    return {"method": {"preset": "kd", "trust": way, **method}}


def same(one, other):
    one, other = (load_file(folder / "student.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("way", WAYS)
def test_the_record_says_how_much_is_trusted(teacher_file, way):
    notes = Notes()
    record = run(teacher_file, trusting(way), reporter=notes)
    for epoch in record["epochs"]:
        assert 0 < epoch["stats"]["trust"] < 1
        assert 0 <= epoch["stats"]["left_out"] < 1
    assert any("how often the teacher is right" in text for text in notes.texts) == ("reli" in way)
    if "conf" in way:
        assert record["epochs"][0]["stats"]["left_out"] > 0


def test_it_changes_the_student_and_none_at_all_does_not(teacher_file, tmp_path):
    for name, layer in {"plain": {"method": {"preset": "kd"}}, "none": trusting(None)}.items():
        run(teacher_file, layer, {"out": str(tmp_path / name)})
    assert same(tmp_path / "plain", tmp_path / "none")
    run(teacher_file, trusting("reliability"), {"out": str(tmp_path / "reliability")})
    assert not same(tmp_path / "plain", tmp_path / "reliability")


def test_a_loss_on_standardised_logits_learns_how_often_the_teacher_is_right_on_those(
    teacher_file, monkeypatch
):
    fitted, asked = [], []
    fit, probability = Reliability.fit, Reliability.probability

    def watched(self, logits, *more, **options):
        fitted.append(logits)
        return fit(self, logits, *more, **options)

    monkeypatch.setattr(Reliability, "fit", watched)
    monkeypatch.setattr(
        Reliability,
        "probability",
        lambda self, logits, *more: (asked.append(logits), probability(self, logits, *more))[1],
    )
    run(
        teacher_file, {"method": {"preset": "kd", "loss": "standardize(base='slam')"}, "train": {"epochs": 1}}
    )
    assert len(fitted) == 1
    assert asked
    for logits in (fitted[0], asked[0]):
        torch.testing.assert_close(logits.float().std(dim=1), torch.ones(len(logits)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["posterior", "posterior(noise=0.2)"])
@pytest.mark.parametrize("noise", [None, torch.full((2, 2), 0.5)])
def test_the_noise_of_labels_leaves_trust_as_it_is(rule, noise):
    method = MethodConfig(preset="kd", rule=rule, trust="confidence(0.8)")
    rectify, objective = method_of(build_config({"method": method.model_dump()}))
    assert rectify.trust == Confidence(0.8)
    assert with_noise(method, rectify, objective, noise).trust is rectify.trust


def test_blended_labelled_images_do_not_speak_for_others(teacher_file):
    """Images without labels are never blended: their weights come from labelled views that are not blended either."""
    curves = []
    for mixup in (0.0, 0.8):
        notes = Notes()
        run(teacher_file, trusting("reliability"), {"data": {"augment": {"mixup": mixup}}}, reporter=notes)
        curves.append([text for text in notes.texts if "how often the teacher is right" in text])
    assert curves[0]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("way", [pytest.param(WAYS[1], marks=pytest.mark.slow), WAYS[2]])
def test_resumed_in_the_middle_of_an_epoch(teacher_file, tmp_path, way):
    layers = {**trusting(way, preset="outgrow"), "train": {"checkpoint_steps": 2}}
    run(teacher_file, layers, {"out": str(tmp_path / "whole")})
    out = {"out": str(tmp_path / "cut")}
    with stopped_after(2):
        run(teacher_file, layers, out)
    run(teacher_file, layers, out, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_teacher_cache_serves_every_way(teacher_file, tmp_path):
    """The cache holds what the teacher says, whoever trusts it: one folder, and the same bits when it is read again."""
    cache = {"teacher": {"cache": str(tmp_path / "cache")}}
    for name, way in {"first": "reliability", "other": "confidence(0.5)", "again": "reliability"}.items():
        run(teacher_file, cache, trusting(way), {"out": str(tmp_path / name)})
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert same(tmp_path / "first", tmp_path / "again")
    assert not same(tmp_path / "first", tmp_path / "other")


def test_a_student_alone_trusts_nobody(teacher_file, tmp_path):
    for name, way in {"plain": None, "trusting": "reliability"}.items():
        run(teacher_file, trusting(way, preset="none"), {"out": str(tmp_path / name)})
    assert same(tmp_path / "plain", tmp_path / "trusting")


def test_a_teacher_that_has_memorised_the_labels_is_trusted_too_much():
    notes = Notes()
    learned = {"teacher": {"rows": "same"}, "teacher_train": {"epochs": 60, "eval_every": 60}}
    small = {"data": {"train_rows": 60, "augment": {"crop_padding": 0}}, "train": {"epochs": 1}}
    distill(build_config(merge(SMALL, learned, small, trusting("reliability(rows=all)"))), reporter=notes)
    assert any("has memorised" in text and "trusted too much" in text for text in notes.texts)


def test_a_name_that_there_is_not_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="trust: needs one of confidence, reliability; got 'reliable'"):
        distill(build_config(merge(SMALL, trusting("reliable"))))
