"""The objective: the paper and the released code replayed by hand, and what may not go wrong."""

import math
import pickle
import subprocess
import sys
import warnings
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import outgrow
from outgrow import IGNORE, Objective, Outputs, Rectifier, Target, Term
from outgrow.losses import LOSSES
from outgrow.objective.schedule import SCHEDULES, Weights, make_schedule
from tests.reference import objective as reference


@pytest.fixture
def as_installed(monkeypatch):
    """Without the types that are checked in tests alone, which would refuse the arguments first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def batch(rows=12, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    label[: rows // 2] = teacher[: rows // 2].argmax(dim=1)
    return student.requires_grad_(), teacher, label


@pytest.mark.parametrize("name, literal", [("paper", reference.paper), ("released", reference.released)])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_presets_replay_their_source(name, literal, progress):
    student, teacher, label = batch()
    rectify, objective = outgrow.preset(name)
    result = objective(student, rectify(teacher, label), label, progress)
    rows = student.tolist()
    assert result.total.item() == pytest.approx(
        literal(rows, teacher.tolist(), label.tolist(), progress), rel=1e-12
    )
    (gradient,) = torch.autograd.grad(result.total, student)
    for i, c in [(0, 0), (3, 2), (11, 4)]:
        numeric = []
        for step in (1e-6, -1e-6):
            moved = [list(row) for row in rows]
            moved[i][c] += step
            numeric.append(literal(moved, teacher.tolist(), label.tolist(), progress))
        assert gradient[i, c].item() == pytest.approx((numeric[0] - numeric[1]) / 2e-6, abs=1e-7)


def test_a_batch_by_hand():
    """Two classes, one right and one wrong row, every number written as its expression."""
    student = torch.zeros(2, 2, dtype=torch.float64)
    teacher = torch.tensor([[4.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([0, 1])
    rectify, objective = outgrow.preset("paper")
    result = objective(student, rectify(teacher, label), label, 0.25)
    high = math.e / (1 + math.e)  # softmax of (4, 0) at temperature 4
    low = 1 - high
    easy = 16 * (high * math.log(2 * high) + low * math.log(2 * low))
    new = (1 + low) / 2, high / 2  # m = 1
    hard = 16 * (new[0] * math.log(2 * new[0]) + new[1] * math.log(2 * new[1]))
    assert result.total.item() == pytest.approx(0.75 * (math.log(2) + easy) + 0.25 * hard, rel=1e-12)
    assert result.terms["task"].item() == pytest.approx(0.75 * math.log(2))
    assert result.stats["kd.easy"].item() == pytest.approx(easy)
    assert result.stats["kd.hard"].item() == pytest.approx(hard)
    assert result.stats["wrong_rate"].item() == 0.5


def test_kd_preset_is_cross_entropy_and_kd():
    student, teacher, label = batch()
    rectify, objective = outgrow.preset("kd")
    total = objective(student, rectify(teacher, label), label, 0.7).total
    p, t = (student / 4).log_softmax(1), (teacher / 4).softmax(1)
    expected = nn.functional.cross_entropy(student, label) + 16 * nn.functional.kl_div(
        p, t, reduction="batchmean"
    )
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("normalize", ["rows", "subset"])
def test_dropped_rows(normalize):
    student, teacher, label = batch()
    objective = Objective("kd", normalize=normalize, task_weight=0.0)
    knowledge = Rectifier("drop")(teacher, label)
    right = ~knowledge.wrong
    kept = outgrow.losses.LOSSES["kd"]()(student[right], teacher[right], label[right])
    expected = kept.mean() if normalize == "subset" else kept.sum() / len(label)
    torch.testing.assert_close(objective(student, knowledge, label, 0.0).total, expected)


def test_what_ignored_rows_hold_reaches_nothing():
    student, teacher, label = batch()
    kept = torch.arange(12) % 3 > 0
    labels = torch.where(kept, label, IGNORE)
    poisoned = torch.where(kept[:, None], student.detach(), math.inf).requires_grad_()
    rectify, objective = outgrow.preset("kd")
    target = Target(labels, may_ignore=True)
    result = objective(poisoned, rectify(torch.where(kept[:, None], teacher, 0.0), target), target, 0.5)
    plain = objective(student[kept], rectify(teacher[kept], label[kept]), label[kept], 0.5)
    torch.testing.assert_close(result.total, plain.total)
    (gradient,) = torch.autograd.grad(result.total, poisoned)
    assert (gradient[~kept] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", ["kd", "dkd + dist"])
@pytest.mark.parametrize("rule", ["pair", "drop"])
def test_an_ignored_row_of_the_teacher_may_hold_anything(value, loss, rule):
    student, teacher, label = batch()
    label[3], poisoned = IGNORE, teacher.clone()
    poisoned[3] = value
    found = []
    for given in (teacher, poisoned):
        own = student.clone().requires_grad_()
        total = Objective(loss)(own, Rectifier(rule)(given, label), label, 0.3).total
        found.append((total, torch.autograd.grad(total, own)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    label[3] = 0
    with pytest.raises(ValueError, match="needs finite logits"):
        Rectifier(rule)(poisoned, label)


def test_terms_on_wrong_and_on_right_rows_add_up():
    student, teacher, label = batch()
    knowledge = Rectifier("pair")(teacher, label)
    kd = outgrow.losses.LOSSES["kd"]
    whole = Objective(kd(), schedule="linear", task_weight=0.0)(student, knowledge, label, 0.3).total
    parts = Objective(
        {"right": Term(kd(), rows="right"), "wrong": Term(kd(), rows="wrong")},
        schedule="linear",
        task_weight=0.0,
    )(student, knowledge, label, 0.3)
    torch.testing.assert_close(parts.total, whole)
    assert set(parts.terms) == {"task", "right", "wrong"}


def test_start_and_warmup_of_a_term():
    term = Term("kd", weight=2.0, start=0.25, warmup=0.5)
    assert [term.scale(p) for p in (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 0, 1.0, 2.0, 2.0]


def test_several_losses_with_weights():
    student, teacher, label = batch()
    knowledge = Rectifier("identity")(teacher, label)
    both = Objective("kd + 0.5*dkd(beta=2)")(student, knowledge, label, 0.0)
    assert set(both.terms) == {"task", "kd", "dkd"}
    dkd = Objective("dkd(beta=2)", task_weight=0.0)(student, knowledge, label, 0.0).total
    torch.testing.assert_close(both.terms["dkd"], 0.5 * dkd.detach())
    assert set(Objective("kd + kd(temperature=2)").terms) == {"kd", "kd_2"}


def test_a_task_of_ones_own_is_not_scheduled_unless_asked():
    student, teacher, label = batch()
    knowledge = Rectifier("pair")(teacher, label)
    own = student.square().mean()
    kept = Objective("kd", schedule="linear", task_weight=0.5)(student, knowledge, label, 0.75, task=own)
    torch.testing.assert_close(kept.terms["task"], 0.5 * own.detach())
    asked = Objective("kd", schedule="linear", schedule_task=True)(student, knowledge, label, 0.75, task=own)
    torch.testing.assert_close(asked.terms["task"], 0.25 * own.detach())


def test_mixed_labels_in_the_task():
    student, teacher, label = batch()
    mix = torch.linspace(0, 1, 12, dtype=torch.float64)
    target = Target(label, partner=label.flip(0), mix=mix)
    total = Objective("kd", weight=0.0)(student, Rectifier("pair")(teacher, target), target, 0.0).total
    ce = nn.functional.cross_entropy
    expected = mix * ce(student, label, reduction="none") + (1 - mix) * ce(
        student, label.flip(0), reduction="none"
    )
    torch.testing.assert_close(total, expected.mean())


def test_standardisation_comes_before_rectification():
    student, teacher, label = batch()
    rectify, objective = outgrow.preset("paper", loss="standardize", schedule="constant", task_weight=0.0)
    assert rectify.temperature == objective.temperature == 2.0
    z = lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)  # noqa: E731
    total = objective(student, rectify(teacher, label), label, 0.0).total
    by_hand_rectify, by_hand = outgrow.preset(
        "paper", loss="kd(temperature=2)", schedule="constant", task_weight=0.0
    )
    torch.testing.assert_close(
        total, by_hand(z(student), by_hand_rectify(z(teacher), label), label, 0.0).total
    )


class TestImages:
    """Losses of feature maps, where rows are proposals or pixels of an image."""

    class Mean(nn.Module):
        axis = "image"
        reads = frozenset({"features"})

        def forward(self, student, teacher, target):
            return student.features["map"].flatten(1).mean(dim=1)

    def test_an_image_weighs_what_its_rows_weigh(self):
        student, teacher, label = batch()
        image = torch.tensor([0] * 6 + [1] * 6)  # image 2 has no row
        features = {"map": torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)[:, None, None, None]}
        target = Target(label, image=image)
        knowledge = Rectifier("pair")(teacher, target)
        objective = Objective(self.Mean(), schedule="linear", task_weight=0.0)
        total = objective(Outputs(student, features), knowledge, target, 0.25).total
        share = torch.where(knowledge.wrong, 0.25, 0.75).double()
        expected = (share[:6].mean() * 1 + share[6:].mean() * 10 + share.mean() * 100) / 3
        torch.testing.assert_close(total, expected)

    def test_rows_of_unknown_images_are_refused(self):
        student, teacher, label = batch()
        features = {"map": torch.zeros(3, 1, 1, 1, dtype=torch.float64)}
        with pytest.raises(ValueError, match="12 rows and 3 images"):
            Objective(self.Mean())(Outputs(student, features), Rectifier()(teacher, label), label, 0.0)


class TestErrors:
    def test_two_temperatures(self):
        student, teacher, label = batch()
        with pytest.raises(
            ValueError, match=r"'kd' reads the teacher at temperature 4.0, got .* 2.0; build both"
        ):
            Objective("kd")(student, Rectifier("pair", temperature=2.0)(teacher, label), label, 0.0)
        Objective("kd")(
            student, Rectifier("swap", temperature=2.0)(teacher, label), label, 0.0
        )  # does not depend on it

    def test_mismatched_classes(self):
        student, teacher, label = batch()
        with pytest.raises(ValueError, match=r"got 5 and 4; map the teacher's classes by name, or use"):
            Objective("kd")(student[:, :4], Rectifier()(teacher, label), label, 0.0)

    def test_progress(self):
        student, teacher, label = batch()
        with pytest.raises(ValueError, match=r"progress in \[0, 1\], got 3"):
            Objective("kd")(student, Rectifier()(teacher, label), label, 3.0)

    def test_arguments_of_another_kind(self):
        """In a process of its own, as these tests check types."""
        code = (
            "import torch, outgrow\n"
            "rectify, objective = outgrow.preset('kd')\n"
            "logits, label = torch.zeros(2, 3), torch.tensor([0, 1])\n"
            "for arguments in ((logits, label, 0.0), (rectify(logits, label), label, None)):\n"
            "    try:\n"
            "        objective(logits, *arguments)\n"
            "    except ValueError as error:\n"
            "        print(error)\n"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "needs knowledge, got Tensor; pass what the rectifier returns" in said
        assert "progress in [0, 1], got None" in said

    @pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
    @pytest.mark.parametrize("name", ["weight", "task_weight"])
    def test_weights(self, name, value):
        with pytest.raises(ValueError, match=f"Objective: {name} needs a finite number of at least 0, got"):
            outgrow.preset("kd", **{name: value})

    def test_rows(self):
        student, teacher, label = batch()
        with pytest.raises(ValueError, match="got 11, 12 and 12"):
            Objective("kd")(student[:11], Rectifier()(teacher, label), label, 0.0)

    def test_a_reduced_row_loss(self):
        class Reduced(nn.Module):
            def forward(self, student, teacher, target):
                return student.logits.mean()

        student, teacher, label = batch()
        with pytest.raises(ValueError, match="one value for each of 12 rows, got shape"):
            Objective(Reduced())(student, Rectifier()(teacher, label), label, 0.0)

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="did you mean 'dkd'"):
            Objective("dkdd")
        with pytest.raises(ValueError, match="preset: needs one of paper"):
            outgrow.preset("papers")
        with pytest.raises(ValueError, match="did you mean 'linear'"):
            Objective("kd", schedule="linea")

    def test_a_loss_that_was_not_set_up(self):
        student, teacher, label = batch()
        with pytest.raises(ValueError, match=r"fitnet: needs its connector, got none; call objective.setup"):
            Objective("fitnet")(student, Rectifier("identity")(teacher, label), label, 0.0)

    def test_student_logits_that_are_not_finite_are_seen(self):
        student, teacher, label = batch()
        broken = student.detach().clone()
        broken[0, 0] = math.nan
        assert not Objective("kd")(broken, Rectifier()(teacher, label), label, 0.0).total.isfinite()


def test_learnable_parts_are_parameters_of_the_objective():
    objective = Objective("kd + 100*fitnet")
    features = {"a": torch.randn(4, 3, 8, 8), "b": torch.randn(4, 6, 4, 4)}
    wide = {"x": torch.randn(4, 5, 8, 8), "y": torch.randn(4, 9, 8, 8)}
    student, teacher = Outputs(torch.randn(4, 3), features), Outputs(torch.randn(4, 3), wide)
    objective.setup(student, teacher, num_samples=10)
    assert sum(p.numel() for p in objective.parameters()) == 6 * 9 + 2 * 9
    label = torch.tensor([0, 1, 2, 0])
    result = objective(student, Rectifier("identity")(teacher, label), label, 0.0)
    result.total.backward()
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_weights_in_0_and_1(name):
    schedule = make_schedule(name)
    for progress in (0.0, 0.3, 0.5, 1.0):
        assert all(0 <= w <= 1 for w in schedule(progress))


@pytest.mark.parametrize("name", [*SCHEDULES, "step(at=0.2)"])
def test_an_objective_can_be_pickled(name):
    objective = pickle.loads(pickle.dumps(Objective("kd + dkd", schedule=name)))
    for progress in (0.0, 0.1, 0.3, 1.0):
        assert objective.schedule(progress) == make_schedule(name)(progress)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("given", [(1.0, 1.0, 0.5), 0.5])
def test_a_schedule_returns_weights(given):
    label = torch.tensor([0, 1])
    knowledge = Rectifier("identity")(torch.randn(2, 3), label)
    for fast in (True, False):
        objective = Objective("kd", schedule=lambda _: given, fast=fast)
        with pytest.raises(ValueError, match=r"needs to return outgrow\.Weights"):
            objective(torch.randn(2, 3), knowledge, label, 0.5)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("progress", [np.float32(0.5), np.int64(1), torch.tensor([0.5]), Fraction(1, 2)])
def test_progress_is_any_number(progress):
    label = torch.tensor([0, 1])
    student, knowledge = torch.randn(2, 3), Rectifier("identity")(torch.randn(2, 3), label)
    found = [
        Objective("kd", schedule="linear")(student, knowledge, label, p) for p in (progress, float(progress))
    ]
    torch.testing.assert_close(found[0].total.reshape(()), found[1].total)


@pytest.mark.parametrize("name", LOSSES)
def test_a_term_is_called_by_the_name_of_its_loss(name):
    assert [*Objective(name).terms] == [name]
    assert [*Objective([name, name]).terms] == [name, f"{name}_2"]


def test_setup_takes_plain_logits():
    for loss in ("kd", "dkd", "ctkd"):
        Objective(loss).setup(torch.randn(2, 3), torch.randn(2, 3), num_samples=2)
    with pytest.raises(ValueError, match="fitnet: needs"):
        Objective("fitnet").setup(torch.randn(2, 3), torch.randn(2, 3), num_samples=2)


@pytest.mark.usefixtures("as_installed")
def test_objects_where_a_preset_takes_none_are_refused():
    with pytest.raises(ValueError, match=r"loss needs a text such as .*, got Flatten"):
        outgrow.preset("kd", loss=nn.Flatten())
    with pytest.raises(ValueError, match=r"rule needs a name such as .*, got Rectifier"):
        outgrow.preset("kd", rule=Rectifier("pair"))


def test_schedules_by_the_table():
    at = lambda name, p: make_schedule(name)(p)  # noqa: E731
    assert at("constant", 0.3) == Weights(1, 1, 1)
    assert at("linear", 0.3) == Weights(0.7, 0.7, 0.3)
    assert at("linear_keep", 0.3) == Weights(1, 0.7, 0.3)
    assert at("cosine", 0.5) == pytest.approx((1, 0.5, 0.5))
    assert at("cosine", 1 / 3) == pytest.approx((1, 0.75, 0.25))
    assert at("grow", 0.3) == Weights(1, 1, 0.3)
    assert at("step(at=0.4)", 0.39) == Weights(1, 1, 0)
    assert at("step(at=0.4)", 0.4) == Weights(1, 1, 1)
    assert at("warmup(until=0.4)", 0.1) == pytest.approx((1, 0.25, 0.25))
    assert at("warmup(until=0.4)", 0.9) == Weights(1, 1, 1)
    assert at("warmup(until=0)", 0.0) == Weights(1, 1, 1)
    with pytest.raises(ValueError, match=r"step: at needs a progress in \[0, 1\], got 150"):
        make_schedule("step(at=150)")


@pytest.mark.parametrize(
    "text", ["kd +", "import os", "__import__('os')", "kd(**x)", "2*3", "kd(1, 2)", "kd.x"]
)
def test_only_names_and_literals_are_read(text):
    with pytest.raises(ValueError, match=r"needs"):
        Objective(text)


def test_rules_that_reach_nothing_are_named():
    """A user who asks for a rule that cannot change the loss is told so."""
    from outgrow.knowledge import RULES

    objective = Objective("kd + rc + 0.5*crd")
    assert objective.inert_under(RULES["pair"]()) == {"rc": "reads no teacher", "crd": "reads features alone"}
    assert objective.inert_under(RULES["drop"]()) == objective.inert_under(RULES["identity"]()) == {}
    assert Objective("sld").inert_under(RULES["swap"]()) == {"sld": "makes the same exchange itself"}


@pytest.mark.parametrize(
    "loss", ["kd", "dkd", "dist", "kd + kd(temperature=2)", "rkd", "crd(dim=8, negatives=16)", "fitnet"]
)
@pytest.mark.parametrize("fast", [True, False])
def test_a_callers_autocast_changes_nothing(loss, fast):
    """Inside autocast, logits may arrive in half precision; the maths on them does not."""
    from outgrow import PENULTIMATE

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    make = lambda: Outputs(3 * draw(12, 5), {"a": draw(12, 3, 4, 4), PENULTIMATE: draw(12, 6)})  # noqa: E731
    student, teacher = make(), make()
    target = Target(torch.randint(5, (12,), generator=generator), index=torch.arange(12))
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        objective = Objective(loss, fast=fast)
        objective.setup(student, teacher, num_samples=12)
        logits = student.logits.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            knowledge = Rectifier("swap")(teacher, target)
            total = objective(Outputs(logits, student.features), knowledge, target, 0.3).total
        found.append((total.detach(), torch.autograd.grad(total, logits)[0]))
    assert found[1][0].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0])


def test_a_temperature_changes_no_weight():
    _, objective = outgrow.preset("kd", loss="0.123456789*kd + 1e-7*dkd(2)", temperature=2.0)
    assert [term.weight for term in objective.terms.values()] == [0.123456789, 1e-7]


@pytest.mark.parametrize("loss", ["ctkd", "normkd", "fitnet", "sld"])
def test_the_rule_has_the_given_temperature_where_losses_have_none(loss):
    rectify, _ = outgrow.preset("paper", loss=loss, temperature=2.0)
    assert rectify.temperature == 2.0
    assert outgrow.preset("paper", loss=loss)[0].temperature == 4.0


@pytest.mark.parametrize(
    "loss, rule",
    [("ttm", "pair"), ("ttm + wttm", "identity"), ("ctkd", "swap"), ("fitnet", "identity")],
)
def test_a_temperature_without_effect_is_said(loss, rule):
    with pytest.warns(
        UserWarning, match=r"preset: the temperature 3 has no effect, since neither \w+ .*nor the rule"
    ):
        outgrow.preset("kd", loss=loss, rule=rule, temperature=3.0)


@pytest.mark.parametrize("loss", ["rc", "kd + ttm", "standardize(dkd)", "ppi"])
def test_a_temperature_with_effect_is_not(loss):
    outgrow.preset("kd", loss=loss, temperature=3.0)
    outgrow.preset("none", temperature=3.0)


class Task(torch.nn.Module):
    """A loss whose class is called as the task is."""

    def forward(self, student, teacher, target):
        return student.logits.sum(dim=1)


@pytest.mark.parametrize("loss", [{"task": "kd"}, {"task": Task()}, [Task()], Task()])
def test_no_loss_takes_the_place_of_the_task(loss):
    with pytest.raises(ValueError, match=r"Objective: needs other names for losses than 'task', .*; give it"):
        Objective(loss)
    assert set(Objective({"mine": Task()}).terms) == {"mine"}


def test_one_rule_cannot_serve_two_temperatures():
    with pytest.raises(
        ValueError, match=r"needs one temperature for all losses, got 2.0 and 4.0; give all the same"
    ):
        outgrow.preset("paper", loss="kd + dkd(temperature=2)")
    outgrow.preset("paper", loss="kd + dkd(temperature=2)", rule="swap")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("loss", ["kd", "jsd"])
def test_a_factor_on_the_task_is_one_on_the_task_alone(fast, loss):
    """On the path in one pass and on the plain one, in value and gradient."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    label = torch.arange(6) % 4
    found = {}
    for factor in (0.0, 1.0, 0.25):
        rectify, objective = outgrow.preset("kd", loss=loss)
        objective.fast = fast
        student = logits.clone().requires_grad_()
        result = objective(student, rectify(teacher, label), label, 0.0, task_factor=factor)
        result.total.backward()
        found[factor] = (result, student.grad)
    for name in found[1.0][0].terms:
        wanted = 0.25 if name == "task" else 1.0
        torch.testing.assert_close(found[0.25][0].terms[name], wanted * found[1.0][0].terms[name])
    mixed = 0.25 * found[1.0][1] + 0.75 * found[0.0][1]
    torch.testing.assert_close(found[0.25][1], mixed)
    assert not torch.allclose(found[0.25][1], found[1.0][1])


class TestWeightsOfLosses:
    @pytest.mark.parametrize("text", ["-1*kd", "1e400*kd", "kd + -0.5*dkd"])
    def test_in_text(self, text):
        with pytest.raises(
            ValueError, match="Term: the weight of a loss needs a finite number of at least 0"
        ):
            Objective(text)
        with pytest.raises(
            ValueError, match="Term: the weight of a loss needs a finite number of at least 0"
        ):
            outgrow.preset("kd", loss=text)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
    def test_of_a_term(self, value):
        with pytest.raises(ValueError, match=rf"Term: the weight .*, got {value}; 1 is the default"):
            Term("kd", weight=value)

    def test_zero_is_one(self):
        assert Term("kd", weight=0.0).scale(1.0) == 0.0


def test_other_labels_out_of_range_are_said():
    student, teacher, label = torch.randn(6, 5), torch.randn(6, 5), torch.zeros(6, dtype=torch.int64)
    knowledge = Rectifier()(teacher, label)
    for fast in (True, False):
        with (
            pytest.warns(UserWarning, match="other labels than rectify had"),
            pytest.raises(ValueError, match=r"target: needs every label in 0\.\.4 .*, got 7 in row 2"),
        ):
            Objective("kd", fast=fast)(student, knowledge, torch.tensor([0, 0, 7, 0, 0, 0]), 0.0)


def test_labels_beyond_the_classes_of_the_student_are_said():
    """A loss on features alone may have a teacher of more classes."""
    label = torch.tensor([0, 7])
    features = {outgrow.PENULTIMATE: torch.randn(2, 3)}
    knowledge = Rectifier()(Outputs(torch.randn(2, 10), features), label)
    student, objective = Outputs(torch.randn(2, 5), features), Objective("rkd")
    with pytest.raises(
        ValueError, match=r"needs every label in 0\.\.4 \(the student's classes\), got 7 in row 1"
    ):
        objective(student, knowledge, label, 0.0)
    assert objective(student, knowledge, label, 0.0, torch.tensor(1.0)).total.isfinite()


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    "task, got", [(torch.rand(3), r"shape \(3,\)"), (torch.rand(1), r"shape \(1,\)"), (0.5, "float")]
)
def test_a_task_is_one_number(task, got):
    student, label = torch.randn(6, 5), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"task needs a tensor with one number .*got {got}; take the mean"):
        Objective("kd")(student, Rectifier()(torch.randn(6, 5), label), label, 0.0, task)


def test_one_logit_a_row_is_refused():
    """Its cross-entropy is 0 whatever it is: with labels of class 0 alone nothing would say so."""
    rectify, objective = outgrow.preset("kd")
    label = torch.zeros(4, dtype=torch.long)
    student = torch.randn(4, 1, requires_grad=True)
    with pytest.raises(
        ValueError, match=r"needs a logit for each class, got one a row, .*two logits a row for two classes"
    ):
        objective(student, rectify(torch.randn(4, 1), label), label, 0.5)


@pytest.mark.parametrize("loss", ["kd(4)", "kd(temperature=4)", "dkd(beta=2) + kd(4)"])
def test_a_temperature_that_replaces_one_in_the_loss_is_said(loss):
    with pytest.warns(UserWarning, match=r"the temperature 2 replaces the 4 that the loss 'kd' has"):
        _, objective = outgrow.preset("kd", loss=loss, temperature=2.0)
    assert objective.temperature == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outgrow.preset("kd", loss="kd(4)", temperature=4.0)
        outgrow.preset("kd", loss="kd", temperature=2.0)
        for name in ("paper", "released"):
            outgrow.preset(name, temperature=2.0)
