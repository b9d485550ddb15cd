"""What a file of annotations says is what is trained on: each picture and box once, in pixels, the right way up."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from outgrow.data import DataWarning
from outgrow.detection.data import DetectionData, open_coco
from outgrow.detection.describe import describe_boxes, write_scene_sheet
from outgrow.detection.layouts.annotations import read_annotations
from outgrow.detection.loader import make_scene_loader
from outgrow.detection.run_data import open_run_scenes
from outgrow.training.config import build_config

from .coco_files import annotation, image, write_json, write_pictures

IMAGES = [image(k) for k in (1, 2, 3)]
BOXES = [annotation(10 + k, 1 + k % 3, [5 + k, 6, 20, 30]) for k in range(9)]


def write(root: Path, images: list[Any] = IMAGES, boxes: list[Any] = BOXES, *names: str) -> str:
    """Pictures of their own for each split, so that none is there twice."""
    for offset, name in enumerate(names or ("train", "val")):
        for entry in images:
            path = root / name / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            draw = np.random.default_rng(100 * offset + entry["id"])
            pixels = draw.integers(0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        write_json(root / "a" / f"instances_{name}.json", images, boxes)
    return f"coco:{root}:{root / 'a'}"


def opened(source: str, root: Path, **options: Any) -> DetectionData:
    return open_coco(source, cache_dir=root / "cache", **options)


def test_what_is_in_order_is_quiet(tmp_path: Path) -> None:
    data = opened(write(tmp_path), tmp_path)
    assert (data.notes, data.faults, data.duplicates) == ((), (), 0)


@pytest.mark.parametrize("name", ["1.png", "./1.png", "x/../1.png"])
def test_one_picture_has_one_id(tmp_path: Path, name: str) -> None:
    images = [*IMAGES, {**image(7), "file_name": name}]
    with pytest.raises(ValueError, match=r"one id for .*1\.png, which is also image 1, got .* image 7"):
        read_annotations(write_json(tmp_path / "b.json", images, BOXES))


def test_one_picture_behind_two_names(tmp_path: Path) -> None:
    source = write(tmp_path, IMAGES, BOXES, "val")
    images = [*IMAGES, {**image(7), "file_name": "other.png"}]
    write_json(tmp_path / "a" / "instances_val.json", images, BOXES)
    (tmp_path / "val" / "other.png").symlink_to("1.png")
    with pytest.raises(ValueError, match="needs one id per image, got the ids 1 and 7"):
        opened(source, tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png", "..\\secret.png"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"file_name below the folder of images, got .* in image 7"):
        read_annotations(write_json(tmp_path / "b.json", [*IMAGES, {**image(7), "file_name": name}], BOXES))


def test_links_stay_inside(tmp_path: Path) -> None:
    source = write(tmp_path / "d", IMAGES, BOXES, "val")
    picture = tmp_path / "d" / "val" / "1.png"
    picture.rename(tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"images below .*d, got a link to .*secret\.png"):
        opened(source, tmp_path)
    (tmp_path / "secret.png").rename(tmp_path / "d" / "kept.png")
    picture.unlink()
    picture.symlink_to("../kept.png")
    assert len(opened(source, tmp_path).test) == 3
    (tmp_path / "d" / "val").rename(tmp_path / "far")  # a folder that its owner linked is another matter
    (tmp_path / "d" / "val").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "1.png").unlink()
    (tmp_path / "d" / "kept.png").rename(tmp_path / "far" / "1.png")
    assert len(opened(source, tmp_path).test) == 3


def test_a_box_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    boxes = [*BOXES, annotation(50, 1, [5, 6, 20, 30]), annotation(51, 1, [5, 6, 20, 30], category_id=7)]
    source = write(tmp_path, IMAGES, boxes, "val")
    with pytest.warns(
        DataWarning, match=r"1 of 11 annotations .* count once \(annotation 50 is annotation 10\)"
    ):
        data = opened(source, tmp_path)
    assert sum(len(data.test.truth(k).boxes) for k in range(3)) == 10
    assert len(data.test.annotations["annotations"]) == 10, "COCO's AP, too, sees it once"


def test_boxes_as_fractions(tmp_path: Path) -> None:
    boxes = [annotation(k, 1, [0.1, 0.2, 0.3, 0.05 * k]) for k in range(1, 9)]
    with pytest.raises(
        ValueError, match=r"got 8 of 8 in .* look like fractions of the image \(annotation 1: .*; mul"
    ):
        read_annotations(write_json(tmp_path / "b.json", IMAGES, boxes))


def test_boxes_as_corners(tmp_path: Path) -> None:
    boxes = [annotation(k, 1, [10 * k, 5 * k, 10 * k + 25, 5 * k + 20]) for k in range(1, 8)]
    boxes += [annotation(20, 2, [60, 40, 99, 79])]
    with pytest.raises(
        ValueError, match=r"needs boxes as left, top, width and height, got .* fit as left, top, right"
    ):
        read_annotations(write_json(tmp_path / "b.json", IMAGES, boxes))


def test_a_few_boxes_as_fractions(tmp_path: Path) -> None:
    """Each is a fault, also where most boxes are in pixels. A box without an area is none."""
    shares = [annotation(50 + k, 1, [0.1, 0.2, 0.3, 0.1 * k]) for k in range(1, 4)]
    shares += [annotation(60, 2, [0, 0, 1, 1]), annotation(61, 2, [0, 0, 0, 0])]
    path = write_json(tmp_path / "b.json", IMAGES, [*BOXES[:6], *shares])
    message = r"got 4 with faults in .*annotation 51 of \S*b\.json: needs a bbox .* in pixels, not shares of the image, got \[0\.1"
    with pytest.raises(ValueError, match=message):
        read_annotations(path)
    file = read_annotations(path, on_fault="skip")
    assert (len(file.ids), len(file.faults)) == (7, 4)
    few = write_json(tmp_path / "b.json", IMAGES, [annotation(1, 1, [0.1, 0.2, 0.3, 0.4])])
    with pytest.raises(ValueError, match=r"got 1 of 1 in .* look like fractions"):
        read_annotations(few, on_fault="skip")
    small = [{**image(1), "height": 1, "width": 1}]
    assert read_annotations(
        write_json(tmp_path / "b.json", small, [annotation(1, 1, [0, 0, 1, 1])])
    ).usable.all()


@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_few_boxes_as_corners(num: int, tmp_path: Path) -> None:
    boxes = [annotation(k, 1, [60 - k, 45, 90 + k, 75]) for k in range(num)]
    path = write_json(tmp_path / "b.json", IMAGES, boxes)
    if num == 1:
        assert "cross the border" in read_annotations(path).notes[0]
        return
    with pytest.raises(
        ValueError, match=rf"got {num} of {num} that cross the border .* fit as left, top, right"
    ):
        read_annotations(path)
    inside = [*boxes, annotation(9, 2, [10, 10, 40, 30])]
    assert (
        f"{num} of {num + 1} boxes"
        in read_annotations(write_json(tmp_path / "b.json", IMAGES, inside)).notes[0]
    )
    beyond = [*boxes, annotation(9, 2, [-30, 45, 200, 90])]
    assert "cross the border" in read_annotations(write_json(tmp_path / "b.json", IMAGES, beyond)).notes[0]


def test_boxes_that_are_dropped_or_clipped_are_said(tmp_path: Path) -> None:
    boxes = [*BOXES, annotation(50, 1, [5, 6, 0.5, 30]), annotation(51, 2, [-9, 6, 30, 30])]
    file = read_annotations(write_json(tmp_path / "b.json", IMAGES, boxes))
    assert len(file.notes) == 2
    assert "1 of 11 boxes" in file.notes[0]
    assert (
        "not trained on (annotation 50). In a test AP counts them, as COCO does; the objects by class are"
        in (file.notes[0])
    )
    assert "cross the border of their image and are clipped (annotation 51)" in file.notes[1]
    assert [entry["id"] for entry in file.as_coco([0])["annotations"]][-1] == 50  # what AP counts
    assert int(file.usable.sum()) == len(file.ids) - 1  # what the table by class counts


def test_a_split_without_objects(tmp_path: Path) -> None:
    source = write(tmp_path)
    crowd = [{**box, "iscrowd": 1} for box in BOXES]
    for name, use in (("val", "measure box AP on"), ("train", "train on")):
        for boxes in ([], crowd):
            write_json(tmp_path / "a" / f"instances_{name}.json", IMAGES, boxes)
            with pytest.raises(
                ValueError, match=f"needs an object to {use}, got 3 images without a box .*{name}"
            ):
                opened(source, tmp_path)
        write_json(tmp_path / "a" / f"instances_{name}.json", IMAGES, BOXES)


@pytest.mark.filterwarnings("ignore:.*have an EXIF orientation that the sizes there leave out")
def test_pictures_are_turned_as_their_annotations_say(tmp_path: Path) -> None:
    """EXIF says: a quarter turn. What was measured says whether somebody drew on the turned picture."""
    exif = Image.Exif()
    exif[274] = 6
    stored = np.zeros((80, 100, 3), np.uint8)
    stored[:40] = 255  # the upper half, right when turned
    for entry, bright in (
        ({**image(1), "height": 80, "width": 100}, (slice(0, 40), slice(None))),
        ({**image(1), "height": 100, "width": 80}, (slice(None), slice(40, 80))),
    ):
        root = tmp_path / str(entry["width"])
        write_pictures(root / "val", [entry])
        Image.fromarray(stored).save(root / "val" / "1.png", exif=exif)
        write_json(root / "a" / "instances_val.json", [entry], [annotation(1, 1, [1, 1, 9, 9])])
        pixels = opened(f"coco:{root}:{root / 'a'}", tmp_path).test.image(0)
        assert pixels.shape[1:] == (entry["height"], entry["width"])
        assert (pixels[0][bright] == 255).all()
        assert pixels[0].float().mean() == 127.5
    entry = {**image(1), "height": 60, "width": 90}
    write_json(root / "a" / "instances_val.json", [entry], [annotation(1, 1, [1, 1, 9, 9])])
    with pytest.raises(
        ValueError, match="needs an image of the 90 x 60 pixels that its entry states, got '80 x 100"
    ):
        opened(f"coco:{root}:{root / 'a'}", tmp_path)


def test_the_same_picture_for_training_and_testing(tmp_path: Path) -> None:
    source = write(tmp_path)
    (tmp_path / "val" / "2.png").write_bytes((tmp_path / "train" / "3.png").read_bytes())
    with pytest.warns(
        DataWarning, match=r"1 of 3 test images .* byte for byte \(.*val/2\.png is .*train/3\.png\)"
    ):
        assert opened(source, tmp_path).duplicates == 1


def test_pictures_that_cannot_be_decoded(tmp_path: Path) -> None:
    source = write(tmp_path)
    bad = tmp_path / "train" / "2.png"
    bad.write_bytes(bad.read_bytes()[:200])
    said = set()
    for num_workers in (0, 1):
        train = opened(source, tmp_path).train
        assert train is not None
        with pytest.raises(ValueError, match=r"Pillow can decode, got .*train/2\.png \(200 bytes") as caught:
            list(make_scene_loader(train, batch_size=3, shuffle=False, num_workers=num_workers).epoch(0))
        said.add(str(caught.value))
    assert len(said) == 1
    with pytest.warns(DataWarning, match="left out 1 of 3 images"):
        data = opened(source, tmp_path, on_fault="skip")
    assert data.train is not None
    assert (data.train.image_ids, data.faults) == ([1, 3], (str(bad),))
    assert data.fingerprint != opened(source, tmp_path).fingerprint
    config = build_config({"data": {"source": source, "on_fault": "skip"}})
    with pytest.warns(DataWarning, match="left out 1 of 3 images"):
        assert len(open_run_scenes(config).train) == 2


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    source = write(tmp_path)
    (tmp_path / "val" / "2.png").unlink()
    os.mkfifo(tmp_path / "val" / "2.png")
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"1 missing, the first .*val/2\.png \(image 2\)"):
        opened(source, tmp_path)
    assert time.perf_counter() - start < 5


def test_an_epoch_from_the_middle(tmp_path: Path) -> None:
    train = opened(write(tmp_path), tmp_path).train
    assert train is not None
    for num_workers in (0, 1):
        loader = make_scene_loader(train, batch_size=1, shuffle=True, flip=True, num_workers=num_workers)
        whole, rest = list(loader.epoch(3)), list(loader.epoch(3, 1))
        assert len(rest) == 2
        for one, other in zip(whole[1:], rest, strict=True):
            assert torch.equal(one.images[0], other.images[0])
            assert torch.equal(one.truth[0].boxes, other.truth[0].boxes)


def test_damaged_annotations(tmp_path: Path) -> None:
    """From a fixed seed: what was written, or a ValueError that names the file; and soon."""
    path = write_json(tmp_path / "b.json", IMAGES, BOXES)
    whole = path.read_bytes()
    draw = np.random.default_rng(5)
    words = [
        b"null",
        b"-1",
        b"1e999",
        b"[]",
        b"{}",
        b'""',
        b"true",
        b"0.5",
        b"[" * 2000,
        b"\xff",
        b'"\\ud800"',
        b"99999999999999999999",
    ]
    refused = []
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(int(draw.integers(1, 3))):
            place = int(draw.integers(0, len(data)))
            if draw.random() < 0.5:
                data[place : place + int(draw.integers(0, 6))] = words[int(draw.integers(0, len(words)))]
            else:
                data[place] = int(draw.integers(0, 256))
        path.write_bytes(data)
        start = time.process_time()
        try:
            file = read_annotations(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            content = json.loads(path.read_bytes())
            assert len(file.names) == len(content["images"])
            assert len(file.ids) <= len(content["annotations"])
            assert torch.isfinite(file.boxes).all()
        assert time.process_time() - start < 5
    assert len(refused) > 100
    assert [text for text in refused if not (text.startswith("data: needs ") and str(path) in text)] == []


def test_a_source_in_lines_and_on_a_sheet(tmp_path: Path) -> None:
    source = write(tmp_path)
    text = "\n".join(describe_boxes(source))
    for part in (
        "3 classes",
        "3 images  9 boxes: dog 9",
        "all 100 x 80",
        "0 test images are among",
        "fingerprint",
    ):
        assert part in text
    with Image.open(write_scene_sheet(source, tmp_path / "sheet.png")) as sheet:
        assert sheet.size == (4 * 104 + 4, 84 + 4)
