"""The CIFAR nets: sizes, names and shapes of the CRD protocol, and two published checkpoints."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from outgrow.models import create_model, feature_paths, load_weights
from outgrow.models.cifar import CIFAR_MODELS

# With 100 classes. Those published: CRD and mdistiller's tables, He et al. 2016, the weights' README.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "densenet_bc_100_12": 800_032,
}

# What each stage says about a 32x32 image: channels and side.
STAGES = {
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "wrn_16_2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
    "resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "densenet_bc_100_12": [(216, 32), (300, 16), (342, 8)],
}

# Some parameters' shapes, as the published checkpoints of the protocol name them.
KEYS = {
    "resnet8x4": {
        "conv1.weight": (32, 3, 3, 3),
        "bn1.running_var": (32,),
        "layer1.0.downsample.0.weight": (64, 32, 1, 1),
        "layer3.0.downsample.1.weight": (256,),
        "layer3.0.bn2.bias": (256,),
        "fc.weight": (100, 256),
    },
    "resnet20": {"layer2.0.downsample.0.weight": (32, 16, 1, 1), "layer1.2.conv2.weight": (16, 16, 3, 3)},
    "wrn_16_2": {
        "conv1.weight": (16, 3, 3, 3),
        "block1.layer.0.bn1.weight": (16,),
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.1.conv2.weight": (128, 128, 3, 3),
        "bn1.weight": (128,),
        "fc.bias": (100,),
    },
    "vgg13": {
        "block0.0.bias": (64,),
        "block0.3.weight": (64, 64, 3, 3),
        "block4.4.running_mean": (512,),
        "classifier.weight": (100, 512),
    },
    "mobilenetv2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.0.0.conv.6.weight": (8, 16, 1, 1),
        "blocks.6.0.conv.3.weight": (480, 1, 3, 3),
        "conv2.1.weight": (1280,),
        "classifier.0.weight": (100, 1280),
    },
    "shufflenetv1": {
        "conv1.weight": (24, 3, 1, 1),
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer1.0.conv3.weight": (216, 18, 1, 1),
        "layer2.7.conv2.weight": (120, 1, 3, 3),
        "linear.weight": (100, 960),
    },
    "shufflenetv2": {
        "layer1.0.conv4.weight": (58, 1, 3, 3),
        "layer1.0.bn5.weight": (58,),
        "layer2.7.conv3.weight": (116, 116, 1, 1),
        "conv2.weight": (1024, 464, 1, 1),
        "linear.weight": (100, 1024),
    },
    "resnet18": {
        "conv1.weight": (64, 3, 3, 3),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer4.0.shortcut.1.bias": (512,),
        "linear.weight": (100, 512),
    },
    "resnet50": {"layer1.0.shortcut.0.weight": (256, 64, 1, 1), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
    "densenet_bc_100_12": {
        "block1.layer.15.conv1.weight": (48, 204, 1, 1),
        "trans2.conv1.weight": (150, 300, 1, 1),
        "fc.weight": (100, 342),
    },
}


def test_the_tables_are_complete() -> None:
    assert CIFAR_MODELS.keys() == PARAMETERS.keys()
    kinds = {type(CIFAR_MODELS[name](10)) for name in STAGES}
    assert kinds == {type(build(10)) for build in CIFAR_MODELS.values()}


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_size_and_shape(name: str) -> None:
    network = create_model(f"cifar/{name}")
    assert network.num_classes == 100
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 100)
    assert logits.isfinite().all()


def test_number_of_classes() -> None:
    for name in STAGES:
        assert create_model(f"cifar/{name}", 7).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", KEYS)
def test_names_of_parameters(name: str) -> None:
    state = CIFAR_MODELS[name](100).state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]


def test_no_shortcut_where_the_shape_stays() -> None:
    assert not [key for key in CIFAR_MODELS["resnet20"](10).state_dict() if "layer1.0.downsample" in key]
    assert not [key for key in CIFAR_MODELS["wrn_16_1"](10).state_dict() if "block1.layer.0.convS" in key]
    assert not [key for key in CIFAR_MODELS["resnet18"](10).state_dict() if "layer1.0.shortcut" in key]


@pytest.mark.parametrize("name", STAGES)
def test_feature_paths_are_the_stages(name: str) -> None:
    network = create_model(f"cifar/{name}").eval()
    seen: list[tuple[Tensor, int]] = []
    for path in feature_paths(network):
        module = network.net.get_submodule(path)
        module.register_forward_hook(lambda _, __, output: seen.append((output, output._version)))
    network(torch.rand(2, 3, 32, 32))
    assert [(maps.shape[1], maps.shape[2]) for maps, _ in seen] == STAGES[name]
    # Nothing downstream may write into a tapped activation.
    assert all(maps._version == version for maps, version in seen)


def test_larger_images() -> None:
    for name in ("resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv2"):
        assert create_model(f"cifar/{name}", 5).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5)


@pytest.fixture(scope="module")
def cifar_test(shared_data: Path) -> tuple[Tensor, Tensor]:
    """The first 500 test images of CIFAR-100, in [0, 1], and their labels."""
    file = pq.ParquetFile(shared_data / "cifar100" / "test-00000-of-00001.parquet")
    rows = next(file.iter_batches(batch_size=500, columns=["img", "fine_label"])).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor([row["fine_label"] for row in rows])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet56", "c100_resnet56_chenyaofo"),
        pytest.param("densenet_bc_100_12", "c100_densenet_bc_100_12", marks=pytest.mark.slow),
    ],
)
def test_published_checkpoints(
    name: str, file: str, shared_data: Path, cifar_test: tuple[Tensor, Tensor]
) -> None:
    network = create_model(f"cifar/{name}").eval()
    report = load_weights(network, shared_data / "weights" / f"{file}.safetensors", role="exact")
    assert set(report.loaded) == set(network.net.state_dict())
    assert not report.renamed
    assert not report.head_replaced
    images, label = cifar_test
    with torch.inference_mode():
        right = torch.cat([network(batch).argmax(1) for batch in images.split(100)]) == label
    accuracy = right.float().mean().item()
    print(f"{name}: {accuracy:.3f} on {len(label)} images")
    assert accuracy > 0.68  # 0.726 and 0.744 on all 10,000; four standard errors of 500 are 0.08


def test_initialisation_is_that_of_the_protocol() -> None:
    torch.manual_seed(0)
    conv = create_model("cifar/resnet8x4").net.get_submodule("layer3.0.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
