"""Every loss for detectors on every family, within it and across: it runs, or is refused with a reason."""

import pytest
import torch

import outgrow
from outgrow.detection.families.create import create_detector
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.lesson import Balanced, Detect, levels_to_compare
from outgrow.detection.teacher import freeze
from outgrow.losses import DETECTOR_LOSSES
from outgrow.models.taps import NOT_TAPS, OBJECTNESS
from outgrow.training.config import Config
from outgrow.training.progress import Reporter
from outgrow.training.task import RunContext
from tests.detection.scenes import CLASSES, TINY, scenes
from tests.detection.scenes import detector as proposing
from tests.detection.test_dense import NAMES, seen
from tests.detection.test_dense import detector as dense

TRANSFORMERS = ("rtdetr", "dfine")
FAMILIES = ("fasterrcnn", *NAMES, *TRANSFORMERS)
MAPS = ("fitnet", "cwd", "pkd", "mgd", "fgd")
LOSSES = (*MAPS, "kd", "box", "objectness")


def make(family, seed=0, classes=CLASSES):
    if family in TRANSFORMERS:
        pytest.importorskip("transformers")
        from tests.detection.test_transformer import make as asking

        return asking(f"{family}:", seed, classes)
    return (
        proposing(seed, classes=classes) if family == "fasterrcnn" else dense(family, seed, classes=classes)
    )


def lesson_of(student, teacher, loss, batch=None):
    """One step by the parts of a run: the teacher frozen for this objective, the loss set up, the gradients."""
    rectify, objective = outgrow.preset("kd", loss=loss)
    run = RunContext(Config(), torch.device("cpu"), Reporter())
    frozen = freeze(run, CLASSES, teacher, student.train(), objective)
    told = Detect(student.least)(student, frozen, batch or scenes())
    objective.prefer_taps(levels_to_compare(told))
    objective.setup(told.student, told.teacher, num_samples=3)
    result = objective(
        told.student, Balanced(rectify)(told.teacher, told.target), told.target, 0.5, told.task
    )
    result.total.backward()
    return told, result


def refusal(student, teacher, loss):
    """Why a loss on rows or anchors is refused between two families; None if it runs."""
    if loss in MAPS:
        return None
    if loss == "objectness" and {student, teacher} & set(TRANSFORMERS):
        return "objectness: needs a detector with anchors, got .* whose queries are at places of their own"
    if student == teacher or (loss != "objectness" and {student, teacher} <= set(TRANSFORMERS)):
        return None
    return rf"{loss}: needs a teacher .* got .* for a student of .*; choose two detectors of one family"


def test_the_table_is_complete():
    assert set(DETECTOR_LOSSES) <= set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "student, teacher",
    [
        *((family, family) for family in FAMILIES),
        ("fcos", "retinanet"),
        ("fasterrcnn", "fcos"),
        ("ssdlite", "fasterrcnn"),
        ("retinanet", "rtdetr"),
        ("dfine", "fasterrcnn"),
        ("rtdetr", "dfine"),
    ],
)
def test_a_loss_runs_or_says_why_not(student, teacher, loss):
    own, other = make(student), make(teacher, 1)
    reason = refusal(student, teacher, loss)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            lesson_of(own, other, loss)
        return
    told, result = lesson_of(own, other, loss)
    assert result.terms[loss].isfinite()
    if loss in ("kd", "objectness"):
        assert result.terms[loss] > 0
    else:  # maps of new encoders are alike, to rounding, and a new teacher may have no better box
        assert result.terms[loss] > -1e-6
    if loss in MAPS:
        assert {name for name in told.teacher.features if name not in NOT_TAPS}
    assert all(p.grad is None or p.grad.isfinite().all() for p in own.parameters())
    assert any(p.grad is not None and p.grad.any() for p in own.parameters())
    assert all(p.grad is None for p in other.parameters())


def test_levels_of_one_place_are_left_out():
    """SSDLite's last map, and the last levels of small images: losses over positions refuse them."""
    student, teacher = dense("ssdlite"), FrozenDetector(dense("ssdlite", 1), CLASSES)
    told = Detect(2)(student.train(), teacher, scenes())
    names = [name for name in told.student.features if name not in NOT_TAPS]
    shapes = {name: tuple(told.student.features[name].shape[2:]) for name in names}
    assert (1, 1) in shapes.values()
    assert levels_to_compare(told) == [name for name in names if shapes[name] != (1, 1)]
    objective = outgrow.Objective("cwd")
    objective.prefer_taps(names)
    with pytest.raises(ValueError, match="maps of at least 2 positions"):
        objective.setup(told.student, told.teacher, num_samples=3)


def test_objectness_of_proposals_is_torchvisions():
    """In the order of its own anchors: sorted by score it has the proposals that torchvision keeps."""
    made, batch = proposing().train(), scenes()
    kept = {}
    handle = made.net.rpn.head.register_forward_hook(lambda _, __, out: kept.update(scores=out[0]))
    told = made(batch.images, batch.truth).outputs.features[OBJECTNESS]
    handle.remove()
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    blank = [torch.zeros(len(one), 4 * one.shape[1], *one.shape[2:]) for one in kept["scores"]]
    flat, _ = concat_box_prediction_layers(kept["scores"], blank)
    torch.testing.assert_close(told, flat.view(3, -1))
    assert told.requires_grad
    frozen = FrozenDetector(proposing(1), CLASSES, regions=True)
    proposals = made(batch.images, batch.truth).proposals
    assert frozen(batch.images, proposals).features[OBJECTNESS].shape == told.shape
    plain = FrozenDetector(proposing(1), CLASSES)(batch.images, proposals)
    assert OBJECTNESS not in plain.features


@pytest.mark.parametrize("family", NAMES)
def test_objectness_of_anchors_counts_the_students_classes(family):
    made, batch = dense(family), scenes()
    answer, all_of = seen(made, batch)
    z = all_of["cls_logits"].detach()
    told = answer.outputs.features[OBJECTNESS]
    if family == "ssdlite":
        there = z.softmax(2)[..., 1:].sum(2)
        torch.testing.assert_close(told.sigmoid(), there)
    else:
        torch.testing.assert_close(told, z[..., 1:].max(2).values)
    other = dense(family, 1, classes=("pig", "owl", "cat", "dog"))
    teacher = FrozenDetector(other, CLASSES)
    theirs = teacher(batch.images, answer.proposals).features[OBJECTNESS]
    kept = {}
    handle = other.net.head.register_forward_hook(lambda _, __, out: kept.update(out))
    teacher(batch.images, answer.proposals)
    handle.remove()
    z = kept["cls_logits"]
    if family == "ssdlite":
        torch.testing.assert_close(theirs.sigmoid(), z.softmax(2)[..., [2, 3, 4]].sum(2))
    else:
        torch.testing.assert_close(theirs, z[..., [2, 3, 4]].max(2).values)


@pytest.mark.parametrize(
    "change, message",
    [("size=96", "size 96 and 64"), ("levels=4-5", "levels p4, p5, p6 and p3"), ("anchors=8", "anchors")],
)
def test_proposals_at_other_places_are_refused(change, message):
    """For kd any two Faster R-CNNs do: the teacher classifies the student's proposals."""
    key = change.split("=")[0]
    name = "&".join(
        change if part.startswith(f"{key}=") else part for part in TINY.replace("?", "?&").split("&")
    ).replace("?&", "?")
    assert change in name
    torch.manual_seed(1)
    with pytest.raises(
        ValueError, match=f"objectness: needs a teacher with the student's anchors.*{message}"
    ):
        lesson_of(proposing(), create_detector(name, CLASSES), "objectness")
    torch.manual_seed(1)
    lesson_of(proposing(), create_detector(name, CLASSES), "kd")
