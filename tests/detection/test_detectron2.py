"""A checkpoint of Detectron2 gives the numbers that Detectron2's own layers give, written out here once more."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from outgrow.detection import export
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.families.detector import FrozenDetector, Proposals
from outgrow.detection.families.detectron2 import BACKBONES, from_detectron2
from outgrow.training.deployment import FinishedRun, Request
from outgrow.training.progress import Reporter
from tests.detection.test_published import COCO80

NAME = "fasterrcnn:torchvision/resnet50"
MEAN_BGR = torch.tensor([103.53, 116.28, 123.675])


def shapes(blocks, classes=80):
    """Every tensor of a Faster R-CNN R-FPN in Detectron2's names, and its shape."""
    found = {}

    def convolution(name, out, into, size):
        found[f"{name}.weight"] = (out, into, size, size)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.norm.{kind}"] = (out,)

    def layer(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    convolution("backbone.bottom_up.stem.conv1", 64, 3, 7)
    width = 64
    for stage, count in enumerate(blocks, start=2):
        inner, out = 64 * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(count):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if block == 0:
                convolution(f"{name}.shortcut", out, width, 1)
            convolution(f"{name}.conv1", inner, width, 1)
            convolution(f"{name}.conv2", inner, inner, 3)
            convolution(f"{name}.conv3", out, inner, 1)
            width = out
        layer(f"backbone.fpn_lateral{stage}", 256, width, 1, 1)
        layer(f"backbone.fpn_output{stage}", 256, 256, 3, 3)
    layer("proposal_generator.rpn_head.conv", 256, 256, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", 3, 256, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 12, 256, 1, 1)
    layer("roi_heads.box_head.fc1", 1024, 12544)
    layer("roi_heads.box_head.fc2", 1024, 1024)
    layer("roi_heads.box_predictor.cls_score", classes + 1, 1024)
    layer("roi_heads.box_predictor.bbox_pred", 4 * classes, 1024)
    return found


def checkpoint(blocks=(3, 4, 6, 3), classes=80):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(blocks, classes).items():
        if name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif name.endswith("norm.weight"):
            state[name] = torch.rand(shape, generator=generator) * 0.5 + 0.5
        elif len(shape) == 1:
            state[name] = torch.randn(shape, generator=generator) * 0.1
        else:
            state[name] = torch.randn(shape, generator=generator) * math.sqrt(1.5 / math.prod(shape[1:]))
    state["backbone.bottom_up.stem.conv1.weight"] /= 60
    state["roi_heads.box_predictor.bbox_pred.weight"] *= 0.1
    return state


@pytest.fixture(scope="module")
def state():
    return checkpoint()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content))
    return path


# --- Detectron2's layers, written out from its definitions


def maps_of(state, image):
    """p2 to p6 of an image in RGB, [0, 1], whose sides are multiples of 32."""

    def conv(x, name, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)
        norm = {k: state[f"{name}.norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        return x * scale.view(-1, 1, 1) + (norm["bias"] - norm["running_mean"] * scale).view(-1, 1, 1)

    bgr = image.flip(0) * 255
    x = (bgr - MEAN_BGR.view(3, 1, 1))[None]
    x = F.max_pool2d(conv(x, "backbone.bottom_up.stem.conv1", 2, 3).relu(), 3, 2, 1)
    found = {}
    for stage in (2, 3, 4, 5):
        block = 0
        while f"backbone.bottom_up.res{stage}.{block}.conv1.weight" in state:
            name = f"backbone.bottom_up.res{stage}.{block}"
            stride = 2 if stage > 2 and block == 0 else 1
            y = conv(x, f"{name}.conv1", stride).relu()  # STRIDE_IN_1X1
            y = conv(y, f"{name}.conv2", 1, 1).relu()
            y = conv(y, f"{name}.conv3")
            short = conv(x, f"{name}.shortcut", stride) if block == 0 else x
            x = (y + short).relu()
            block += 1
        found[stage] = x
    pyramid, above = {}, None
    for stage in (5, 4, 3, 2):
        name = f"backbone.fpn_lateral{stage}"
        here = F.conv2d(found[stage], state[f"{name}.weight"], state[f"{name}.bias"])
        if above is not None:
            here = here + above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        above = here
        name = f"backbone.fpn_output{stage}"
        pyramid[stage] = F.conv2d(here, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
    pyramid[6] = pyramid[5][:, :, ::2, ::2]
    return pyramid


def region_numbers(state, feature):
    """Objectness and deltas of the anchors of a level: row, column, anchor."""
    head = "proposal_generator.rpn_head"
    x = F.conv2d(feature, state[f"{head}.conv.weight"], state[f"{head}.conv.bias"], padding=1).relu()
    layers = [
        F.conv2d(x, state[f"{head}.{name}.weight"], state[f"{head}.{name}.bias"])[0]
        for name in ("objectness_logits", "anchor_deltas")
    ]
    objectness = layers[0].permute(1, 2, 0).reshape(-1)
    return objectness, layers[1].view(3, 4, *x.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)


def anchors_of(stage, height, width):
    side, stride = 2 ** (stage + 3), 2**stage
    found = []
    for row in range(height):
        for column in range(width):
            for ratio in (0.5, 1.0, 2.0):
                wide = math.sqrt(side * side / ratio)
                high = ratio * wide
                x, y = column * stride, row * stride
                found.append([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])
    return torch.tensor(found)


def pooled(pyramid, box):
    """RoIAlignV2 with 7 x 7 bins and as many samples as needed, point by point, from the level of the box's size."""
    left, top, right, bottom = box.tolist()
    stage = math.floor(4 + math.log2(math.sqrt((right - left) * (bottom - top)) / 224 + 1e-8))
    stage = min(max(stage, 2), 5)
    feature, scale = pyramid[stage][0], 1 / 2**stage
    high, wide = feature.shape[1:]
    x0, y0 = left * scale - 0.5, top * scale - 0.5
    bin_w, bin_h = (right - left) * scale / 7, (bottom - top) * scale / 7
    nx, ny = math.ceil((right - left) * scale / 7), math.ceil((bottom - top) * scale / 7)

    def at(y, x):
        if y < -1 or y > high or x < -1 or x > wide:
            return torch.zeros(feature.shape[0])
        y, x = min(max(y, 0), high - 1), min(max(x, 0), wide - 1)
        r, c = int(y), int(x)
        r2, c2 = min(r + 1, high - 1), min(c + 1, wide - 1)
        dy, dx = y - r, x - c
        upper = feature[:, r, c] * (1 - dx) + feature[:, r, c2] * dx
        lower = feature[:, r2, c] * (1 - dx) + feature[:, r2, c2] * dx
        return upper * (1 - dy) + lower * dy

    grid = torch.zeros(feature.shape[0], 7, 7)
    for i in range(7):
        for j in range(7):
            points = [
                at(y0 + (i + (a + 0.5) / ny) * bin_h, x0 + (j + (b + 0.5) / nx) * bin_w)
                for a in range(ny)
                for b in range(nx)
            ]
            grid[:, i, j] = torch.stack(points).mean(0)
    return grid


def box_numbers(state, grid):
    """Scores, the background last, and a box regression for each class."""
    x = grid.flatten()
    for name in ("fc1", "fc2"):
        layer = f"roi_heads.box_head.{name}"
        x = (state[f"{layer}.weight"] @ x + state[f"{layer}.bias"]).relu()
    return tuple(
        state[f"roi_heads.box_predictor.{name}.weight"] @ x + state[f"roi_heads.box_predictor.{name}.bias"]
        for name in ("cls_score", "bbox_pred")
    )


@pytest.mark.filterwarnings("ignore:.*resizes images to 160:UserWarning")
def test_every_layer_against_detectron2s_definitions(state, file):
    made = create_detector(f"{NAME}?size=160", weights=file, input_size=160)
    assert made.name == f"{NAME}?size=160&style=detectron2"
    assert made.classes == COCO80
    made.eval()
    image = torch.rand(3, 160, 224, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = maps_of(state, image)
        batch, _ = made.net.transform([image])
        maps = made.net.backbone(batch.tensors)
        for stage, value in expected.items():
            scale = value.abs().max()
            torch.testing.assert_close(maps[f"p{stage}"] / scale, value / scale, rtol=0, atol=2e-5)

        anchors = made.net.rpn.anchor_generator(batch, list(maps.values()))[0]
        wanted = torch.cat([anchors_of(stage, *expected[stage].shape[2:]) for stage in (2, 3, 4, 5, 6)])
        torch.testing.assert_close(anchors, wanted, rtol=1e-6, atol=1e-3)
        scores, deltas = made.net.rpn.head(list(maps.values()))
        for stage, own_scores, own_deltas in zip((2, 3, 4, 5, 6), scores, deltas, strict=True):
            objectness, moves = region_numbers(state, expected[stage])
            torch.testing.assert_close(
                own_scores[0].permute(1, 2, 0).flatten(), objectness, rtol=1e-3, atol=1e-3
            )
            own = own_deltas[0].view(3, 4, *own_deltas.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            torch.testing.assert_close(own, moves, rtol=1e-3, atol=1e-3)

        boxes = torch.tensor(
            [[3.0, 5, 60, 90], [10.5, 20, 14, 23], [0, 0, 224, 160], [100, 50, 101.5, 51], [33, 7, 150, 140]]
        )
        label = torch.tensor([1, 0, 80, 5, 0])
        said = made.classify([image], Proposals((boxes,), label, boxes))
        for row, box in enumerate(boxes):
            theirs, moves = box_numbers(state, pooled(expected, box))
            logits = torch.cat([theirs[-1:], theirs[:-1]])
            torch.testing.assert_close(said.logits[row], logits, rtol=1e-3, atol=1e-3)
            if label[row]:
                own_class = moves.view(80, 4)[label[row] - 1]
                torch.testing.assert_close(said.features["box"][row], own_class, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*resizes images to 64:UserWarning")
def test_it_is_a_teacher_and_comes_back_from_its_own_file(file, tmp_path):
    made = create_detector("fasterrcnn:", weights=file, input_size=64)
    teacher = FrozenDetector(made, tuple(reversed(COCO80)))
    assert teacher.columns.tolist() == [0, *range(80, 0, -1)]
    save_detector(made, tmp_path / "own.safetensors")
    again = create_detector("fasterrcnn:", weights=tmp_path / "own.safetensors")
    assert again.name == made.name == f"{NAME}?size=64&style=detectron2"
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(3))
    here, there = made.detect([image])[0], again.detect([image])[0]
    assert len(here.boxes) > 3
    torch.testing.assert_close(here.boxes, there.boxes)
    with pytest.raises(ValueError, match="style that the file was trained with"):
        create_detector(f"{NAME}?size=64", weights=tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    "backbone, blocks", [("torchvision/resnet50", (3, 4, 6, 3)), ("torchvision/resnet101", (3, 4, 23, 3))]
)
def test_every_tensor_has_its_place(backbone, blocks):
    """Of R50-FPN and R101-FPN: names and shapes of all tensors."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes(blocks, 5).items()}
        named, facts = from_detectron2(state)
    made = create_detector(f"fasterrcnn:{backbone}?style=detectron2", tuple("abcde"))
    own = {k: v.shape for k, v in made.net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in named.items()} == own
    assert facts["model"] == f"fasterrcnn:{backbone}?style=detectron2"
    assert facts["classes"] == ["0", "1", "2", "3", "4"]  # a checkpoint has no names: they count by position
    assert backbone in BACKBONES


def test_what_does_not_fit_is_named(tmp_path):
    state = {name: torch.zeros(1) for name in shapes((3, 4, 6, 3))}
    state |= {
        "roi_heads.box_predictor.cls_score.bias": torch.zeros(81),
        "roi_heads.box_predictor.bbox_pred.bias": torch.zeros(320),
    }
    for change, said in (
        (
            {"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4)},
            "bbox_pred with 4 numbers for 80 classes",
        ),
        ({"backbone.bottom_up.res3.0.conv2_offset.weight": torch.zeros(1)}, "res3.0.conv2_offset.weight"),
        ({"roi_heads.0.box_head.fc1.weight": torch.zeros(1)}, r"roi_heads\.0\.box_head"),
    ):
        with pytest.raises(ValueError, match=f"needs a Faster R-CNN of Detectron2 .*{said}"):
            from_detectron2({**state, **change})
    with pytest.raises(ValueError, match="for style=detectron2, got torchvision/resnet18 and 2-5"):
        create_detector("fasterrcnn:torchvision/resnet18?style=detectron2", ("a",))
    with pytest.raises(ValueError, match="needs a value such as detectron2 for style, got 'caffe'"):
        create_detector(f"{NAME}?style=caffe", ("a",))


def test_the_files_own_normalisation_is_used():
    small = {
        name: torch.zeros(1, 1) if not name.endswith("bias") else torch.zeros(1)
        for name in shapes((3, 4, 6, 3))
    }
    small |= {
        "backbone.bottom_up.stem.conv1.weight": torch.arange(3.0).view(1, 3, 1, 1),
        "roi_heads.box_predictor.cls_score.bias": torch.arange(81.0),
        "roi_heads.box_predictor.cls_score.weight": torch.arange(81.0)[:, None],
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(320.0),
        "roi_heads.box_predictor.bbox_pred.weight": torch.arange(320.0)[:, None],
        "pixel_mean": torch.tensor([51.0, 102, 153]).view(3, 1, 1),
        "pixel_std": torch.tensor([25.5, 51, 255]).view(3, 1, 1),
    }
    named, facts = from_detectron2(small)
    assert np.allclose(facts["mean"], [0.6, 0.4, 0.2])
    assert np.allclose(facts["std"], [1.0, 0.2, 0.1])
    assert named["backbone.body.conv1.weight"].flatten().tolist() == [2, 1, 0]
    assert named["roi_heads.box_predictor.cls_score.bias"].tolist() == [80, *range(80)]
    assert named["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0, 0, 0, 0, *range(320)]


def test_its_layers_are_not_torchvisions(tmp_path, monkeypatch):
    """The code of the model card would build another detector: the student does not find its own boxes with it."""
    student = SimpleNamespace(name=f"{NAME}?style=detectron2", family="fasterrcnn")
    run = object.__new__(FinishedRun)
    monkeypatch.setattr(export, "load_student", lambda run: student)
    monkeypatch.setattr(export, "_images", lambda run, request: export.Images([], "none"))
    with pytest.raises(
        ValueError, match=r"--format safetensors: needs .* got .*style=detectron2.*; export it as onnx"
    ):
        export.export_student(run, Request(tmp_path, ("safetensors",)), Reporter())
    found = export.export_student(run, Request(tmp_path, ("safetensors", "torch"), every=True), Reporter())
    assert [note.partition(":")[0] for note in found.notes] == ["model.pt2", "model.safetensors"]
