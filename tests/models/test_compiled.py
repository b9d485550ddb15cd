"""A compiled network says what the plain one says, with its taps, and steps aside where it was not compiled for."""

import gc
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from outgrow import Taps
from outgrow.models.compiled import Compiled
from outgrow.models.taps import PENULTIMATE
from outgrow.run import distill
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from tests.run.test_distill import SMALL

PATHS = ("1", PENULTIMATE)


@pytest.fixture
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def calls(monkeypatch):
    """torch.compile as a stand-in that counts: the checks of shapes in this process cannot be traced."""
    made = []

    def fake(run, **options):
        return lambda x: made.append(options) or run(x)

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return made


def images(num=4):
    return torch.rand(num, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_for_batches_like_the_first_alone(net, calls):
    compiled, plain = Compiled(Taps(net, PATHS)), Taps(net, PATHS)
    assert not compiled.takes(images())
    compiled(images())
    assert (len(calls), compiled.reason) == (1, None)
    assert compiled.takes(images())
    found, expected = compiled(images()), plain(images())
    assert len(calls) == 2
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(dict(found.features), dict(expected.features))
    compiled(images(3))  # an epoch's last batch
    compiled(images().double().float().to(memory_format=torch.channels_last))
    with torch.no_grad():
        compiled(images())
    with torch.autocast("cpu", torch.bfloat16):
        compiled(images())
    net.eval()
    assert set(compiled(images()).features) == set(PATHS)
    assert len(calls) == 2
    net.train()
    compiled(images())
    assert len(calls) == 3


def test_hooks_go_with_it(net, calls):
    compiled = Compiled(Taps(net, PATHS))
    compiled(images())
    assert len(net[1]._forward_hooks) == 1
    del compiled
    gc.collect()
    assert not net[1]._forward_hooks
    assert not net[3]._forward_pre_hooks


def test_where_it_does_not_compile(net, monkeypatch):
    def fail(x):
        raise RuntimeError("no C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda run, **options: fail)
    told = []
    compiled = Compiled(Taps(net), on_failure=told.append)
    for _ in range(2):
        torch.testing.assert_close(compiled(images()).logits, net(images()))
    assert told == [compiled.reason] == ["no C++ compiler found"]
    assert not compiled.takes(images())


def test_graphs_are_asked_for_and_told_of_each_step(net, calls, monkeypatch):
    steps = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    for graphs, mode, begun in ((False, None, 0), (True, "reduce-overhead", 3)):
        compiled = Compiled(Taps(net), graphs=graphs)
        for _ in range(3):
            compiled(images())
        assert (calls[-1]["mode"], len(steps)) == (mode, begun)


TRACED = """if True:
    import copy, functools, sys, torch
    from outgrow import Taps
    from outgrow.models.compiled import Compiled
    from outgrow.models.taps import PENULTIMATE
    from outgrow.models import create_model

    torch.compile = functools.partial(torch.compile, backend=sys.argv[1])
    torch.manual_seed(0)
    taps = Taps(create_model("cifar/resnet8", 10).train(), ["layer1", PENULTIMATE])
    plain = copy.deepcopy(taps)
    compiled = Compiled(taps)
    for step in range(3):
        images = torch.rand(8, 3, 32, 32)
        for net in (compiled, plain):
            net.zero_grad()
            said = net(images)
            (said.logits.square().mean() + said.features["layer1"].square().mean()).backward()
            if net is compiled:
                kept = said
        torch.testing.assert_close(kept.logits, said.logits)
        torch.testing.assert_close(dict(kept.features), dict(said.features))
        for ours, theirs in zip(taps.parameters(), plain.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(taps.buffers(), plain.buffers()):
            torch.testing.assert_close(ours, theirs)
    assert compiled.takes(images) and compiled.reason is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, torch._dynamo.utils.counters
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_traced_it_is_one_graph_and_the_same(backend):
    """Values, features, gradients and running statistics over steps, from a single compilation."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    subprocess.run([sys.executable, "-c", TRACED, backend], check=True)


TWO = """
import functools
import torch
from torch import nn
from outgrow import Taps
from outgrow.models.compiled import Compiled

torch.compile = functools.partial(torch.compile, backend="aot_eager")
for paths in ((), ("1",)):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).eval().requires_grad_(False)
    compiled = Compiled(Taps(net, paths))
    for _ in range(2):
        with torch.no_grad():
            assert set(compiled(torch.rand(4, 3, 2, 2)).features) == set(paths)
    assert compiled.reason is None
"""


def test_a_net_with_taps_after_one_without():
    """In one process: the graph of the first has no hooks, and may not serve the second."""
    subprocess.run([sys.executable, "-c", TWO], check=True)


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class TestInARun:
    LAYER = merge(SMALL, {"method": {"preset": "kd", "loss": "kd + 100*fitnet"}, "train": {"epochs": 2}})

    def test_the_same_training(self, calls, tmp_path):
        notes = Notes()
        plain = distill(build_config(self.LAYER))
        assert not calls
        layer = merge(self.LAYER, {"train": {"compile": True}, "out": str(tmp_path)})
        record = distill(build_config(layer), reporter=notes)
        assert len(calls) > 2
        assert [e["loss"] for e in record["epochs"]] == pytest.approx([e["loss"] for e in plain["epochs"]])
        assert record["student"]["top1"] == plain["student"]["top1"]
        assert "student: compiling in the first step, which can take minutes ..." in notes.notes

    def test_it_says_where_it_cannot(self, monkeypatch):
        def fail(x):
            raise RuntimeError("no C++ compiler found")

        monkeypatch.setattr(torch, "compile", lambda run, **options: fail)
        layer = merge(self.LAYER, {"train": {"compile": True, "epochs": 1}})
        with pytest.warns(
            UserWarning, match=r"train.compile: .*got: no C\+\+ compiler found; the training is not compiled"
        ):
            distill(build_config(layer))

    def test_refusals(self):
        with pytest.raises(
            ValueError, match=r"needs a CUDA device for graphs, got cpu; use train.compile=true"
        ):
            distill(build_config(merge(self.LAYER, {"train": {"compile": "graphs", "device": "cpu"}})))
        with pytest.raises(ValueError, match="needs compile or fused_norms"):
            build_config(merge(self.LAYER, {"train": {"compile": True, "fused_norms": True}}))
