import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from outgrow.data import DataWarning
from outgrow.detection.data import DetectionData, open_boxes, open_coco
from outgrow.detection.layouts.annotations import read_annotations

from .coco_files import CATEGORIES, annotation, image, picture, write_json, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore::outgrow.data.DataWarning")  # splits share pictures here

IMAGES = [image(11), image(5, height=60, width=50), image(8)]
ANNOTATIONS = [
    annotation(1, 5, [10, 20, 15.5, 30], area=400),
    annotation(2, 11, [-4, 70, 10, 20], category_id=20),  # over two edges
    annotation(3, 11, [0, 0, 100, 80], iscrowd=1),
    annotation(4, 11, [30.25, 40, 20, 0], category_id=7),  # no height
    annotation(5, 11, [99.5, 10, 8, 8], category_id=7),  # half a pixel inside
    annotation(6, 11, [30, 40, 20, 1], category_id=7),
    annotation(7, 8, [30, 40, 0.5, 9], iscrowd=1),
]


def write(root: Path, *names: str) -> str:
    """The same pictures and boxes for every split."""
    for name in names:
        write_pictures(root / name, IMAGES)
        write_json(root / "annotations" / f"instances_{name}.json", IMAGES, ANNOTATIONS)
    return f"coco:{root}:{root / 'annotations'}"


@pytest.mark.parametrize(
    "folder, file",
    [
        ("Train2017", "instances_train2017.json"),
        ("TRAIN", "instances_train2017.json"),
        ("train", "Instances_Train.JSON"),
        ("Train2017", "INSTANCES_TRAIN2017.json"),
    ],
)
def test_splits_are_recognised_in_any_case(tmp_path: Path, folder: str, file: str) -> None:
    write_pictures(tmp_path / folder, IMAGES)
    write_pictures(tmp_path / "Val", IMAGES)
    write_json(tmp_path / "annotations" / file, IMAGES, ANNOTATIONS)
    write_json(tmp_path / "annotations" / "instances_Val.json", IMAGES, ANNOTATIONS)
    data = open_coco(f"coco:{tmp_path}:{tmp_path / 'annotations'}")
    assert data.train is not None
    assert (Path(data.train.folder).name, Path(data.test.folder).name) == (folder, "Val")
    assert data.train.image(0).shape == (3, 80, 100)


def open_one(root: Path, images: list[Any], annotations: list[Any], **other: Any) -> DetectionData:
    write_pictures(root, [entry for entry in IMAGES if not (root / entry["file_name"]).exists()])
    return open_coco(f"coco:{root}:{write_json(root / 'boxes.json', images, annotations, **other)}")


def test_a_split_is_what_the_file_says(tmp_path: Path) -> None:
    data = open_coco(write(tmp_path, "train2017", "val2017"))
    assert (data.classes, data.category_ids, data.num_classes) == (("dog", "cat", "bird"), (3, 7, 20), 3)
    assert data.val is None
    assert data.train is not None
    split = data.train
    assert (len(split), split.num_indices, split.image_ids) == (3, 3, [11, 5, 8])
    assert [split.name(k) for k in range(3)] == ["11.png", "5.png", "8.png"]
    assert [split.size(k) for k in range(3)] == [(80, 100), (60, 50), (80, 100)]
    first, second, third = (split.truth(k) for k in range(3))
    assert first.boxes.tolist() == [[0, 70, 6, 80], [30, 40, 50, 41]]
    assert first.label.tolist() == [3, 2]
    assert first.crowd.tolist() == [[0, 0, 100, 80]]
    assert second.boxes.tolist() == [[10, 20, 25.5, 50]]
    assert second.label.tolist() == [1]
    assert second.crowd.shape == third.crowd.shape == third.boxes.shape == (0, 4)
    assert [truth.index for truth in (first, second, third)] == [0, 1, 2]
    pixels = split.image(1)
    assert pixels.shape == (3, 60, 50)
    assert pixels.dtype == torch.uint8
    assert pixels[:, 59, 48].tolist() == [48, 59, 5]


def test_a_subset_keeps_the_numbers(tmp_path: Path) -> None:
    split = open_coco(write(tmp_path, "val")).test
    part = split.subset(torch.tensor([2, 0])).subset(torch.tensor([1]))
    assert (len(part), part.num_indices, part.image_ids, part.name(0)) == (1, 1, [11], "11.png")
    assert part.truth(0).boxes.tolist() == split.truth(0).boxes.tolist()
    last = split.subset(torch.tensor([1, 2]))
    assert (last.truth(0).index, last.num_indices) == (1, 3)
    assert torch.equal(last.image(0), split.image(1))
    nothing = split.subset(torch.tensor([], dtype=torch.int64))
    assert (len(nothing), nothing.num_indices, nothing.image_ids) == (0, 0, [])


def test_annotations_are_the_files_own(tmp_path: Path) -> None:
    split = open_coco(write(tmp_path, "val")).test
    found = split.annotations
    assert found["images"] == IMAGES
    assert found["categories"] == sorted(CATEGORIES, key=lambda category: category["id"])
    expected = [{"iscrowd": 0, "area": e["bbox"][2] * e["bbox"][3], **e} for e in ANNOTATIONS]
    assert sorted(found["annotations"], key=lambda e: e["id"]) == expected
    part = split.subset(torch.tensor([1])).annotations
    assert part["images"] == [IMAGES[1]]
    assert part["annotations"] == [expected[0]]
    assert part["annotations"][0]["area"] == 400


def test_splits_go_by_the_names(tmp_path: Path) -> None:
    source = write(tmp_path, "train", "validation", "test")
    data = open_coco(source)
    assert data.train is not None
    assert data.val is not None
    held = [Path(split.file.path).name for split in (data.train, data.val, data.test)]
    assert held == ["instances_train.json", "instances_validation.json", "instances_test.json"]
    assert [Path(s.folder).name for s in (data.train, data.val, data.test)] == ["train", "validation", "test"]
    alone = open_coco(f"coco:{tmp_path}:{tmp_path / 'annotations' / 'instances_train.json'}")
    assert (alone.train, alone.val) == (None, None)
    assert alone.test.file.path == data.train.file.path
    assert alone.test.folder == data.train.folder


@pytest.mark.parametrize(
    "folder, name",
    [("val2017", "{}"), ("val", "{}"), (".", "{}"), ("val2017", "val2017/{}"), ("other", "other/{}")],
)
def test_where_the_images_are(tmp_path: Path, folder: str, name: str) -> None:
    write_pictures(tmp_path / folder, IMAGES)
    entries = [{**entry, "file_name": name.format(entry["file_name"])} for entry in IMAGES]
    write_json(tmp_path / "a" / "instances_val2017.json", entries, [GOOD])
    split = open_coco(f"coco:{tmp_path}:{tmp_path / 'a'}").test
    assert int(split.image(1)[2, 0, 0]) == 5


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "val")
    assert len(open_coco("coco:~:~/annotations").test) == 3


def test_the_fingerprint_follows_content(tmp_path: Path) -> None:
    """Of pictures and annotations, whatever their times; a copy has the same."""
    source = write(tmp_path / "a", "train", "val")
    before = open_coco(source).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert open_coco(f"coco:{tmp_path / 'b'}:{tmp_path / 'b' / 'annotations'}").fingerprint == before
    seen = {before}
    for path in (tmp_path / "a" / "train" / "5.png", tmp_path / "a" / "annotations" / "instances_val.json"):
        times, content = path.stat(), path.read_bytes()
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if path.suffix == ".json":
            path.write_text(content.decode().replace("15.5", "15.6"))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        seen.add(open_coco(source).fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "source", ["coco:a:b:c", "coco::b", "folder:a:b", "coco:", "coco:a:"], ids=lambda source: source
)
def test_a_source_has_two_parts(source: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"needs coco:IMAGES:ANNOTATIONS.* got '{source}'; (write for example|use open_boxes)",
    ):
        open_coco(source)


def test_paths_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"existing folder of images in .*nowhere; check"):
        open_coco(f"coco:{tmp_path}/nowhere:{tmp_path}")
    with pytest.raises(ValueError, match=r"existing file or folder of annotations in .*no\.json"):
        open_coco(f"coco:{tmp_path}:{tmp_path}/no.json")


def test_which_files_make_a_data_set(tmp_path: Path) -> None:
    source = write(tmp_path, "train")
    with pytest.raises(ValueError, match=r"instances_val\*\.json or .* got instances_train\.json in"):
        open_coco(source)
    write(tmp_path, "val", "val2")
    with pytest.raises(
        ValueError, match=r"one file for val, got instances_val\.json, instances_val2\.json in"
    ):
        open_coco(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"got no \.json file in"):
        open_coco(f"coco:{tmp_path}:{tmp_path / 'empty'}")


def test_categories_agree_between_files(tmp_path: Path) -> None:
    source = write(tmp_path, "train", "val")
    other = [*CATEGORIES[:2], {"id": 21, "name": "bird"}]
    write_json(tmp_path / "annotations" / "instances_val.json", IMAGES, [GOOD], other)
    with pytest.raises(ValueError, match="same categories") as caught:
        open_coco(source)
    for part in ("instances_train.json", "instances_val.json", "(20, 'bird')", "(21, 'bird')"):
        assert part in str(caught.value)
    write_json(tmp_path / "annotations" / "instances_val.json", IMAGES, [GOOD], CATEGORIES[::-1])
    assert open_coco(source).category_ids == (3, 7, 20)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, "val")
    (tmp_path / "val" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"1 missing, the first .*val/5\.png \(image 5\)"):
        open_coco(source)


def test_missing_images_can_be_left_out(tmp_path: Path) -> None:
    source = write(tmp_path, "train", "val")
    (tmp_path / "train" / "5.png").unlink()
    data = open_coco(source, on_fault="skip")
    assert data.train is not None
    assert (data.train.image_ids, len(data.test)) == ([11, 8], 3)
    assert data.train.image(1).shape[1:] == data.train.size(1)
    assert data.train.truth(0).boxes.tolist() == [[0, 70, 6, 80], [30, 40, 50, 41]]
    assert [entry["id"] for entry in data.train.annotations["annotations"]] == [2, 3, 4, 5, 6, 7]
    (fault,) = data.faults
    assert re.fullmatch(r"image 5 of .*train\.json: needs an existing file, got '.*train/5\.png'", fault)
    assert any("left out 1 images and annotations of" in note and fault in note for note in data.notes)
    (tmp_path / "train" / "8.png").unlink()
    assert len(open_coco(source, on_fault="skip").faults) == 2
    (tmp_path / "train" / "5.png").write_bytes((tmp_path / "val" / "5.png").read_bytes())
    (tmp_path / "train" / "11.png").unlink()
    other = open_coco(source, on_fault="skip")
    assert other.train is not None
    assert (other.train.image_ids, other.fingerprint != data.fingerprint) == ([5], True)
    (tmp_path / "train" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"needs all 3 images of .*, got 3 missing"):
        open_coco(source, on_fault="skip")
    (tmp_path / "train" / "8.png").write_bytes((tmp_path / "val" / "8.png").read_bytes())
    with pytest.raises(ValueError, match="needs an object to train on, got 1 images without a box"):
        open_coco(source, on_fault="skip")


def test_what_could_not_be_decoded_is_known_for_one_way_of_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "val")
    (tmp_path / "val" / "5.png").write_bytes((tmp_path / "val" / "5.png").read_bytes()[:50])
    names = []
    for version in (1, 2):
        monkeypatch.setattr("outgrow.detection.data.VERSION", version)
        with pytest.warns(DataWarning, match="cannot be decoded"):
            open_boxes(source, on_fault="skip", cache_dir=tmp_path / "cache")
        names.append([path.name for path in (tmp_path / "cache").rglob("*.faults")])
    assert names[0] != names[1]


def test_pictures_of_another_size_are_faults(tmp_path: Path) -> None:
    """Somebody has shrunk the pictures and left the boxes: those of all splits are named before training starts."""
    source = write(tmp_path, "train", "val")
    open_coco(source)
    for wrong, right in (("train/5", "val/8"), ("val/8", "val/5")):
        shutil.copy(tmp_path / f"{right}.png", tmp_path / f"{wrong}.png")
    for _ in range(2):  # from the cache, too
        with pytest.raises(ValueError, match=r"got 2 with faults in .*train\.json and .*val\.json") as caught:
            open_coco(source)
        assert re.search(
            r"image 5 of \S*train\.json: needs an image of the 50 x 60 pixels that its entry states, got '100 x 80 in "
            r"\S*train/5\.png'; image 8 of \S*val\.json",
            str(caught.value),
        )
        data = open_coco(source, on_fault="skip")
        assert data.train is not None
        assert (data.train.image_ids, data.test.image_ids) == ([11, 8], [11, 5])
        assert len(data.faults) == 2
        assert data.test.image(1).shape[1:] == data.test.size(1)
        assert data.duplicates == 1
    write_json(
        tmp_path / "annotations" / "instances_val.json",
        [image(5, height=9)],
        [annotation(1, 5, [1, 1, 5, 5])],
    )
    with pytest.raises(
        ValueError, match=r"needs an image of the 100 x 9 pixels .*; correct this image or remove it"
    ):
        open_coco(f"coco:{tmp_path}:{tmp_path / 'annotations' / 'instances_val.json'}", on_fault="skip")


def test_a_picture_that_changes_its_size_later_is_named(tmp_path: Path) -> None:
    split = open_one(tmp_path, IMAGES, [GOOD]).test
    picture(5, height=50, width=60).save(tmp_path / "5.png")
    with pytest.raises(
        ValueError, match=r"50x60 in .*/5\.png, the size of image 5 in .*boxes\.json, got 60x50; restore"
    ):
        split.image(1)
    assert split.image(0).shape == (3, 80, 100)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    split = open_one(tmp_path, IMAGES, [GOOD]).test
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*/5\.png \(100 bytes"):
        split.image(1)


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


GOOD = annotation(41, 11, [1, 2, 3, 4])


@pytest.mark.parametrize(
    "entry, message",
    [
        (without(GOOD, "bbox"), "needs the key 'bbox', got 'category_id, id, image_id' in"),
        (without(GOOD, "image_id"), "needs the key 'image_id'"),
        (without(GOOD, "category_id"), "needs the key 'category_id'"),
        ({**GOOD, "image_id": 12}, "needs image_id to be the id of one of the 3 images, got 12 in"),
        ({**GOOD, "image_id": "11"}, "needs image_id to be the id of one of the 3 images, got '11' in"),
        ({**GOOD, "category_id": 0}, "needs category_id to be the id of one of the 3 categories, got 0 in"),
        ({**GOOD, "bbox": [1, 2, 3]}, r"needs four finite numbers .* got \[1, 2, 3\] in"),
        ({**GOOD, "bbox": [1, 2, 3, "4"]}, "needs four finite numbers"),
        ({**GOOD, "bbox": [1, 2, 3, True]}, "needs four finite numbers"),
        ({**GOOD, "bbox": [1, 2, 3, float("nan")]}, "needs four finite numbers"),
        ({**GOOD, "bbox": [1, 2, float("inf"), 4]}, "needs four finite numbers"),
        ({**GOOD, "bbox": [1, 2, 10**400, 4]}, "needs four finite numbers"),
        ({**GOOD, "bbox": None}, "needs four finite numbers"),
        ({**GOOD, "bbox": [1, 2, -3, 4]}, r"without negative sides, got \[1, 2, -3, 4\] in"),
        (
            {**GOOD, "bbox": [100, 2, 3, 4]},
            r"overlaps its image of 100x80, got \[100, 2, 3, 4\] in",
        ),
        ({**GOOD, "bbox": [1, -4, 3, 4]}, "overlaps its image of 100x80"),
        ({**GOOD, "area": "big"}, "needs a finite number of pixels as area, got 'big' in"),
        ({**GOOD, "area": -1}, "needs a finite number of pixels as area, got -1 in"),
        ({**GOOD, "iscrowd": 2}, "needs 0 or 1 as iscrowd, got 2 in"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_one(tmp_path, IMAGES, [annotation(40, 8, [1, 1, 5, 5]), entry])
    assert f"annotation 41 of {tmp_path / 'boxes.json'}; correct this annotation" in str(caught.value)


def test_ids_are_whole_and_single(tmp_path: Path) -> None:
    for entry, got in ((without(GOOD, "id"), "None"), ({**GOOD, "id": 1.5}, "1.5"), ("no", "None")):
        with pytest.raises(ValueError, match=rf"got {got} in annotation number 1 of .*boxes\.json"):
            open_one(tmp_path, IMAGES, [annotation(40, 8, [1, 1, 5, 5]), entry])
    with pytest.raises(ValueError, match=r"got 'a second one' in annotation 41 of .*boxes\.json"):
        open_one(tmp_path, IMAGES, [GOOD, GOOD])
    with pytest.raises(ValueError, match=r"got 'a second one' in image 11 of .*boxes\.json"):
        open_one(tmp_path, [*IMAGES, IMAGES[0]], [])
    with pytest.raises(ValueError, match=r"got 'a second one' in category 7 of .*boxes\.json"):
        open_one(tmp_path, IMAGES, [], categories=[CATEGORIES[0], {"id": 7, "name": "other"}])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 0}, "positive whole number of pixels as width, got 0 in image 9 of"),
        ({"height": -3}, "positive whole number of pixels as height, got -3 in image 9 of"),
        ({"height": "80"}, "pixels as height, got '80' in image 9 of"),
        ({"file_name": ""}, "text as file_name, got '' in image 9 of"),
    ],
)
def test_a_broken_image_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_one(tmp_path, [*IMAGES, {**image(9), **change}], [])
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"needs the key '{key}', got .* in image 9 of"):
        open_one(tmp_path, [*IMAGES, without(image(9), key)], [])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    cases = [
        (b"{", r"got .*boxes\.json, which cannot be read"),
        (b"\xff\xfe\x00", r"got .*boxes\.json, which cannot be read"),
        (b"[]", r"without a list of images \(it has: a list\)"),
        (b'{"images": [], "annotations": []}', r"a list of categories \(it has: annotations, images\)"),
        (b'{"images": [], "annotations": [], "categories": [{}]}', "one or more images, got an empty list"),
        (b'{"images": [{}], "annotations": [], "categories": []}', "one or more categories, got an empty"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_annotations(path)


def test_blood_cells(shared_data: Path) -> None:
    root = shared_data / "bccd"
    data = open_coco(f"coco:{root}:{root / 'annotations'}")
    assert data.classes == ("RBC", "WBC", "Platelets")
    assert data.train is not None
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (205, 87, 72)
    counts = [
        sum(len(split.truth(k).boxes) for k in range(len(split)))
        for split in (data.train, data.val, data.test)
    ]
    assert counts == [2804, 1137, 945]
    assert data.train.truth(0).boxes[0].tolist() == [67, 314, 286, 480]
    assert data.train.image(0).shape == (3, 480, 640)


def test_a_piece_of_coco(shared_data: Path) -> None:
    root = shared_data / "tiny_coco"
    data = open_coco(f"coco:{root}:{root / 'annotations'}")
    assert data.val is None
    assert len(data.classes) == 80
    assert (data.classes[11], data.category_ids[11]) == ("stop sign", 13)  # COCO has no category 12
    split = data.test
    assert Path(split.folder).name == "val2017"
    found = split.annotations
    assert (len(found["images"]), len(found["annotations"])) == (50, 382)
    truth = [split.truth(k) for k in range(50)]
    assert sum(len(t.crowd) for t in truth) == 5
    assert sum(len(t.boxes) for t in truth) == 377
    first = found["annotations"][0]
    assert first["image_id"] == split.image_ids[0]
    left, top, width, height = first["bbox"]
    expected = torch.tensor([left, top, left + width, top + height])
    assert torch.equal(truth[0].boxes[0], expected)
    assert data.category_ids[int(truth[0].label[0]) - 1] == first["category_id"]
    for k in range(0, 50, 10):
        assert split.image(k).shape[1:] == split.size(k)


def test_cocos_own_reader_takes_the_annotations(shared_data: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    root = shared_data / "tiny_coco"
    split = open_coco(f"coco:{root}:{root / 'annotations'}").test.subset(torch.arange(10))
    theirs = coco.COCO(str(root / "annotations" / "instances_val2017.json"))
    rows = theirs.loadAnns(theirs.getAnnIds(imgIds=split.image_ids))
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    expected = sorted(({key: row[key] for key in keys} for row in rows), key=lambda row: row["id"])
    assert len(expected) > 20
    assert sorted(split.annotations["annotations"], key=lambda row: row["id"]) == expected


def test_messages_have_three_parts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs") as caught:
        open_one(tmp_path, IMAGES, [{**GOOD, "bbox": [1, 2, -3, 4]}])
    assert re.fullmatch(r"data: needs .*, got .*; .*\.", str(caught.value))


def test_two_categories_of_one_name_are_refused(tmp_path):
    file = tmp_path / "boxes.json"
    image = {"id": 1, "file_name": "a.png", "height": 5, "width": 5}
    categories = [{"id": 1, "name": "cat"}, {"id": 7, "name": "cat"}]
    file.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    with pytest.raises(ValueError, match=r"needs a unique name, got 'cat' in category 7 of .*boxes\.json"):
        read_annotations(file)


def test_reading_takes_time_and_memory_by_the_number_of_boxes(tmp_path):
    """Polygons are freed as they are read, and no step compares every box with every image."""
    import time
    import tracemalloc

    def write_boxes(num: int, points: int) -> Path:
        images = [image(k) for k in range(num)]
        boxes = [
            annotation(k, k, [1, 1, 9, 9], segmentation=[[0.5] * points], keypoints=[1] * points)
            for k in range(num)
        ]
        return write_json(tmp_path / f"{num}-{points}.json", images, boxes)

    def peak(path: Path) -> int:
        tracemalloc.start()
        read_annotations(path)
        found = (
            tracemalloc.get_traced_memory()[1] - 2 * path.stat().st_size
        )  # the text as bytes and as a string
        tracemalloc.stop()
        return found

    assert peak(write_boxes(1000, 400)) < 1.5 * peak(write_boxes(1000, 2)) + 1e6

    def seconds(num: int) -> float:
        path, start = write_boxes(num, 2), time.process_time()
        read_annotations(path)
        return time.process_time() - start

    assert seconds(8000) < 24 * seconds(1000)  # 64 times if quadratic


def test_the_collector_is_left_as_it_was(tmp_path):
    import gc

    path = write_json(tmp_path / "boxes.json", IMAGES, ANNOTATIONS)
    for set_to in (gc.disable, gc.enable):
        set_to()
        was = gc.isenabled()
        read_annotations(path)
        assert gc.isenabled() == was


@pytest.mark.parametrize("area, noted", [(0, True), (90_000, True), (12, False), (5, False)])
def test_areas_that_are_not_of_their_boxes_are_noted(tmp_path, area, noted):
    """AP by size goes by the area: one of 0, or of the picture before it was resized, puts an object elsewhere."""
    boxes = [annotation(40 + k, 8, [1, 1 + k, 3, 4], area=area) for k in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_one(tmp_path, IMAGES, boxes)
    said = [str(one.message) for one in caught]
    assert len(said) == noted
    assert all(
        f"3 of 3 annotations in {tmp_path / 'boxes.json'} have an area of 0 or one larger" in one
        for one in said
    )


def test_classes_that_differ_in_spelling_are_noted(tmp_path):
    categories = [
        {"id": 3, "name": "traffic light"},
        {"id": 4, "name": "Traffic_Light"},
        {"id": 5, "name": "cat"},
    ]
    write_pictures(tmp_path / "images", IMAGES)
    path = write_json(tmp_path / "boxes.json", IMAGES, [GOOD], categories)
    with pytest.warns(DataWarning, match=r"'traffic light' and 'Traffic_Light' are classes of their own"):
        open_boxes(f"coco:{tmp_path / 'images'}:{path}")


def test_pictures_that_lie_on_their_side_in_cocos_file_are_noted(tmp_path):
    path = write_json(
        tmp_path / "annotations" / "instances_val.json",
        [image(1), image(2)],
        [annotation(1, 1, [5, 6, 20, 30])],
    )
    write_pictures(tmp_path / "val", [image(1), image(2)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, height=80, width=100).save(tmp_path / "val" / "1.png", exif=exif)
    with pytest.warns(DataWarning, match=r"1 of 2 images of .* have an EXIF orientation .*val/1\.png\)"):
        data = open_coco(f"coco:{tmp_path}:{path}")
    assert data.test.image(0).shape == (3, 80, 100)


def test_classes_without_a_box_to_train_on_are_noted(tmp_path):
    """One has no box in the training images, one a box that is too small to train on."""
    for split, number, category in (("train", 1, 7), ("val", 2, 3)):
        images = [image(number)]
        boxes = [
            annotation(1, number, [9, 5, 20, 20], category_id=category),
            annotation(2, number, [20, 5, 20, 0.5 if split == "train" else 20], category_id=20),
            annotation(3, number, [40, 5, 20, 20], category_id=7),
        ]
        write_json(tmp_path / "annotations" / f"instances_{split}.json", images, boxes)
        write_pictures(tmp_path / split, images)
    with pytest.warns(
        DataWarning, match=r"2 of 3 classes have objects in the test .* no box to train on \(dog, bird\)"
    ):
        open_coco(f"coco:{tmp_path}:{tmp_path / 'annotations'}")
