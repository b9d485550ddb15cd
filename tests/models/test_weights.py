"""load_weights and save_student: other people's files, and the file that is deployed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from outgrow.models import InputSpec, Network, create_model, head_of, load_weights, save_student
from outgrow.models.weights import _canonical

State = dict[str, Tensor]


def net(name: str = "resnet8", num_classes: int = 10, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return create_model(f"cifar/{name}", num_classes)


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "source"),
    [
        (lambda state: state, ""),
        (lambda state: {"epoch": 240, "model": state, "best_acc": 0.7, "optimizer": {}}, "model"),
        (lambda state: {"state_dict": prefixed("module.")(state)}, "state_dict"),
        (lambda state: {"model": {"fc.weight": torch.zeros(1)}, "model_ema": state}, "model_ema"),
        (lambda state: {"model_ema": None, "state_dict": state}, "state_dict"),
        (prefixed("module._orig_mod."), ""),
        (prefixed("model.net."), ""),
    ],
)
def test_wrappers_and_prefixes(wrap: Callable[[State], dict], source: str, tmp_path: Path) -> None:
    teacher, student = net(seed=0), net(seed=1)
    torch.save(wrap(teacher.net.state_dict()), tmp_path / "file.pt")
    report = load_weights(student, tmp_path / "file.pt", role="exact")
    assert equal(student.net, teacher.net)
    assert (report.source, report.renamed, report.head, report.num_classes) == (source, {}, "loaded", 10)


def test_data_parallel(tmp_path: Path) -> None:
    teacher, student = net(seed=0), net(seed=1)
    torch.save(nn.DataParallel(teacher).state_dict(), tmp_path / "file.pt")
    load_weights(student, tmp_path / "file.pt", role="exact")
    assert equal(student.net, teacher.net)


def test_a_part_that_is_called_model_keeps_its_name(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    spec = InputSpec(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    whole = Network(nn.ModuleDict({"model": inner}), name="mine", num_classes=3, input_spec=spec)
    torch.save(whole.net.state_dict(), tmp_path / "file.pt")
    assert load_weights(whole, tmp_path / "file.pt", role="exact").loaded == (
        "model.1.weight",
        "model.1.bias",
    )


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("resnet8", [("downsample", "shortcut"), ("fc.", "linear.")]),
        ("resnet8", [("layer1.", "block1.layer."), ("layer2.", "stage2."), ("fc.", "classifier.0.")]),
        ("resnet18", [("shortcut", "downsample"), ("linear.", "fc.")]),
        ("wrn_16_2", [("convShortcut", "shortcut.0"), (".layer.", "."), ("fc.", "head.fc.")]),
        ("wrn_16_2", [("convShortcut", "shortcut"), ("block", "layer"), (".layer.", ".")]),
    ],
)
def test_other_spellings(name: str, spellings: list[tuple[str, str]], tmp_path: Path) -> None:
    teacher, student = net(name, seed=0), net(name, seed=1)
    state = {}
    for key, value in teacher.net.state_dict().items():
        for ours, theirs in spellings:
            key = key.replace(ours, theirs)
        state["module." + key] = value
    save_file(state, tmp_path / "file.safetensors")
    report = load_weights(student, tmp_path / "file.safetensors", role="exact")
    assert equal(student.net, teacher.net)
    assert report.renamed
    assert "renamed" in str(report)


def test_spellings_with_other_shapes_are_not_translated(tmp_path: Path) -> None:
    state = net().net.state_dict()
    state["layer2.0.shortcut.0.weight"] = torch.zeros(32, 16, 3, 3)
    del state["layer2.0.downsample.0.weight"]
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(
        ValueError, match=r"1 missing in the file \(layer2.0.downsample.0.weight\), 1 unexpected"
    ):
        load_weights(net(), tmp_path / "file.pt", role="exact")


def test_ambiguous_spellings_are_not_translated() -> None:
    assert _canonical("classifier.0.weight") == _canonical("classifier.3.weight")
    state = {"classifier.0.weight": torch.zeros(4, 4), "classifier.3.weight": torch.zeros(4, 4)}
    from outgrow.models.weights import _translation

    assert _translation(state, {"fc.weight": torch.zeros(4, 4)}) == {}


def test_the_head_of_a_teacher_is_rebuilt(tmp_path: Path) -> None:
    ours, theirs = net(num_classes=10), net(num_classes=7, seed=1)
    torch.save(theirs.net.state_dict(), tmp_path / "file.pt")
    report = load_weights(ours, tmp_path / "file.pt", role="teacher")
    assert (report.head, report.num_classes, ours.num_classes) == ("rebuilt", 7, 7)
    assert equal(ours.net, theirs.net)
    assert ours.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("spelling", ["fc.", "linear."])
def test_the_head_of_a_student_stays_new(spelling: str, tmp_path: Path) -> None:
    ours, theirs = net(num_classes=10), net(num_classes=7, seed=1)
    state = {key.replace("fc.", spelling): value for key, value in theirs.net.state_dict().items()}
    torch.save(state, tmp_path / "file.pt")
    with pytest.warns(
        UserWarning, match=r"the head of cifar/resnet8 has 10 classes, that of file.pt 7; the head"
    ):
        report = load_weights(ours, tmp_path / "file.pt", role="student")
    assert report.head_replaced
    assert (report.head, report.missing, report.renamed) == ("new", ("fc.bias", "fc.weight"), {})
    assert ours.net.get_parameter("fc.weight").std() < 0.02  # drawn small, for a trunk that is trained
    conv = "layer1.0.conv1.weight"
    assert torch.equal(ours.net.get_parameter(conv), theirs.net.get_parameter(conv))
    assert "head new; the file has 7 classes" in str(report)


def test_a_file_without_a_head_is_enough_for_a_student(tmp_path: Path) -> None:
    state = {key: value for key, value in net().net.state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "file.pt")
    with pytest.warns(UserWarning, match=r"that of file.pt none; the head stays new"):
        assert load_weights(net(), tmp_path / "file.pt", role="student").num_classes is None
    with pytest.raises(ValueError, match=r"2 missing in the file \(fc.bias, fc.weight\)"):
        load_weights(net(), tmp_path / "file.pt", role="teacher")


def test_exact_means_exact(tmp_path: Path) -> None:
    torch.save(net(num_classes=7).net.state_dict(), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"2 of another shape \(fc.bias \(7,\) for \(10,\), fc.weight"):
        load_weights(net(), tmp_path / "file.pt", role="exact")


@pytest.mark.parametrize("role", ["teacher", "student", "exact"])
def test_what_does_not_match_is_named_and_nothing_changes(role: str, tmp_path: Path) -> None:
    ours, before = net("resnet14"), net("resnet14")
    torch.save(net("wrn_16_1", seed=1).net.state_dict(), tmp_path / "file.pt")
    with pytest.raises(
        ValueError,
        match=rf"needs the weights of cifar/resnet14 \(role {role}\), got .*file.pt with \d+ missing in the file "
        r"\((\S+, ){4}\S+ and \d+ more\), \d+ unexpected in the file \(.*\); check that the file belongs to this",
    ):
        load_weights(ours, tmp_path / "file.pt", role=role)
    assert equal(ours, before)


def test_bookkeeping_does_not_matter(tmp_path: Path) -> None:
    state = net(seed=1).net.state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    state["layer1.total_ops"] = torch.zeros(1)
    torch.save(state, tmp_path / "file.pt")
    assert set(load_weights(net(), tmp_path / "file.pt", role="exact").loaded) == state.keys() - {
        "layer1.total_ops"
    }


def test_half_precision_is_widened(tmp_path: Path) -> None:
    ours = net()
    save_file(
        {key: value.half() for key, value in net(seed=1).net.state_dict().items()}, tmp_path / "f.safetensors"
    )
    load_weights(ours, tmp_path / "f.safetensors", role="exact")
    assert ours.net.get_parameter("conv1.weight").dtype == torch.float32


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"model": net().net}, tmp_path / "whole.pt")
    with pytest.raises(
        ValueError, match=r"needs a file of tensors alone, got .*whole.pt.* run code .*; if you trust"
    ):
        load_weights(net(), tmp_path / "whole.pt", role="exact")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which is not there; give the .safetensors or .pt file"):
        load_weights(net(), tmp_path / "lacking.pt", role="exact")
    with pytest.raises(ValueError, match="which is a directory"):
        load_weights(net(), tmp_path, role="exact")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"needs a .*file.*, got .*{name}"):
            load_weights(net(), tmp_path / name, role="exact")
    with pytest.raises(
        ValueError, match=r"needs a state dict, .* got epoch, loss in .*; save model.state_dict"
    ):
        torch.save({"epoch": 3, "loss": {"kd": 0.5}}, tmp_path / "log.pt")
        load_weights(net(), tmp_path / "log.pt", role="exact")


def test_the_deployed_file_says_all_that_is_needed(tmp_path: Path) -> None:
    student = net()
    student.classes = tuple(f"class {number}" for number in range(10))
    student.set_input_spec(replace(student.input_spec, size=32, mean=(0.1, 0.2, 0.3), crop_pct=0.5))
    file = tmp_path / "runs" / "student.safetensors"
    save_student(student, file)
    assert [path.name for path in file.parent.iterdir()] == ["student.safetensors"]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == set(student.net.state_dict())
    assert (metadata["model"], metadata["num_classes"]) == ("cifar/resnet8", "10")
    assert json.loads(metadata["classes"])[9] == "class 9"
    assert json.loads(metadata["input_spec"])["mean"] == [0.1, 0.2, 0.3]

    deployed = create_model(metadata["model"], weights=file)
    assert deployed.classes == student.classes
    assert deployed.input_spec == student.input_spec
    images = torch.rand(3, 3, 40, 40)
    assert torch.equal(deployed.eval()(images), student.eval()(images))


def test_saving_replaces_and_refuses_other_formats(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_student(net(seed=seed), tmp_path / "student.safetensors")
    report = load_weights(net(), tmp_path / "student.safetensors", role="exact")
    assert report.metadata["model"] == "cifar/resnet8"
    assert report.metadata["num_classes"] == 10
    with pytest.raises(ValueError, match=r"ends in .safetensors, got .*; name it student.safetensors"):
        save_student(net(), tmp_path / "student.pt")


def test_mean_and_std_of_other_writers_are_taken_over(tmp_path: Path) -> None:
    metadata = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]", "note": "by hand"}
    save_file(net(seed=1).net.state_dict(), tmp_path / "file.safetensors", metadata=metadata)
    ours = net()
    report = load_weights(ours, tmp_path / "file.safetensors", role="exact")
    assert (ours.input_spec.mean, ours.input_spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert report.metadata["note"] == "by hand"


def test_compiled_nets_save_and_load_plain_names(tmp_path: Path) -> None:
    student = net()
    compiled = Network(
        torch.compile(student.net, backend="eager"), name="c", num_classes=10, input_spec=student.input_spec
    )
    save_student(compiled, tmp_path / "student.safetensors")
    other = net(seed=1)
    load_weights(other, tmp_path / "student.safetensors", role="exact")
    assert equal(other.net, student.net)


def test_a_new_head_on_a_trained_trunk_starts_level(tmp_path: Path) -> None:
    """First logits near zero: a fine-tuning that starts at the loss of a guess, not far above it."""
    trained = create_model("timm/mobilenetv1_025_128", 10)
    save_student(trained, tmp_path / "trained.safetensors")
    with pytest.warns(UserWarning, match="the head stays new"):
        fresh = create_model("timm/mobilenetv1_025_128", 6, weights=tmp_path / "trained.safetensors")
    head = head_of(fresh)[1]
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.std() < 0.02
    assert not head.bias.any()
