"""Batch norm and ReLU in one pass: values, gradients and statistics of the two modules in float64."""

import contextlib
import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outgrow.machine import norm_relu as module
from outgrow.machine.norm_relu import fused_norms, library, norm_relu
from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.taps import Taps

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or not sys.platform.startswith("linux"),
    reason="the pass is built with gcc on Linux",
)
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2e-6}
every_type = pytest.mark.parametrize("dtype", list(module.TYPES), ids=["bf16", "fp32"])


def maps_of(
    channels: int, *, batch: int = 5, side: int = 7, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(channels, 1, 1, generator=generator) * 3 + 0.1
    centre = torch.randn(channels, 1, 1, generator=generator) * 4
    maps = torch.randn(batch, channels, side, side, generator=generator) * spread + centre
    return maps.to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels: int, **options: float) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels, **options)
    nn.init.normal_(norm.weight)  # of both signs: the mask turns round
    nn.init.normal_(norm.bias)
    return norm


@pytest.fixture
def calls(monkeypatch):
    """How often the pass in C was taken."""
    counted, own = [], module._NormReLU.apply
    monkeypatch.setattr(module._NormReLU, "apply", lambda *x: counted.append(1) or own(*x))
    return counted


@needs_gcc
def test_there_is_a_library_where_there_is_gcc():
    assert all(library(dtype) is not None for dtype in module.TYPES)


@needs_gcc
@every_type
@pytest.mark.parametrize("channels", [1, 3, 16, 32, 33, 48, 200])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_agrees_with_the_modules_in_float64(channels, threads, residual, dtype, calls, monkeypatch):
    monkeypatch.setattr(module, "_threads", lambda maps: threads)
    maps = maps_of(channels, batch=9, dtype=dtype).requires_grad_()
    norm = norm_of(channels, eps=1e-3, momentum=0.3)
    plain = copy.deepcopy(norm).double()
    exact = maps.detach().double().requires_grad_()
    shortcut = maps_of(channels, batch=9, seed=3, dtype=dtype).requires_grad_() if residual else None
    exact_shortcut = shortcut.detach().double().requires_grad_() if residual else exact.new_zeros(())
    upstream = maps_of(channels, batch=9, seed=2, dtype=dtype)
    with fused_norms():
        out = norm_relu(norm, maps, shortcut)
    assert calls
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = F.relu(plain(exact) + exact_shortcut)
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[dtype], atol=1e-5)
    out.backward(upstream)
    # a value that is zero but for rounding may pass the ReLU in one and not in the other: the mask is ours
    mask = (out > 0).double()
    (plain(exact) + exact_shortcut).mul(mask).backward(upstream.double())
    if residual:
        assert torch.equal(shortcut.grad, torch.where(out > 0, upstream, 0))
    for ours, theirs, bound in (
        (maps.grad, exact.grad, ROUNDING[dtype]),
        (norm.weight.grad, plain.weight.grad, 1e-5),
        (norm.bias.grad, plain.bias.grad, 1e-5),
    ):
        assert ours.dtype in (dtype, torch.float32)
        assert (ours.double() - theirs).norm() <= bound * theirs.norm() + 1e-6
    # two passes of the reference moved its statistics twice; ours once
    once = copy.deepcopy(norm_of(channels, eps=1e-3, momentum=0.3)).double()
    once(exact)
    torch.testing.assert_close(norm.running_mean.double(), once.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), once.running_var, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1


@needs_gcc
def test_a_far_mean_does_not_eat_the_variance(calls):
    maps = (maps_of(8) + 200).contiguous(memory_format=torch.channels_last)
    norm = norm_of(8)
    with fused_norms():
        norm_relu(norm, maps)
    assert calls
    exact = maps.double().transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * exact, rtol=1e-5, atol=1e-5)


@needs_gcc
@every_type
@pytest.mark.parametrize("residual", [False, True])
def test_a_nan_stays_one_and_a_constant_map_is_finite(residual, dtype, calls):
    maps = maps_of(4, dtype=dtype)
    maps[0, 1, 0, 0] = float("nan")
    maps[:, 2] = 3.0
    maps.requires_grad_()
    with fused_norms():
        out = norm_relu(norm_of(4), maps, maps_of(4, seed=3, dtype=dtype) if residual else None)
    out.backward(torch.ones_like(out))
    assert calls
    assert out[:, 1].isnan().all()
    assert out[:, 2:].isfinite().all()
    assert maps.grad[:, 2:].isfinite().all()


@needs_gcc
def test_a_gradient_of_another_layout_is_taken(calls):
    maps, norm = maps_of(16).requires_grad_(), norm_of(16)
    with fused_norms():
        out = norm_relu(norm, maps)
    upstream = torch.randn(out.shape).bfloat16()
    a = torch.autograd.grad(out, maps, upstream, retain_graph=True)[0]
    b = torch.autograd.grad(out, maps, upstream.contiguous(memory_format=torch.channels_last))[0]
    assert torch.equal(a, b)
    assert calls


@needs_gcc
def test_a_second_derivative_is_refused():
    maps = maps_of(4).requires_grad_()
    with fused_norms():
        out = norm_relu(norm_of(4), maps)
    first = torch.autograd.grad(out.float().square().sum(), maps, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.float().sum().backward()


def _options():
    tapped = norm_of(4)
    tapped.register_forward_hook(lambda *_: None)
    nhwc = maps_of(4)
    return {
        "not asked for": (norm_of(4), nhwc, False),
        "evaluation": (norm_of(4).eval(), nhwc, True),
        "float64": (norm_of(4).double(), nhwc.double(), True),
        "contiguous": (norm_of(4), nhwc.contiguous(), True),
        "tapped": (tapped, nhwc, True),
        "no affine": (nn.BatchNorm2d(4, affine=False), nhwc, True),
        "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), nhwc, True),
        "cumulative": (nn.BatchNorm2d(4, momentum=None), nhwc, True),
        "folded away": (nn.Identity(), nhwc, True),
        "another norm": (nn.GroupNorm(2, 4), nhwc, True),
    }


@pytest.mark.parametrize("case", list(_options()))
def test_everything_else_runs_one_by_one(case, calls):
    norm, maps, ask = _options()[case]
    if isinstance(norm, nn.GroupNorm):
        norm = norm.bfloat16()
    other = copy.deepcopy(norm)
    if ask:
        with fused_norms():
            out = norm_relu(norm, maps)
    else:
        out = norm_relu(norm, maps)
    assert not calls
    assert torch.equal(out, F.relu(other(maps)))


@pytest.mark.parametrize("change", [torch.Tensor.float, torch.Tensor.contiguous])
def test_another_kind_of_shortcut_runs_one_by_one(change, calls):
    maps, norm = maps_of(4), norm_of(4)
    other = copy.deepcopy(norm)
    shortcut = change(maps_of(4, seed=3))
    with fused_norms():
        out = norm_relu(norm, maps, shortcut)
    assert not calls
    assert torch.equal(out, F.relu(other(maps) + shortcut))


def test_without_a_compiler_it_runs_one_by_one(monkeypatch, calls, tmp_path):
    monkeypatch.setenv("CC", "/nowhere/gcc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    try:
        assert library(torch.float32) is None
        with fused_norms():
            norm_relu(norm_of(4), maps_of(4))
        assert not calls
    finally:
        library.cache_clear()


@pytest.mark.parametrize(
    "found",
    [
        [{"/torch/libgomp.so.1"}, {"/torch/libgomp.so.1", "/usr/lib/libgomp.so.1"}],  # it brought its own
        [set(), {"/usr/lib/libgomp.so.1"}],  # torch has none of this name
    ],
)
def test_an_openmp_of_its_own_is_refused(monkeypatch, found):
    seen = iter(found)
    monkeypatch.setattr(module, "_openmps", lambda: next(seen))
    library.cache_clear()
    try:
        assert library(torch.float32) is None
    finally:
        library.cache_clear()


@needs_gcc
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "shufflenetv2", "resnet18", "densenet_bc_100_12"])
def test_a_whole_net_learns_the_same(name, calls):
    torch.manual_seed(0)
    net = CIFAR_MODELS[name](10).to(memory_format=torch.channels_last).train()
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    label = torch.arange(8)

    def gradient(fused: bool, dtype: torch.dtype) -> torch.Tensor:
        own = copy.deepcopy(net).to(torch.float64 if dtype == torch.float64 else torch.float32)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
            fused_norms() if fused else contextlib.nullcontext(),
        ):
            logits = own(images.double() if dtype == torch.float64 else images)
        F.cross_entropy(logits.double(), label).backward()
        return torch.cat([p.grad.flatten().double() for p in own.parameters()])

    exact, plain = gradient(False, torch.float64), {dtype: gradient(False, dtype) for dtype in module.TYPES}
    assert not calls
    for dtype in module.TYPES:
        ours = gradient(True, dtype)
        assert len(calls) >= 2
        calls.clear()
        # no further from float64 than that type one by one is, up to chance
        assert (ours - exact).norm() <= 2 * (plain[dtype] - exact).norm()


@needs_gcc
def test_a_tap_on_a_norm_sees_it(calls):
    net = CIFAR_MODELS["resnet8"](10).to(memory_format=torch.channels_last).train()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with fused_norms(), torch.autocast("cpu", torch.bfloat16):
        said = Taps(net, ["bn1", "layer1"])(images)
    assert calls  # the others
    assert (said.features["bn1"] < 0).any()


@needs_gcc
def test_it_brings_no_openmp():
    """In a process of its own, beside scikit-learn's."""
    code = (
        "import sklearn.utils._openmp_helpers, torch; from outgrow.machine import norm_relu as module; "  # has one, too
        "before = module._openmps(); assert module.library(torch.bfloat16) and module.library(torch.float32); assert module._openmps() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@needs_gcc
def test_a_team_smaller_than_asked_for_leaves_no_row_out():
    """OpenMP may give fewer threads than it was asked for; the rows are shared among those that came."""
    code = (
        "import torch, torch.nn.functional as F; from outgrow.machine import norm_relu as module; "
        "module._threads = lambda maps: 4; torch.manual_seed(0); norm = torch.nn.BatchNorm2d(16); "
        "maps = torch.randn(8, 16, 9, 9).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()\n"
        "with module.fused_norms(): ours = module.norm_relu(norm, maps)\n"
        "assert type(ours.grad_fn).__name__ == '_NormReLUBackward'; theirs = F.relu(norm(maps))\n"
        "up = torch.randn(ours.shape).bfloat16(); a, b = (torch.autograd.grad(o, maps, up)[0] for o in (ours, theirs))\n"
        "assert (ours - theirs).norm() < 0.01 * theirs.norm(); assert (a - b).norm() < 0.01 * b.norm()"
    )
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)
