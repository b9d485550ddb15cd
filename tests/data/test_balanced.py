"""Balanced sampling: every class equally often, and no sample twice before the others of its class once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outgrow.data import ArraySplit, make_loader
from outgrow.data.randomness import balanced_order

counts = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labels_of(counts):
    return torch.cat([torch.full((n,), 2 * c, dtype=torch.int64) for c, n in enumerate(counts)])


@settings(deadline=None)
@given(counts, st.integers(0, 5), st.integers(0, 9))
def test_classes_come_equally_often(counts, seed, epoch):
    labels = labels_of(counts)
    order = balanced_order(labels, seed, epoch)
    assert len(order) == len(labels)
    assert torch.equal(order, balanced_order(labels, seed, epoch))
    share = -(-len(labels) // len(counts))
    drawn = labels[order].bincount(minlength=2 * len(counts))[::2]
    assert int(drawn.max()) <= share
    assert int(drawn.max()) - int(drawn.min()) <= 1
    assert int(drawn.sum()) == len(labels)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 3))
def test_a_class_is_passed_through_again_and_again(counts, seed):
    labels, epochs = labels_of(counts), 7
    drawn = torch.cat([balanced_order(labels, seed, epoch) for epoch in range(epochs)])
    times = drawn.bincount(minlength=len(labels))
    for label in labels.unique():
        of_class = times[labels == label]
        assert int(of_class.max()) - int(of_class.min()) <= 1
        assert 0 <= int(of_class.sum()) - epochs * len(labels) // len(counts) <= 1


def test_processes_share_the_same_draws():
    labels = labels_of([3, 20, 9])
    split = ArraySplit.of(torch.zeros(32, 3, 4, 4, dtype=torch.uint8), labels)

    def drawn(rank, world_size):
        loader = make_loader(
            split, batch_size=8, shuffle=True, seed=3, balanced=True, rank=rank, world_size=world_size
        )
        return [set(batch.index.tolist()) for batch in loader.epoch(1)], [
            len(b.index) for b in loader.epoch(1)
        ]

    whole, sizes = drawn(0, 1)
    assert sizes == [8, 8, 8, 8]
    first, second = drawn(0, 2), drawn(1, 2)
    for one, a, b in zip(whole, first[0], second[0], strict=True):
        assert one == a | b
