"""TorchScript takes our nets: its compiler reads annotations and sources, which the tests' own checks rewrite, so
this runs in a process without them."""

import subprocess
import sys

CODE = """
import warnings
import torch
from outgrow.models import create_model
warnings.simplefilter("ignore", DeprecationWarning)
names = "resnet8 resnet18 resnet50 wrn_16_1 vgg8 mobilenetv2 shufflenetv1 shufflenetv2 densenet_bc_100_12".split()
for name in names:
    net = create_model(f"cifar/{name}", 10).net.eval()
    state = list(net.state_dict())
    images = torch.rand(2, 3, 32, 32)
    traced = torch.jit.trace(net, images, check_trace=False)
    scripted = torch.jit.script(net)
    with torch.no_grad():
        expected = net(images)
        assert torch.equal(scripted(images), expected), name
        assert torch.equal(traced(images), expected), name
        if name == "vgg8":  # the graph keeps what depends on the size
            large = torch.rand(2, 3, 64, 64)
            assert torch.allclose(scripted(large), net(large)), name
    assert list(net.state_dict()) == state, name
    assert set(scripted.state_dict()) == set(state), name
print(len(names))
"""


def test_the_cifar_nets_can_be_scripted_and_traced():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.strip() == "9", done.stderr
