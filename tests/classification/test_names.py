"""Names decide wherever a network meets data: a teacher, a student, an evaluation."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from outgrow.classification.evaluation import evaluate_classifier
from outgrow.models import create_model, save_student
from outgrow.models.network import InputSpec, Network
from outgrow.run import distill
from outgrow.training.progress import Reporter

COLOURS = {"blue": 2, "green": 1, "red": 0}


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Brightest(nn.Module):
    """Right on every picture of a colour: outputs are blue, green, red."""

    def __init__(self, order: tuple[int, ...] = (2, 1, 0)) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(order))
        with torch.no_grad():
            self.head.weight.copy_(20 * torch.eye(3)[list(order)])
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


def network(order: tuple[int, ...] = (2, 1, 0), classes: tuple[str, ...] | None = None) -> Network:
    spec = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(Brightest(order), name="brightest", num_classes=3, input_spec=spec, classes=classes)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "val"):
        for name, channel in COLOURS.items():
            for k in range(6):
                colour = [20 * k, 15 * k, 10 * k + (split == "val")]
                colour[channel] = 200 + (split == "val")
                path = tmp_path / "photos" / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), tuple(colour)).save(path)
    return f"folder:{tmp_path / 'photos'}"


def run(source: str, module: nn.Module | None, report: Reporter | None = None, **more: object) -> dict:
    config = {
        "data": {"source": source, "workers": 0, "augment": {"crop_padding": 0}},
        "student": {"name": "cifar/resnet8"},
        "method": {"preset": "outgrow"},
        "train": {"epochs": 1, "batch_size": 6},
        **more,
    }
    return distill(config, teacher=module, reporter=report)


class TestTeacher:
    def test_another_order_by_name(self, photos):
        report = Notes()
        record = run(photos, network((0, 2, 1), ("Red", "blue", "green")), report)
        assert record["teacher"]["top1"] == 100
        assert any("3 of its 3 classes are the student's, by name" in text for text in report.said)

    def test_another_order_without_names_is_refused(self, photos):
        with pytest.raises(
            ValueError, match=r"--teacher brightest: .* 100.0 % .* outputs are likely red, blue, green"
        ):
            run(photos, network((0, 2, 1)))

    def test_position_is_said(self, photos):
        report = Notes()
        assert run(photos, network(), report)["teacher"]["top1"] == 100
        assert any(text.startswith("warning: ") and "by position" in text for text in report.said)

    def test_some_names_in_common_are_mapped_from_labels(self, photos):
        report = Notes()
        teacher = network((2, 1, 0), ("azure", "green", "red"))
        record = run(photos, teacher, report)
        assert record["correction"] is not None
        assert any("is fitted on the labels" in text and "missing: blue" in text for text in report.said)
        with pytest.raises(ValueError, match=r"2 of 3 found by name \(missing: blue; not needed: azure\)"):
            run(photos, teacher, teacher={"correct": "never"})

    def test_a_configuration_alone_is_no_teacher(self, photos, tmp_path):
        folder = tmp_path / "hf"
        folder.mkdir()
        size = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
        (folder / "config.json").write_text(json.dumps({"model_type": "resnet", **size}))
        with pytest.raises(
            ValueError, match=r"needs weights, got only a config.json; give --teacher-weights"
        ):
            run(photos, None, teacher={"name": f"hf/{folder}"})
        with pytest.raises(
            ValueError, match=r"evaluate hf/.*: needs weights, got a model without weights; save them"
        ):
            score(photos, f"hf/{folder}")


def score(source: str, name: str, weights: Path | None = None) -> dict:
    return evaluate_classifier(
        source, name, weights=weights, label=None, batch_size=10, workers=0, report=Reporter()
    )


class TestEvaluate:
    @pytest.fixture
    def trained(self, photos, tmp_path):
        (tmp_path / "net.py").write_text(
            "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, n=3):\n"
            "        super().__init__()\n        self.head = nn.Linear(3, n)\n\n    def forward(self, x):\n"
            "        return self.head(x.mean((2, 3)))\n"
        )

        def file(order: tuple[int, ...], classes: tuple[str, ...]) -> Path:
            made = network(order, classes)
            made.name = "py:net.py:Net"
            save_student(made, tmp_path / "w.safetensors")
            return tmp_path / "w.safetensors"

        return f"py:{tmp_path / 'net.py'}:Net", file

    def test_by_name(self, photos, trained):
        name, file = trained
        assert score(photos, name, file((1, 0, 2), ("GREEN", "red", "blue")))["top1"] == 100

    def test_one_renamed(self, photos, trained):
        name, file = trained
        with pytest.raises(
            ValueError, match=r"2 of 3 found by name \(missing: blue; not needed: azure\); rename"
        ):
            score(photos, name, file((2, 1, 0), ("azure", "green", "red")))

    def test_all_renamed(self, photos, trained):
        name, file = trained
        with pytest.raises(ValueError, match="none of 3 found by name"):
            score(photos, name, file((2, 1, 0), ("blau", "gruen", "rot")))


def test_a_student_starts_in_the_order_of_the_data(photos, tmp_path):
    torch.manual_seed(0)
    run(
        photos,
        network(classes=tuple(COLOURS)),
        out=str(tmp_path / "run"),
        train={"epochs": 3, "batch_size": 6},
    )
    own = create_model("cifar/resnet8", weights=tmp_path / "run" / "student.safetensors")
    moved = create_model(
        "cifar/resnet8", weights=tmp_path / "run" / "student.safetensors", classes=("red", "green", "blue")
    )
    save_student(moved, tmp_path / "moved.safetensors")
    report = Notes()
    still = {"method": {"preset": "none"}, "train": {"epochs": 1, "batch_size": 6, "lr": 1e-12}}
    first, again = (
        run(photos, None, report, student={"name": "cifar/resnet8", "weights": str(file)}, **still)[
            "student"
        ]["top1"]
        for file in (tmp_path / "run" / "student.safetensors", tmp_path / "moved.safetensors")
    )
    assert own.classes == ("blue", "green", "red")
    assert first == again
    assert any("reordered to the data's classes" in text for text in report.said)


def test_normalisation_of_the_configuration_reaches_the_file(photos, tmp_path):
    student = {"name": "cifar/resnet8", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    report = Notes()
    run(photos, None, report, student=student, method={"preset": "none"}, out=str(tmp_path / "run"))
    found = create_model("cifar/resnet8", weights=tmp_path / "run" / "student.safetensors")
    assert (found.input_spec.mean, found.input_spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert any("mean 0.1 0.2 0.3, std 0.4 0.5 0.6 (given by the caller)" in text for text in report.said)
