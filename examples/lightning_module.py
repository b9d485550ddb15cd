"""Handwritten digits, distilled with Lightning: python examples/lightning_module.py [--epochs N]"""

import lightning
import torch
import typer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import outgrow


class Classifier(lightning.LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * width, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-3)

    def accuracy(self, images: Tensor, target: Tensor) -> float:
        return 100 * (self.net(images).argmax(dim=1) == target).float().mean().item()


class Distilled(Classifier):
    def __init__(self, width: int, teacher: nn.Module) -> None:
        super().__init__(width)
        self.teacher = outgrow.Teacher(teacher)  # stays in eval mode, whatever calls train()
        self.rectify, self.objective = outgrow.preset("kd", rule="pair")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        progress = self.current_epoch / self.trainer.max_epochs
        knowledge = self.rectify(self.teacher(images), target)
        result = self.objective(self.net(images), knowledge, target, progress)
        self.log_dict({**result.terms, **result.stats})
        return result.total


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)
    images, target = map(torch.tensor, load_digits(return_X_y=True))
    data = TensorDataset(images.float().view(-1, 1, 8, 8) / 16, target)
    others, own, test = random_split(data, [600, 200, 997])  # the teacher's, the student's, and the test
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    big = Classifier(width=32)
    lightning.Trainer(max_epochs=5, **quiet).fit(big, DataLoader(others, batch_size=32, shuffle=True))
    student = Distilled(8, teacher=big.net)
    print(f"teacher {big.accuracy(*test[:]):.1f} %, student before {student.accuracy(*test[:]):.1f} %")
    lightning.Trainer(max_epochs=epochs, **quiet).fit(student, DataLoader(own, batch_size=32, shuffle=True))
    print(f"student after {student.accuracy(*test[:]):.1f} %")


if __name__ == "__main__":
    typer.run(main)
