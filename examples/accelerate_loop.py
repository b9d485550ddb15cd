"""Handwritten digits, distilled with Accelerate: accelerate launch examples/accelerate_loop.py [--epochs N]"""

import torch
import typer
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import outgrow


def net(width: int) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * width, 10))


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    right = [accelerator.gather_for_metrics(model(images).argmax(dim=1) == y) for images, y in loader]
    return 100 * torch.cat(right).float().mean().item()


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)  # the same split in every process
    images, target = map(torch.tensor, load_digits(return_X_y=True))
    data = TensorDataset(images.float().view(-1, 1, 8, 8) / 16, target)
    parts = random_split(data, [600, 200, 997])  # the teacher's rows, the student's, and the test
    accelerator, loaders = Accelerator(), [DataLoader(part, batch_size=32, shuffle=True) for part in parts]
    big, student, others, loader, test = accelerator.prepare(net(32), net(8), *loaders)

    optimizer = accelerator.prepare(torch.optim.AdamW(big.parameters(), lr=2e-3))
    for _ in range(5):
        for images, target in others:
            accelerator.backward(cross_entropy(big(images), target))
            optimizer.step()
            optimizer.zero_grad()
    before = [accuracy(model, test, accelerator) for model in (big, student)]
    accelerator.print("teacher {:.1f} %, student before {:.1f} %".format(*before))
    # guide: loop
    teacher = outgrow.Teacher(accelerator.unwrap_model(big))
    rectify, objective = outgrow.preset("kd", rule="pair")
    optimizer = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=5e-3)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    for epoch in range(epochs):
        for images, target in loader:
            with accelerator.autocast():  # both networks, but not the loss
                student_out, teacher_out = student(images), teacher(images)
            result = objective(student_out, rectify(teacher_out, target), target, epoch / epochs)
            accelerator.backward(result.total)
            optimizer.step()
            optimizer.zero_grad()
    # guide: end
    accelerator.print(f"student after {accuracy(student, test, accelerator):.1f} %")


if __name__ == "__main__":
    typer.run(main)
