"""A frozen teacher says what it said before, with less work, or is left alone for a stated reason."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outgrow import PENULTIMATE, Taps, Teacher
from outgrow.models import create_model
from outgrow.models.structure import feature_paths
from outgrow.run import distill
from outgrow.teacher.cache import digest
from outgrow.teacher.inference import CompiledTeacher, InPrecision, compiled, fold_norms
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from tests.run.test_distill import SMALL


def with_statistics(net, seed=0):
    """Batch norms that have seen something: means, variances and affine maps that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                value.uniform_(low, high, generator=generator)
    return net.eval()


def images(size=32, num=3):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1))


def norms(net):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def agree(net, folded, batch, taps=()):
    with torch.no_grad():
        ours, theirs = Taps(folded, taps)(batch), Taps(net, taps)(batch)
    for name, (a, b) in {
        "logits": (ours.logits, theirs.logits),
        **{k: (ours.features[k], v) for k, v in theirs.features.items()},
    }.items():
        # rounding alone: MobileNetV2 over six draws of weights 1.1e-5 to 2.6e-5, where either is 0.7e-5 to 1.5e-5 from float64
        assert float((a - b).abs().max() / b.abs().max()) < 4e-5, name


# how many batch norms there are, and how many stand behind a convolution that feeds them alone
NETS = {
    "cifar/resnet8": (9, 9),
    "cifar/resnet56": (57, 57),
    "cifar/resnet8x4": (10, 10),
    "cifar/resnet18": (20, 20),
    "cifar/wrn_16_2": (13, 7),  # pre-activation: half of them follow a sum
    "cifar/vgg8": (5, 5),
    "cifar/mobilenetv2": (53, 53),
    "cifar/shufflenetv1": (49, 49),
    "cifar/shufflenetv2": (56, 56),
    "cifar/densenet_bc_100_12": (99, 48),  # the bottlenecks' second; all others follow a concatenation
    "torchvision/resnet18": (20, 20),
    "timm/mobilenetv2_100": (52, 52),  # batch norms with their activation inside
    "timm/tf_efficientnet_lite0": (49, 49),  # convolutions that pad by themselves
}


@pytest.mark.parametrize("name", NETS)
def test_the_same_logits_and_features_without_the_norms(name):
    total, gone = NETS[name]
    torch.manual_seed(0)  # how far rounding goes depends on the weights that are drawn
    size = 32 if name.startswith("cifar/") else 64
    net = with_statistics(create_model(name, 10, pretrained=False, input_size=size))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    taps = (*feature_paths(net), PENULTIMATE)
    folded, note = fold_norms(net, images(size), taps=taps)
    assert (norms(net), norms(net) - norms(folded)) == (total, gone), note
    assert note == f"{gone} of {total} batch norms folded"
    agree(net, folded, images(size, 5).flip(0), taps)  # other images, other batch
    assert not any(m.training for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in net.parameters())
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in folded.modules())


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224"])
def test_nothing_to_fold(name):
    net = create_model(name, 10, pretrained=False, input_size=32)
    folded, note = fold_norms(net, images())
    assert folded is net
    assert note == "no batch norms to fold"


def test_nothing_that_follows_a_convolution():
    net = with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)))
    folded, note = fold_norms(net, images(2))
    assert folded is net
    assert note.startswith("0 of 1 batch norms folded: none follows")


def test_a_tapped_convolution_stays_and_a_tapped_norm_goes():
    net = with_statistics(create_model("cifar/resnet8", 10))
    taps = ("layer1.0.conv1", "layer1.0.bn2", "layer2.0.downsample.1", "bn1")
    folded, note = fold_norms(net, images(), taps=taps)
    assert note == "8 of 9 batch norms folded"
    assert isinstance(folded.net.layer1[0].bn1, nn.BatchNorm2d)
    agree(net, folded, images(), taps)


def test_a_tapped_container_that_ends_in_a_convolution():
    net = with_statistics(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 900, 2)
        )
    )
    assert fold_norms(net, images(), taps=["0"])[0] is net
    assert norms(fold_norms(net, images())[0]) == 0


class Net(nn.Module):
    """One convolution and one batch norm, wired by ``how``."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        if self.how == "read twice":
            y = self.conv(x)
            y = self.norm(y) + y
        elif self.how == "convolution twice":
            y = self.norm(self.conv(self.conv(x)))
        elif self.how == "norm twice":
            y = self.norm(self.norm(self.conv(x)))
        elif self.how == "activation between":
            y = self.norm(F.relu(self.conv(x)))
        elif self.how == "activation in place":
            y = self.norm(F.relu_(self.conv(x)))
        elif self.how == "a view":
            y = self.norm(self.conv(x).flip(3))
        elif self.how == "weight elsewhere":
            y = self.norm(self.conv(x)) * self.conv.weight.mean()
        elif self.how == "standardised weight":
            y = self.norm(F.conv2d(x, self.conv.weight / self.conv.weight.std()))
        else:
            assert self.how == "control flow"
            y = self.norm(self.conv(x)) if bool(x.mean() > 0) else self.conv(x)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    "how",
    [
        "read twice",
        "convolution twice",
        "norm twice",
        "activation between",
        "activation in place",
        "a view",
        "weight elsewhere",
        "standardised weight",
    ],
)
def test_wiring_that_must_not_be_folded(how):
    net = with_statistics(Net(how))
    folded, note = fold_norms(net, images())
    assert folded is net, note


def test_control_flow_is_followed():
    net = with_statistics(Net("control flow"))
    folded, _ = fold_norms(net, images())
    assert norms(folded) == 0
    agree(net, folded, images())


def test_one_module_under_two_names():
    net = with_statistics(Net("control flow"))
    net.same = net.norm
    net.too = net.conv
    folded, _ = fold_norms(net, images())
    assert folded.norm is folded.same
    assert folded.conv is folded.too
    agree(net, folded, images())


def test_what_does_not_hold_is_not_used():
    class Stubborn(Net):
        def __init__(self):
            super().__init__("control flow")
            self.plain = [self.norm]  # not a module's child: it cannot be replaced

        def forward(self, x):
            return self.head(self.plain[0](self.conv(x)).mean((2, 3)))

    net = with_statistics(Stubborn())
    folded, note = fold_norms(net, images())
    assert folded is net
    assert "the outputs would be off by" in note


def test_a_net_that_cannot_be_copied():
    net = with_statistics(Net("control flow"))
    net.stray = (torch.ones(1, requires_grad=True) * 2,)
    folded, note = fold_norms(net, images())
    assert folded is net
    assert "cannot be copied" in note


def test_double_rounds_the_same_everywhere():
    net = with_statistics(create_model("cifar/resnet8", 10))
    one, two = (fold_norms(copy.deepcopy(net), images(num=n))[0] for n in (1, 4))
    assert digest(one) == digest(two) != digest(net)


class Dtype(nn.Module):
    def forward(self, x):
        return F.linear(x, torch.ones(2, 3))


def test_a_precision_of_its_own():
    x = torch.rand(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert Teacher(Dtype())(x).logits.dtype == torch.bfloat16
        assert InPrecision(Teacher(Dtype()), "fp32")(x, index=torch.arange(4)).logits.dtype == torch.float32
    assert InPrecision(Teacher(Dtype()), "bf16")(x).logits.dtype == torch.bfloat16


class TestCompiled:
    @pytest.fixture
    def net(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))

    @staticmethod
    def spy(monkeypatch, change=lambda value: value):
        """torch.compile as a stand-in that counts, so that most of this needs no compiler."""
        calls = []

        def fake(run, **options):
            def call(x):
                calls.append(tuple(x.shape))
                logits, features = run(x)
                return change(logits), {path: change(value) for path, value in features.items()}

            return call

        monkeypatch.setattr(torch, "compile", fake)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        return calls

    def test_for_batches_like_the_first_alone(self, net, monkeypatch):
        calls = self.spy(monkeypatch)
        teacher, note = compiled(Teacher(net), images(2, 4))
        assert (note, len(calls)) == ("compiled", 1)
        teacher(images(2, 4), index=torch.arange(4))
        assert len(calls) == 2
        teacher(images(2, 3))  # the last batch
        with torch.autocast("cpu", torch.bfloat16):  # another precision
            teacher(images(2, 4))
        teacher(images(2, 4).to(memory_format=torch.channels_last))
        assert len(calls) == 2
        assert set(teacher.state_dict()) == {f"teacher.network.model.{k}" for k in net.state_dict()}

    def test_no_compiler(self, net, monkeypatch):
        def fail(x):
            raise RuntimeError("no C++ compiler found\nand a long trace")

        monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
        frozen = Teacher(net)
        assert compiled(frozen, images(2)) == (frozen, "not compiled: no C++ compiler found")

    def test_wrong_by_more_than_rounding(self, net, monkeypatch):
        self.spy(monkeypatch, lambda logits: logits * 1.01)
        frozen = Teacher(net)
        teacher, note = compiled(frozen, images(2))
        assert teacher is frozen
        assert "off by" in note

    def test_a_tapped_teacher_is_compiled_with_its_taps(self, net, monkeypatch):
        calls = self.spy(monkeypatch)
        frozen = Teacher(net, taps=["1", PENULTIMATE])
        teacher, note = compiled(frozen, images(2, 4))
        assert (note, len(calls)) == ("compiled", 1)
        found, expected = teacher(images(2, 4)), frozen(images(2, 4))
        assert len(calls) == 2
        assert set(found.features) == {"1", PENULTIMATE}
        torch.testing.assert_close(dict(found.features), dict(expected.features))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # the compiler's own
    def test_really(self, net):
        if shutil.which("g++") is None:
            pytest.skip("needs a C++ compiler")
        frozen = Teacher(net)
        teacher, note = compiled(frozen, images(2, 4))
        assert isinstance(teacher, CompiledTeacher), note
        torch.testing.assert_close(teacher(images(2, 4)).logits, frozen(images(2, 4)).logits)


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("teacher", [{}, {"precision": "bf16"}, {"compile": True}])
def test_in_a_run(tmp_path, monkeypatch, teacher):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    net = with_statistics(create_model("cifar/resnet8", 10))
    before = digest(net)
    notes = Notes()

    def run(**options):
        own = {"train": False, "rows": "same", "name": "", "correct": "never", **options}
        config = merge(SMALL, {"teacher": own, "method": {"preset": "kd"}, "train": {"epochs": 1}})
        return distill(build_config(config), teacher=net, reporter=notes)

    fast, plain = run(**teacher), run(fold=False)
    assert digest(net) == before
    assert notes.notes.count("teacher: 9 of 9 batch norms folded") == 1
    assert notes.notes.count("teacher: compiled") == ("compile" in teacher)
    exact = "precision" not in teacher
    assert fast["teacher"]["nll"] == pytest.approx(plain["teacher"]["nll"], rel=1e-4 if exact else 5e-2)
    loss = [record["epochs"][0]["loss"] for record in (fast, plain)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-4 if exact else 5e-2)
