"""Handwritten digits, distilled with the Hugging Face Trainer: python examples/hf_trainer.py [--epochs N]"""

import tempfile

import torch
import typer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import random_split
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import outgrow


class DistillationTrainer(Trainer):
    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # Trainer averages over accumulated batches
        self.teacher = outgrow.Teacher(teacher).to(self.args.device)
        self.rectify, self.objective = outgrow.preset("kd", rule="pair")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, target = inputs["pixel_values"], inputs["labels"]
        outputs = model(pixel_values=images)
        knowledge = self.rectify(self.teacher(images), target)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        result = self.objective(outputs.logits, knowledge, target, progress)
        return (result.total, outputs) if return_outputs else result.total


def net(width: int) -> nn.Module:
    shape = {"num_channels": 1, "embedding_size": width, "hidden_sizes": [width, 2 * width], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**shape, layer_type="basic", num_labels=10))


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)
    images, target = map(torch.tensor, load_digits(return_X_y=True))
    images = nn.functional.interpolate(images.float().view(-1, 1, 8, 8) / 16, scale_factor=2)
    rows = [{"pixel_values": image, "labels": y} for image, y in zip(images, target, strict=True)]
    others, own, test = random_split(rows, [600, 200, 997])  # the teacher's, the student's, and the test
    args = {"output_dir": tempfile.mkdtemp(), "report_to": "none", "save_strategy": "no"}
    args |= {"learning_rate": 1e-2, "per_device_train_batch_size": 16, "disable_tqdm": True}

    def accuracy(trainer: Trainer) -> float:
        return 100 * (trainer.predict(test).predictions.argmax(axis=1) == target[test.indices].numpy()).mean()

    big, student = net(32), net(16)
    alone = Trainer(big, TrainingArguments(num_train_epochs=3, **args), train_dataset=others)
    alone.train()
    arguments = TrainingArguments(num_train_epochs=epochs, **args)
    trainer = DistillationTrainer(student, arguments, teacher=big, train_dataset=own)
    print(f"teacher {accuracy(alone):.1f} %, student before {accuracy(trainer):.1f} %")
    trainer.train()
    print(f"student after {accuracy(trainer):.1f} %")


if __name__ == "__main__":
    typer.run(main)
