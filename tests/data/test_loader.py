import gc
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from outgrow.data import ArraySplit, Augment, Batch, FileSplit, make_loader, open_data
from outgrow.data.files import PathList
from outgrow.data.loader import Loader
from outgrow.data.randomness import epoch_order
from outgrow.data.transforms import crop_flip, mix_views, partners, to_float

from .helpers import write_folder

NUM = 50
EVERYTHING = Augment(cutout=4, randaugment=9.0, mixup=0.4, cutmix=1.0)


@pytest.fixture(scope="module")
def arrays() -> ArraySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=generator)
    return ArraySplit.of(images, torch.arange(60) % 7).subset(torch.arange(10, 60))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileSplit:
    root = tmp_path_factory.mktemp("photos")
    write_folder(root, {"a": 30, "b": 30}, sides=(30, 37, 44))
    paths = sorted(str(path) for path in root.rglob("*.png"))
    return FileSplit.of(PathList(paths), torch.tensor([0] * 30 + [1] * 30)).subset(torch.arange(10, 60))


def by_index(batches: Sequence[Batch]) -> dict[int, tuple[Tensor, int, int, float]]:
    """Everything about each sample, by its index."""
    samples: dict[int, tuple[Tensor, int, int, float]] = {}
    for batch in batches:
        target = batch.target
        assert target.index is not None
        for k, index in enumerate(target.index.tolist()):
            assert index not in samples, "shown twice"
            partner = -1 if target.partner is None else int(target.partner[k])
            mix = 1.0 if target.mix is None else float(target.mix[k])
            samples[index] = (batch.images[k], int(target.label[k]), partner, mix)
    return samples


def assert_same(one: Sequence[Batch], other: Sequence[Batch], *, num: int = NUM) -> None:
    first, second = by_index(one), by_index(other)
    assert first.keys() == second.keys()
    assert len(first) == num
    for index, (image, *facts) in first.items():
        assert torch.equal(image, second[index][0]), index
        assert facts == list(second[index][1:]), index


def epoch(loader: Loader, number: int = 2) -> list[Batch]:
    batches = list(loader.epoch(number))
    assert len(batches) == len(loader)
    return batches


def test_the_plainest_batches_are_the_images(arrays: ArraySplit) -> None:
    loader = make_loader(arrays, batch_size=16, augment=None, shuffle=False)
    assert (len(loader), loader.num_samples, loader.num_indices) == (4, 50, 60)
    batches = epoch(loader)
    assert [len(batch.images) for batch in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), to_float(arrays.images[10:]))
    assert torch.equal(torch.cat([batch.target.index for batch in batches]), torch.arange(10, 60))
    assert torch.equal(torch.cat([batch.target.label for batch in batches]), arrays.labels)
    assert batches[0].target.partner is None


def test_batches_are_the_parts_put_together(arrays: ArraySplit) -> None:
    loader = make_loader(
        arrays, batch_size=16, augment=Augment(mixup=0.4), shuffle=True, drop_last=True, seed=3
    )
    assert len(loader) == 3
    order = epoch_order(NUM, 3, 1)
    for k, batch in enumerate(loader.epoch(1)):
        index = arrays.index[order[16 * k : 16 * k + 16]]
        partner = partners(index, seed=3, epoch=1, num=NUM)
        own, theirs = (
            to_float(crop_flip(arrays.images[rows], rows, seed=3, epoch=1))
            for rows in (index, arrays.index[partner])
        )
        images, share = mix_views(own, theirs, index, seed=3, epoch=1, mixup=0.4)
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.target.index, index)
        assert torch.equal(batch.target.partner, arrays.labels[partner])
        assert torch.equal(batch.target.mix, share)


@pytest.mark.parametrize(
    "options",
    [
        {"augment": Augment()},
        {"augment": EVERYTHING},
        {"augment": EVERYTHING, "size": 20},
        {"augment": Augment(resized_crop=(0.2, 1.0), cutmix=1.0), "size": 20},
        {"augment": Augment(resized_crop=(0.2, 1.0))},
        {"augment": None, "size": 8, "crop_pct": 0.8},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_views_do_not_depend_on_the_batch(arrays: ArraySplit, options: dict, batch_size: int) -> None:
    loaders = [make_loader(arrays, batch_size=b, shuffle=True, seed=1, **options) for b in (16, batch_size)]
    assert_same(epoch(loaders[0]), epoch(loaders[1]))
    unshuffled = make_loader(arrays, batch_size=16, shuffle=False, seed=1, **options)
    assert_same(epoch(loaders[0]), epoch(unshuffled))
    if options["augment"]:
        before, after = by_index(epoch(loaders[0], 2)), by_index(epoch(loaders[0], 3))
        assert sum(torch.equal(before[k][0], after[k][0]) for k in before) < 10
    side = options.get("size", 12)
    batch = epoch(loaders[0])[0].images
    assert batch.shape[1:] == (3, side, side)
    assert 0 <= batch.min() < batch.max() <= 1


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_ranks_share_the_batches_of_one_process(
    request: pytest.FixtureRequest, kind: str, world_size: int
) -> None:
    split = request.getfixturevalue(kind)
    options = {"batch_size": 16, "augment": EVERYTHING, "size": 20, "shuffle": True, "drop_last": True}
    whole = epoch(make_loader(split, **options))
    ranks = [epoch(make_loader(split, rank=k, world_size=world_size, **options)) for k in range(world_size)]
    assert_same(whole, [batch for batches in ranks for batch in batches], num=48)
    for step, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert {len(part.images) for part in parts} == {16 // world_size}
        shown = torch.cat([part.target.index for part in parts])
        assert set(shown.tolist()) == set(step.target.index.tolist())


@pytest.mark.parametrize(("batch_size", "world_size", "least"), [(16, 2, 2), (7, 4, 2), (7, 4, 1), (3, 4, 2)])
@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize("mix", [{}, {"mixup": 1.0, "randaugment": 5.0, "resized_crop": (0.2, 1.0)}])
def test_training_keeps_every_sample_whatever_the_number_of_processes(
    request: pytest.FixtureRequest, kind: str, batch_size: int, world_size: int, least: int, mix: dict
) -> None:
    """Shares may be uneven or empty; every process takes every step."""
    split = request.getfixturevalue(kind)
    options = {"batch_size": batch_size, "augment": Augment(**mix), "size": 20, "shuffle": True}
    whole = epoch(make_loader(split, **options))
    loaders = [
        make_loader(split, rank=k, world_size=world_size, least=least, **options) for k in range(world_size)
    ]
    ranks = [epoch(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(batches) for batches in ranks} == {len(whole)}
    shares = set()
    for step, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        sizes = [len(part.images) for part in parts]
        assert sizes[0] == max(sizes)
        assert all(size == 0 or size >= min(least, len(step.images)) for size in sizes)
        shares |= set(sizes)
        expected, found = by_index([step]), by_index(list(parts))
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key][0], found[key][0])
    assert 0 in shares


@pytest.mark.parametrize(("batch_size", "world_size"), [(16, 3), (7, 4), (49, 2), (2, 4)])
def test_evaluation_shows_every_sample_once(arrays: ArraySplit, batch_size: int, world_size: int) -> None:
    options = {"batch_size": batch_size, "augment": None, "shuffle": False, "world_size": world_size}
    ranks = [epoch(make_loader(arrays, rank=k, **options)) for k in range(world_size)]
    assert len(by_index([batch for batches in ranks for batch in batches])) == NUM


@pytest.mark.parametrize(
    "options",
    [
        {"augment": Augment(resized_crop=(0.2, 1.0)), "size": 24},
        {"augment": Augment(resized_crop=(0.2, 1.0), cutout=4, mixup=1.0, cutmix=1.0), "size": 24},
        {"augment": Augment(), "size": 24, "crop_pct": 0.9},
        {"augment": None, "size": 24, "interpolation": "bilinear"},
    ],
)
def test_file_views_do_not_depend_on_batch_or_worker(files: FileSplit, options: dict) -> None:
    alone = make_loader(files, batch_size=16, shuffle=True, **options)
    assert_same(epoch(alone), epoch(make_loader(files, batch_size=9, shuffle=False, **options)))
    state = torch.get_rng_state()
    workers = make_loader(files, batch_size=8, shuffle=True, num_workers=2, **options)
    assert_same(epoch(alone, 0), epoch(workers, 0))
    assert_same(epoch(alone, 5), epoch(workers, 5))  # the same workers, another epoch
    next(iter(workers.epoch(1)))  # left early
    assert_same(epoch(alone, 2), epoch(workers, 2))
    assert torch.equal(torch.get_rng_state(), state), "the user's generator was touched"


def test_spawned_workers_see_the_same(files: FileSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.multiprocessing as mp

    options = {"augment": Augment(resized_crop=(0.2, 1.0)), "size": 24, "shuffle": True, "batch_size": 25}
    loader = make_loader(files, num_workers=1, **options)
    loader._decoding.workers.multiprocessing_context = mp.get_context("spawn")  # type: ignore[attr-defined]
    assert_same(epoch(loader), epoch(make_loader(files, **options)))


def test_sizes_that_differ_need_a_size(files: FileSplit) -> None:
    with pytest.raises(
        ValueError, match=r"images of one size, got \(37, 37\) in .*png and \(44, 44\) in .*pass size="
    ):
        epoch(make_loader(files, batch_size=16, augment=None, shuffle=False))
    with pytest.raises(ValueError, match="needs size for resized crops"):
        make_loader(files, batch_size=16, augment=Augment(resized_crop=(0.1, 1.0)), shuffle=True)


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_from_the_middle(request: pytest.FixtureRequest, kind: str, num_workers: int) -> None:
    split = request.getfixturevalue(kind)
    options = {
        "batch_size": 8,
        "augment": EVERYTHING,
        "size": 20,
        "shuffle": True,
        "num_workers": num_workers,
    }
    loader = make_loader(split, **options)
    whole = epoch(loader)
    for start in (0, 3, 6, 7):
        rest = list(loader.epoch(2, start))
        assert len(rest) == len(whole) - start
        for one, other in zip(whole[start:], rest, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.target.index, other.target.index)
    assert_same(whole, epoch(loader))


def test_two_epochs_at_once_are_those_of_each(files: FileSplit) -> None:
    """As for two views of an image. Workers have one queue, so that they cannot."""
    options = {"batch_size": 8, "augment": EVERYTHING, "size": 20, "shuffle": True}
    loader = make_loader(files, **options)
    first, second = zip(*zip(loader.epoch(2), loader.epoch(3), strict=True), strict=True)
    assert_same(first, epoch(loader, 2))
    assert_same(second, epoch(loader, 3))
    workers = make_loader(files, num_workers=1, **options)
    with pytest.raises(
        ValueError, match=r"needs one epoch at a time .* got another .*; make a loader for each"
    ):
        list(zip(workers.epoch(2), workers.epoch(3), strict=True))
    assert_same(first, epoch(workers, 2))


def test_what_is_left_out_of_an_epoch_is_not_decoded(
    files: FileSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    picture = FileSplit.picture
    monkeypatch.setattr(FileSplit, "picture", lambda self, at: decoded.append(at) or picture(self, at))
    loader = make_loader(files, batch_size=8, size=20, shuffle=True)
    assert len(list(loader.epoch(1, start=5))) == 2
    assert sorted(decoded) == sorted(epoch_order(NUM, 0, 1)[40:].tolist())


def test_faults_read_the_same_from_workers(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"val/a": 3, "val/b": 3}, sides=(100,))
    (tmp_path / "p" / "val" / "b" / "001.png").write_bytes(b"no picture")
    data = open_data(f"folder:{tmp_path / 'p'}", cache_dir=tmp_path / "cache")
    said = set()
    for num_workers in (0, 2):
        loader = make_loader(data.test, batch_size=2, shuffle=False, num_workers=num_workers)
        with pytest.raises(ValueError, match="Pillow can decode") as caught:
            epoch(loader)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_file_is_named(tmp_path: Path, num_workers: int) -> None:
    write_folder(tmp_path / "p", {"val/a": 3, "val/b": 3}, sides=(100,))
    broken = tmp_path / "p" / "val" / "b" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = open_data(f"folder:{tmp_path / 'p'}", cache_dir=tmp_path / "cache")
    loader = make_loader(data.test, batch_size=2, augment=None, shuffle=False, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*val/b/001\.png \(200 bytes"):
        epoch(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < world_size"),
        ({"batch_size": 51, "drop_last": True}, "needs batch_size <= 50"),
        ({"crop_pct": 0.0}, "crop_pct in"),
        ({"interpolation": "nearest"}, "interpolation bilinear or bicubic"),
        ({"size": 0}, "size >= 1"),
    ],
)
def test_bad_options(arrays: ArraySplit, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(arrays, **{"batch_size": 16, "augment": None, "shuffle": True, **options})


def test_imagenet_sample(shared_data: Path, tmp_path: Path) -> None:
    data = open_data(f"imagenet:{shared_data / 'imagenet_sample'}", cache_dir=tmp_path)
    assert data.train is None
    assert len(data.test) == data.num_classes == 1000
    assert data.classes[0] == "n01440764"
    part = data.test.subset(torch.arange(0, 1000, 125))
    loader = make_loader(part, batch_size=4, augment=None, size=224, crop_pct=0.875, shuffle=False)
    batches = epoch(loader)
    assert batches[0].images.shape == (4, 3, 224, 224)
    assert torch.cat([batch.target.index for batch in batches]).tolist() == list(range(0, 1000, 125))


@pytest.mark.gpu
def test_a_gpu_makes_the_views_of_the_cpu(arrays: ArraySplit) -> None:
    options = {"batch_size": 16, "augment": EVERYTHING, "size": 20, "shuffle": True}
    here = by_index(epoch(make_loader(arrays, **options)))
    there = by_index(epoch(make_loader(arrays, device="cuda", **options)))
    assert here.keys() == there.keys()
    for index, (image, *facts) in here.items():
        assert facts == list(there[index][1:])
        # a pixel exactly at solarise's or posterise's threshold may fall on the other side
        assert ((image - there[index][0].cpu()).abs() > 1e-4).double().mean() < 0.02


def test_processes_end_at_once_with_a_loader_that_is_in_a_cycle(files: FileSplit) -> None:
    """The garbage collector found their queues before the iterator: PyTorch then waited five seconds for each."""
    before = {child.pid for child in multiprocessing.active_children()}
    holder: list[object] = [make_loader(files, batch_size=16, size=16, shuffle=False, num_workers=2)]
    holder.append(holder)
    assert len(list(cast(Loader, holder[0]).epoch(0))) > 0
    assert len({child.pid for child in multiprocessing.active_children()} - before) == 2
    begun = time.perf_counter()
    del holder
    gc.collect()
    assert time.perf_counter() - begun < 4
    assert not {child.pid for child in multiprocessing.active_children()} - before
