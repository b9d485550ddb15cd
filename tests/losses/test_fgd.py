"""``fgd``: focal and global distillation of maps."""

import re
from pathlib import Path

import pytest
import torch

from outgrow import Objective, Outputs, Target
from outgrow.losses import make_loss
from outgrow.losses.fgd import FGD, attention, fgd_loss, shares_of_objects
from outgrow.models.taps import OBJECTS
from tests import contract
from tests.reference import features

BOXES = torch.tensor(
    [
        [[0.1, 0.2, 0.55, 0.9], [0.3, 0.3, 0.45, 0.6]],  # one inside of the other
        [[0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]],  # one, to the edge
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],  # none
    ],
    dtype=torch.float64,
)
CONSTANTS = {"alpha": 0.7, "beta": 0.4, "gamma": 0.3, "relation": 0.2, "temperature": 0.8}
GOAL = Target(torch.zeros(3, dtype=torch.long))


def setting(channels=4, boxes=BOXES, **constants):
    student, teacher = (
        contract.of_features(a=(3, channels, 5, 6)),
        contract.of_features(a=(3, 5, 5, 6), seed=5),
    )
    student = Outputs(student.logits, {**student.features, OBJECTS: boxes})
    built = contract.set_up(FGD(**{**CONSTANTS, **constants}), student, teacher)
    torch.manual_seed(1)
    for parameter in built.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter)
    return built, student, teacher


@pytest.mark.parametrize("channels", [4, 5])
def test_value_and_gradient_of_the_literal_reference(channels):
    contract.check_reference(*setting(channels), lambda *given: features.fgd(*given, **CONSTANTS), seen=BOXES)


@pytest.mark.parametrize("part", ["alpha", "beta", "gamma", "relation"])
def test_each_part_alone(part):
    alone = {name: CONSTANTS[name] if name == part else 0.0 for name in CONSTANTS if name != "temperature"}
    built, student, teacher = setting(**alone)
    expected = features.fgd(
        [built.connectors[0](student.features["a"])],
        [teacher.features["a"]],
        {name: p for name, p in built.named_parameters() if "connectors" not in name},
        True,
        BOXES,
        **alone,
        temperature=CONSTANTS["temperature"],
    )
    value = built(student, teacher, GOAL)
    torch.testing.assert_close(value, expected)
    assert value.any()


def test_it_is_zero_on_equal_maps_before_training():
    student = contract.of_features(a=(3, 4, 5, 6))
    student = Outputs(student.logits, {**student.features, OBJECTS: BOXES})
    built = contract.set_up(FGD(), student, student)
    assert not built(student, student, GOAL).any()


def test_objects_and_background_have_one_each():
    inside, outside = shares_of_objects(BOXES, 20, 30)
    torch.testing.assert_close(inside.sum(dim=(1, 2))[1:], torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(outside.sum(dim=(1, 2)), torch.ones(3, dtype=torch.float64))
    assert not (inside * outside).any()
    everywhere = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    assert not shares_of_objects(everywhere, 4, 4)[1].any()
    # a position that is touched counts, and a box of a fraction of a position has one
    assert shares_of_objects(torch.tensor([[[0.26, 0.26, 0.3, 0.3]]]), 4, 4)[0].nonzero().tolist() == [
        [0, 1, 1]
    ]


def test_attention_has_mean_one():
    found = attention(torch.randn(2, 3, 4, 5), temperature=0.5)
    torch.testing.assert_close(found.spatial.mean(dim=(1, 2)), torch.ones(2))
    torch.testing.assert_close(found.channel.mean(dim=1), torch.ones(2))


def test_images_are_independent():
    built, student, teacher = setting()
    whole = built(student, teacher, GOAL)
    for row in range(3):
        which = torch.tensor([row])
        one = built(contract.take(student, which), contract.take(teacher, which), Target(GOAL.label[which]))
        torch.testing.assert_close(one, whole[which])
    none = torch.zeros(0, dtype=torch.long)
    assert built(contract.take(student, none), contract.take(teacher, none), Target(none)).shape == (0,)


def test_half_precision_and_large_values_are_finite():
    for dtype, scale in ((torch.bfloat16, 1.0), (torch.float32, 1e3)):
        own = (scale * torch.randn(2, 3, 4, 4)).to(dtype).requires_grad_()
        value = fgd_loss(own, (scale * torch.randn(2, 3, 4, 4)).to(dtype), BOXES[:2].float())
        value.sum().backward()
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert own.grad.isfinite().all()


def test_its_own_errors():
    built, student, teacher = setting()
    with pytest.raises(ValueError, match=r"fgd: needs the boxes of each image .* got a; it is for detectors"):
        built(Outputs(student.logits, {"a": student.features["a"]}), teacher, GOAL)
    with pytest.raises(ValueError, match=r"fgd: needs its contexts, got none; call objective\.setup"):
        make_loss("fgd")(student, teacher, GOAL)
    with pytest.raises(ValueError, match="fgd: alpha needs a number of at least 0, got -1"):
        make_loss("fgd(alpha=-1)")
    with pytest.raises(ValueError, match="fgd: temperature needs a positive number, got 0"):
        make_loss("fgd(temperature=0)")


def test_an_objective_takes_it_for_maps():
    _, student, teacher = setting()
    objective = Objective("fgd(alpha=0.001)")
    objective.prefer_taps(["a"])
    objective.setup(student, teacher, num_samples=3)
    assert [pair.student_path for pair in objective.terms["fgd"].loss.pairs] == ["a"]


@pytest.mark.parametrize("kind", ["RetinaNet", "FCOS"])
def test_the_guide_writes_out_the_constants_of_the_card(kind):
    docs = Path(__file__).resolve().parents[2] / "docs"
    (row,) = re.findall(
        rf"^\| one-stage .*\({kind}\) \| (.*?) \|", (docs / "methods" / "fgd.md").read_text(), re.M
    )
    constants = [float(value) for value in re.sub(r" \(.*?\)", "", row).split(", ")]
    (text,) = re.findall(
        rf'^\| {kind} \| `"(fgd.*)"` \|$', (docs / "guide" / "detection.md").read_text(), re.M
    )
    built = make_loss(text)
    assert isinstance(built, FGD)
    assert [built.alpha, built.beta, built.gamma, built.relation] == constants
    assert built.alpha / FGD().alpha == pytest.approx({"RetinaNet": 20, "FCOS": 32}[kind])
