"""Distillation with torchdistill (1.1), used as in its own examples.

The configuration is that of its sample for CIFAR-100 (SGD, MultiStepLR, WeightedSumLoss of one KDLoss, PIL images
through torchvision's transforms in a DataLoader). The loop is that of its example for image classification. The
caller passes the networks and the batch size. The two terms have the weights of the plain loop. Its samples use 16
workers; here the number is that of the plain loop. Wrappers for several GPUs are left out.
"""

from typing import Any

import torch
from torch.utils.data import RandomSampler

from benchmarks.turns import Turn
from benchmarks.ways import ALPHA, SGD, TEMPERATURE, Pictures, Task, networks, split_of

EPOCHS = 200


def configuration(task: Task) -> dict[str, Any]:
    """The part ``train`` of a configuration file."""
    net = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None, "frozen_modules": []}
    loss = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": ALPHA,
        "reduction": "batchmean",
    }
    return {
        "log_freq": 100,
        "num_epochs": EPOCHS,
        "train_data_loader": {
            "dataset_id": "cifar100/train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": None},
            "kwargs": {"batch_size": task.batch, "num_workers": task.workers, "drop_last": True},
        },
        "teacher": {**net, "requires_grad": False},
        "student": {**net, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "scheduler": {"key": "MultiStepLR", "kwargs": {"milestones": [60, 120, 160], "gamma": 0.2}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }


def run(task: Task, turn: Turn) -> None:
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    device = torch.device(task.device)
    teacher, student = (network.net.to(device) for network in networks(task))
    datasets = {"cifar100/train": Pictures(split_of(task))}
    config = configuration(task)
    box = get_distillation_box(teacher.eval(), student, datasets, config, device, None, False, 1)
    turn.ready()
    for epoch in range(EPOCHS):
        box.pre_epoch_process(epoch=epoch)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        for images, label, extra in meters.log_every(box.train_data_loader, config["log_freq"], ""):
            images, label = images.to(device), label.to(device)
            loss = box.forward_process(images, targets=label, supp_dict=extra)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"needs a finite loss, got {loss}")
            turn()
        box.post_epoch_process()
