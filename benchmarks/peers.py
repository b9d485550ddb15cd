"""(c) The same losses in torchdistill: value and gradient on fixed inputs, and the reasons for differences.

Needs the extra ``peers``. Float64, 16 rows, 10 classes. The columns are ours, theirs, theirs / ours, and the
largest difference of the student's gradients divided by the largest entry of ours.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from outgrow import Outputs, Target
from outgrow.losses import LOSSES, Fixture
from outgrow.losses.vid import vid_loss

ROWS, CLASSES, SAMPLES = 16, 10, 64
LOGITS = ("logits", "output", "logits", "output")
"""torchdistill's description of where logits are: path and side, for student and teacher."""
MAPS = {"p": {"student": {"io": "output", "path": "map"}, "teacher": {"io": "output", "path": "map"}}}


class Case(NamedTuple):
    """One loss at one setting. ``ours`` and ``theirs`` map the student's leaf to a scalar."""

    name: str
    setting: str
    leaf: Tensor
    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]
    why: str = ""
    """Empty where the two should be one number."""


class Row(NamedTuple):
    name: str
    setting: str
    ours: float
    theirs: float
    gradient: float
    why: str

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def io(path: str, value: Tensor, **more: Any) -> dict[str, dict[str, Any]]:
    return {path: {"output": value, **more}}


def logit_cases(peer: Any) -> list[Case]:
    student, teacher = draw(ROWS, CLASSES, seed=0, scale=3), draw(ROWS, CLASSES, seed=1, scale=3)
    label = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))

    def ours(name: str, weight: float, task: float, **arguments: float) -> Callable[[Tensor], Tensor]:
        built = LOSSES[name](**arguments)
        return lambda s: weight * built(s, teacher, label).mean() + task * F.cross_entropy(s, label)

    def theirs(loss: Any) -> Callable[[Tensor], Tensor]:
        return lambda s: loss(io("logits", s), io("logits", teacher), label)

    kd = peer.KDLoss
    return [
        Case(
            "kd",
            "T 4, alpha 0.1",
            student,
            ours("kd", 0.9, 0.1, temperature=4.0),
            theirs(kd(*LOGITS, temperature=4.0, alpha=0.1)),
        ),
        Case(
            "kd",
            "T 4, alpha 0",
            student,
            ours("kd", 1.0, 0.0, temperature=4.0),
            theirs(kd(*LOGITS, temperature=4.0, alpha=0.0)),
            "without a task theirs loses T^2: 1/16",
        ),
        Case(
            "kd",
            "T 4, alpha 1e-9",
            student,
            ours("kd", 1.0, 0.0, temperature=4.0),
            theirs(kd(*LOGITS, temperature=4.0, alpha=1e-9, beta=1.0)),
        ),
        Case(
            "kd",
            "T 4, alpha 0.1, reduction mean",
            student,
            ours("kd", 0.9, 0.1, temperature=4.0),
            theirs(kd(*LOGITS, temperature=4.0, alpha=0.1, reduction="mean")),
            "the mean is over classes too: KL / 10, cross-entropy as it was",
        ),
        Case(
            "standardize",
            "T 2, alpha 0.1, beta 9",
            student,
            ours("standardize", 9.0, 0.1, temperature=2.0),
            theirs(peer.LogitStdKDLoss(*LOGITS, temperature=2.0, alpha=0.1, beta=9.0)),
        ),
        Case(
            "dist",
            "tau 4",
            student,
            ours("dist", 1.0, 0.0, temperature=4.0),
            theirs(peer.DISTLoss(*LOGITS, tau=4.0)),
        ),
    ]


def map_cases(peer: Any) -> list[Case]:
    """A loss with learnt parts is compared from where both have the same tensors."""
    student, teacher = draw(ROWS, 6, 4, 4, seed=3), draw(ROWS, 6, 4, 4, seed=4)
    variance = draw(6, seed=5).exp()
    logits = torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    target = Target(torch.zeros(ROWS, dtype=torch.long))
    at = LOSSES["at"]()
    at.setup(Fixture(Outputs(logits, {"map": student}), Outputs(logits, {"map": teacher}), SAMPLES))
    ours = lambda s: at(  # noqa: E731
        Outputs(logits, {"map": s}), Outputs(logits, {"map": teacher}), target
    ).mean()
    theirs = lambda loss: lambda s: loss(io("map", s), io("map", teacher))  # noqa: E731
    spread = variance[None, :, None, None].expand_as(teacher)
    return [
        Case("at", "mode code", student, ours, theirs(peer.ATLoss(MAPS, mode="code"))),
        Case(
            "at",
            "mode paper",
            student,
            ours,
            theirs(peer.ATLoss(MAPS, mode="paper")),
            "the norm of the difference; ours is its mean square, which the weight of 1000 rests on",
        ),
        Case(
            "vid",
            "same mean and variance",
            student,
            lambda s: vid_loss(s, teacher, variance).mean(),
            lambda s: peer.VIDLoss(MAPS)({"map": {"output": (s, spread)}}, io("map", teacher)),
        ),
    ]


def relation_cases(peer: Any) -> list[Case]:
    student, teacher = draw(ROWS, 12, seed=6), draw(ROWS, 12, seed=7)
    logits = torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    target = Target(torch.zeros(ROWS, dtype=torch.long))

    def ours(name: str) -> Callable[[Tensor], Tensor]:
        built = LOSSES[name]()
        believed = Outputs(logits, {"penultimate": teacher})
        return lambda s: built(Outputs(logits, {"penultimate": s}), believed, target)

    def theirs(loss: Any, path: str = "f", change: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
        return lambda s: loss(io(path, change(s)), io(path, change(teacher)))

    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    cc = peer.CCKDLoss("f", "f", kernel, "batchmean")
    unit = lambda x: F.normalize(x, dim=1)  # noqa: E731
    return [
        Case(
            "rkd",
            "25, 50",
            student,
            ours("rkd"),
            theirs(peer.RKDLoss("f", "f", 25.0, 50.0, "mean")),
        ),
        Case("pkt", "", student, ours("pkt"), theirs(peer.PKTLoss("f", "output", "f", "output"))),
        Case(
            "sp",
            "batchmean",
            student,
            ours("sp"),
            theirs(peer.SPKDLoss("f", "f", "batchmean")),
            "rows of the matrix over their sum of absolute values (F.normalize(G, 1) is p=1); the paper and ours: "
            "over their length",
        ),
        Case(
            "cc",
            "gaussian",
            student,
            ours("cc"),
            theirs(cc),
            "features not of unit length, and a norm, without the square, over n^2",
        ),
        Case(
            "cc",
            "unit rows, n^2 square",
            student,
            ours("cc"),
            lambda s: ROWS**2 * theirs(cc, change=unit)(s) ** 2,
        ),
        crd_case(peer),
    ]


def crd_case(peer: Any) -> Case:
    """Both with our memories, embeddings and draws: their own sampler reads what is never set, and fails."""
    student, teacher = draw(ROWS, 12, seed=8), draw(ROWS, 12, seed=9)
    logits = torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    believed = Outputs(logits, {"penultimate": teacher})
    target = Target(torch.zeros(ROWS, dtype=torch.long), index=torch.arange(ROWS))
    torch.manual_seed(0)
    built = LOSSES["crd"](dim=8, negatives=32)
    built.setup(Fixture(Outputs(logits, {"penultimate": student}), believed, SAMPLES))
    built.double()
    memories = built.memory_student.clone(), built.memory_teacher.clone()

    def reset(z: float = -1.0) -> None:
        built.memory_student.copy_(memories[0])
        built.memory_teacher.copy_(memories[1])
        for constant in (built.z_student, built.z_teacher):
            constant.fill_(z)
        torch.manual_seed(1)

    def ours(s: Tensor) -> Tensor:
        reset()
        return built(Outputs(logits, {"penultimate": s}), believed, target)

    def theirs(s: Tensor) -> Tensor:
        reset()
        drawn = built._draw(torch.arange(ROWS), target.label)
        loss = peer.CRDLoss("n", "e", "n", 8, SAMPLES, 32, SAMPLES).double()
        loss.memory_v1.copy_(memories[0])
        loss.memory_v2.copy_(memories[1])
        own = io("n", F.normalize(built.embed_student(s), dim=1))
        own["e"] = {"input": {"pos_idx": target.index, "contrast_idx": drawn}}
        return loss(own, io("n", F.normalize(built.embed_teacher(teacher), dim=1))).squeeze()

    return Case("crd", "our memories and draws", student, ours, theirs)


def compare() -> list[Row]:
    """Every case, run."""
    from torchdistill.losses import mid_level as peer

    rows = []
    for case in [*logit_cases(peer), *map_cases(peer), *relation_cases(peer)]:
        values, grads = [], []
        for way in (case.ours, case.theirs):
            leaf = case.leaf.clone().requires_grad_()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about the peer's reduction
                value = way(leaf)
            values.append(value.item())
            grads.append(torch.autograd.grad(value, leaf)[0])
        apart = float((grads[0] - grads[1]).abs().max() / grads[0].abs().max())
        rows.append(Row(case.name, case.setting, *values, apart, case.why))
    return rows


def failures() -> dict[str, str]:
    """What the peer refuses or fails at, and with which error."""
    from torchdistill.losses import mid_level as peer

    calls: dict[str, Callable[[], object]] = {
        "kd: KDLoss with its own defaults": lambda: peer.KDLoss(*LOGITS, temperature=4.0),
        "crd: CRDLoss draws its negatives": lambda: peer.CRDLoss("n", "e", "n", 8, 64, 32, 64).draw(4),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    from importlib.metadata import version

    print(f"torchdistill {version('torchdistill')}, torch {torch.__version__}")
    print(f"{'loss':<12}{'setting':<32}{'ours':>12}{'theirs':>12}{'ratio':>12}{'gradient':>10}  why")
    for row in compare():
        print(
            f"{row.name:<12}{row.setting:<32}{row.ours:>12.6f}{row.theirs:>12.6f}{row.ratio:>12.8f}"
            f"{row.gradient:>10.0e}  {row.why}"
        )
    for name, error in failures().items():
        print(f"{name}: {error}")


if __name__ == "__main__":
    main()
