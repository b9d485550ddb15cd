"""How an exported student is loaded, as its card says."""

import re

import pytest
import torch
from safetensors.torch import save_file

from outgrow.classification.layout import layout_of
from outgrow.classification.view import eval_view
from outgrow.models import create_model
from outgrow.models.weights import network_state


@pytest.mark.parametrize("name", ["timm/mobilenetv1_025_128", "torchvision/mobilenet_v3_small"])
def test_the_card_normalises_each_colour_as_the_student_does(name, tmp_path, monkeypatch):
    colours = {"mean": (0.1, 0.4, 0.7), "std": (0.2, 0.3, 0.5)}
    network = create_model(name, 3, input_size=64, **colours).eval()
    layout = layout_of(network, eval_view(network.input_spec, None))
    state = layout.state or network_state(network)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (code,) = re.findall(r"```python\n(.*?)```", layout.loading, re.DOTALL)
    told = {"images": images}
    with torch.no_grad():
        exec(code, told)
        torch.testing.assert_close(told["logits"], network(images))
