"""What a network costs is counted, not guessed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outgrow.classification.cost import measure_cost


def test_operations_and_bytes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    cost = measure_cost(net, 4, torch.device("cpu"), batches=(1, 3))
    assert cost.flops == 2 * 48 * 10
    assert cost.bytes == 4 * (48 * 10 + 10)
    assert [one.batch for one in cost.latency] == [1, 3]
    assert all(0 < one.median <= one.p95 and one.repeats >= 5 for one in cost.latency)


def test_the_mode_is_as_it_was_and_statistics_do_not_move():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_cost(net, 4, torch.device("cpu"), batches=(1,))
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class _Tokens(nn.Module):
    """Pixels as tokens of three numbers through ``mix``."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, images):
        return self.mix(images.flatten(2).transpose(1, 2).contiguous()).mean(1)


class _Attention(nn.Module):
    def forward(self, tokens):
        return F.scaled_dot_product_attention(*3 * [tokens[:, None]])[:, 0]


class _Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, tokens):
        return self.heads(tokens, tokens, tokens, need_weights=False)[0]


class _Recurrence(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 3, batch_first=True)

    def forward(self, tokens):
        return self.cell(tokens)[0]


ATTENTION = 2 * (16 * 16 * 3) * 2  # 16 tokens: scores, and the weighted mean


@pytest.mark.parametrize(
    ("mix", "flops"),
    [
        (_Attention, ATTENTION),
        (_Heads, ATTENTION + 2 * 16 * 3 * (9 + 3)),
        (_Recurrence, 2 * 16 * 12 * (3 + 3)),
    ],
)
def test_fused_operations_count_too(mix, flops):
    assert measure_cost(_Tokens(mix()), 4, torch.device("cpu"), batches=(1,)).flops == flops


def test_fused_operations_are_on_again_after_the_count():
    def states():
        return torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()

    before = states()
    measure_cost(_Tokens(_Heads()), 4, torch.device("cpu"), batches=(1,))
    assert states() == before
