"""``auto`` is bfloat16 where the machine computes in it; what is emulated is said."""

import warnings

import pytest

from outgrow.machine import precision
from outgrow.machine.native import processor_flags
from outgrow.machine.precision import computes_bfloat16
from outgrow.run import distill
from outgrow.run.recipes import RECIPES
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig, build_config, load_config, merge, settle, settled
from tests.run.test_distill import SMALL


def machine(monkeypatch, *flags):
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    "flags, expected", [(("avx2",), "fp32"), (("avx2", "avx512_bf16"), "bf16"), (("amx_bf16",), "bf16")]
)
def test_auto(monkeypatch, flags, expected):
    machine(monkeypatch, *flags)
    assert computes_bfloat16("cpu") == (expected == "bf16")
    assert not computes_bfloat16("mps")
    assert settled(TrainConfig(precision="auto", device="cpu")).precision == expected
    for given in ("fp32", "bf16", "fp16"):
        assert settled(TrainConfig(precision=given)).precision == given
    accelerator = make_accelerator(TrainConfig(precision="auto", device="cpu"))
    assert accelerator.mixed_precision == expected.replace("fp32", "no")


@pytest.mark.parametrize("native, expected", [(True, "bf16"), (False, "fp32")])
def test_on_a_cuda_device(native, expected, monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda **_: native)
    assert settled(TrainConfig(precision="auto")).precision == expected


def test_this_machine_is_read():
    """Whatever it is, torch knows more than a list of names: it must agree."""
    import torch

    flags = processor_flags()
    if not flags:
        pytest.skip("the processor's flags are read under Linux alone")
    assert ("avx512_bf16" in flags) == torch.cpu._is_avx512_bf16_supported()


def test_both_trainings_of_a_recipe(monkeypatch):
    machine(monkeypatch, "amx_bf16")
    config = settle(build_config(RECIPES["cifar100-small"].layer))
    assert (config.train.precision, config.teacher_train.precision) == ("bf16", "bf16")


def test_a_record_says_what_was_done(monkeypatch, tmp_path):
    """And its configuration runs the same elsewhere."""
    machine(monkeypatch, "avx2")
    layer = {"train": {"precision": "auto", "epochs": 1}, "method": {"preset": "none"}, "out": str(tmp_path)}
    record = distill(build_config(merge(SMALL, layer)))
    assert record["config"]["train"]["precision"] == "fp32"
    assert load_config(tmp_path / "config.yaml")["train"]["precision"] == "fp32"


def test_an_emulated_precision_is_said(monkeypatch):
    layer = merge(
        SMALL, {"train": {"precision": "bf16", "epochs": 1, "device": "cpu"}, "method": {"preset": "none"}}
    )
    machine(monkeypatch, "avx2")
    with pytest.warns(
        UserWarning, match=r"precision: bf16 needs a processor with amx_bf16 or avx512_bf16.*use auto"
    ):
        distill(build_config(layer))
    machine(monkeypatch, "avx512_bf16")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="precision:")
        distill(build_config(layer))


def test_float16_is_refused_on_a_cpu():
    """It was computed in float32, and record and page said fp16."""
    layer = {"train": {"precision": "fp16", "epochs": 1, "device": "cpu"}, "method": {"preset": "none"}}
    with pytest.raises(
        ValueError, match=r"train\.precision: fp16 needs a GPU, got a CPU; use auto, bf16 or fp32"
    ):
        distill(build_config(merge(SMALL, layer)))
