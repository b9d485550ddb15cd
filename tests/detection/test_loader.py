import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outgrow.data.randomness import epoch_order
from outgrow.data.transforms import crop_flip
from outgrow.detection import loader as loader_module
from outgrow.detection.boxes import Scenes, Truth
from outgrow.detection.data import DetectionSplit, open_coco
from outgrow.detection.loader import SceneLoader, decoded_bytes, make_scene_loader
from outgrow.detection.views import View

from .coco_files import annotation, image, write_json, write_pictures

NUM = 20
SIZES = ((60, 90), (90, 60), (75, 75))
VIEWS: dict[str, Any] = {"flip": True, "resized_crop": (0.2, 0.9), "seed": 4}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> DetectionSplit:
    """20 pictures of three sizes, cut from 24; boxes with fractions, one picture in six without any."""
    root = tmp_path_factory.mktemp("scenes")
    images = [image(100 + k, height=SIZES[k % 3][0], width=SIZES[k % 3][1]) for k in range(24)]
    write_pictures(root, images)
    draw = random.Random(0)
    rows = []
    for k, entry in enumerate(images):
        for j in range(k % 6):
            wide, high = draw.uniform(2, 40), draw.uniform(2, 40)
            left, top = draw.uniform(0, entry["width"] - wide), draw.uniform(0, entry["height"] - high)
            box = [left, top, wide, high]
            rows.append(annotation(len(rows), entry["id"], box, category_id=(3, 7, 20)[j % 3]))
        if k % 4 == 0:
            rows.append(annotation(len(rows), entry["id"], [10, 10, 30, 40], iscrowd=1))
    data = open_coco(f"coco:{root}:{write_json(root / 'boxes.json', images, rows)}")
    return data.test.subset(torch.arange(4, 24))


def epoch(loader: SceneLoader, number: int = 2) -> list[Scenes]:
    batches = list(loader.epoch(number))
    assert len(batches) == len(loader)
    return batches


def by_index(batches: Sequence[Scenes]) -> dict[int, tuple[Tensor, Truth]]:
    found: dict[int, tuple[Tensor, Truth]] = {}
    for batch in batches:
        assert batch.index.tolist() == [truth.index for truth in batch.truth]
        for picture, truth in zip(batch.images, batch.truth, strict=True):
            assert truth.index not in found, "shown twice"
            found[truth.index] = (picture, truth)
    return found


def assert_same(one: Sequence[Scenes], other: Sequence[Scenes], *, num: int = NUM) -> None:
    first, second = by_index(one), by_index(other)
    assert first.keys() == second.keys()
    assert len(first) == num
    for index, (picture, truth) in first.items():
        other_picture, other_truth = second[index]
        assert torch.equal(picture, other_picture), index
        for field in ("boxes", "label", "crowd"):
            assert torch.equal(getattr(truth, field), getattr(other_truth, field)), (index, field)


def test_the_plainest_batches_are_the_pictures(split: DetectionSplit) -> None:
    loader = make_scene_loader(split, batch_size=8, shuffle=False)
    assert (len(loader), loader.num_samples, loader.num_indices) == (3, 20, 24)
    batches = epoch(loader)
    assert [len(batch.images) for batch in batches] == [8, 8, 4]
    found = by_index(batches)
    assert list(found) == list(range(4, 24))
    for position, (picture, truth) in enumerate(found.values()):
        assert picture.dtype == torch.float32
        assert torch.equal(picture, split.image(position).float() / 255)
        assert torch.equal(truth.boxes, split.truth(position).boxes)
        assert torch.equal(truth.crowd, split.truth(position).crowd)
        assert torch.equal(truth.label, split.truth(position).label)


def test_the_order_is_that_of_classification(split: DetectionSplit) -> None:
    loader = make_scene_loader(split, batch_size=6, shuffle=True, drop_last=True, seed=3)
    assert len(loader) == 3
    for number in (0, 1):
        shown = torch.cat([batch.index for batch in loader.epoch(number)])
        assert torch.equal(shown, split.index[epoch_order(NUM, 3, number)[:18]])


def orientations(batches: Sequence[Scenes]) -> list[set[bool]]:
    return [{one.shape[1] > one.shape[2] for one in batch.images} for batch in batches]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 6, 7, 20])
def test_a_batch_has_one_orientation(split: DetectionSplit, batch_size: int) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": True, "seed": 3}
    loader = make_scene_loader(split, group_orientation=True, **options)
    plain = make_scene_loader(split, **options)
    assert_same(epoch(loader), epoch(plain))
    assert [len(b.images) for b in epoch(loader)] == [len(b.images) for b in epoch(plain)]
    for number in range(4):
        assert sum(len(kinds) > 1 for kinds in orientations(epoch(loader, number))) <= 1
    assert [b.index.tolist() for b in epoch(loader, 0)] != [b.index.tolist() for b in epoch(loader, 1)]
    again = list(loader.epoch(2, start=1))
    assert [b.index.tolist() for b in again] == [b.index.tolist() for b in epoch(loader)[1:]]


def test_processes_and_workers_share_the_same_batches_of_one_orientation(split: DetectionSplit) -> None:
    options: dict[str, Any] = {
        "batch_size": 6,
        "shuffle": True,
        "group_orientation": True,
        "short_sides": (32, 64, 96),
    }
    whole = epoch(make_scene_loader(split, **options))
    ranks = [epoch(make_scene_loader(split, rank=k, world_size=2, **options)) for k in range(2)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert sorted(batch.index.tolist()) == sorted(i for share in shares for i in share.index.tolist())
        assert {share.short_side for share in shares} == {batch.short_side}
    workers = epoch(make_scene_loader(split, num_workers=1, **options))
    assert [b.index.tolist() for b in workers] == [b.index.tolist() for b in whole]


def test_each_step_has_a_size_of_its_own(split: DetectionSplit) -> None:
    loader = make_scene_loader(split, batch_size=1, shuffle=True, short_sides=(32, 64, 96))
    first = [batch.short_side for batch in loader.epoch(0)]
    assert set(first) == {32, 64, 96}
    assert first == [batch.short_side for batch in loader.epoch(0)]
    assert first != [batch.short_side for batch in loader.epoch(1)]
    assert first[5:] == [batch.short_side for batch in loader.epoch(0, start=5)]
    batch = next(iter(loader.epoch(0)))
    assert [part.short_side for part in batch.split(2)] == [batch.short_side] * 2
    assert next(iter(make_scene_loader(split, batch_size=4, shuffle=False).epoch(0))).short_side is None


def test_pictures_are_mirrored_as_in_classification(split: DetectionSplit) -> None:
    mirrored = 0
    for index, (picture, truth) in by_index(
        epoch(make_scene_loader(split, batch_size=8, shuffle=True, flip=True, seed=4))
    ).items():
        pixels = split.image(index - 4)[None]
        expected = crop_flip(pixels, torch.tensor([index]), seed=4, epoch=2, crop_padding=0)[0]
        assert torch.equal(picture, expected.float() / 255)
        drawn = split.truth(index - 4)
        left, top, right, bottom = drawn.boxes.unbind(1)
        if not torch.equal(expected, pixels[0]):
            mirrored += 1
            left, right = pixels.shape[3] - right, pixels.shape[3] - left
            assert truth.crowd.tolist() == [[pixels.shape[3] - 40, 10, pixels.shape[3] - 10, 50]] * len(
                drawn.crowd
            )
        assert torch.equal(truth.boxes, torch.stack([left, top, right, bottom], dim=1))
        assert torch.equal(truth.label, drawn.label)
    assert 4 <= mirrored <= 16


def test_boxes_move_with_their_picture(split: DetectionSplit) -> None:
    """What is shown is read off the pixels (red is x, green is y); boxes are then moved by plain Python."""
    loader = make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS)
    kept = gone = clipped = crowds = mirrored = 0
    for number in range(6):
        for index, (picture, truth) in by_index(epoch(loader, number)).items():
            pixels = (picture * 255).round().long()
            assert int(pixels[2, 0, 0]) == 100 + index
            x, y = pixels[0, 0], pixels[1, :, 0]
            x0, x1, y0, y1 = int(x.min()), int(x.max()) + 1, int(y.min()), int(y.max()) + 1
            assert picture.shape == (3, y1 - y0, x1 - x0)
            flipped = bool(x[0] > x[-1])
            mirrored += flipped

            def moved(
                box: list[float], part: tuple[int, int, int, int], flipped: bool
            ) -> tuple[float, float, float, float]:
                x0, y0, x1, y1 = part
                left, right = max(box[0], x0) - x0, min(box[2], x1) - x0
                top, bottom = max(box[1], y0) - y0, min(box[3], y1) - y0
                if flipped:
                    left, right = (x1 - x0) - right, (x1 - x0) - left
                return left, top, right, bottom

            part = (x0, y0, x1, y1)
            drawn = split.truth(index - 4)
            expected, labels = [], []
            for box, label in zip(drawn.boxes.tolist(), drawn.label.tolist(), strict=True):
                if x0 <= (box[0] + box[2]) / 2 < x1 and y0 <= (box[1] + box[3]) / 2 < y1:
                    expected.append(moved(box, part, flipped))
                    labels.append(label)
                    inside = x0 <= box[0] and box[2] <= x1 and y0 <= box[1] and box[3] <= y1
                    clipped += not inside
                else:
                    gone += 1
            torch.testing.assert_close(
                truth.boxes, torch.tensor(expected).reshape(-1, 4), rtol=0.0, atol=1e-4
            )
            assert truth.label.tolist() == labels
            kept += len(labels)
            seen = [moved(box, part, flipped) for box in drawn.crowd.tolist()]
            seen = [box for box in seen if box[2] > box[0] and box[3] > box[1]]
            assert truth.crowd.tolist() == [list(box) for box in seen]
            crowds += len(seen)
    assert min(kept, gone, clipped, crowds, mirrored) > 10


def test_a_view_by_hand() -> None:
    boxes = torch.tensor([[12.0, 8.0, 20.0, 30.0], [0.0, 0.0, 20.0, 40.0], [28.0, 10.0, 34.0, 14.0]])
    truth = Truth(boxes, torch.tensor([1, 2, 3]), torch.tensor([[0.0, 0.0, 11.0, 50.0]]), 0)
    plain = View(top=5, left=10, height=20, width=20, mirrored=False)
    found = plain.truth(truth)
    # the second box's centre (10, 20) is the corner pixel's edge, inside; the third's (31, 12) is outside
    assert found.boxes.tolist() == [[2, 3, 10, 20], [0, 0, 10, 20]]
    assert found.label.tolist() == [1, 2]
    assert found.crowd.tolist() == [[0, 0, 1, 20]]
    mirrored = View(top=5, left=10, height=20, width=20, mirrored=True).truth(truth)
    assert mirrored.boxes.tolist() == [[10, 3, 18, 20], [10, 0, 20, 20]]
    assert mirrored.crowd.tolist() == [[19, 0, 20, 20]]
    elsewhere = View(top=0, left=50, height=20, width=20, mirrored=False).truth(truth)
    assert elsewhere.boxes.shape == elsewhere.crowd.shape == (0, 4)


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_views_do_not_depend_on_the_batch(split: DetectionSplit, batch_size: int) -> None:
    loader = make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS)
    assert_same(epoch(loader), epoch(make_scene_loader(split, batch_size=batch_size, shuffle=True, **VIEWS)))
    assert_same(epoch(loader), epoch(make_scene_loader(split, batch_size=8, shuffle=False, **VIEWS)))
    before, after = by_index(epoch(loader, 2)), by_index(epoch(loader, 3))
    assert sum(torch.equal(before[k][0], after[k][0]) for k in before) < 3
    part = split.subset(torch.tensor([3, 9]))
    alone = by_index(epoch(make_scene_loader(part, batch_size=2, shuffle=True, **VIEWS)))
    assert len(alone) == 2
    for index, (picture, _) in alone.items():
        assert torch.equal(picture, before[index][0])


def test_views_do_not_depend_on_workers(split: DetectionSplit) -> None:
    alone = make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS)
    state = torch.get_rng_state()
    workers = make_scene_loader(split, batch_size=6, shuffle=True, num_workers=2, **VIEWS)
    assert_same(epoch(alone, 0), epoch(workers, 0))
    assert_same(epoch(alone, 5), epoch(workers, 5))  # the same workers, another epoch
    next(iter(workers.epoch(1)))  # left early
    assert_same(epoch(alone, 2), epoch(workers, 2))
    assert torch.equal(torch.get_rng_state(), state), "the user's generator was touched"


def test_spawned_workers_see_the_same(split: DetectionSplit) -> None:
    import torch.multiprocessing as mp

    workers = make_scene_loader(split, batch_size=10, shuffle=True, num_workers=1, **VIEWS)
    workers._decoding.workers.multiprocessing_context = mp.get_context("spawn")
    assert_same(epoch(workers), epoch(make_scene_loader(split, batch_size=10, shuffle=True, **VIEWS)))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_process(split: DetectionSplit, world_size: int) -> None:
    options = {"batch_size": 8, "shuffle": True, "drop_last": True, **VIEWS}
    whole = epoch(make_scene_loader(split, **options))
    ranks = [
        epoch(make_scene_loader(split, rank=k, world_size=world_size, **options)) for k in range(world_size)
    ]
    assert_same(whole, [batch for batches in ranks for batch in batches], num=16)
    for step, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert {len(part.images) for part in parts} == {8 // world_size}
        shown = torch.cat([part.index for part in parts])
        assert set(shown.tolist()) == set(step.index.tolist())


def test_training_keeps_every_picture_whatever_the_number_of_processes(split: DetectionSplit) -> None:
    options = {"batch_size": 3, "shuffle": True, **VIEWS}
    whole = epoch(make_scene_loader(split, **options))
    ranks = [epoch(make_scene_loader(split, rank=k, world_size=4, **options)) for k in range(4)]
    assert {len(batches) for batches in ranks} == {len(whole)}
    assert all(len(part.images) == 0 for part in ranks[3])
    assert_same(whole, [batch for batches in ranks for batch in batches])


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 3), (7, 4), (2, 4)])
def test_evaluation_shows_every_picture_once(split: DetectionSplit, batch_size: int, world_size: int) -> None:
    ranks = [
        epoch(make_scene_loader(split, batch_size=batch_size, shuffle=False, rank=k, world_size=world_size))
        for k in range(world_size)
    ]
    assert len(by_index([batch for batches in ranks for batch in batches])) == NUM


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    before = DetectionSplit.image

    def counted(self: DetectionSplit, position: int) -> Tensor:
        decoded.append(position)
        return before(self, position)

    monkeypatch.setattr(DetectionSplit, "image", counted)
    return decoded


def test_a_small_data_set_is_decoded_once(split: DetectionSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = [epoch(make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS), k) for k in range(3)]
    decoded = count_decoding(monkeypatch)
    loader = make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS)
    for k in range(3):
        batches = epoch(loader, k)
        assert_same(batches, fresh[k])
        for batch in batches:
            for picture in batch.images:
                picture.zero_()  # whoever writes into a batch does not write into the memory
    assert sorted(decoded) == list(range(NUM))


def test_a_large_one_each_epoch(split: DetectionSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    total = decoded_bytes(split)
    assert total == 3 * sum(split.image(k)[0].numel() for k in range(NUM))
    for memory, times in ((total, 1), (total - 1, 2)):
        monkeypatch.setattr(loader_module, "MEMORY", memory)
        with monkeypatch.context() as patch:
            decoded = count_decoding(patch)
            loader = make_scene_loader(split, batch_size=8, shuffle=False)
            assert_same(epoch(loader, 0), epoch(loader, 1))
            assert sorted(decoded) == sorted([*range(NUM)] * times)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_is_named(tmp_path: Path, num_workers: int) -> None:
    images = [image(k) for k in range(4)]
    write_pictures(tmp_path, images)
    split = open_coco(
        f"coco:{tmp_path}:{write_json(tmp_path / 'boxes.json', images, [annotation(1, 1, [1, 1, 9, 9])])}"
    ).test
    (tmp_path / "2.png").write_bytes(b"no picture")
    loader = make_scene_loader(split, batch_size=2, shuffle=False, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*/2\.png \(10 bytes"):
        epoch(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"batch_size": 21, "drop_last": True}, "needs batch_size <= 20"),
        ({"resized_crop": (0.0, 1.0)}, r"0 < smallest <= largest <= 1, got \(0\.0, 1\.0\)"),
        ({"resized_crop": (0.9, 0.5)}, "0 < smallest <= largest <= 1"),
        ({"resized_crop": (0.5, 1.5)}, "0 < smallest <= largest <= 1"),
    ],
)
def test_bad_options(split: DetectionSplit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene_loader(split, **{"batch_size": 8, "shuffle": True, **options})


def test_blood_cells_in_batches(shared_data: Path) -> None:
    root = shared_data / "bccd"
    train = open_coco(f"coco:{root}:{root / 'annotations'}").train
    assert train is not None
    loader = make_scene_loader(
        train.subset(torch.arange(0, 205, 20)), batch_size=4, shuffle=True, flip=True, resized_crop=(0.3, 1.0)
    )
    boxes = 0
    for scenes in epoch(loader):
        for picture, truth in zip(scenes.images, scenes.truth, strict=True):
            height, width = picture.shape[1:]
            assert 0 <= float(picture.min()) < float(picture.max()) <= 1
            size = truth.boxes[:, 2:] - truth.boxes[:, :2]
            assert (size > 5).all()  # the smallest cell is 21 pixels, and half of it stays
            assert (truth.boxes >= 0).all()
            assert (truth.boxes <= torch.tensor([width, height] * 2)).all()
            boxes += len(truth.boxes)
    assert boxes > 50


@pytest.mark.gpu
def test_a_gpu_gets_the_views_of_the_cpu(split: DetectionSplit) -> None:
    here = by_index(epoch(make_scene_loader(split, batch_size=8, shuffle=True, **VIEWS)))
    there = by_index(
        epoch(make_scene_loader(split, batch_size=8, shuffle=True, device="cuda", num_workers=2, **VIEWS))
    )
    assert here.keys() == there.keys()
    for index, (picture, truth) in here.items():
        assert there[index][0].is_cuda
        assert there[index][1].boxes.is_cuda
        torch.testing.assert_close(there[index][0].cpu(), picture)
        assert torch.equal(there[index][1].boxes.cpu(), truth.boxes)
