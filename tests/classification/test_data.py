"""Evaluated as trained: one rule for the size of training, testing and prediction."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import outgrow
from outgrow.classification.data import (
    PLAIN,
    RunData,
    check_takes,
    eval_loader,
    open_run_data,
    set_input_size,
    train_loader,
    view_size,
)
from outgrow.classification.task import TASK, network_of
from outgrow.data import ArraySplit, DataWarning, FileSplit, Split
from outgrow.data.files import PathList
from outgrow.models import InputSpec, Network, create_model
from outgrow.objective import Objective
from outgrow.run.audit import audit_teacher
from outgrow.run.evaluation import evaluate_model
from outgrow.training.config import Config, build_config
from outgrow.training.progress import Reporter
from outgrow.training.task import RunContext
from tests.data.helpers import write_folder

CPU = torch.device("cpu")
NO_FILES = FileSplit.of(PathList([]), torch.zeros(0, dtype=torch.int64))
TIMM = "timm/mobilenetv3_small_050"
VIT = "timm/vit_tiny_patch16_224"


def arrays(height: int, width: int) -> ArraySplit:
    images = torch.randint(0, 256, (8, 3, height, width), dtype=torch.uint8)
    return ArraySplit.of(images, torch.arange(8) % 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    counts = {f"{split}/{name}": count for split, count in (("train", 8), ("val", 6)) for name in "ab"}
    write_folder(root, counts, sides=(120, 150))
    return root


def configured(source: str, student: str, **data: Any) -> Config:
    augment = {"crop_padding": 0, "flip": False}
    return build_config(
        {
            "data": {"source": source, "workers": 0, "augment": augment, **data},
            "student": {"name": student},
            "method": {"preset": "none"},
            "train": {"batch_size": 4, "epochs": 1},
        }
    )


def made(config: Config, data: RunData) -> Network:
    """The student of a run, with its input size."""
    return network_of(TASK.make_student(RunContext(config, CPU, Reporter()), data, Objective({}), None))


def views(config: Config) -> tuple[RunData, Network, Tensor, Tensor]:
    """The student, and what it sees of one batch in training and in testing."""
    data = open_run_data(config)
    student = made(config, data)
    train = next(iter(train_loader(config, config.train, data.train, [None, student], CPU).epoch(0))).images
    test = next(iter(eval_loader(data.test, student, config.train, CPU, 0).epoch(0))).images
    return data, student, student.prepare(train), student.prepare(test)


def net(size: int | None) -> Network:
    return Network(
        nn.Identity(), name="n", num_classes=2, input_spec=InputSpec(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    )


@pytest.mark.parametrize(
    "size, split, wanted, expected",
    [
        (48, arrays(32, 32), [224], 48),
        (None, arrays(32, 32), [224, None], None),
        (None, arrays(32, 40), [64, 48], 64),
        (None, arrays(32, 40), [None], None),
        (None, NO_FILES, [160, 384], 384),
        (None, NO_FILES, [None], 224),
    ],
)  # fmt: skip
def test_the_rule(size: int | None, split: Split, wanted: list[int | None], expected: int | None) -> None:
    assert view_size(size, split, [None, *(net(side) for side in wanted)]) == expected


@pytest.mark.parametrize("student", ["cifar/resnet8", TIMM])
@pytest.mark.parametrize("size", [32, 64, None])
def test_photographs_are_tested_as_they_are_trained(photos: Path, student: str, size: int | None) -> None:
    _, network, train, test = views(configured(f"folder:{photos}", student, size=size))
    side = size or 224
    assert network.input_spec.size == side
    assert train.shape[1:] == test.shape[1:] == (3, side, side)


@pytest.mark.parametrize("student", ["cifar/resnet8", TIMM])
@pytest.mark.parametrize("size", [16, None])
def test_images_in_memory_are_tested_as_they_are_trained(student: str, size: int | None) -> None:
    _, network, train, test = views(configured("digits", student, size=size))
    side = size or (8 if student.startswith("cifar") else 224)
    assert network.input_spec.size == side
    assert train.shape[2:] == test.shape[2:] == (side, side)


def test_without_augmentation_a_view_is_that_of_testing(photos: Path, tmp_path: Path) -> None:
    """The same crop and the same interpolation: of a test image trained on, the very pixels."""
    for student in ("cifar/resnet8", TIMM):
        config = configured(f"folder:{photos / 'train'}", student, size=32)
        data = open_run_data(config)
        network = made(config, data)
        shown = train_loader(config, config.train, data.test, [None, network], CPU)
        seen = {int(i): x for b in shown.epoch(0) for i, x in zip(b.target.index, b.images, strict=True)}
        for batch in eval_loader(data.test, network, config.train, CPU, 0).epoch(0):
            for index, image in zip(batch.target.index.tolist(), batch.images, strict=True):
                if index in seen:
                    assert torch.equal(image, seen[index])
        assert len(seen) >= 2


def test_the_students_interpolation_and_crop_are_those_of_training(photos: Path) -> None:
    config = configured(f"folder:{photos}", "cifar/resnet8")
    data = open_run_data(config)
    spec = InputSpec(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 0.5)
    student = Network(nn.Identity(), name="n", num_classes=2, input_spec=spec)
    loader = train_loader(config, config.train, data.train, [net(16), student], CPU)
    v = loader._views  # type: ignore[attr-defined]
    assert (v.size, v.crop_pct, v.interpolation) == (32, 0.5, "bilinear")


def test_a_net_of_one_size(photos: Path) -> None:
    config = configured(f"folder:{photos}", VIT, size=32)
    with pytest.raises(
        ValueError,
        match=r"data.size: needs 224, the only size that timm/vit.* accepts, got 32; .*student.input_size=32",
    ):
        made(config, open_run_data(config))
    student = {"student": {"input_size": 32}}
    for size in (32, None):
        config = build_config(configured(f"folder:{photos}", VIT, size=size).model_dump(), student)
        network = made(config, open_run_data(config))
        assert network.input_spec.size == 32
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    config = build_config(configured(f"folder:{photos}", TIMM, size=64).model_dump(), student)
    with pytest.raises(
        ValueError,
        match=r"data.size: needs the same size as input_size, which is 32, got 64; .* one of the two",
    ):
        made(config, open_run_data(config))


OF_ONE_SIZE = """
from torch import nn

def small(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, num_classes))

class Broken(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)).nonsense)
"""


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("small", 32, r"images of 32 x 32, got RuntimeError: mat1 and mat2 .*; set data.size to"),
        ("small", None, r"images of 8 x 8, got RuntimeError: mat1 and mat2"),
        (
            "Broken",
            None,
            r"images of 8 x 8, got AttributeError: .*'nonsense' \(net.py, line 13\); .* or correct it",
        ),
    ],
)
def test_a_net_that_cannot_take_the_images_is_refused(
    tmp_path: Path, name: str, size: int | None, said: str
) -> None:
    """As a student, a teacher that is trained, one that is not, in an audit and in an evaluation."""
    (tmp_path / "net.py").write_text(OF_ONE_SIZE)
    net = f"py:{tmp_path / 'net.py'}:{name}"
    layer = {"data": {"source": "digits", "size": size, "workers": 0}, "train": {"epochs": 1, "max_steps": 2}}
    weights = tmp_path / "net.safetensors"
    outgrow.models.save_student(create_model(net, 10, classes=tuple("0123456789")), weights)
    given = {"name": net, "weights": str(weights)}
    alone = {"student": {"name": net}, "method": {"preset": "none"}}
    plain = {"student": {"name": "cifar/resnet8"}, "method": {"preset": "kd"}}
    for more in (
        alone,
        {**plain, "teacher": {"name": net, "train": True}},
        {**plain, "teacher": given},
    ):
        with pytest.raises(ValueError, match=rf"(?s)net.py:{name}: needs a net that takes {said}"):
            outgrow.distill({**layer, **more})
    with pytest.raises(ValueError, match=rf"net.py:{name}: needs a net that takes {said}"):
        audit_teacher({**layer, "teacher": given, "out": str(tmp_path / "audit")})
    if size is None:  # an evaluation has no option for it
        with pytest.raises(ValueError, match=rf"net.py:{name}: needs a net that takes {said}"):
            evaluate_model("digits", net, weights=weights)


VIEWS = """
from torch import nn

class Views(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))
"""


def test_a_net_that_views_its_maps_is_refused_with_channels_last(tmp_path: Path) -> None:
    """As a student, a teacher that is trained and one that is not: it was a traceback in the first step."""
    (tmp_path / "net.py").write_text(VIEWS)
    net = {"name": f"py:{tmp_path / 'net.py'}:Views"}
    few = {"epochs": 1, "max_steps": 2}
    layer = {"data": {"source": "digits", "workers": 0}, "train": few, "teacher_train": few}
    last = {"train": {**few, "channels_last": True}}
    plain = {"student": {"name": "cifar/resnet8"}, "method": {"preset": "kd"}}
    for more in (
        {"student": net, "method": {"preset": "none"}, **last},
        {**plain, "teacher": net, **last},
        {**plain, "teacher": {**net, "train": True}, "teacher_train": last["train"]},
    ):
        with pytest.raises(ValueError, match=r"channels_last: needs .* \(net.py, line 10\); call .reshape"):
            outgrow.distill({**layer, **more})
    outgrow.distill({**layer, "student": net, "method": {"preset": "none"}})


class Moves(nn.Module):
    """As a net that moves its images to a GPU, on which its weights are not yet."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words, self.head = words, nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
            False,
        ),
        ("Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same", False),
        ("'Moves' object has no attribute 'device'", True),
    ],
)
def test_a_net_that_moves_its_images_is_not_tried(words: str, refused: bool) -> None:
    network = Network(Moves(words), name="own", num_classes=10, input_spec=PLAIN)
    if not refused:
        check_takes(network, arrays(8, 8), channels_last=True)
        return
    with pytest.raises(ValueError, match=r"got RuntimeError: 'Moves' .* \(test_data.py, line \d+\)"):
        check_takes(network, arrays(8, 8))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None: ...


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_net_whose_state_cannot_be_written_is_refused_before_it_is_trained(
    tmp_path: Path, who: str
) -> None:
    layer: dict[str, Any] = {
        "data": {"source": "digits", "workers": 0},
        "train": {"epochs": 1, "max_steps": 2},
    }
    layer |= {"out": str(tmp_path / "run"), "method": {"preset": "none" if who == "student" else "kd"}}
    layer |= {} if who == "student" else {"student": {"name": "cifar/resnet8"}}
    with pytest.raises(
        ValueError, match=rf"{who}: needs a net whose state dict has tensors alone, got .*extra_state"
    ):
        outgrow.distill(layer, **{who: Remembers()})


@pytest.mark.parametrize("size", [16, None])
def test_making_a_student_changes_nothing_in_the_data(photos: Path, size: int | None) -> None:
    """The size is in the network alone, from which the record has it."""
    config = configured(f"folder:{photos}", "cifar/resnet8", size=size)
    run, data = RunContext(config, CPU, Reporter()), open_run_data(config)
    before = dict(vars(data))
    student = TASK.make_student(run, data, Objective({}), None)
    assert all(vars(data)[name] is value for name, value in before.items())
    assert TASK.data_record(run, data, student).size == network_of(student).input_spec.size == (size or 224)
    assert TASK.data_record(run, data, None).size is None


def test_trying_a_size_leaves_a_net_as_it_was(photos: Path) -> None:
    config = configured(f"folder:{photos}", TIMM, size=64)
    data = open_run_data(config)
    network = create_model(TIMM, 2)
    network.train()
    network.net.classifier.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    set_input_size(network, data.train, 64, config.student)
    assert network.input_spec.size == 64
    assert network.training
    assert not network.net.classifier.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["photos", "small"])
def test_the_file_evaluates_to_the_records_number(photos: Path, tmp_path: Path, kind: str) -> None:
    source = f"folder:{photos}"
    if kind == "small":
        counts = {f"{split}/{name}": 8 for split in ("train", "val") for name in "ab"}
        write_folder(tmp_path / "small", counts, sides=(20,))
        source = f"folder:{tmp_path / 'small'}"
    config = configured(source, "cifar/resnet8", size=32).model_dump()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = outgrow.distill({**config, "out": str(tmp_path / "run")})
    assert record["data"]["size"] == 32
    assert record["data"]["duplicates"] == 0
    assert record["data"]["faults"] == []
    file = tmp_path / "run" / "student.safetensors"
    scores = evaluate_model(source, "cifar/resnet8", weights=file, workers=0)
    for number in ("top1", "nll"):
        assert scores[number] == pytest.approx(record["student"][number], abs=1e-5)
    assert create_model("cifar/resnet8", weights=file).input_spec.size == 32


def test_images_of_one_size_are_tested_beside_others(tmp_path: Path) -> None:
    """Trained in memory at 20 pixels, tested on photographs: at 20, in the run and later."""
    counts = {f"train/{name}": 8 for name in "ab"}
    write_folder(tmp_path / "p", counts, sides=(20,))
    write_folder(tmp_path / "p", {"val/a": 4, "val/b": 4}, sides=(120, 150))
    data, network, train, test = views(configured(f"folder:{tmp_path / 'p'}", "cifar/resnet8"))
    assert isinstance(data.train, ArraySplit)
    assert isinstance(data.test, FileSplit)
    assert network.input_spec.size == 20
    assert train.shape[2:] == test.shape[2:] == (20, 20)


def test_a_teacher_that_names_no_size_sees_what_the_student_sees(photos: Path, tmp_path: Path) -> None:
    config = configured(f"folder:{photos}", "cifar/resnet8", size=32)
    run = RunContext(config, CPU, Reporter())
    data = open_run_data(config)
    student = made(config, data)
    for own, expected in ((None, 32), (48, 48)):
        teacher = create_model("cifar/resnet8", 2, input_size=own)
        TASK.freeze(run, data, teacher, student, Objective({}))
        assert teacher.input_spec.size == expected


def test_faults_reach_the_record(photos: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "p"
    shutil.copytree(photos, root)
    bad = root / "train" / "a" / "001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    config = configured(f"folder:{root}", "cifar/resnet8", size=16).model_dump()
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*a/001\.png \(200 bytes"):
        outgrow.distill(config)
    config["data"]["on_fault"] = "skip"
    with pytest.warns(outgrow.data.DataWarning, match="left out 1 of 16 images"):
        record = outgrow.distill(config)
    assert record["data"]["faults"] == [str(bad)]
    assert record["data"]["train"] == 15


def test_few_rows_that_leave_out_a_class_are_said(photos: Path) -> None:
    config = configured(f"folder:{photos}", "cifar/resnet8", train_rows=1)
    with pytest.warns(DataWarning, match="1 of 2 classes have test images but no training images"):
        open_run_data(config)
