"""What the contract suite needs: for each loss, inputs of every kind that it may meet."""

import torch

from outgrow import PENULTIMATE, UNLABELLED, Outputs, Target
from outgrow.losses import LOSSES, Fixture

NUM_SAMPLES = 40
LACKING = {name for name, loss in LOSSES.items() if getattr(loss, "needs_unlabelled", False)}
SMALL = {"crd": {"dim": 8, "negatives": 16}}
"""Constructor arguments that keep a memory small; everything else is the default."""


def outputs(
    rows: int, classes: int = 5, *, seed: int = 0, dtype=torch.float64, scale: float = 3.0
) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return Outputs(
        scale * draw(rows, classes),
        {"layer1": draw(rows, 3, 8, 8), "layer2": draw(rows, 6, 4, 4), PENULTIMATE: draw(rows, 6)},
    )


def of_features(*, seed: int = 0, dtype=torch.float64, **shapes: tuple[int, ...]) -> Outputs:
    """Outputs whose features have these shapes, and as many rows of logits as the first."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        path: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for path, shape in shapes.items()
    }
    return Outputs(torch.zeros(len(next(iter(features.values()))), 5, dtype=dtype), features)


def set_up(built, student: Outputs, teacher: Outputs, dtype=torch.float64):
    """``built`` after a dry run on these outputs, the same at every call."""
    torch.manual_seed(0)
    built.setup(Fixture(student, teacher, NUM_SAMPLES))
    return built.to(dtype)


def check_reference(built, student: Outputs, teacher: Outputs, expected, *, target=None, seen=None):
    """Value, gradient in the student's features and in the adapters against ``expected(student maps,
    teacher maps, state, training, seen)``, at an upstream gradient other than 1."""
    student, (_, *inputs) = leaves(student)
    training, pairs = built.training, built.pairs
    state = {**dict(built.named_buffers()), **dict(built.named_parameters())}
    maps = [pair.maps(student, teacher) for pair in pairs]
    theirs = expected([own for own, _ in maps], [other for _, other in maps], state, training, seen)
    goal = Target(torch.zeros(len(student.logits), dtype=torch.long)) if target is None else target
    ours = call(built, student, teacher, goal)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    upstream = torch.linspace(0.3, 2.0, len(ours), dtype=ours.dtype)
    inputs = [*inputs, *built.parameters()]
    own, other = (torch.autograd.grad(value, inputs, upstream, allow_unused=True) for value in (ours, theirs))
    assert any(grad is not None and grad.any() for grad in own)
    for a, b in zip(own, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def target(rows: int, classes: int = 5, *, seed: int = 1, name: str = "") -> Target:
    """Labels, each sample's number, and for the loss ``name`` the rows without a label that it needs."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (rows,), generator=generator)
    if name in LACKING:
        label[1::2] = UNLABELLED
    return Target(label, index=torch.randperm(NUM_SAMPLES, generator=generator)[:rows])


def loss(name: str, dtype=torch.float64, **arguments):
    """A loss that is set up and in double precision, the same at every call."""
    torch.manual_seed(0)
    built = LOSSES[name](**{**SMALL.get(name, {}), **arguments})
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(5, (NUM_SAMPLES,), generator=generator)
    built.setup(Fixture(outputs(4), outputs(4, seed=5), NUM_SAMPLES, label))
    return built.to(dtype)


def call(built, student: Outputs, teacher: Outputs, goal: Target, weight=None):
    """The loss, with the random draws of memories the same at every call."""
    torch.manual_seed(7)
    if built.axis == "batch":
        return built(student, teacher, goal, weight=weight)
    value = built(student, teacher, goal)
    return value if weight is None else (value * weight).sum() / max(len(value), 1)


def leaves(value: Outputs) -> tuple[Outputs, list[torch.Tensor]]:
    """``value`` as leaves that require a gradient."""
    logits = value.logits.clone().requires_grad_()
    features = {name: feature.clone().requires_grad_() for name, feature in value.features.items()}
    return Outputs(logits, features), [logits, *features.values()]


def take(value: Outputs, rows: torch.Tensor) -> Outputs:
    return Outputs(value.logits[rows], {name: feature[rows] for name, feature in value.features.items()})
