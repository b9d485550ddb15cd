"""A run whose teacher calls the classes otherwise than the data."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from outgrow.classification.audit.audit import audit
from outgrow.models import create_model, save_student
from outgrow.models.network import InputSpec, Network
from outgrow.models.structure import head_of
from outgrow.run import distill
from outgrow.run.distillation import start
from outgrow.training.progress import Reporter
from tests.classification.test_names import Notes, photos  # noqa: F401

LINES = "teacher,data\ncrimson,red\nscarlet,red\nleaf,green\nnavy,blue\n"
OWN = ("navy", "crimson", "leaf", "scarlet", "plaid")


class Shades(nn.Module):
    """Sees two reds: where the red is brightest it names one of them, by the parity of the green."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        with torch.no_grad():
            self.head.weight.copy_(
                20 * torch.tensor([[0, 0, 1], [1, 0.3, 0], [0, 1, 0], [1, -0.3, 0], [0, 0, 0]])
            )
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


def shades(classes: tuple[str, ...] | None = OWN) -> Network:
    spec = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(Shades(), name="shades", num_classes=5, input_spec=spec, classes=classes)


@pytest.fixture
def listed(tmp_path: Path) -> str:
    (tmp_path / "map.csv").write_text(LINES)
    return str(tmp_path / "map.csv")


def config(source: str, listed: str | None, **more: object) -> dict:
    data = {"source": source, "workers": 0, "augment": {"crop_padding": 0}, "class_map": listed}
    return {
        "data": data,
        "student": {"name": "cifar/resnet8"},
        "method": {"preset": "kd"},
        "train": {"epochs": 1, "batch_size": 6},
        **more,
    }


def test_several_classes_of_the_teacher_are_one_of_the_datas(photos, listed, tmp_path):  # noqa: F811
    report = Notes()
    out = tmp_path / "run"
    record = distill(config(photos, listed, out=str(out)), teacher=shades(), reporter=report)
    assert record["teacher"]["top1"] == 100
    assert record["teacher"]["classes"] == 5
    assert "correction" not in record or record["correction"] is None
    assert any("4 of its 5 classes are the data's 3" in text for text in report.said)
    written = json.loads((out / "record.json").read_text())["data"]["class_map"]
    assert written == record["data"]["class_map"]
    other = tmp_path / "other.csv"
    other.write_text(LINES.replace("scarlet", "plaid"))
    again = distill(config(photos, str(other)), teacher=shades())
    assert again["data"]["class_map"] != written


def test_the_bias_of_such_a_teacher_is_corrected_as_any(photos, listed):  # noqa: F811
    record = distill(config(photos, listed, method={"preset": "outgrow"}), teacher=shades())
    assert record["correction"]["raw"] is not None  # a teacher with the student's classes
    assert record["teacher"]["wrong_rate"] == 0


def test_without_the_map_a_map_is_fitted_or_it_is_refused(photos):  # noqa: F811
    with pytest.raises(ValueError, match=r"needs the data's 3 classes.*--set data.class_map=FILE"):
        distill(config(photos, None, teacher={"correct": "never"}), teacher=shades())


def test_numbers_for_outputs_without_names(photos, tmp_path):  # noqa: F811
    (tmp_path / "n.csv").write_text("teacher,data\n1,red\n3,red\n2,green\n0,blue\n")
    record = distill(config(photos, str(tmp_path / "n.csv")), teacher=shades(None))
    assert record["teacher"]["top1"] == 100


def test_a_cache_never_serves_another_map(photos, listed, tmp_path):  # noqa: F811
    cache = tmp_path / "cache-of-teacher"
    options = {"teacher": {"cache": str(cache)}}
    first = distill(config(photos, listed, **options), teacher=shades())
    assert len(list(cache.iterdir())) == 1
    Path(listed).write_text(LINES.replace("leaf,green", "plaid,green"))
    second = distill(config(photos, listed, **options), teacher=shades())
    assert len(list(cache.iterdir())) == 2
    assert first["teacher"]["top1"] == 100 > second["teacher"]["top1"]


def test_a_run_is_not_resumed_with_another_map(photos, listed, tmp_path):  # noqa: F811
    settings = config(photos, listed, out=str(tmp_path / "run"))
    distill(settings, teacher=shades())
    # the same content in another order is the same map
    lines = LINES.splitlines(keepends=True)
    Path(listed).write_text("".join([lines[0], *reversed(lines[1:])]))
    distill(settings, teacher=shades(), resume=True)
    # even one that leaves the teacher's weights and classes as they are
    Path(listed).write_text(LINES + "plaid,red\n")
    with pytest.raises(ValueError, match=r"--resume: .*data\.class_map \(was"):
        distill(settings, teacher=shades(), resume=True)


def test_a_students_weights_are_spelled_otherwise_too(photos, listed, tmp_path):  # noqa: F811
    made = create_model("cifar/resnet8", classes=("navy", "leaf", "scarlet"))
    made.name = "cifar/resnet8"
    path = tmp_path / "w.safetensors"
    save_student(made, path)
    # two names of one class are no row of a head; this list has one for each
    Path(listed).write_text(LINES.replace("crimson,red\n", ""))
    settings = config(photos, listed, method={"preset": "none"})
    settings["student"]["weights"] = str(path)
    settings["train"]["lr"] = 1e-12
    distill(settings | {"out": str(tmp_path / "run")})
    old, new = load_file(path), load_file(tmp_path / "run" / "student.safetensors")
    head = f"{head_of(made)[0]}.weight"
    assert torch.allclose(new[head], old[head], atol=1e-5)  # navy leaf scarlet: blue green red
    # a student's file in the data's own names is as before
    settings["student"]["weights"] = str(tmp_path / "run" / "student.safetensors")
    distill(settings | {"out": str(tmp_path / "again")})
    assert torch.allclose(load_file(tmp_path / "again" / "student.safetensors")[head], old[head], atol=1e-5)


def test_an_audit_reads_it(photos, listed, tmp_path):  # noqa: F811
    run = start(config(photos, listed), reporter=Reporter())
    found = audit(run, 100, lambda config: "", shades())
    assert found.numbers.held_out.raw.top1.accuracy == 100
    assert found.data.class_map is not None


def test_faults_come_before_anything_is_trained(photos, tmp_path):  # noqa: F811
    (tmp_path / "bad.csv").write_text("teacher,data\ncrimson,read\n")
    with pytest.raises(ValueError, match=r"got 1 others .*\(read\); did you mean red\?"):
        distill(config(photos, str(tmp_path / "bad.csv")), teacher=shades())
