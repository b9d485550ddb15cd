"""Every rule against its literal reference, and the promises of its card."""

import math

import pytest
import torch

import outgrow
from outgrow.knowledge import RULES, label_trails, make_rule, top_class, wrong_rows
from tests.reference import rules as reference

NAMES = list(RULES)
REWRITES = [name for name in NAMES if RULES[name]().effect == "rewrite"]
TEMPERATURES = [1.0, 4.0, 5.5]


def batch(rows=64, classes=7, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=dtype)
    return logits, torch.randint(classes, (rows,), generator=generator)


def corrected(logits, label, name, temperature=4.0, rows="wrong"):
    return outgrow.corrected_logits(
        outgrow.rectify(logits, label, rule=name, temperature=temperature, rows=rows)
    )


def test_every_rule_has_a_reference():
    assert NAMES
    assert set(NAMES) == set(reference.RULES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_literal_reference(name, temperature, classes):
    logits, label = batch(classes=classes)
    wrong = wrong_rows(logits, outgrow.Target(label))
    believed = (corrected(logits, label, name, temperature) / temperature).softmax(dim=1)
    literal = reference.RULES[name]
    for row in range(len(label)):
        t = reference.softmax(logits[row].tolist(), temperature)
        extra = {"temperature": temperature} if name in ("boost", "posterior") else {}
        expected = literal(t, int(label[row]), **extra) if wrong[row] else t
        assert believed[row].tolist() == pytest.approx(expected, abs=1e-12)
    assert wrong.any()
    assert not wrong.all()


@pytest.mark.parametrize("name", NAMES)
def test_right_rows_and_their_logits_stay_bit_for_bit(name):
    logits, label = batch(dtype=torch.float32)
    wrong = wrong_rows(logits, outgrow.Target(label))
    assert torch.equal(corrected(logits, label, name)[~wrong], logits[~wrong])


@pytest.mark.parametrize(
    "name, touched", [("pair", 2), ("swap", 2), ("lead", 1), ("boost", 1), ("posterior", 1)]
)
def test_untouched_logits_of_wrong_rows_stay_bit_for_bit(name, touched):
    logits, label = batch(dtype=torch.float32)
    new = corrected(logits, label, name)
    assert ((new != logits).sum(dim=1) <= touched).all()


@pytest.mark.parametrize("name", REWRITES)
def test_permuting_rows_and_classes_permutes_the_result(name):
    logits, label = batch()
    rows, classes = torch.randperm(64), torch.randperm(7)
    inverse = classes.argsort()
    expected = corrected(logits, label, name)[rows][:, classes]
    torch.testing.assert_close(corrected(logits[rows][:, classes], inverse[label[rows]], name), expected)


@pytest.mark.parametrize("name", REWRITES)
def test_a_shift_of_the_logits_changes_no_belief(name):
    logits, label = batch()
    a = (corrected(logits, label, name) / 4).softmax(dim=1)
    b = (corrected(logits + 11.0, label, name) / 4).softmax(dim=1)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_beliefs(name, dtype):
    logits = torch.tensor([[1e3, -1e3, 0.0], [-1e3, 1e3, 1e3], [0.0, 1e3, -1e3]], dtype=dtype)
    label = torch.tensor([1, 0, 0])
    new = corrected(logits, label, name)
    assert new.dtype == torch.float32
    assert new.isfinite().all()
    torch.testing.assert_close((new / 4).softmax(dim=1).sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", REWRITES)
def test_empty_and_one_row(name):
    assert corrected(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), name).shape == (0, 4)
    assert corrected(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), name).isfinite().all()


@pytest.mark.parametrize("name", REWRITES)
def test_all_rows(name):
    """With rows="all" the label still leads where it led; swap, sort and project change nothing there."""
    logits, label = batch()
    right = ~wrong_rows(logits, outgrow.Target(label))
    new = corrected(logits, label, name, rows="all")
    assert not wrong_rows(new, outgrow.Target(label))[right].any()
    if name in ("pair", "swap", "sort", "project"):
        assert torch.equal(new[right], logits[right])
    if name in ("lead", "threshold"):
        q = (new / 4).softmax(dim=1)
        rest = q.scatter(1, label[:, None], 0).amax(dim=1)
        assert (q.gather(1, label[:, None])[:, 0] - rest >= 0.2 - 1e-12).all()


def test_worked_example_of_the_paper():
    """(0.01, 0.20, 0.19) becomes (0.175, 0.035, 0.19): the label is not the new top class."""
    t = torch.tensor([[0.01, 0.20, 0.19, 0.60]], dtype=torch.float64)
    spread = torch.cat([t[:, :3], (t[:, 3:] / 4).expand(1, 4)], dim=1)  # no other class leads
    knowledge = outgrow.rectify(spread.log(), torch.tensor([0]), rule="pair", temperature=1.0)
    new = outgrow.corrected_logits(knowledge).softmax(dim=1)[0, :3].tolist()
    assert new == pytest.approx([0.175, 0.035, 0.19], abs=5e-4)
    assert label_trails(knowledge).tolist() == [True]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_pair_puts_the_label_above_the_old_top(temperature):
    logits, label = batch(rows=500, scale=6.0)
    wrong = wrong_rows(logits, outgrow.Target(label))
    top = top_class(logits, label)
    q = (corrected(logits, label, "pair", temperature) / temperature).softmax(dim=1)
    t = (logits / temperature).softmax(dim=1)
    at = lambda x, c: x.gather(1, c[:, None])[:, 0]  # noqa: E731
    assert (at(q, label) > at(q, top))[wrong].all()
    sufficient = at(t, label) * (1 + at(t, label)) >= at(t, top) ** 2
    leads = at(q, label) >= q.amax(dim=1) - 1e-15
    assert leads[wrong & sufficient].all()
    assert (~leads[wrong]).any()
    torch.testing.assert_close((at(q, label) + at(q, top))[wrong], (at(t, label) + at(t, top))[wrong])


def test_pair_is_not_idempotent_and_project_is():
    logits = torch.tensor([[0.01, 0.20, 0.19, 0.15, 0.15, 0.15, 0.15]], dtype=torch.float64).log()
    label = torch.tensor([0])
    once = corrected(logits, label, "pair", 1.0)
    assert not torch.allclose(corrected(once, label, "pair", 1.0), once)
    once = corrected(logits, label, "project", 1.0)
    torch.testing.assert_close(corrected(once, label, "project", 1.0), once)


@pytest.mark.parametrize("name", ["swap", "sort", "label_smooth", "lead", "project"])
def test_rules_that_promise_it_put_the_label_on_top(name):
    logits, label = batch(rows=300)
    assert not label_trails(outgrow.rectify(logits, label, rule=name)).any()


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_project_is_the_solution_of_its_convex_problem(margin):
    """Against a general solver that knows nothing of merging classes."""
    from scipy.optimize import LinearConstraint, minimize

    logits, label = batch(rows=24, classes=5, scale=1.0)  # mild, so that the solver gets there
    wrong = wrong_rows(logits, outgrow.Target(label))
    assert wrong.any()
    new = corrected(logits, label, f"project(margin={margin})", 1.0).softmax(dim=1)
    for row in wrong.nonzero()[:, 0].tolist():
        t, y = logits[row].softmax(dim=0).numpy(), int(label[row])
        lead = [[-math.exp(margin) * (c == k) + (c == y) for c in range(5)] for k in range(5) if k != y]
        solution = minimize(
            lambda q, t=t: float((t * -torch.tensor(q).clamp_min(1e-300).log().numpy()).sum()),
            x0=[1 / (1 + 4 * math.exp(-margin)) * (1 if c == y else math.exp(-margin)) for c in range(5)],
            jac=lambda q, t=t: -t / q,
            bounds=[(1e-9, 1)] * 5,
            constraints=[LinearConstraint(lead, 0, math.inf), LinearConstraint([[1.0] * 5], 1, 1)],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-11},
        )
        assert solution.status in (0, 8), solution.message  # 8: no better step at this precision
        ours = float(-(logits[row].softmax(dim=0) * new[row].log()).sum())
        assert ours <= solution.fun + 1e-9  # never worse than the solver, and feasible by the other tests
        assert new[row].tolist() == pytest.approx(solution.x.tolist(), abs=1e-4)


def test_ties_go_to_the_label():
    logits = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [2.0, 2.0, 3.0]])
    assert outgrow.rectify(logits, torch.tensor([0, 1, 0])).wrong.tolist() == [False, False, True]
    for name in REWRITES:
        tied = corrected(logits[:2], torch.tensor([0, 1]), name)
        assert torch.equal(tied, logits[:2])


def test_drop_removes_and_corrects_nothing():
    knowledge = outgrow.rectify(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]), rule="drop")
    assert knowledge.weight.tolist() == [1.0, 0.0]
    assert knowledge.wrong.tolist() == [False, True]
    assert knowledge.corrected.tolist() == [False, False]
    assert torch.equal(outgrow.corrected_logits(knowledge), knowledge.teacher.logits)


def test_an_option_without_effect_is_said():
    with pytest.warns(UserWarning, match="rows='all' is ignored, since the rule 'drop' rewrites no rows"):
        outgrow.Rectifier("drop", rows="all")


def test_temperature_is_recorded_only_where_it_matters():
    logits, label = batch()
    assert outgrow.rectify(logits, label, rule="pair", temperature=3.0).temperature == 3.0
    for name in ("identity", "drop", "swap", "sort", "boost", "posterior"):
        assert outgrow.rectify(logits, label, rule=name).temperature is None
    with pytest.raises(ValueError, match=r"'pair' depends on a temperature, got None"):
        outgrow.Rectifier("pair", temperature=None)


class TestMixed:
    """A row blended by mixup or CutMix."""

    target = outgrow.Target(
        label=torch.tensor([0, 0, 0, 0]),
        partner=torch.tensor([1, 1, 1, 1]),
        mix=torch.tensor([0.7, 0.3, 0.7, 1.0]),
    )
    logits = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 1.0], [0.0, 1.0, 3.0], [0.0, 3.0, 1.0]])

    def test_right_means_either_label_with_a_share(self):
        assert outgrow.rectify(self.logits, self.target).wrong.tolist() == [False, False, True, True]

    def test_rules_correct_towards_the_larger_share(self):
        assert self.target.dominant.tolist() == [0, 1, 0, 0]
        new = corrected(self.logits, self.target, "swap")
        assert new[2].tolist() == [3.0, 1.0, 0.0]

    def test_partner_and_mix_belong_together(self):
        with pytest.raises(ValueError, match="belong together"):
            outgrow.Target(torch.tensor([0]), partner=torch.tensor([1]))


class TestMaps:
    """Pixels and tokens go through the same code as rows."""

    def test_equal_to_rows(self):
        logits, label = batch(rows=2 * 3 * 5)
        maps = logits.view(2, 3, 5, 7).permute(0, 3, 1, 2).contiguous()
        outputs, target = outgrow.flatten_rows(maps, label.view(2, 3, 5))
        assert torch.equal(outputs.logits, logits)
        assert torch.equal(target.image, torch.arange(2).repeat_interleave(15))
        assert torch.equal(outgrow.rectify(outputs, target).wrong, outgrow.rectify(logits, label).wrong)

    def test_ignored_rows_are_neither_wrong_nor_counted(self):
        logits, label = batch(rows=6)
        label[2:4] = 255
        outputs, target = outgrow.flatten_rows(logits[:, :, None], label[:, None], ignore_index=255)
        knowledge = outgrow.rectify(outputs, target)
        assert knowledge.weight.tolist() == [1, 1, 0, 0, 1, 1]
        assert not knowledge.wrong[2:4].any()
        assert knowledge.partial


class TestErrors:
    def test_label_out_of_range(self):
        with pytest.raises(ValueError, match=r"label in 0..2.*got 3 in row 1; check the label column"):
            outgrow.rectify(torch.zeros(2, 3), torch.tensor([0, 3]))

    def test_nan_logits(self):
        logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
        with pytest.raises(ValueError, match=r"teacher: needs finite logits .*, got .*nan in row 1"):
            outgrow.rectify(logits, torch.tensor([0, 0]))

    def test_rows_and_labels_differ(self):
        with pytest.raises(ValueError, match="got 3 labels for 2 rows"):
            outgrow.rectify(torch.zeros(2, 3), torch.tensor([0, 1, 2]))

    def test_unknown_rule_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"got 'pairs'; did you mean 'pair'"):
            outgrow.Rectifier("pairs")

    def test_unknown_argument(self):
        with pytest.raises(ValueError, match=r"rule lead: needs arguments out of \(margin\), got eta"):
            make_rule("lead(eta=0.8)")

    @pytest.mark.parametrize(
        "text",
        [
            "lead(margin=1.0)",
            "project(margin=-1)",
            "label_smooth(confidence=0)",
            "boost(delta=-1)",
            "posterior(noise=1.0)",
        ],
    )
    def test_parameters_out_of_range(self, text):
        with pytest.raises(ValueError, match=r"needs a .*, got"):
            make_rule(text)

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match="flatten maps of logits"):
            outgrow.rectify(torch.zeros(2, 3, 4), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="one integer class per row"):
            outgrow.rectify(torch.zeros(2, 3), torch.zeros(2, 3))


def test_no_gradient_reaches_the_teacher():
    logits = torch.randn(4, 3, requires_grad=True)
    knowledge = outgrow.rectify(logits, torch.tensor([0, 1, 2, 0]))
    assert not outgrow.corrected_logits(knowledge).requires_grad


def test_no_gradient_reaches_the_teachers_features():
    """Of a network that is not frozen, such as the student's own deeper layers."""
    value = torch.randn(4, 7, requires_grad=True)
    knowledge = outgrow.rectify(outgrow.Outputs(value.detach(), {"layer": 2 * value}), torch.arange(4))
    assert not knowledge.teacher.features["layer"].requires_grad
    assert torch.equal(knowledge.teacher.features["layer"], 2 * value)


def test_a_rule_of_ones_own_needs_no_registration():
    class Zero:
        name, uses_temperature, effect = "zero", False, "rewrite"

        def __call__(self, logits, label, *, temperature):
            return torch.zeros_like(logits)

    logits, label = batch(rows=4)
    new = corrected(logits, label, Zero())
    wrong = outgrow.rectify(logits, label).wrong
    assert (new[wrong] == 0).all()
