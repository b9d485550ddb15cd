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
from outgrow.models.structure import heads_of
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
    with pytest.raises(ValueError, match=r"key=value pairs joined by & .* got 'same'; use for example"):
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


def test_hf_with_two_heads(tmp_path: Path) -> None:
    """A DeiT's logits are the mean of two heads, so both take a part in whatever happens to its classes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.DeiTConfig(**sizes, image_size=32, patch_size=16, id2label=names)
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    own = create_model(f"hf/{tmp_path}").eval()
    assert [path for path, _ in heads_of(own)] == ["cls_classifier", "distillation_classifier"]
    images = torch.rand(2, 3, 32, 32)
    turned = create_model(f"hf/{tmp_path}", classes=("cow", "cat", "dog")).eval()
    torch.testing.assert_close(turned(images), own(images)[:, [2, 0, 1]])
    new = create_model(f"hf/{tmp_path}", 7)
    assert [head.weight.shape[0] for _, head in heads_of(new)] == [7, 7]
    assert max(float(head.weight.detach().abs().max()) for _, head in heads_of(new)) < 0.1


@pytest.mark.parametrize("family", ["hf", "timm", "torchvision"])
def test_a_new_head_is_not_matched_with_anything(
    family: str, vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from torchvision import models

    name = {"timm": "timm/test_resnet", "torchvision": "torchvision/mobilenet_v3_small"}.get(family)
    if name is None:
        create_model(f"hf/{vit_folder}").net.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text("{}")
        name = f"hf/{tmp_path}"
    make, get = timm.create_model, models.get_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: make(name, **more))
    monkeypatch.setattr(models, "get_model", lambda name, weights, **more: get(name, **more))
    network = create_model(name, pretrained=True, classes=("a", "b"))
    assert network.classes == ("a", "b")
    assert not [note for note in network.notes if "the head's rows" in note], network.notes


@pytest.mark.parametrize(
    ("stated", "size", "crop_pct"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}, 32, 0.8),
        ({"size": {"height": 40, "width": 40}, "crop_size": 32, "do_center_crop": True}, 32, 0.8),
        ({"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True, "crop_pct": 0.9}, 32, 0.9),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": False}, 40, 1.0),
        ({"size": 40, "crop_size": 32, "do_center_crop": True, "do_resize": False}, 32, 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"}, 224, 0.875),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"}, 384, 1.0),
    ],
)  # fmt: skip
def test_the_crop_of_an_image_processor(
    vit_folder: Path, tmp_path: Path, stated: dict, size: int, crop_pct: float
) -> None:
    """Published accuracies are those of this crop, of which most processors state only the two sizes."""
    (tmp_path / "config.json").write_bytes((vit_folder / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    spec = create_model(f"hf/{tmp_path}").input_spec
    assert (spec.size, spec.crop_pct) == (size, crop_pct)


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

def broken(num_classes):
    return nn.Linear("a", num_classes)

def bare():
    return small()
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
    with pytest.raises(
        ValueError, match=r"needs a file that runs, .*, got TypeError in line 16: .*; correct"
    ):
        create_model(f"py:{file}:broken", 4)
    with pytest.raises(ValueError, match=r"a callable that takes the number of classes .*, got TypeError"):
        create_model(f"py:{file}:bare", 4)
    for text, error in (("def (", "SyntaxError"), ("import nowhere_at_all", "ModuleNotFoundError in line 1")):
        (tmp_path / "faulty.py").write_text(text)
        with pytest.raises(ValueError, match=f"needs a file that runs, .*, got {error}: "):
            create_model(f"py:{tmp_path / 'faulty.py'}:small")
    with pytest.raises(ValueError, match=r"needs a callable named 'large' in .*, got none; define it"):
        create_model(f"py:{file}:large", 4)
    with pytest.raises(
        ValueError, match=r"needs py:FILE:CALLABLE with a file that exists, got .*; use for example"
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
    with pytest.raises(ValueError, match="pretrained=True needs a net with published weights"):
        create_model("cifar/resnet8", pretrained=True)
    with pytest.raises(ValueError, match="num_classes needs at least 1, got 0; leave it out"):
        create_model("cifar/resnet8", 0)


def test_weights_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    save_student(create_model("cifar/resnet8", 12), file)
    assert create_model("cifar/resnet8", weights=file).num_classes == 12
    with pytest.warns(UserWarning, match="the head is new"):
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


class TestHub:
    """A hub's local cache stands for the hub: the machine is offline."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        model = tmp_path / "hub" / "models--me--tiny"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        snapshot = model / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(TINY_VIT))
        return snapshot

    def stored(self, snapshot: Path) -> Network:
        torch.manual_seed(3)
        first = create_model(f"hf/{snapshot}").eval()
        first.net.save_pretrained(snapshot)
        (snapshot / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3})
        )
        return first

    def test_an_id_means_its_published_weights(self, hub: Path) -> None:
        first = self.stored(hub)
        images = torch.rand(2, 3, 32, 32)
        found = create_model("hf/me/tiny").eval()
        assert (found.input_spec.mean, found.input_spec.std) == ((0.1,) * 3, (0.2,) * 3)
        assert found.weights == "published"
        assert torch.equal(found.net(images).logits, first.net(images).logits)

    def test_without_a_processor_its_normalisation_is_a_guess(self, hub: Path) -> None:
        self.stored(hub)
        (hub / "preprocessor_config.json").unlink()
        for name in ("hf/me/tiny", f"hf/{hub}"):
            with pytest.warns(UserWarning, match="mean 0.5 and std 0.5 are a guess"):
                assert create_model(name).input_spec.mean == (0.5, 0.5, 0.5)
            given = create_model(name, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))  # without a warning
            assert given.input_spec.mean == (0.1, 0.2, 0.3)
            with pytest.warns(UserWarning, match="are a guess"):
                create_model(name, mean=(0.5, 0.5, 0.5))  # and std?

    def test_a_guess_for_a_file_of_weights(self, hub: Path, tmp_path: Path) -> None:
        """The directory has no weights; a file of them says its normalisation, or does not."""
        from safetensors.torch import load_file, save_file

        first = create_model(f"hf/{hub}", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        save_student(first, tmp_path / "ours.safetensors")
        found = create_model(f"hf/{hub}", weights=tmp_path / "ours.safetensors")
        assert found.input_spec.std == (0.4, 0.5, 0.6)
        save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "bare.safetensors")
        with pytest.warns(UserWarning, match="are a guess"):
            create_model(f"hf/{hub}", weights=tmp_path / "bare.safetensors")

    def test_an_id_without_weights_is_refused(self, hub: Path) -> None:
        with pytest.raises(
            ValueError, match=r"hf/me/tiny: needs published weights, got an error .*; go online once"
        ):
            create_model("hf/me/tiny")

    def test_a_trunk_is_no_classifier(self, hub: Path) -> None:
        from safetensors.torch import load_file, save_file

        self.stored(hub)
        state = {
            k: v for k, v in load_file(hub / "model.safetensors").items() if not k.startswith("classifier")
        }
        save_file(state, hub / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match=r"needs weights for all of the classifier, got none for classifier.bias, "
        ):
            create_model(f"hf/{hub}")
        student = create_model(f"hf/{hub}", 3)
        assert head_of(student)[1].weight.std() < 0.02  # new, and small

    def test_a_published_head_is_put_in_order(self, hub: Path) -> None:
        first = self.stored(hub)
        images = torch.rand(2, 3, 32, 32)
        student = create_model(f"hf/{hub}", classes=("owl", "cat", "dog")).eval()
        torch.testing.assert_close(student.net(images).logits, first.net(images).logits[:, [2, 0, 1]])
        with pytest.warns(UserWarning, match=r"1 of 3 found by name .*; the rows of missing classes are new"):
            partly = create_model(f"hf/{hub}", classes=("fox", "owl", "bee"))
        assert torch.equal(head_of(partly)[1].weight[1], head_of(first)[1].weight[2])
        assert head_of(partly)[1].weight[[0, 2]].std() < 0.02

    def test_no_code_of_a_model_is_run(self, hub: Path) -> None:
        (hub / "code.py").write_text("raise SystemExit('ran')")
        config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
        (hub / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"without custom code, got neither"):
            create_model(f"hf/{hub}")

    def test_configuration_alone_is_random_and_said(self, hub: Path) -> None:
        network = create_model(f"hf/{hub}")
        assert network.weights is None
        assert any("random weights" in note for note in network.notes)

    def test_a_damaged_processor(self, hub: Path) -> None:
        self.stored(hub)
        (hub / "preprocessor_config.json").write_text('{"image_mean": [0.1')
        with pytest.raises(
            ValueError, match=r"needs an image processor's configuration, got .*; restore the file"
        ):
            create_model(f"hf/{hub}")


@pytest.mark.parametrize(
    "name", ["timm/resnet10t", "torchvision/resnet18", "hf/me/lacking", "timm/hf-hub:me/lacking"]
)
def test_published_weights_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import time

    from huggingface_hub import constants

    def unreachable(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    create_model(
        name.replace("hf/me/lacking", "timm/resnet10t").replace("hf-hub:me/lacking", "resnet10t")
    )  # imports
    started = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"needs .*, got .*; (go online once.*--teacher-weights|check the path)"
    ):
        create_model(name, pretrained=True)
    assert time.perf_counter() - started < 10
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/vit_tiny_patch16_224?depth=1", 64),
        ("timm/deit_tiny_distilled_patch16_224?depth=1", 64),
        ("timm/swin_tiny_patch4_window7_224?depths=(1,1,1,1)&embed_dim=24&num_heads=(1,1,1,1)", 112),
        ("timm/eva02_tiny_patch14_224?depth=1", 56),  # has no head of its own
    ],
)
def test_a_transformer_is_built_for_the_size_that_its_file_states(
    name: str, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trained = create_model(name, 3, input_size=size).eval()
    save_student(trained, tmp_path / "s.safetensors")
    found = create_model(name, weights=tmp_path / "s.safetensors").eval()
    images = torch.rand(2, 3, 40, 40)
    assert found.input_spec.size == size
    assert torch.equal(found(images), trained(images))
    torch.save(trained.net.state_dict(), tmp_path / "unnamed.pt")
    with pytest.raises(ValueError, match=r"another shape|unexpected"):
        create_model(name, weights=tmp_path / "unnamed.pt")


def test_positions_of_another_size_are_refused_with_the_reason(tmp_path: Path) -> None:
    name = "timm/vit_tiny_patch16_224?depth=1"
    torch.save(create_model(name, 1000, input_size=64).net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError,
        match=r"its position embeddings are for another input size and are not interpolated: build",
    ):
        create_model(name, weights=tmp_path / "w.pt")
    assert create_model(name, weights=tmp_path / "w.pt", input_size=64).input_spec.size == 64


class TestNormalisation:
    def test_is_the_users_where_given_and_carried_in_the_file(self, tmp_path: Path) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        torch.save(create_model("cifar/resnet8", 3).net.state_dict(), tmp_path / "w.pt")
        network = create_model("cifar/resnet8", weights=tmp_path / "w.pt", mean=mean, std=std)
        images = torch.rand(1, 3, 8, 8)
        expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(network.prepare(images), expected)
        assert network.notes[-1].endswith("mean 0.1 0.2 0.3, std 0.4 0.5 0.6 (given by the caller)")
        save_student(network, tmp_path / "s.safetensors")
        again = create_model("cifar/resnet8", weights=tmp_path / "s.safetensors")
        assert (again.input_spec.mean, again.input_spec.std) == (mean, std)
        assert again.notes[-1].endswith("(from the file's metadata)")

    def test_of_a_file_of_ones_own(self, tmp_path: Path) -> None:
        (tmp_path / "nets.py").write_text(NETS)
        network = create_model(f"py:{tmp_path / 'nets.py'}:small", mean=(0.5, 0.5, 0.5))
        assert (network.input_spec.mean, network.input_spec.std) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))

    def test_of_the_family_is_said(self, tmp_path: Path) -> None:
        torch.save(create_model("cifar/resnet8", 3).net.state_dict(), tmp_path / "w.pt")
        network = create_model("cifar/resnet8", weights=tmp_path / "w.pt")
        assert network.notes[-1].endswith("(the default of cifar; the file has none)")

    def test_against_the_file_is_warned_of(self, tmp_path: Path) -> None:
        save_student(create_model("cifar/resnet8", 3), tmp_path / "s.safetensors")
        with pytest.warns(UserWarning, match="its file has mean .*, but the argument .* is used"):
            create_model("cifar/resnet8", weights=tmp_path / "s.safetensors", mean=(0.5, 0.5, 0.5))
        save_student(create_model("timm/resnet10t", 3), tmp_path / "t.safetensors")
        with pytest.warns(
            UserWarning, match="its file has an input size of 176, but the argument 64 is used"
        ):
            create_model("timm/resnet10t", weights=tmp_path / "t.safetensors", input_size=64)
        with pytest.raises(ValueError, match="InputSpec: needs mean and std with three numbers each"):
            create_model("cifar/resnet8", 3, mean=(125.0, 120.0, 110.0))
        with pytest.raises(ValueError, match=r"std in \(0, 1\], got .*255.*divide both by 255"):
            create_model("cifar/resnet8", 3, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))


def test_names_and_numbers_of_classes_agree() -> None:
    assert create_model("cifar/resnet8", classes=("a", "b")).classes == ("a", "b")
    with pytest.raises(ValueError, match="needs one name for each of 3 classes, got 2; leave one"):
        create_model("cifar/resnet8", 3, classes=("a", "b"))


def test_nets_for_greyscale_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"timm/resnet10t\?in_chans=1: needs in_chans=3, .* got 1; leave it out"
    ):
        create_model("timm/resnet10t?in_chans=1", 3)
    assert create_model("timm/resnet10t?in_chans=3", 3).num_classes == 3
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n\n\n"
        "def grey(count):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, count))\n"
    )
    with pytest.raises(ValueError, match=r"grey: needs a net for images with 3 channels, got one for 1;"):
        create_model(f"py:{file}:grey", 3)


def test_the_number_of_classes_goes_to_the_argument_of_its_name(tmp_path: Path) -> None:
    """As the first argument it was the width, and the net was another one without a word."""
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "def wide(width=64, num_classes=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))\n"
        "def named(*, num_classes):\n    return wide(num_classes=num_classes)\n"
        "def first(classes):\n    return wide(num_classes=classes)\n"
    )
    for name in ("wide", "named", "first"):
        net = create_model(f"py:{file}:{name}", 4).net
        assert (net[1].out_features, net[2].out_features) == (64, 4)


def test_a_net_that_returns_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a classifier, got FeatureListNet, .*; leave out"):
        create_model("timm/resnet10t?features_only=True", 4)
