"""Batches of labelled and unlabelled images: what is in them, and on what they do not depend."""

import pytest
import torch

from outgrow import UNLABELLED
from outgrow.data import ArraySplit, Augment, MixedLoader, make_loader

LABELLED, UNLABELLED_IMAGES, BATCH, EXTRA = 20, 13, 6, 4


def split(num, seed, value=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num) % 3 if value is None else torch.full((num,), value)
    return ArraySplit.of(images, labels)


def loader(rank=0, world_size=1, *, augment=None, poison=UNLABELLED, extra=EXTRA, num=UNLABELLED_IMAGES):
    options = {"shuffle": True, "rank": rank, "world_size": world_size}
    own = make_loader(split(LABELLED, 0), batch_size=BATCH, seed=3, augment=augment, **options)
    rest = split(num, 1, poison)
    return MixedLoader(own, make_loader(rest, batch_size=extra, seed=9, drop_last=True, **options))


def facts(batches):
    return [(b.images, b.target.label, b.target.index, b.target.partner, b.target.mix) for b in batches]


def assert_same(one, other):
    assert len(one) == len(other)
    for first, second in zip(facts(one), facts(other), strict=True):
        for a, b in zip(first, second, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_a_batch_has_the_labelled_rows_first():
    own = make_loader(split(LABELLED, 0), batch_size=BATCH, seed=3, shuffle=True)
    mixed = loader()
    batches = list(mixed.epoch(1))
    assert len(batches) == len(mixed) == 4
    for batch, alone in zip(batches, own.epoch(1), strict=True):
        num = len(alone.images)
        assert torch.equal(batch.images[:num], alone.images)
        assert torch.equal(batch.target.label[:num], alone.target.label)
        assert torch.equal(batch.target.index[:num], alone.target.index)
        assert batch.target.label[num:].tolist() == [UNLABELLED] * EXTRA
        assert batch.target.may_ignore
    assert mixed.num_samples == LABELLED + 4 * EXTRA


def test_passes_over_the_unlabelled_images_follow_one_another():
    """Three batches of four make a pass over thirteen images; epochs have four batches."""
    mixed = loader()
    seen = [b.images[-EXTRA:] for epoch in range(3) for b in mixed.epoch(epoch)]
    passes = make_loader(split(UNLABELLED_IMAGES, 1), batch_size=EXTRA, seed=9, shuffle=True, drop_last=True)
    expected = [batch.images for number in range(4) for batch in passes.epoch(number)]
    assert len(seen) == len(expected) == 12
    for one, other in zip(seen, expected, strict=True):
        assert torch.equal(one, other)


def test_numbers_are_unique_within_an_epoch():
    index = torch.cat([b.target.index for b in loader().epoch(0)])
    assert sorted(index.tolist()) == list(range(LABELLED + 4 * EXTRA))
    assert loader().num_indices == LABELLED + 4 * EXTRA


@pytest.mark.parametrize("epoch, start", [(0, 0), (1, 2), (2, 1)])
def test_an_epoch_does_not_depend_on_what_was_read_before(epoch, start):
    used = loader()
    for earlier in range(epoch):
        list(used.epoch(earlier))
    next(used.epoch(epoch))  # begun, and left
    assert_same(list(used.epoch(epoch, start)), list(loader().epoch(epoch))[start:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(world_size):
    whole = list(loader().epoch(2))
    shares = [list(loader(rank, world_size).epoch(2)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        rows = {int(i): image for i, image in zip(batch.target.index, batch.images, strict=True)}
        found = {}
        for share in shares:
            for i, image in zip(share[step].target.index, share[step].images, strict=True):
                assert int(i) not in found
                found[int(i)] = image
        assert found.keys() == rows.keys()
        assert all(torch.equal(found[i], rows[i]) for i in rows)


@pytest.mark.parametrize("augment", [None, Augment(mixup=0.4, cutmix=1.0)])
def test_labels_of_unlabelled_images_are_never_read(augment):
    assert_same(list(loader(augment=augment).epoch(1)), list(loader(augment=augment, poison=10**9).epoch(1)))


def test_unlabelled_rows_are_not_blended():
    batches = list(loader(augment=Augment(mixup=0.4, cutmix=1.0)).epoch(0))
    plain = list(loader().epoch(0))
    for batch, alone in zip(batches, plain, strict=True):
        target = batch.target
        assert target.partner[-EXTRA:].tolist() == [UNLABELLED] * EXTRA
        assert (target.mix[-EXTRA:] == 1).all()
        assert (target.partner[:-EXTRA] >= 0).all()
        assert torch.equal(batch.images[-EXTRA:], alone.images[-EXTRA:])


def test_fewer_unlabelled_images_than_a_batch_takes():
    mixed = loader(extra=2, num=2)
    assert all(len(b.images) - int((b.target.label >= 0).sum()) == 2 for b in mixed.epoch(0))


def test_a_smaller_last_batch_of_unlabelled_images_is_refused():
    own, rest = split(8, 0), split(7, 1)
    labelled = make_loader(own, batch_size=4, shuffle=True)
    with pytest.raises(
        ValueError,
        match=r"MixedLoader: needs unlabelled batches of one size, got a last one of 3 instead of 4; make",
    ):
        MixedLoader(labelled, make_loader(rest, batch_size=4, shuffle=True))
    MixedLoader(labelled, make_loader(rest, batch_size=4, shuffle=True, drop_last=True))
    MixedLoader(labelled, make_loader(own, batch_size=4, shuffle=True))
