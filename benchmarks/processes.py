"""Many processes, one result: how far N processes are from one after three steps, loss by loss.

    python -m benchmarks.processes [--processes 2 4] [--precision float64|float32] [--how ddp|fsdp] [LOSS ...]

A small net without batch norm, batches of 9, 9 and 2 images: shares are even, uneven, and empty for all but one.
For each loss it prints the largest difference in the student's weights, in what the loss learns, and in what it
remembers (memories, running statistics), over all processes; of what is larger than 1 its share. ``fsdp`` is
torch's ``fully_shard`` (FSDP2) in place of DDP.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from outgrow import IGNORE, PENULTIMATE, Objective, Outputs, Rectifier, Target
from outgrow.data.plan import Plan
from outgrow.losses import DETECTOR_LOSSES, LOSSES
from outgrow.models.taps import BOX, BOX_IOU, OBJECTNESS, OBJECTS

NUM, BATCH, CLASSES, STEPS, ROWS = 20, 9, 5, 3, 4
"""Images, those of a batch, classes, steps, and rows an image where rows are not images."""
How = Literal["ddp", "fsdp"]
"""What shares the student between processes."""
SMALL = {"crd": "crd(dim=8, negatives=64)"}
"""Losses whose defaults are too large for this."""


class Case(NamedTuple):
    """An objective, and what is special about its batches."""

    loss: str
    normalize: str = "rows"
    rule: str = "identity"
    mixed: bool = False
    """Blended as by mixup."""
    proposals: bool = False
    """Rows are not images, and each process has another number of them an image."""
    told: bool = True
    """Whether the objective knows of the other processes; to see that the measurement sees it."""


CASES = {
    **{name: Case(SMALL.get(name, name)) for name in LOSSES},
    "kd, subset": Case("kd", normalize="subset", rule="pair"),
    "dist, subset": Case("dist", normalize="subset", rule="pair"),
    "rkd, drop": Case("rkd", rule="drop"),
    "kd, mixup": Case("kd", mixed=True, rule="pair"),
    "crd, mixup": Case(SMALL["crd"], mixed=True),
    "standardize(dist)": Case("standardize(base='dist')", rule="swap"),
    "two relations and a connector": Case("kd + 0.1*sp + 0.5*fitnet + 0.1*dist"),
    "kd, proposals": Case("kd", proposals=True, rule="pair"),
    "fitnet, proposals": Case("fitnet", proposals=True),
    "rkd, proposals": Case("rkd", proposals=True, rule="drop"),
    **{name: Case(name, proposals=True) for name in DETECTOR_LOSSES},
}


class Net(nn.Module):
    """Two maps, a vector and logits of each image; of each of its rows where there are several."""

    def __init__(self, width: int, *, boxes: bool, objects: bool, regions: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.last = nn.Linear(2 * width, CLASSES)
        self.box = nn.Linear(2 * width, 4) if boxes else None
        self.objects, self.regions = objects, regions

    def forward(self, images: Tensor, shift: Tensor | None = None, image: Tensor | None = None) -> Outputs:
        first = self.first(images)
        second = self.second(F.relu(first))
        vector = F.relu(second).mean(dim=(2, 3))
        if image is not None:
            vector = vector[image] + shift
        features = {"layer1": first, "layer2": second, PENULTIMATE: vector}
        if self.box is not None:
            box = self.box(vector)
            features |= {BOX: box, BOX_IOU: box.detach().mean(dim=1).sigmoid()}
        if self.objects:
            corner = images[:, None, :2, 0, 0].sigmoid() / 2
            features[OBJECTS] = torch.cat([corner, corner + 0.4], dim=2)
        if self.regions:
            features[OBJECTNESS] = second.mean(dim=1).flatten(1)
        return Outputs(self.last(vector), features)


def train(
    case: Case, dtype: torch.dtype, group: dist.ProcessGroup | None, how: How = "ddp"
) -> dict[str, dict[str, Tensor]]:
    """The student's weights, and the loss's parameters and buffers, after three steps on this process."""
    torch.manual_seed(0)
    # layers that a loss does not read would get no gradient, which DDP refuses
    reads = {"boxes": case.loss == "box", "objects": case.loss == "fgd", "regions": case.loss == "objectness"}
    student, teacher = Net(4, **reads).to(dtype), Net(5, **reads).to(dtype)
    objective = Objective(case.loss, normalize="subset" if case.normalize == "subset" else "rows")
    objective.process_group = group if case.told else None
    data = _data(case, dtype)
    with torch.no_grad():
        dry = range(BATCH)
        objective.setup(
            _ask(student, data, dry), _ask(teacher, data, dry), num_samples=NUM, label=data["label"]
        )
    objective.to(dtype)
    rank, processes = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    plan = Plan(
        num=NUM,
        batch_size=BATCH,
        seed=0,
        shuffle=True,
        drop_last=False,
        rank=rank,
        world_size=processes,
        least=2,
    )
    called: nn.Module = student
    measured: nn.Module = objective
    if group is not None and how == "fsdp":  # in place, and before the optimiser takes the parameters
        mesh = init_device_mesh("cpu", (processes,))
        fully_shard(student.first, mesh=mesh)
        fully_shard(student, mesh=mesh)
    learns = [p for module in (student, objective) for p in module.parameters()]
    # one by one: some are split over the processes and some are not
    optimizer = torch.optim.SGD(learns, lr=0.02, momentum=0.9, foreach=False)
    if group is not None:
        called = DistributedDataParallel(student) if how == "ddp" else student
        if list(objective.parameters()):  # a few numbers: never worth splitting
            measured = DistributedDataParallel(objective)
    rectify = Rectifier(case.rule, temperature=objective.temperature or 4.0)
    for step, share in enumerate(plan.batches(0)):
        own = share.tolist()
        with torch.no_grad():
            said = _ask(teacher, data, own)
        target = _target(case, data, own)
        result = measured(_ask(called, data, own), rectify(said, target), target, 0.3 + 0.1 * step)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
    learnt = {name: value.detach() for name, value in objective.named_parameters()}
    remembered = {name: value.to(dtype) for name, value in objective.named_buffers()}
    weights = {name: _whole(value) for name, value in student.state_dict().items()}
    return {"student": weights, "learnt": learnt, "remembered": remembered}


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _data(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    rows = NUM * ROWS if case.proposals else NUM
    label = torch.randint(CLASSES, (rows,), generator=draw)
    if case.proposals:
        label[torch.rand(rows, generator=draw) < 0.2] = IGNORE
    return {
        "images": torch.randn(NUM, 3, 8, 8, generator=draw).to(dtype),
        "shift": torch.randn(NUM * ROWS, 1, generator=draw).to(dtype) if case.proposals else None,
        "label": None if case.proposals else label,
        "rows": label,
        "partner": torch.randint(CLASSES, (rows,), generator=draw),
        "mix": torch.rand(rows, generator=draw).to(dtype),
    }


def _rows(own: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers of the rows of some images, one to four an image, and each one's image in the batch."""
    rows = [(ROWS * n + k, at) for at, n in enumerate(own) for k in range(1 + n % ROWS)]
    both = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _ask(net: nn.Module, data: Mapping[str, Any], own: Sequence[int]) -> Outputs:
    images = data["images"][torch.tensor(own, dtype=torch.int64)]
    if data["shift"] is None:
        said: Outputs = net(images)
    else:
        rows, image = _rows(own)
        said = net(images, data["shift"][rows], image)
    return said


def _target(case: Case, data: Mapping[str, Any], own: Sequence[int]) -> Target:
    index = torch.tensor(own, dtype=torch.int64)
    if case.proposals:
        rows, image = _rows(own)
        return Target(data["rows"][rows], image=image, may_ignore=True)
    if case.mixed:
        partner, mix = data["partner"][index], data["mix"][index]
        return Target(data["rows"][index], index=index, partner=partner, mix=mix)
    return Target(data["rows"][index], index=index)


def _worker(
    rank: int, processes: int, folder: str, cases: Mapping[str, Case], dtype: torch.dtype, how: How
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    found = {name: train(case, dtype, dist.group.WORLD, how) for name, case in cases.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def differences(
    cases: Mapping[str, Case] = CASES,
    processes: int = 2,
    dtype: torch.dtype = torch.float64,
    how: How = "ddp",
) -> dict[str, dict[str, float]]:
    """By case, the largest difference to one process: in the student, in what is learnt, in what is remembered."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (processes, folder, dict(cases), dtype, how), nprocs=processes)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
    result = {}
    for name, case in cases.items():
        one = train(case, dtype, None)
        result[name] = {
            part: max(
                (
                    float((rank[name][part][key] - value).abs().max() / value.abs().max().clamp_min(1))
                    for rank in ranks
                    for key, value in of.items()
                ),
                default=0.0,
            )
            for part, of in one.items()
        }
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="all if none is named")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--precision", choices=["float64", "float32"], default="float64")
    parser.add_argument("--how", choices=["ddp", "fsdp"], default="ddp")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.losses) - set(CASES))
    if unknown:
        parser.error(f"there are {'; '.join(CASES)}, got {'; '.join(unknown)}")
    cases = {name: CASES[name] for name in args.losses or CASES}
    for processes in args.processes:
        print(f"{processes} processes, {args.how}, {args.precision}: student, learnt, remembered")
        for name, parts in differences(cases, processes, getattr(torch, args.precision), args.how).items():
            print(f"  {name:<30}" + "".join(f"  {value:.1e}" for value in parts.values()), flush=True)


if __name__ == "__main__":
    main()
