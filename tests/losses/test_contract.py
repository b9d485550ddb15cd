"""One contract for every loss: what a loss declares, it keeps. Rows without a label are in test_unlabelled.py."""

import copy
from dataclasses import replace

import pytest
import torch

from outgrow import IGNORE, UNLABELLED, Objective, Outputs, Target, rectify
from outgrow.losses import LOSSES, Loss
from outgrow.losses.standardize import standardize_logits
from tests import contract
from tests.reference import features
from tests.reference import losses as reference

NAMES = list(LOSSES)
ROW = [name for name in NAMES if LOSSES[name]().axis == "row"]
IMAGE = [name for name in NAMES if LOSSES[name]().axis == "image"]
BATCH = [name for name in NAMES if LOSSES[name]().axis == "batch"]
LOGITS = [name for name in NAMES if "logits" in LOSSES[name]().reads]
FEATURES = [name for name in NAMES if "features" in LOSSES[name]().reads]


def gradient(value, leaves):
    return torch.autograd.grad(value.sum(), leaves, allow_unused=True)


def test_the_registry_is_covered():
    assert NAMES
    assert set(ROW + IMAGE + BATCH) == set(NAMES)
    assert set(ROW) == set(reference.ROWS)
    assert set(IMAGE) == set(features.IMAGE)
    # crd has its own file of tests
    assert set(BATCH) - {"crd"} == set(reference.BATCH) | set(features.BATCH)
    assert set(LOGITS) | set(FEATURES) == set(NAMES)


@pytest.mark.parametrize("name", [*reference.ROWS, *reference.BATCH])
@pytest.mark.parametrize("rows, classes", [(1, 3), (6, 5), (17, 2), (9, 31)])
def test_value_and_gradient_of_the_literal_reference(name, rows, classes):
    if name == "dist" and rows == 1:
        pytest.skip("a single row has no correlation along its columns: stated on the card")
    goal = contract.target(rows, classes, name=name)
    student, (logits, *_) = contract.leaves(contract.outputs(rows, classes))
    teacher = contract.outputs(rows, classes, seed=5)
    value = contract.call(contract.loss(name), student, teacher, goal)
    expected = {**reference.ROWS, **reference.BATCH}[name](logits, teacher.logits, goal.label)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)
    upstream = torch.linspace(0.3, 2.0, value.numel(), dtype=torch.float64).view_as(value)
    ours = torch.autograd.grad(value, logits, upstream)[0]
    theirs = torch.autograd.grad(expected, logits, upstream)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", features.IMAGE)
def test_value_and_gradient_of_the_literal_reference_on_maps(name, training):
    if name == "mgd" and training:
        pytest.skip("masks are drawn in training: tests/losses/test_mgd.py")
    rows = 5 if training else 1
    student, teacher = contract.outputs(rows), contract.outputs(rows, seed=5)
    built = contract.loss(name).train(training)
    stages = features.STAGES.get(name, ["layer1", "layer2"])
    seen = [[contract.outputs(4, seed=5).features[stage]] for stage in stages]
    if training:
        seen = [[*maps, teacher.features[stage]] for maps, stage in zip(seen, stages, strict=True)]
    assert [path for pair in built.pairs for path in pair[:2]] == [path for path in stages for _ in range(2)]
    contract.check_reference(built, student, teacher, features.IMAGE[name], seen=seen)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", features.BATCH)
def test_value_and_gradient_of_the_literal_reference_on_vectors(name, rows):
    student, (_, *_, leaf) = contract.leaves(contract.outputs(rows))
    teacher = contract.outputs(rows, seed=5)
    value = contract.call(contract.loss(name), student, teacher, contract.target(rows, name=name))
    expected = features.BATCH[name](leaf, teacher.features["penultimate"])
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)
    ours, theirs = (torch.autograd.grad(1.7 * result, leaf)[0] for result in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOGITS)
def test_constants_reach_the_formula(name):
    """Every constructor argument that is a number changes the value: none is stored and forgotten."""
    import inspect

    goal = contract.target(6, name=name)
    student, teacher = contract.outputs(6), contract.outputs(6, seed=5)

    def late(**arguments):
        built = contract.loss(name, **arguments)
        built.at(0.65)  # every loss's own ramp has begun: a constant that only says when is seen too
        return contract.call(built, student, teacher, goal)

    plain = late()
    numbers = {
        key: parameter.default
        for key, parameter in inspect.signature(LOSSES[name]).parameters.items()
        if isinstance(parameter.default, float)
    }
    assert numbers
    for key, default in numbers.items():
        assert not torch.allclose(late(**{key: default * 1.7 + 0.1}), plain), key


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    goal = contract.target(4, name=name)
    teacher = contract.outputs(4, seed=5)
    built = contract.loss(name)
    built.eval()  # batch norm of a connector over numerical perturbations of one input
    contract.call(built, contract.outputs(4), teacher, goal)  # Z is estimated once, and constant then
    student, inputs = contract.leaves(contract.outputs(4))
    names = list(student.features)

    def value(logits, *features):
        fresh = copy.deepcopy(built)  # a memory moves on with every call
        return contract.call(fresh, Outputs(logits, dict(zip(names, features, strict=True))), teacher, goal)

    # what is held constant moves in a numerical derivative: a loss that declares so must fail here, and
    # its gradient is checked against the literal reference alone
    own = torch.autograd.gradcheck(
        value, inputs, eps=1e-6, atol=1e-5, fast_mode=True, raise_exception=not built.detaches
    )
    assert own != built.detaches


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES[name]().zero_at_match])
def test_zero_where_student_and_teacher_agree(name):
    goal = contract.target(6, name=name)
    same = contract.outputs(6)
    student, inputs = contract.leaves(same)
    value = contract.call(contract.loss(name), student, same, goal)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-9, rtol=0)
    for grad in gradient(value, inputs):
        if grad is not None:
            torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", [name for name in ROW + IMAGE if not LOSSES[name]().batch_statistics])
def test_rows_do_not_look_at_each_other(name):
    goal = contract.target(6, name=name)
    built = contract.loss(name).eval()
    student, teacher = contract.outputs(6), contract.outputs(6, seed=5)
    whole = contract.call(built, student, teacher, goal)
    for i in range(6):
        row = torch.tensor([i])
        one = contract.call(
            built,
            contract.take(student, row),
            contract.take(teacher, row),
            Target(goal.label[row], goal.index[row]),
        )
        torch.testing.assert_close(one[0], whole[i])


@pytest.mark.parametrize("name", NAMES)
def test_permuting_rows(name):
    """What a loss draws for a row (negatives, a mask) goes with its sample, wherever it stands."""
    goal = contract.target(6, name=name)
    student, teacher = contract.outputs(6), contract.outputs(6, seed=5)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    value = contract.call(contract.loss(name), student, teacher, goal)
    moved = contract.call(
        contract.loss(name),
        contract.take(student, order),
        contract.take(teacher, order),
        Target(goal.label[order], goal.index[order]),
    )
    torch.testing.assert_close(moved, value[order] if value.dim() else value)


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_declared_and_leave_the_generator_alone(name):
    """They depend on the sample and on how often was drawn: the next step's are others."""
    goal = contract.target(6, name=name)
    student, teacher = contract.outputs(6), contract.outputs(6, seed=5)
    built, other = contract.loss(name), contract.loss(name)
    assert hasattr(built, "draw") == built.draws
    state = torch.get_rng_state()
    built(student, teacher, goal)
    assert torch.equal(torch.get_rng_state(), state)
    if built.draws:
        other.draw[1] += 1
        a, b = (contract.call(loss, student, teacher, goal) for loss in (contract.loss(name), other))
        assert not torch.allclose(a, b)


@pytest.mark.parametrize("name", LOGITS)
def test_permuting_classes_and_shifting_logits(name):
    goal = contract.target(6, name=name)
    student, teacher = contract.outputs(6), contract.outputs(6, seed=5)
    built = contract.loss(name)
    value = contract.call(built, student, teacher, goal)
    order = torch.tensor([2, 0, 4, 1, 3])

    def moved(shift):
        return contract.call(
            built,
            replace(student, logits=student.logits[:, order] + 3.0 * shift),
            replace(teacher, logits=teacher.logits[:, order] - 5.0 * shift),
            replace(goal, label=torch.where(goal.valid, order.argsort()[goal.label], goal.label)),
        )

    torch.testing.assert_close(moved(0), value)
    if built.shift_invariant:
        torch.testing.assert_close(moved(1), value)
    else:
        assert not torch.allclose(moved(1), value)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_saturation(name, dtype):
    extreme = torch.tensor([[1e3, -1e3, 0.0], [-1e3, 1e3, -1e3], [0.0, 0.0, 0.0]], dtype=dtype)
    goal = Target(torch.tensor([0, 0, 1]), index=torch.arange(3))
    built = contract.loss(name, torch.float32)
    logits = extreme.clone().requires_grad_()
    value = contract.call(built, Outputs(logits), Outputs(extreme.flip(0)), goal)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted(name, dtype):
    """The inputs are rounded, the maths is not."""
    goal = contract.target(6, name=name)
    half_student, half_teacher = contract.outputs(6, dtype=dtype), contract.outputs(6, seed=5, dtype=dtype)
    exact = contract.call(
        contract.loss(name),
        Outputs(half_student.logits.double()),
        Outputs(half_teacher.logits.double()),
        goal,
    )
    value = contract.call(
        contract.loss(name, torch.float32), Outputs(half_student.logits), Outputs(half_teacher.logits), goal
    )
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("kind", ["zero", "equal", "tiny", "huge"])
def test_dead_and_equal_features_have_finite_gradients(name, kind):
    """Dead units, an image that is in the batch twice: where roots and norms have no derivative."""
    generic = contract.outputs(6, dtype=torch.float32)

    def broken(feature):
        if kind == "equal":
            return feature[:1].expand_as(feature)
        factor = {"zero": 0.0, "tiny": 1e-25, "huge": 1e4}[kind]
        some = torch.ones(len(feature)).index_fill(0, torch.tensor([1, 2]), factor)
        return feature * some.view(-1, *[1] * (feature.dim() - 1))

    feature = {path: broken(value) for path, value in generic.features.items()}
    student, inputs = contract.leaves(Outputs(generic.logits, feature))
    for teacher in (contract.outputs(6, seed=5, dtype=torch.float32), Outputs(generic.logits, feature)):
        for built in (contract.loss(name, torch.float32), contract.loss(name, torch.float32).eval()):
            value = contract.call(built, student, teacher, contract.target(6, name=name))
            assert value.isfinite().all()
            grads = [grad for grad in gradient(value, inputs) if grad is not None]
            assert grads
            assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_lifted(name, dtype):
    student, teacher = contract.outputs(6, dtype=dtype), contract.outputs(6, seed=5, dtype=dtype)
    exact = [replace(o, features={k: v.float() for k, v in o.features.items()}) for o in (student, teacher)]
    value = contract.call(contract.loss(name, torch.float32), student, teacher, contract.target(6, name=name))
    expected = contract.call(contract.loss(name, torch.float32), *exact, contract.target(6, name=name))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", NAMES)
def test_few_rows(name):
    """The last batch of an epoch may be as small."""
    for rows in (0, 1, 2, 3):
        student, inputs = contract.leaves(contract.outputs(rows))
        value = contract.call(
            contract.loss(name).eval(),
            student,
            contract.outputs(rows, seed=5),
            contract.target(rows, name=name),
        )
        assert value.isfinite().all()
        grads = [g for g in gradient(value, inputs) if g is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
        if rows == 0:
            assert value.sum() == 0


@pytest.mark.parametrize("name", BATCH)
class TestWeights:
    """A batch loss takes weights as a row loss does."""

    def test_ones_are_no_weights(self, name):
        goal, student, teacher = (
            contract.target(6, name=name),
            contract.outputs(6),
            contract.outputs(6, seed=5),
        )
        ones = torch.ones(6, dtype=torch.float64)
        torch.testing.assert_close(
            contract.call(contract.loss(name), student, teacher, goal, ones),
            contract.call(contract.loss(name), student, teacher, goal),
        )

    def test_twice_the_weight_is_twice_the_value(self, name):
        goal, student, teacher = (
            contract.target(6, name=name),
            contract.outputs(6),
            contract.outputs(6, seed=5),
        )
        weight = torch.rand(6, dtype=torch.float64) + 0.1
        torch.testing.assert_close(
            contract.call(contract.loss(name), student, teacher, goal, 2 * weight),
            2 * contract.call(contract.loss(name), student, teacher, goal, weight),
        )

    def test_weight_zero_is_absence(self, name):
        goal, student, teacher = (
            contract.target(6, name=name),
            contract.outputs(6),
            contract.outputs(6, seed=5),
        )
        keep = torch.arange(4)
        weight = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)
        built, alone = contract.loss(name), contract.loss(name)
        value = contract.call(built, student, teacher, goal, weight)
        if name == "crd":
            # the draws of the first rows are the same; Z comes from all rows of the first batch
            for z in ("z_student", "z_teacher"):
                getattr(alone, z).copy_(getattr(built, z))
        expected = contract.call(
            alone,
            contract.take(student, keep),
            contract.take(teacher, keep),
            Target(goal.label[keep], goal.index[keep]),
        )
        torch.testing.assert_close(value, expected * 4 / 6)

    def test_no_weight_at_all_is_zero_with_a_graph(self, name):
        student, inputs = contract.leaves(contract.outputs(6))
        value = contract.call(
            contract.loss(name),
            student,
            contract.outputs(6, seed=5),
            contract.target(6, name=name),
            torch.zeros(6, dtype=torch.float64),
        )
        assert value.item() == 0
        grads = [g for g in gradient(value, inputs) if g is not None]
        assert grads
        assert all((g == 0).all() for g in grads)


OF_ITS_OWN = {
    "softens": True,  # its temperature is for a base that is given by name
    "transform": standardize_logits,
    "shift_invariant": True,  # the mean of a row is taken out
    "closed_form": False,  # the closed form is that of logits as they are
    "process_group": None,  # the objective gives it to the base as well
}
"""Declarations that ``standardize`` makes itself; all others are those of its base."""


@pytest.mark.parametrize("name", LOGITS)
def test_standardize_declares_all_that_its_base_does(name):
    base = contract.loss(name)
    built = LOSSES["standardize"](base)
    declared = {key for key in Loss.__annotations__ if key != "reliability"}
    assert {"needs_unlabelled", "needs_label", "inert", "axis"} <= declared
    for key in declared:
        assert getattr(built, key) == OF_ITS_OWN.get(key, getattr(base, key)), key
    assert getattr(built, "reliability", None) is getattr(base, "reliability", None)
    assert built.state_dict().keys() == {f"base.{key}" for key in base.state_dict()}


@pytest.mark.parametrize("key", sorted(Loss.__annotations__.keys() - OF_ITS_OWN.keys() - {"reliability"}))
def test_standardize_repeats_a_declaration_that_is_not_the_default(key):
    """Also those that no loss on logits makes today."""
    base = LOSSES["kd"]()
    value = {"axis": "batch", "temperature": 7.0, "reads": frozenset({"logits", "features"})}.get(key)
    value = {"all": "a reason"} if key == "inert" else value
    setattr(base, key, not getattr(base, key) if value is None else value)
    assert getattr(LOSSES["standardize"](base), key) == getattr(base, key)


@pytest.mark.parametrize("name", NAMES)
class TestUnderTheObjective:
    def run(self, name, rule="identity", label=None, **options):
        goal = contract.target(6, name=name)
        if label is not None:
            goal = replace(goal, label=label)
        student, inputs = contract.leaves(contract.outputs(6))
        teacher = contract.outputs(6, seed=5)
        objective = Objective(contract.loss(name), task_weight=0.0, **options).eval()
        knowledge = rectify(teacher, goal, rule=rule, temperature=objective.temperature or 4.0)
        torch.manual_seed(7)
        result = objective(student, knowledge, goal, 0.5)
        return result, inputs, knowledge

    def test_identity_and_constant_give_the_papers_own_loss(self, name):
        result, _, _ = self.run(name)
        built = contract.loss(name).eval()
        built.at(0.5)  # where training stands in run()
        plain = contract.call(
            built, contract.outputs(6), contract.outputs(6, seed=5), contract.target(6, name=name)
        )
        torch.testing.assert_close(result.total, plain.mean())

    def test_terms_sum_to_the_total(self, name):
        result, _, _ = self.run(name, rule="pair", schedule="linear")
        torch.testing.assert_close(sum(result.terms.values()), result.total.detach())
        assert not any(value.requires_grad for value in (*result.terms.values(), *result.stats.values()))

    @pytest.mark.parametrize("normalize", ["rows", "subset"])
    @pytest.mark.parametrize("kind", ["all right", "all wrong", "all ignored", "all unlabelled"])
    @pytest.mark.parametrize("rule", ["pair", "drop"])
    def test_lopsided_batches(self, name, kind, rule, normalize):
        logits = contract.outputs(6, seed=5).logits
        label = {
            "all right": logits.argmax(1),
            "all wrong": logits.argmin(1),
            "all ignored": torch.full((6,), IGNORE),
            "all unlabelled": torch.full((6,), UNLABELLED),
        }[kind]
        result, inputs, knowledge = self.run(name, rule, label, normalize=normalize, schedule="linear")
        assert knowledge.wrong.all() == (kind == "all wrong")
        assert result.total.isfinite()
        grads = [g for g in gradient(result.total, inputs) if g is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
        if kind == "all ignored" or (kind == "all wrong" and rule == "drop"):
            assert result.total == 0
            assert all((g == 0).all() for g in grads)

    def test_deepcopy_repr_and_state(self, name):
        built = contract.loss(name)
        assert repr(copy.deepcopy(built)).lower().startswith(name.replace("_", ""))
        fresh = contract.loss(name)
        fresh.load_state_dict(built.state_dict())


@pytest.mark.parametrize("name", [name for name in FEATURES if name not in LOGITS])
def test_corrected_logits_are_inert_for_features_and_dropped_rows_and_schedules_are_not(name):
    run = TestUnderTheObjective().run
    plain, _, knowledge = run(name)
    assert 0 < knowledge.wrong.sum() < 6
    for rule in ("pair", "swap", "project"):
        assert run(name, rule)[0].total == plain.total
    assert run(name, "drop")[0].total != plain.total
    assert run(name, schedule="linear_keep")[0].total != plain.total
