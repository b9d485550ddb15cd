"""create_model: every family by name, what a net wants to see, and errors that help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from outgrow.models import Network, create_model, feature_paths, head_of, list_models, save_student
from outgrow.models.timm_extra import TIMM_EXTRA

TINY_VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {"0": "cat", "1": "dog", "2": "owl"},
    "label2id": {"cat": 0, "dog": 1, "owl": 2},
}


def logits_shape(network: Network, side: int = 40) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(network.eval()(torch.rand(2, 3, side, side)).shape)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, outgrow.models.create, outgrow.models as m; m.create_model('cifar/resnet8'); "
        "print([name for name in ('timm', 'torchvision', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_timm() -> None:
    network = create_model("timm/mobilenetv3_small_050", 5)
    assert (network.name, network.num_classes, network.classes) == ("timm/mobilenetv3_small_050", 5, None)
    spec = network.input_spec
    assert (spec.size, spec.interpolation, spec.crop_pct) == (224, "bicubic", 0.875)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert logits_shape(network) == (2, 5)
    assert head_of(network)[0] == "classifier"


def test_names_of_imagenet_classes() -> None:
    classes = create_model("timm/mobilenetv3_small_050").classes
    assert classes is not None
    assert (len(classes), classes[0], classes[-1]) == (1000, "n01440764", "n15075141")


def test_timm_keyword_arguments() -> None:
    network = create_model("timm/mobilenetv2_035?pad_type=same&drop_rate=0.25", 3)
    assert type(network.net.get_submodule("conv_stem")).__name__ == "Conv2dSame"
    assert network.net.drop_rate == 0.25
    with pytest.raises(ValueError, match=r"keyword arguments that its constructor knows, got .*wings"):
        create_model("timm/mobilenetv2_035?wings=2")
    with pytest.raises(ValueError, match=r"key=value pairs joined by & .* got 'same'; for example"):
        create_model("timm/mobilenetv2_035?same")


def test_a_transformer_is_built_for_the_size_asked_for() -> None:
    network = create_model("timm/vit_tiny_patch16_224?depth=1", 3, input_size=32)
    assert network.input_spec.size == 32
    assert logits_shape(network) == (2, 3)


def test_input_size_of_a_convolutional_net() -> None:
    network = create_model("timm/mobilenetv3_small_050", 3, input_size=64)
    assert network.input_spec.size == 64
    assert network.prepare(torch.rand(1, 3, 48, 48)).shape == (1, 3, 64, 64)


def test_our_own_table_of_timm_nets() -> None:
    assert set(TIMM_EXTRA) == {
        "mobilenetv1_025_128",
        "mobilenetv1_050_160",
        "mobilenetv1_075_192",
        "mobilenetv2_100_tf2_224",
    }
    network = create_model("timm/mobilenetv1_025_128")
    assert sum(parameter.numel() for parameter in network.parameters()) == 470_072
    assert network.input_spec.size == 128
    with pytest.raises(ValueError, match="got pretrained=True; pass a file as weights="):
        create_model("timm/mobilenetv1_025_128", pretrained=True)


def test_a_missing_private_function_of_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.models.efficientnet as efficientnet

    monkeypatch.delattr(efficientnet, "_gen_mobilenet_v1")
    with pytest.raises(
        ValueError, match=r"needs .*_gen_mobilenet_v1, which is private .* without it; install"
    ):
        create_model("timm/mobilenetv1_025_128")


def test_imagenet_weights_know_their_classes(shared_data: Path) -> None:
    """One real photograph a class; 46.8 % of the 1,000 are right, five standard errors of 200 are 17.6."""
    weights = shared_data / "weights" / "in1k_mobilenetv1_025_128.safetensors"
    network = create_model("timm/mobilenetv1_025_128", weights=weights).eval()
    folders = sorted((shared_data / "imagenet_sample" / "val").iterdir())[::5]
    assert len(folders) == 200
    right = 0
    for folder in folders:
        with Image.open(next(folder.iterdir())) as photo:
            photo = photo.convert("RGB")
            crop = int(min(photo.size) * network.input_spec.crop_pct)
            left, top = (photo.width - crop) // 2, (photo.height - crop) // 2
            photo = photo.crop((left, top, left + crop, top + crop))
        with torch.inference_mode():
            best = network(pil_to_tensor(photo)[None] / 255).argmax().item()
        assert network.classes is not None
        right += network.classes[int(best)] == folder.name
    print(f"mobilenetv1_025_128: {right} of 200")
    assert right > 58


def test_torchvision() -> None:
    network = create_model("torchvision/mobilenet_v3_small", 4)
    spec = network.input_spec
    assert (spec.size, spec.interpolation, spec.crop_pct) == (224, "bilinear", 0.875)
    assert logits_shape(network) == (2, 4)
    assert head_of(network)[0] == "classifier.3"
    assert feature_paths(network)[0] == "features.0"
    classes = create_model("torchvision/resnet18").classes
    assert classes is not None
    assert classes[0] == "n01440764"


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY_VIT))
    return tmp_path


def test_hf_from_a_configuration(vit_folder: Path) -> None:
    network = create_model(f"hf/{vit_folder}")
    assert network.classes == ("cat", "dog", "owl")
    assert network.input_spec.size == 32
    assert network.input_spec.mean == (0.5, 0.5, 0.5)
    assert logits_shape(network) == (2, 3)
    assert head_of(network)[0] == "classifier"
    assert len(feature_paths(network)) >= 2
    other = create_model(f"hf/{vit_folder}", 7, input_size=16)
    assert (other.classes, other.num_classes, logits_shape(other)) == (None, 7, (2, 7))
    with pytest.raises(ValueError, match=r"pretrained=True needs weights in the directory .* got none; save"):
        create_model(f"hf/{vit_folder}", pretrained=True)


def test_hf_from_a_checkpoint_with_its_processor(vit_folder: Path, tmp_path: Path) -> None:
    first = create_model(f"hf/{vit_folder}").eval()
    stored = tmp_path / "stored"
    first.net.save_pretrained(stored)
    seen = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (stored / "preprocessor_config.json").write_text(
        json.dumps({**seen, "size": {"height": 32, "width": 32}})
    )
    second = create_model(f"hf/{stored}")
    assert second.training
    assert (second.input_spec.mean, second.input_spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert second.input_spec.interpolation == "bilinear"
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.net(images).logits, second.eval().net(images).logits)
    assert logits_shape(create_model(f"hf/{stored}", 9)) == (2, 9)


def test_hf_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a directory with config.json or the id .*; check the path"):
        create_model(f"hf/{tmp_path}")


NETS = """
from torch import nn
from outgrow.models import InputSpec, Network

def small(num_classes=6):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def whole(num_classes):
    spec = InputSpec(8, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    return Network(small(num_classes), name="mine", num_classes=num_classes, input_spec=spec)

def nothing(num_classes):
    return None
"""


def test_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NETS)
    network = create_model(f"py:{file}:small", 4)
    assert (network.num_classes, logits_shape(network)) == (4, (2, 4))
    images = torch.rand(2, 3, 5, 5)
    assert torch.equal(network.prepare(images), images)
    assert create_model(f"py:{file}:small").num_classes == 6
    assert create_model(f"py:{file}:whole", 4).input_spec.size == 8
    with pytest.raises(ValueError, match=r"returns an nn.Module, got NoneType; return the net"):
        create_model(f"py:{file}:nothing", 4)
    with pytest.raises(ValueError, match=r"needs a callable named 'large' in .*, got none; define it"):
        create_model(f"py:{file}:large", 4)
    with pytest.raises(
        ValueError, match=r"needs py:FILE:CALLABLE with a file that exists, got .*; for example"
    ):
        create_model(f"py:{tmp_path / 'lacking.py'}:small")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("cifar/resnet32x5", "cifar/resnet32x4"),
        ("resnet8x4", "cifar/resnet8x4"),
        ("timm/mobilenetv1_025", "timm/mobilenetv1_025_128"),
        ("torchvision/resnet19", "torchvision/resnet1"),
        ("tim/convnext_atto", "timm/convnext_atto"),
    ],
)
def test_unknown_names_get_suggestions(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'; did you mean .*{suggestion}.*outgrow list models"):
        create_model(name)


def test_requests_that_contradict_themselves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs one source of weights, got pretrained=True and weights="):
        create_model("timm/resnet18", pretrained=True, weights=tmp_path / "file.pt")
    with pytest.raises(ValueError, match="pretrained=True needs published weights"):
        create_model("cifar/resnet8", pretrained=True)
    with pytest.raises(ValueError, match="num_classes needs at least 1, got 0; leave it out"):
        create_model("cifar/resnet8", 0)


def test_weights_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    save_student(create_model("cifar/resnet8", 12), file)
    assert create_model("cifar/resnet8", weights=file).num_classes == 12
    with pytest.warns(UserWarning, match="the head stays new"):
        assert create_model("cifar/resnet8", 5, weights=file).num_classes == 5
    assert create_model("cifar/resnet8", weights=file, input_size=48).input_spec.size == 48


def test_list() -> None:
    models = list_models()
    assert list(models) == ["cifar", "timm", "torchvision"]
    assert len(models["cifar"]) == 25
    assert "timm/mobilenetv1_050_160" in models["timm"]
    assert len(models["timm"]) > 1000
    assert "torchvision/resnet50" in models["torchvision"]
    assert "torchvision/fasterrcnn_resnet50_fpn" not in models["torchvision"]


def test_a_size_in_the_name_is_what_the_net_sees():
    network = create_model("timm/vit_tiny_patch16_224?img_size=32&patch_size=8&depth=1", 5)
    assert network.input_spec.size == 32
    assert network(torch.rand(2, 3, 48, 48)).shape == (2, 5)
