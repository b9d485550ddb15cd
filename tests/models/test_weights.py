"""load_weights and save_student: other people's files, and the file that is deployed."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from outgrow.models import InputSpec, Network, create_model, head_of, load_weights, save_student
from outgrow.models.weights import _canonical, order_heads, read_weights, same_net, write_weights

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
    with pytest.warns(UserWarning, match=r"that of file.pt none; the head is new"):
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
        ValueError, match=r"needs a file with only tensors, got .*whole.pt.* run code .*; if you trust"
    ):
        load_weights(net(), tmp_path / "whole.pt", role="exact")


def test_what_training_scripts_keep_beside_the_weights_is_read(tmp_path: Path) -> None:
    """torchvision's and timm's keep their options; others a path and an accuracy of NumPy's."""
    import argparse

    import numpy as np

    beside = {
        "args": argparse.Namespace(lr=0.1, out=tmp_path),
        "best": np.float64(71.5),
        "epoch": np.int64(3),
    }
    torch.save({"model": net(seed=1).net.state_dict(), **beside}, tmp_path / "c.pt")
    ours = net()
    load_weights(ours, tmp_path / "c.pt", role="exact")
    assert equal(ours.net, net(seed=1).net)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"which does not exist; pass the path of the .safetensors or .pt file"
    ):
        load_weights(net(), tmp_path / "lacking.pt", role="exact")
    with pytest.raises(ValueError, match="which is a directory"):
        load_weights(net(), tmp_path, role="exact")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"needs an? .*file.*, got .*{name}"):
            load_weights(net(), tmp_path / name, role="exact")
    torch.save({"epoch": 3, "loss": {"kd": 0.5}}, tmp_path / "log.pt")
    with pytest.raises(
        ValueError, match=r"needs a state dict, .* got epoch, loss in .*; save model.state_dict"
    ):
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
    with pytest.warns(UserWarning, match="the head is new"):
        fresh = create_model("timm/mobilenetv1_025_128", 6, weights=tmp_path / "trained.safetensors")
    head = head_of(fresh)[1]
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.std() < 0.02
    assert not head.bias.any()


def numbered(state: State, by: float = 1.0) -> State:
    return {key: value + by if value.is_floating_point() else value for key, value in state.items()}


class TestAverages:
    """A moving average is what its author evaluated; what has no names or does not fit is passed over, and said."""

    @pytest.mark.parametrize(
        ("wrap", "source"),
        [
            (
                lambda s, a: {
                    "model": s,
                    "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")(a)},
                },
                "model_ema",
            ),
            (lambda s, a: {"state_dict": s, "state_dict_ema": prefixed("module.")(a)}, "state_dict_ema"),
            (lambda s, a: {"model": s, "ema": {"decay": 0.9, "shadow": a}}, "ema.shadow"),
            (
                lambda s, a: {
                    "model": s,
                    "ema": {"decay": torch.tensor(0.9), "num_updates": torch.tensor(5), **a},
                },
                "ema",
            ),
            (
                lambda s, a: {"checkpoint": {"net": s, "ema_state_dict": a}, "epoch": 3},
                "checkpoint.ema_state_dict",
            ),
            (lambda s, a: {"params": s, "params_ema": a}, "params_ema"),
            (
                lambda s, a: {
                    **prefixed("online_model.")(s),
                    **prefixed("ema_model.")(a),
                    "initted": torch.ones(1),
                },
                "ema_model",
            ),
            (
                lambda s, a: {"state_dict": {**prefixed("model.")(s), **prefixed("ema_model.module.")(a)}},
                "state_dict.ema_model",
            ),
            (lambda s, a: {"n_averaged": torch.tensor(3), **prefixed("module.")(a)}, ""),
        ],
    )
    def test_are_taken(self, wrap: Callable, source: str, tmp_path: Path) -> None:
        state = net(seed=1).net.state_dict()
        torch.save(wrap(state, numbered(state)), tmp_path / "c.pt")
        ours = net()
        report = load_weights(ours, tmp_path / "c.pt", role="teacher")
        assert report.source == source
        assert torch.equal(ours.net.get_parameter("conv1.weight"), state["conv1.weight"] + 1)

    @pytest.mark.parametrize(
        ("average", "reason"),
        [
            (
                lambda s: {"shadow_params": list(s.values()), "decay": 0.9},
                "'ema.shadow_params' is a list without names",
            ),
            (lambda s: {"shadow": {"conv1.weight": s["conv1.weight"]}}, "'ema.shadow' does not fit"),
            (lambda s: None, ""),
        ],
    )
    def test_are_passed_over(self, average: Callable, reason: str, tmp_path: Path) -> None:
        state = net(seed=1).net.state_dict()
        torch.save({"ema": average(state), "model": state}, tmp_path / "c.pt")
        ours = net()
        report = load_weights(ours, tmp_path / "c.pt", role="teacher")
        assert report.source == "model"
        assert reason in str(report)
        assert any(reason in note for note in ours.notes)

    def test_torchs_own(self, tmp_path: Path) -> None:
        ours = net(seed=1)
        average = torch.optim.swa_utils.AveragedModel(ours.net, use_buffers=True)
        torch.save({"model": ours.net.state_dict(), "model_ema": average.state_dict()}, tmp_path / "c.pt")
        other = net()
        assert load_weights(other, tmp_path / "c.pt", role="exact").source == "model_ema"
        assert equal(other.net, ours.net)


def test_a_part_of_a_larger_module(tmp_path: Path) -> None:
    state = net(seed=1).net.state_dict()
    loss = {"criterion.weight": torch.ones(10), "metric.total": torch.tensor(3.0)}
    for name in ("model.", "classifier_net."):
        torch.save({"state_dict": {**prefixed(name)(state), **loss}}, tmp_path / "lightning.ckpt")
        ours = net()
        load_weights(ours, tmp_path / "lightning.ckpt", role="exact")
        assert equal(ours.net, net(seed=1).net)


@pytest.mark.parametrize("prefix", ["_fsdp_wrapped_module.", "student.model.", "task.encoder.net."])
@pytest.mark.parametrize("others", [{}, {"criterion.weight": torch.ones(10)}])
def test_any_prefix_of_all_names_or_of_a_part(prefix: str, others: State, tmp_path: Path) -> None:
    """A part inside one that fits is the same part, no question."""
    torch.save(
        {"state_dict": {**prefixed(prefix)(net(seed=1).net.state_dict()), **others}}, tmp_path / "c.pt"
    )
    ours = net()
    load_weights(ours, tmp_path / "c.pt", role="exact")
    assert equal(ours.net, net(seed=1).net)


def test_two_parts_that_fit_are_a_question(tmp_path: Path) -> None:
    state = net().net.state_dict()
    torch.save({"first": state, "second": numbered(state)}, tmp_path / "two.pt")
    with pytest.raises(
        ValueError,
        match=r"needs one state dict that fits .* got 2 .*under first, second\); save the right one",
    ):
        load_weights(net(), tmp_path / "two.pt", role="exact")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(name: str, value: float, tmp_path: Path) -> None:
    state = net().net.state_dict()
    state["bn1.running_var"][3] = value
    torch.save(state, tmp_path / name) if name.endswith("pt") else save_file(state, tmp_path / name)
    ours, before = net(), net()
    with pytest.raises(
        ValueError, match=r"finite weights, got .* NaN or infinity in 1 tensors \(bn1.running_var\); use"
    ):
        load_weights(ours, tmp_path / name, role="teacher")
    assert equal(ours, before)


def test_what_overflows_in_the_nets_precision_is_refused(tmp_path: Path) -> None:
    state = net().net.state_dict()
    state["fc.bias"] = torch.full((10,), 1e300, dtype=torch.float64)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"needs finite weights"):
        load_weights(net(), tmp_path / "w.pt", role="exact")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda w: w.to(torch.int8), "int8"),
        (lambda w: w.to(torch.complex64), "complex64"),
        (lambda w: w.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w.to("meta"), "meta"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(change: Callable, kind: str, tmp_path: Path) -> None:
    state = net().net.state_dict()
    state["fc.weight"] = change(state["fc.weight"])
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=rf"needs dense tensors of .* with fc.weight {kind}; save the weights before"
    ):
        load_weights(net(), tmp_path / "w.pt", role="exact")


def test_other_content(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    (tmp_path / "lfs.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html><html></html>")
    (tmp_path / "header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "device.pt").symlink_to("/dev/zero")
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for name, header in (
        ("overlap", {"a": tensor, "b": {**tensor, "data_offsets": [4, 12]}}),
        ("huge", {"a": {**tensor, "shape": [2**62], "data_offsets": [0, 2**63]}}),
    ):
        text = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for file in files:
        with pytest.raises(ValueError, match=r"^load_weights: needs .*, got .*; "):
            load_weights(net(), file, role="exact")


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    state = net(seed=1).net.state_dict()
    save_file(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "b.safetensors", "old.pt"):
        ours = net()
        load_weights(ours, tmp_path / name, role="exact")
        assert equal(ours.net, net(seed=1).net)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_every_damage_is_refused_or_changes_nothing(name: str, tmp_path: Path) -> None:
    """Bits flipped, files cut off and emptied, by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "a.weight": torch.randn(8, 16, generator=generator),
        "a.bias": torch.randn(8),
        "n": torch.tensor(3),
    }
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save({"model": state, "classes": ["x", "y"]}, path)
    else:
        write_weights(state, path, {"model": "cifar/resnet8", "classes": '["x", "y"]'})
    whole = path.read_bytes()

    def outcome() -> str:
        try:
            found, _ = read_weights(path)
        except ValueError as error:
            three_parts = re.match(r"load_weights: needs .*, got .*; ", str(error), re.DOTALL)
            return "refused" if three_parts else str(error)
        same = found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
        return "same" if same and all(found[key].dtype == state[key].dtype for key in state) else "WRONG"

    assert outcome() == "same"
    flips = torch.randint(8 * len(whole), (400,), generator=generator).tolist()
    outcomes = Counter()
    for bit in flips:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        outcomes[outcome()] += 1
    for length in torch.randint(len(whole), (60,), generator=generator).tolist():
        path.write_bytes(whole[:length])
        assert outcome() == "refused"
    path.write_bytes(b"")
    assert outcome() == "refused"
    path.write_bytes(bytes(len(whole)))
    assert outcome() == "refused"
    assert outcomes.keys() == {"refused", "same"}
    assert outcomes["refused"] > 200


class TestOurFile:
    def test_has_the_usual_rights_and_leaves_nothing_beside_it(self, tmp_path: Path) -> None:
        save_student(net(), tmp_path / "student.safetensors")
        (tmp_path / "usual").touch()
        assert (tmp_path / "student.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
        assert len(list(tmp_path.iterdir())) == 2

    def test_carries_a_checksum(self, tmp_path: Path) -> None:
        path = tmp_path / "student.safetensors"
        save_student(net(), path)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1  # the last digits of a weight
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"needs the file as it was written, .* \(its checksum differs\); fetch it again"
        ):
            load_weights(net(), path, role="exact")

    def test_may_be_changed_by_other_programs(self, tmp_path: Path) -> None:
        """They copy the metadata along, and with it a checksum of what the file was."""
        path = tmp_path / "student.safetensors"
        save_student(net(), path)
        with safe_open(path, framework="pt") as file:
            state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        save_file(numbered(state), path, metadata=metadata)
        ours = net()
        load_weights(ours, path, role="exact")
        assert torch.equal(ours.net.get_parameter("fc.bias"), state["fc.bias"] + 1)


class TestClassesOfAStudent:
    """Every row of a head keeps its name: outputs of the file's own net, by name, are the values to find again."""

    NAMES = ("bird", "cat", "dog")

    def file(self, path: Path, name: str = "cifar/resnet8", names: tuple[str, ...] | None = NAMES) -> Network:
        torch.manual_seed(1)
        trained = create_model(name, len(names or self.NAMES))
        trained.classes = names
        save_student(trained, path)
        return trained.eval()

    @pytest.mark.parametrize(
        "name", ["cifar/resnet8", "cifar/shufflenetv2", "timm/deit_tiny_distilled_patch16_224?depth=1"]
    )
    def test_another_order(self, name: str, tmp_path: Path) -> None:
        trained = self.file(tmp_path / "s.safetensors", name)
        student = create_model(
            name, weights=tmp_path / "s.safetensors", classes=("dog", "bird", "Cat")
        ).eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(student(images), trained(images)[:, [2, 0, 1]])
        assert student.classes == ("dog", "bird", "Cat")
        assert any("by name" in note and "reordered to the data's classes" in note for note in student.notes)
        report = load_weights(
            create_model(name, 3), tmp_path / "s.safetensors", role="student", classes=("dog", "bird", "Cat")
        )
        assert report.head == "reordered"

    def test_fewer_of_them(self, tmp_path: Path) -> None:
        trained = self.file(tmp_path / "s.safetensors")
        student = create_model(
            "cifar/resnet8", weights=tmp_path / "s.safetensors", classes=("dog", "bird")
        ).eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(student(images), trained(images)[:, [2, 0]])

    def test_some_of_them(self, tmp_path: Path) -> None:
        trained = self.file(tmp_path / "s.safetensors")
        with pytest.warns(
            UserWarning, match=r"has 2 of 4 classes .*; those rows .* are loaded, those of fowl, owl are new"
        ):
            student = create_model(
                "cifar/resnet8", weights=tmp_path / "s.safetensors", classes=("cat", "fowl", "owl", "dog")
            )
        weight, own = head_of(student)[1].weight, head_of(trained)[1].weight
        assert torch.equal(weight[[0, 3]], own[[1, 2]])
        assert weight[[1, 2]].std() < 0.02

    def test_none_of_them(self, tmp_path: Path) -> None:
        self.file(tmp_path / "s.safetensors")
        with pytest.warns(
            UserWarning, match=r"that of s.safetensors 3 others \(bird, cat, dog\); the head is new"
        ):
            student = create_model(
                "cifar/resnet8", weights=tmp_path / "s.safetensors", classes=("a", "b", "c")
            )
        assert head_of(student)[1].weight.std() < 0.02

    def test_without_names_position_counts_and_is_said(self, tmp_path: Path) -> None:
        trained = self.file(tmp_path / "s.safetensors", names=None)
        student = create_model("cifar/resnet8", weights=tmp_path / "s.safetensors", classes=self.NAMES)
        assert torch.equal(head_of(student)[1].weight, head_of(trained)[1].weight)
        assert any("by position, as the weights have no class names" in note for note in student.notes)

    def test_names_in_a_torch_file(self, tmp_path: Path) -> None:
        trained = self.file(tmp_path / "s.safetensors")
        torch.save(
            {"model": trained.net.state_dict(), "class_to_idx": {"dog": 2, "bird": 0, "cat": 1}},
            tmp_path / "c.pt",
        )
        student = create_model(
            "cifar/resnet8", weights=tmp_path / "c.pt", classes=("cat", "dog", "bird")
        ).eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(student(images), trained(images)[:, [1, 2, 0]])
        assert create_model("cifar/resnet8", weights=tmp_path / "c.pt").classes == self.NAMES

    def test_names_that_are_too_few_are_ignored(self, tmp_path: Path) -> None:
        torch.save({"model": net().net.state_dict(), "classes": ["a", "b"]}, tmp_path / "c.pt")
        with pytest.warns(
            UserWarning, match="has 2 class names for a head of 10 classes; the names are ignored"
        ):
            assert create_model("cifar/resnet8", weights=tmp_path / "c.pt").classes is None

    @pytest.mark.parametrize(
        "stated", [{"classes": "bird,cat"}, {"class_to_idx": {f"class {k}": k + 1 for k in range(10)}}]
    )
    def test_names_that_cannot_be_read_are_said(self, stated: dict, tmp_path: Path) -> None:
        torch.save({"model": net().net.state_dict(), **stated}, tmp_path / "c.pt")
        with pytest.warns(UserWarning, match=f"has class names under {next(iter(stated))} that are not"):
            assert create_model("cifar/resnet8", weights=tmp_path / "c.pt").classes is None


class TestAnotherName:
    def test_is_warned_of(self, tmp_path: Path) -> None:
        name = "timm/mobilenetv2_035?pad_type=same"
        save_student(create_model(name, 3), tmp_path / "s.safetensors")
        with pytest.warns(
            UserWarning,
            match=r"is of timm/mobilenetv2_035\?pad_type=same and is loaded as timm/mobilenetv2_035",
        ):
            create_model("timm/mobilenetv2_035", weights=tmp_path / "s.safetensors")
        create_model(name, weights=tmp_path / "s.safetensors")

    def test_in_a_torch_file(self, tmp_path: Path) -> None:
        torch.save({"arch": "resnet14", "state_dict": net().net.state_dict()}, tmp_path / "c.pt")
        with pytest.warns(UserWarning, match="is of resnet14 and is loaded as cifar/resnet8"):
            load_weights(net(), tmp_path / "c.pt", role="exact")
        torch.save({"arch": "resnet8", "state_dict": net().net.state_dict()}, tmp_path / "c.pt")
        load_weights(net(), tmp_path / "c.pt", role="exact")

    @pytest.mark.parametrize(
        ("stated", "name", "same"),
        [
            ("timm/resnet50.a1_in1k", "timm/resnet50", True),
            ("timm/vit_tiny_patch16_224?img_size=64", "timm/vit_tiny_patch16_224", True),
            ("py:old/nets.py:small", "py:new/nets.py:small", True),
            ("py:nets.py:small", "py:nets.py:large", False),
            ("torchvision/resnet50", "timm/resnet50", False),
            ("student", "cifar/resnet8", True),
            ("resnet50", "timm/tf_efficientnet_b0", False),
        ],
    )
    def test_what_is_the_same(self, stated: str, name: str, same: bool) -> None:
        assert same_net(stated, name) == same


def test_what_a_file_says_of_its_input_must_make_sense(tmp_path: Path) -> None:
    for spec in ({"size": "big"}, {"crop_pct": None}, {"mean": [1, 2]}, {"std": ["a", "b", "c"]}):
        save_file(
            net().net.state_dict(), tmp_path / "s.safetensors", metadata={"input_spec": json.dumps(spec)}
        )
        with pytest.raises(
            ValueError, match=r"needs a valid input specification, got .*; correct the file's metadata"
        ):
            load_weights(net(), tmp_path / "s.safetensors", role="exact")


def test_equal_weights_are_equal_bytes(tmp_path):
    """The order of safetensors' own metadata is random: of 20 files half would differ."""
    state = {"b": torch.ones(2, 3), "a": torch.zeros(5, dtype=torch.float16), "c": torch.arange(3)}
    written = set()
    for number in range(20):
        metadata = {"zeta": "1", "outgrow": '{"name": "x"}', "classes": '["ae", "\u00fc"]'}
        write_weights(state, tmp_path / f"{number}.safetensors", metadata)
        written.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(written) == 1
    loaded = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["ae", "\u00fc"]


class Normed(nn.Module):
    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.fc = norm(nn.Linear(12, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm]
)
def test_rows_that_cannot_be_moved_are_refused(
    tmp_path: Path, norm: Callable[[nn.Module], nn.Module]
) -> None:
    """The weight is computed from other tensors: to move the bias alone gives another classifier."""

    def made(classes: tuple[str, ...] | None = None) -> Network:
        spec = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return Network(Normed(norm), name="own", num_classes=3, input_spec=spec, classes=classes)

    trained, path = made(("cat", "dog", "elk")).eval(), tmp_path / "net.safetensors"
    save_student(trained, path)
    image = torch.rand(2, 3, 2, 2)
    same = made()
    assert load_weights(same, path, role="student", classes=("cat", "dog", "elk")).head == "loaded"
    torch.testing.assert_close(same.eval()(image), trained(image))
    for other in (("elk", "dog", "cat"), ("cat", "dog", "fox"), ("a", "b", "c")):
        with pytest.raises(
            ValueError, match=r"needs a head whose weight is a parameter.*got 'fc', .*; call remove"
        ):
            load_weights(made(), path, role="student", classes=other)
        with pytest.raises(ValueError, match=r"needs a head whose weight is a parameter"):
            order_heads(trained, other)


def test_a_lazy_net_takes_no_weights(tmp_path: Path) -> None:
    spec = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    lazy = Network(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), name="own", num_classes=3, input_spec=spec)
    save_file({"1.weight": torch.zeros(3, 12), "1.bias": torch.zeros(3)}, tmp_path / "net.safetensors")
    with pytest.raises(
        ValueError, match=r"needs a net whose parameters have shapes, got own with lazy .*; pass an image"
    ):
        load_weights(lazy, tmp_path / "net.safetensors", role="teacher")
    lazy(torch.zeros(1, 3, 2, 2))
    load_weights(lazy, tmp_path / "net.safetensors", role="teacher")
