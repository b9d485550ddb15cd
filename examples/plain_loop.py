"""Handwritten digits, distilled in a plain PyTorch loop: python examples/plain_loop.py [--epochs N]"""

import torch
import typer
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import outgrow


def net(width: int) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * width, 10))


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    right = [model(images).argmax(dim=1) == target for images, target in loader]
    return 100 * torch.cat(right).float().mean().item()


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)
    images, target = map(torch.tensor, load_digits(return_X_y=True))
    data = TensorDataset(images.float().view(-1, 1, 8, 8) / 16, target)
    parts = random_split(data, [600, 200, 997])  # the teacher's rows, the student's, and the test
    others, loader, test = (DataLoader(part, batch_size=32, shuffle=True) for part in parts)

    big, student = net(32), net(8)
    optimizer = torch.optim.AdamW(big.parameters(), lr=2e-3)
    for _ in range(5):
        for images, target in others:
            cross_entropy(big(images), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"teacher {accuracy(big, test):.1f} %, student before {accuracy(student, test):.1f} %")

    # guide: loop
    teacher = outgrow.Teacher(big)  # frozen, always in eval mode, no gradient
    rectify, objective = outgrow.preset("kd", rule="pair")
    optimizer = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=5e-3)
    for epoch in range(epochs):
        for images, target in loader:
            knowledge = rectify(teacher(images), target)
            result = objective(student(images), knowledge, target, epoch / epochs)
            result.total.backward()
            optimizer.step()
            optimizer.zero_grad()
    # guide: end
    print(f"student after {accuracy(student, test):.1f} %")


if __name__ == "__main__":
    typer.run(main)
