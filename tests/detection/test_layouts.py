"""One data set in every layout: the same images, the same boxes, the same classes."""

import itertools
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from outgrow.data import DataWarning
from outgrow.detection.data import open_boxes
from outgrow.detection.layouts.annotations import read_annotations
from outgrow.detection.layouts.listed import pictures_in
from outgrow.detection.layouts.voc import voc_pictures
from outgrow.detection.unlabelled import open_pictures
from outgrow.run.tasks import task_name

from .coco_files import annotation, image, write_json, write_pictures
from .layouts import LAYOUTS, roboflow, voc, yolo

# a file of labels that is spoilt here often has the only box of a class
pytestmark = pytest.mark.filterwarnings("ignore:.*no box to train on:outgrow.data.DataWarning")

IMAGES = [image(k, height=40 + k, width=60 + k) for k in range(1, 5)]
BOXES = [
    annotation(10 + k, 1 + k % 3, [5 + k, 6, 20, 30 - k], category_id=(3, 7, 20)[k % 3]) for k in range(9)
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(root: Path, *splits: str) -> tuple[Path, Path]:
    """Pictures of their own for each split, so that none is there twice."""
    for place, split in enumerate(splits or ("train", "val")):
        images = [
            {**entry, "id": entry["id"] + 20 * place, "file_name": f"{split}{entry['id']}.png"}
            for entry in IMAGES
        ]
        boxes = [{**box, "image_id": box["image_id"] + 20 * place} for box in BOXES]
        write_pictures(root / split, images)
        write_json(root / "annotations" / f"instances_{split}.json", images, boxes)
    return root, root / "annotations"


def by_picture(split, classes):
    """The picture's bytes, its boxes and the names of their classes, in the order of the pictures."""
    found = {}
    for at in range(len(split)):
        truth = split.truth(at)
        names = [classes[label - 1] for label in truth.label.tolist()]
        found[split.encoded(at)] = (split.size(at), names, truth.boxes, len(truth.crowd), split.image(at))
    return found


def compare(one, other, *, exactly=False):
    for name in ("train", "val", "test"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        here, there = by_picture(ours, one.classes), by_picture(theirs, other.classes)
        assert here.keys() == there.keys()
        for key, (size, names, boxes, crowds, pixels) in here.items():
            assert (size, names, crowds) == (there[key][0], there[key][1], there[key][3])
            torch.testing.assert_close(boxes, there[key][2], rtol=0, atol=1e-4)
            assert torch.equal(pixels, there[key][4])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("splits", [("train", "val"), ("train", "val", "test")], ids="-".join)
def test_every_layout_is_read_alike(layout, splits, tmp_path):
    images, annotations = write(tmp_path / "coco", *splits)
    expected = open_boxes(f"coco:{images}:{annotations}")
    source = LAYOUTS[layout](images, annotations, tmp_path / "other")
    assert task_name(source) == "detection"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_boxes(source)
    assert set(found.classes) == set(expected.classes)
    compare(found, expected)
    assert (found.faults, found.notes, found.duplicates) == ((), (), 0)
    assert open_boxes(source).fingerprint == found.fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blood_cells_in_every_layout(layout, tmp_path, shared_data):
    root = shared_data / "bccd"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        expected = open_boxes(f"coco:{root}:{root / 'annotations'}")
        found = open_boxes(LAYOUTS[layout](root, root / "annotations", tmp_path / "other"))
    assert set(found.classes) == set(expected.classes)
    compare(found, expected)


def test_cocos_own_folder(tmp_path):
    images, annotations = write(tmp_path)
    compare(open_boxes(f"coco:{images}"), open_boxes(f"coco:{images}:{annotations}"))
    with pytest.raises(ValueError, match=r"needs train/_annotations\.coco\.json .* got neither"):
        open_boxes(f"coco:{images / 'train'}")


# --- faults


def test_all_faults_of_a_file_are_said_at_once(tmp_path):
    bad = [annotation(100 + k, 1, [1, 2, -3, 4]) for k in range(11)]
    bad += [annotation(200, 99, [1, 2, 3, 4])]
    images = [*IMAGES, {**image(9), "width": 0}]
    on_it = annotation(300, 9, [1, 2, 3, 4])  # goes with its image, and is no fault of its own
    path = write_json(tmp_path / "b.json", images, [*BOXES, *bad, on_it])
    with pytest.raises(ValueError, match=r"got 13 with faults in .*b\.json") as caught:
        read_annotations(path)
    text = str(caught.value)
    assert "image 9 of" in text
    assert "annotation 108 of" in text
    assert "annotation 110 of" not in text
    assert "and 3 more); correct them, or leave them out with --set data.on_fault=skip." in text
    file = read_annotations(path, on_fault="skip")
    assert len(file.ids) == len(BOXES)
    assert len(file.names) == len(IMAGES)
    assert len(file.faults) == 13
    assert "left out 13 images and annotations of" in file.notes[0]
    with pytest.raises(ValueError, match="positive whole number of pixels as width, got 0 in image 9"):
        read_annotations(write_json(tmp_path / "c.json", [{**image(9), "width": 0}], []), on_fault="skip")


PLACES = {
    "coco": r"annotation 10 of \S*instances_{split}\.json",
    "roboflow": r"annotation 10 of \S*{folder}/_annotations\.coco\.json",
    "yolo": r"line 1 of \S*{folder}/labels/{split}1\.txt",
    "voc": r"object 1 of \S*{split}1\.xml",
    "hub": r"object 0 of row 0 of \S* \({split}\)",
}


def spoil(layout, root, split):
    """A box of negative width in each split."""
    if layout == "yolo":
        (path,) = (root / {"val": "valid"}.get(split, split) / "labels").glob(f"{split}1.txt")
        path.write_text(f"9 0.5 0.5 0.1 0.1\n{path.read_text()}")
    elif layout == "voc":
        path = root / "Annotations" / f"{split}1.xml"
        path.write_text(path.read_text().replace("<xmax>25", "<xmax>2"))
    else:
        path = root / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"][2] = -1
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("layout", ["coco", *LAYOUTS])
def test_the_faults_of_all_splits_are_said_at_once(layout, tmp_path):
    root, annotations = write(tmp_path / "coco", "train", "val", "test")
    early = layout in ("coco", "roboflow", "hub")
    for split in ("train", "val") if early else ():
        spoil("coco", root, split)
    source = f"coco:{root}"
    if layout != "coco":
        source = LAYOUTS[layout](root, annotations, tmp_path / "other")
    for split in () if early else ("train", "val"):
        spoil(layout, tmp_path / "other", split)
    with pytest.raises(
        ValueError, match=r"^data: needs entries .* got 2 with faults in .*train.* and .*val"
    ) as caught:
        open_boxes(source)
    for split in ("train", "val"):
        assert re.search(
            PLACES[layout].format(split=split, folder={"val": "valid"}.get(split, split)), str(caught.value)
        )
    with pytest.warns(DataWarning, match="left out 1 images and annotations"):
        assert len(open_boxes(source, on_fault="skip").faults) == 2


def test_what_was_skipped_is_in_the_record(tmp_path):
    images, annotations = write(tmp_path)
    path = annotations / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"].append(annotation(99, 1, [1, 2, -3, 4]))
    path.write_text(json.dumps(content))
    source = f"coco:{images}:{annotations}"
    with pytest.raises(ValueError, match=r"without negative sides, got .* in annotation 99 of"):
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out 1 images and annotations"):
        data = open_boxes(source, on_fault="skip")
    assert len(data.faults) == 1
    assert "annotation 99 of" in data.faults[0]
    assert data.train is not None
    assert sum(len(data.train.truth(k).boxes) for k in range(4)) == 9


@pytest.mark.parametrize("layout", ["coco", *LAYOUTS])
def test_a_picture_whose_boxes_are_all_faulty_is_left_out(layout, tmp_path):
    """Nobody knows what is in it, so it is no picture of background. Others keep the boxes that are left."""
    root, annotations = write(tmp_path / "coco")
    for path in sorted(annotations.iterdir()):
        content = json.loads(path.read_text())
        first, second = (entry["id"] for entry in content["images"][:2])
        spoilt = [entry for entry in content["annotations"] if entry["image_id"] == first]
        spoilt += [entry for entry in content["annotations"] if entry["image_id"] == second][:1]
        for entry in spoilt:
            entry["bbox"][2] *= -1
        path.write_text(json.dumps(content))
    source = f"coco:{root}"
    if layout != "coco":
        source = LAYOUTS[layout](root, annotations, tmp_path / "other")
    with pytest.raises(ValueError, match="got 8 with faults in"):  # of the boxes alone
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out"):
        data = open_boxes(source, on_fault="skip")
    sizes = [(entry["height"], entry["width"]) for entry in IMAGES[1:]]
    for name, split in (("train", data.train), ("val", data.test)):
        assert split is not None
        assert [split.size(at) for at in range(len(split))] == sizes
        assert [len(split.truth(at).boxes) for at in range(len(split))] == [2, 3, 0]
        assert [split.image(at).shape[1:] for at in range(len(split))] == sizes
        assert len(split.annotations["images"]) == 3
        picture = "00000000" if layout == "hub" else f"{name}1.png"
        said = [note for note in data.notes if "left out 1 of 4 images of" in note and picture in note]
        assert len(said) == len(set(said)) == (2 if layout == "hub" else 1)  # its name is the same in all
        fault = rf"image {picture} of .*{name}.*: needs a box without a fault, got '3 with faults'"
        if layout != "roboflow" or name == "train":  # where the folder is called valid
            assert sum(bool(re.fullmatch(fault, one)) for one in data.faults) == 1
    assert len(data.faults) == 2 * 5


@pytest.mark.parametrize(
    "fault",
    [
        {"bbox": None},
        {"bbox": ...},  # none
        {"bbox": [200, 200, 9, 9]},
        {"bbox": [0.1, 0.2, 0.3, 0.4]},
        {"category_id": 99},
        {"category_id": [3]},
        {"area": -1},
        {"id": 11},
        {"id": None},
        {"id": ...},
        {"image_id": 4.0},
    ],
)
def test_any_fault_of_its_only_box_leaves_a_picture_out(fault, tmp_path):
    entry = {key: value for key, value in (annotation(50, 4, [1, 2, 30, 20]) | fault).items() if value != ...}
    path = write_json(tmp_path / "a.json", IMAGES, [*BOXES, entry])
    file = read_annotations(path, on_fault="skip")
    assert (file.names, len(file.faults)) == (("1.png", "2.png", "3.png"), 2)
    assert len(file.ids) == len(BOXES)
    assert "left out 1 of 4 images of" in file.notes[1]
    assert "(4.png)" in file.notes[1]


def test_a_split_of_faults_alone_is_refused(tmp_path):
    bad = [annotation(k, k, [1, 2, -3, 4]) for k in range(1, 5)]
    path = write_json(tmp_path / "a.json", IMAGES, bad)
    with pytest.raises(ValueError, match=r"got 4 with faults in .*\); correct them\.$"):
        read_annotations(path, on_fault="skip")


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.1", "needs four shares .* got '0 0.5 0.5 0.1' in line 4 of .*train1.txt"),
        ("7 0.5 0.5 0.1 0.1", "needs a class from 0 to 2, got .* in line 4"),
        ("0 30 20 10 12", "shares of the image between 0 and 1, not pixels, got '0 30 20 10 12'"),
        ("cat 0.5 0.5 0.1 0.1", "needs a class and four shares"),
        ("0 0.5 nan 0.1 0.1", "needs four shares"),
        ("nan 0.5 0.5 0.1 0.1", "needs a class from 0 to 2"),
        ("inf 0.5 0.5 0.1 0.1", "needs a class from 0 to 2"),
    ],
)
def test_faults_in_yolos_labels(line, message, tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "train" / "labels" / "train1.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ValueError, match=message):
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out 1 images and annotations"):
        data = open_boxes(source, on_fault="skip")
    assert "line 4 of" in data.faults[0]


def test_yolos_polygons_and_images_without_labels(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    labels = tmp_path / "other" / "train" / "labels"
    (labels / "train1.txt").write_text("1 0.1 0.2 0.5 0.3 0.4 0.9\n")
    data = open_boxes(source)
    assert data.train is not None
    at = [data.train.name(k) for k in range(4)].index("train1.png")
    height, width = data.train.size(at)
    expected = torch.tensor([[0.1 * width, 0.2 * height, 0.5 * width, 0.9 * height]])
    torch.testing.assert_close(data.train.truth(at).boxes, expected)
    empty = [data.train.name(k) for k in range(4)].index("train4.png")
    assert not len(data.train.truth(empty).boxes)
    for path in labels.iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"needs a text file of labels .* got none such as .*labels/train1\.txt"
    ):
        open_boxes(source)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/train1.png", "@eaDir/train1.png", "._train1.png"])
def test_what_a_system_leaves_among_the_pictures_is_none(hidden, tmp_path):
    """It has no file of labels, so it would be trained on as an image without an object."""
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    images = tmp_path / "other" / "train" / "images"
    (images / hidden).parent.mkdir(exist_ok=True)
    Image.new("RGB", (60, 40)).save(images / hidden)
    data = open_boxes(source)
    assert data.train is not None
    assert sorted(data.train.file.names) == [f"train{k}.png" for k in range(1, 5)]
    assert pictures_in(images) == sorted(images.glob("train*.png"))


def test_vocs_pictures_without_a_list_are_those_of_its_folder(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    (tmp_path / "other" / "ImageSets" / "Main" / "train.txt").unlink()
    (tmp_path / "other" / "JPEGImages" / "._train1.png").write_bytes(b"\0\5\x16\7")
    names = voc_pictures(source, str(tmp_path / "other"), "refuse").file.names
    assert sorted(names) == [f"{split}{k}.png" for split in ("train", "val") for k in range(1, 5)]


def test_a_split_has_one_folder_by_the_names_that_folders_have(tmp_path):
    source = roboflow(*write(tmp_path / "coco"), tmp_path / "other")
    (tmp_path / "other" / "train").rename(tmp_path / "other" / "Training")
    assert len(open_boxes(source).train) == 4
    pictures = open_pictures(f"folder:{tmp_path / 'other'}", known={})
    assert sorted(pictures.split.file.names) == [f"train{k}.png" for k in range(1, 5)]
    shutil.copytree(tmp_path / "other" / "valid", tmp_path / "other" / "val")
    with pytest.raises(ValueError, match=r"needs one folder of val images in .*, got val and valid; merge"):
        open_boxes(source)


def test_yolos_file_of_paths_and_named_numbers(tmp_path):
    yolo(*write(tmp_path / "coco"), tmp_path / "other")
    other = tmp_path / "other"
    names = [path.name for path in sorted((other / "valid" / "images").iterdir())]
    (other / "val.txt").write_text("\n".join(f"valid/images/{name}" for name in names))
    (other / "data.yaml").write_text("path: .\nval: val.txt\nnames: {0: dog, 1: cat, 2: bird}\n")
    data = open_boxes(f"yolo:{other}")
    assert (data.train, len(data.test), data.classes) == (None, 4, ("dog", "cat", "bird"))
    (other / "val.txt").write_text("\n".join(f"valid/images/{name}" for name in [*names, names[0]]))
    with pytest.raises(
        ValueError, match=r"needs one id for val1\.png, which is also image 0, got 'a second one' in image 4"
    ):
        open_boxes(f"yolo:{other}")
    for text, message in (
        ("val: val.txt\n", "needs the names of the classes"),
        ("val: val.txt\nnames: [a, a]\n", "needs the names of the classes"),
        ("val: val.txt\nnames: [yes, no]\n", r"got names: \[True, False\]; add them, and put yes, no"),
        (
            "val: val.txt\nnc: 3\nnames: [a, b]\n",
            "needs as many names as classes in .* got 2 names and nc: 3",
        ),
        ("val: val.txt\nkpt_shape: 5\nnames: [a, b, c]\n", "needs two numbers as kpt_shape in .* got 5"),
        ("names: [a]\n", r"needs images to report on \(val or test\), got none"),
        ("val: nowhere\nnames: [a]\n", "needs a folder of images or a text file of paths as val"),
        ("- 1\n", "needs train, val and names in"),
        ("a: [", "needs a YAML file"),
    ):
        (other / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_boxes(f"yolo:{other}")


def test_yolos_missing_pictures_are_left_out(tmp_path):
    yolo(*write(tmp_path / "coco"), tmp_path / "other")
    other = tmp_path / "other"
    paths = ["gone/a.png", *(str(path) for path in sorted((other / "valid" / "images").iterdir()))]
    (other / "val.txt").write_text("\n".join(paths))
    (other / "data.yaml").write_text("val: val.txt\nnames: [dog, cat, bird]\n")
    with pytest.raises(
        ValueError, match=r"needs an existing file, got '\S*/gone/a\.png' in image .*gone/a\.png of"
    ):
        open_boxes(f"yolo:{other}")
    with pytest.warns(DataWarning, match="left out 1 images"):
        data = open_boxes(f"yolo:{other}", on_fault="skip")
    assert (len(data.test), len(data.faults)) == (4, 1)


def test_yolos_duplicates_and_tiny_boxes_are_named_by_their_lines(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "train" / "labels" / "train1.txt"
    line = path.read_text().splitlines()[0]
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.warns(DataWarning, match=r"count once \(line 4 of \S*train1.txt is line 1 of"):
        open_boxes(source)
    for one in path.parent.iterdir():
        one.write_text("0 0.5 0.5 0.01 0.01\n")
    with pytest.raises(ValueError, match=r"smaller ones in .* \(line 1 of .*: .*\); a box is its centre"):
        open_boxes(source)


def test_yolos_smallest_boxes_are_no_shares(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "train" / "labels" / "train1.txt"
    path.write_text(f"{path.read_text()}0 0.005 0.005 0.005 0.005\n")
    with pytest.warns(DataWarning, match=r"1 of 10 boxes in .* not trained on \(line 4 of .*train1\.txt\)"):
        assert open_boxes(source).faults == ()


def test_vocs_marks_and_faults(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "Annotations" / "train1.xml"
    whole = path.read_text()
    path.write_text(whole.replace("<bndbox>", "<difficult>1</difficult><bndbox>", 1))
    data = open_boxes(source)
    assert data.train is not None
    at = [data.train.name(k) for k in range(4)].index("train1.png")
    assert (len(data.train.truth(at).boxes), len(data.train.truth(at).crowd)) == (2, 1)
    for text, message in (
        (whole[:-20], r"needs XML that can be read, got .* in .*train1\.xml"),
        (whole.replace("<xmin>6", "<xmin>x"), "needs four numbers as bndbox, got .* in object 1 of"),
        (whole.replace("<name>dog", "<name>", 1), "needs a name, got .* object 1 of .*train1"),
        (whole.replace("<xmax>25", "<xmax>2"), "without negative sides, got .* object 1 of .*train1"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>", "it defines entities"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_boxes(source)
        with pytest.warns(DataWarning, match="left out"):
            assert len(open_boxes(source, on_fault="skip").faults) == 1
    with pytest.raises(ValueError, match="got no Annotations in"):
        open_boxes(f"voc:{tmp_path}")


def test_vocs_trainval_has_the_pictures_to_report_on(tmp_path):
    """Beside val.txt nobody may train on it; without, it is what there is."""
    source = voc(*write(tmp_path / "coco", "train", "val", "test"), tmp_path / "other")
    lists = tmp_path / "other" / "ImageSets" / "Main"
    both = (lists / "train.txt").read_text() + (lists / "val.txt").read_text()
    (lists / "trainval.txt").write_text(both)
    assert len(open_boxes(source).train) == 4
    (lists / "train.txt").unlink()
    with pytest.warns(DataWarning, match=r"trainval\.txt in .* not trained on, as it has .* of val\.txt"):
        data = open_boxes(source)
    assert (data.train, len(data.val), len(data.test)) == (None, 4, 4)
    (lists / "val.txt").unlink()
    assert len(open_boxes(source).train) == 8


def test_vocs_objects_are_found_in_a_namespace(tmp_path):
    """Without one in all files, as if somebody had labelled a part with another tool."""
    images, annotations = write(tmp_path / "coco")
    source = voc(images, annotations, tmp_path / "other")
    path = tmp_path / "other" / "Annotations" / "train1.xml"
    path.write_text(path.read_text().replace("<annotation>", '<annotation xmlns="http://a/b">'))
    compare(open_boxes(source), open_boxes(f"coco:{images}:{annotations}"))
    path.write_text("<annotations><image><box/></image></annotations>")
    with pytest.raises(ValueError, match=r"XML that can be read, got 'it is of annotations, not of annot"):
        open_boxes(source)


def test_a_picture_of_another_size_than_its_annotation_is_a_fault(tmp_path):
    """Somebody has shrunk the pictures and left the boxes."""
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    path, picture = (
        tmp_path / "other" / name for name in ("Annotations/train1.xml", "JPEGImages/train1.png")
    )
    whole = path.read_text()
    with Image.open(picture) as image:
        width, height = image.size

    def stated(wide, high):
        return f"<size><width>{wide}</width><height>{high}</height><depth>3</depth></size><object>"

    for size in ((width, height), (0, 0), ("", "")):
        path.write_text(whole.replace("<object>", stated(*size), 1))
        assert open_boxes(source).train is not None
    path.write_text(whole.replace("<object>", stated(2 * width, 2 * height), 1))
    message = rf"needs an image of the {2 * width} x {2 * height} pixels that its annotation states, got .*{width} x {height}"
    with pytest.raises(ValueError, match=message):
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out"):
        assert len(open_boxes(source, on_fault="skip").faults) == 1


def test_a_bomb_as_data_yaml_is_refused(tmp_path):
    lines = [
        "a: &a [x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghi")),
    ]
    for text in ("\n".join([*lines, "names: *i"]), "names: " + "[" * 5000):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(
            ValueError, match=r"needs a YAML file, got .*, which cannot be read .*; restore it"
        ):
            open_boxes(f"yolo:{tmp_path / 'data.yaml'}")


def test_vocs_corners_from_0(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "Annotations" / "train1.xml"
    path.write_text(path.read_text().replace("<xmin>6", "<xmin>0"))
    data = open_boxes(source)
    assert data.train is not None
    at = [data.train.name(k) for k in range(4)].index("train1.png")
    assert data.train.truth(at).boxes[0].tolist() == [0, 7, 25, 36]


def test_a_corner_outside_of_its_picture_does_not_move_the_others(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "Annotations" / "train1.xml"
    before = open_boxes(source)
    path.write_text(path.read_text().replace("<xmin>6", "<xmin>-6"))
    with pytest.warns(
        DataWarning, match=r"1 of 9 boxes in .* cross the border .* \(object 1 of .*train1\.xml\)"
    ):
        after = open_boxes(source)
    for at in range(4):
        assert torch.equal(before.train.truth(at).boxes[:, 1:], after.train.truth(at).boxes[:, 1:])


@pytest.mark.parametrize("corners, said", [(True, "as left, top, right and bottom"), (False, "fractions")])
def test_boxes_of_another_format_are_refused_by_name(corners, said, tmp_path):
    source = roboflow(*write(tmp_path / "coco"), tmp_path / "other")
    path = tmp_path / "other" / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for box in content["annotations"]:
        left, top, wide, high = box["bbox"]
        box["bbox"] = (
            [left + 20, top, left + wide + 20, top + high]
            if corners
            else [left / 100, top / 100, wide / 100, high / 100]
        )
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        open_boxes(source)


@pytest.mark.parametrize("layout", [roboflow, yolo])
def test_boxes_by_their_centre_or_not_are_refused_where_they_cross_the_border(layout, tmp_path):
    for first, split in ((0, "train"), (3, "val")):
        images = [image(k) for k in range(first, first + 3)]
        places = [(35 * (n % 3) + 2, 28 * (n // 3) + 2) for n in range(9)]
        boxes = [
            annotation(9 * one["id"] + n, one["id"], [*places[n], 24, 20]) for one in images for n in range(9)
        ]
        write_json(tmp_path / "coco" / "annotations" / f"instances_{split}.json", images, boxes)
        write_pictures(tmp_path / "coco" / split, images)
    source = layout(tmp_path / "coco", tmp_path / "coco" / "annotations", tmp_path / "other")
    open_boxes(source)
    for path in (tmp_path / "other" / "train").rglob("*" if layout is yolo else "*.json"):
        if path.suffix == ".txt":
            numbers = [[float(one) for one in line.split()] for line in path.read_text().splitlines()]
            path.write_text("\n".join(f"{k:g} {x - w / 2} {y - h / 2} {w} {h}" for k, x, y, w, h in numbers))
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
            for one in content["annotations"]:
                left, top, wide, high = one["bbox"]
                one["bbox"] = [left + wide / 2, top + high / 2, wide, high]
            path.write_text(json.dumps(content))
    said = {
        yolo: "boxes as centre x, .* would fit as left, top, width",
        roboflow: "boxes as left, .* would fit as centre x",
    }
    with pytest.raises(ValueError, match=said[layout]):
        open_boxes(source)


def test_yolos_corners_are_refused(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    for path in (tmp_path / "other" / "train" / "labels").iterdir():
        numbers = [[float(one) for one in line.split()] for line in path.read_text().splitlines()]
        path.write_text(
            "\n".join(f"{k:g} {x - w / 2} {y - h / 2} {x + w / 2} {y + h / 2}" for k, x, y, w, h in numbers)
        )
    with pytest.raises(
        ValueError, match=r"needs boxes as centre x.*line 1 of .*fit as left, top, right and bottom"
    ):
        open_boxes(source)


def test_a_source_of_no_kind():
    for source in ("boxes:x", "yolo:", "coco"):
        with pytest.raises(ValueError, match=r"needs coco:IMAGES:ANNOTATIONS, coco:FOLDER, yolo:DATA\.yaml"):
            open_boxes(source)


@pytest.mark.filterwarnings("ignore:.*have no picture of that name")
def test_pictures_without_labels_are_noted_where_they_are_many(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    labels = tmp_path / "other" / "train" / "labels"
    (labels / "train2.txt").rename(labels / "train2.png.txt")
    with pytest.warns(
        DataWarning, match=r"2 of 4 images of train in .* have no file of labels .*no .*train2\.txt"
    ):
        open_boxes(source)


def test_labels_whose_picture_is_not_read_are_noted(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    train = tmp_path / "other" / "train"
    (train / "labels" / "classes.txt").write_text("dog\ncat\nbird\n")
    assert len(open_boxes(source).train) == 4
    (train / "images" / "train2.png").rename(train / "images" / "train2.heic")
    with pytest.warns(
        DataWarning, match=r"1 files of labels for train in .* no picture of .*labels/train2\.txt\)"
    ):
        assert len(open_boxes(source).train) == 3


def test_yolos_labels_are_of_one_picture(tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    images = tmp_path / "other" / "train" / "images"
    Image.open(images / "train2.png").save(images / "train2.jpg")
    with pytest.raises(
        ValueError, match=r"needs to be the only picture of .*train2\.txt, got .2 of that name"
    ):
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out 2 images"):
        assert len(open_boxes(source, on_fault="skip").train) == 3


@pytest.mark.parametrize("more, fits", [("0.2 0.3 0.1 0.9", True), ("", True), ("0.2 0.3", False)])
def test_yolos_keypoints_are_no_polygon(more, fits, tmp_path):
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    facts = tmp_path / "other" / "data.yaml"
    facts.write_text(f"{facts.read_text()}\nkpt_shape: [2, 2]\n")
    path = tmp_path / "other" / "train" / "labels" / "train1.txt"
    box = path.read_text().splitlines()[0]
    path.write_text(f"{box} {more}\n")
    if not fits:
        with pytest.raises(ValueError, match=r"four shares .* and 4 numbers of keypoints, got .* line 1"):
            open_boxes(source)
        return
    found = open_boxes(source)
    at = [found.train.name(k) for k in range(4)].index("train1.png")
    x, y, wide, high = (float(value) for value in box.split()[1:])
    height, width = found.train.size(at)
    expected = [
        (x - wide / 2) * width,
        (y - high / 2) * height,
        (x + wide / 2) * width,
        (y + high / 2) * height,
    ]
    torch.testing.assert_close(found.train.truth(at).boxes, torch.tensor([expected]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_a_mark_of_the_byte_order_is_no_text(layout, tmp_path):
    source = LAYOUTS[layout](*write(tmp_path / "coco"), tmp_path / "other")
    expected = open_boxes(source)
    path = {"yolo": "train/labels/train1.txt", "voc": "ImageSets/Main/train.txt"}[layout]
    file = tmp_path / "other" / path
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    compare(expected, open_boxes(source))


def test_vocs_names_may_have_spaces(tmp_path):
    images, annotations = write(tmp_path / "coco")
    source = voc(images, annotations, tmp_path / "other")
    for name in ("JPEGImages/{}.png", "Annotations/{}.xml"):
        (tmp_path / "other" / name.format("train1")).rename(tmp_path / "other" / name.format("a picture 1"))
    path = tmp_path / "other" / "ImageSets/Main/train.txt"
    path.write_text(path.read_text().replace("train1", "a picture 1").replace("train2", "train2  -1"))
    compare(open_boxes(f"coco:{images}:{annotations}"), open_boxes(source))


def test_a_picture_without_its_file_of_objects_is_none_without_objects(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    (tmp_path / "other" / "Annotations" / "train1.xml").unlink()
    with pytest.raises(ValueError, match=r"needs XML that can be read, got 'no file' in .*train1\.xml"):
        open_boxes(source)
    with pytest.warns(DataWarning, match="left out 1 images"):
        data = open_boxes(source, on_fault="skip")
    assert data.classes == ("bird", "cat", "dog")
    assert data.train is not None
    assert len(data.train) == 3


def test_vocs_picture_is_one_file(tmp_path):
    source = voc(*write(tmp_path / "coco"), tmp_path / "other")
    folder = tmp_path / "other" / "JPEGImages"
    (folder / "train1.png").rename(folder / "train1.jpg")
    Image.new("RGB", (9, 9)).save(folder / "train1.bmp")
    with pytest.raises(
        ValueError, match=r"needs one picture .* got 'train1\.bmp and train1\.jpg' in image train1"
    ):
        open_boxes(source)


def test_every_box_of_a_row_has_its_category(tmp_path):
    import datasets

    lists = {"bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float64")))}
    lists["category"] = datasets.Sequence(datasets.Value("string"))
    features = datasets.Features({"image": datasets.Image(), "objects": lists})
    root, _ = write(tmp_path / "coco")
    for split, number in (("train", 2), ("test", 1)):
        pictures = sorted((root / split.replace("test", "val")).iterdir())
        objects = {"bbox": [[1.0, 2.0, 9.0, 9.0], [20.0, 20.0, 9.0, 9.0]], "category": ["cat", "dog"]}
        rows = [
            {"image": {"bytes": one.read_bytes(), "path": one.name}, "objects": objects} for one in pictures
        ]
        rows[0] = {**rows[0], "objects": {**objects, "category": ["cat", "dog"][:number]}}
        path = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"needs as many values in category as in bbox, got '1 for 2' in row 0 of"
    ):
        open_boxes(f"hf:{tmp_path / 'hub'}")
    with pytest.warns(DataWarning, match="left out 1 images"):
        assert len(open_boxes(f"hf:{tmp_path / 'hub'}", on_fault="skip").test) == 3


@pytest.mark.parametrize("layout", ["coco", *LAYOUTS])
def test_a_picture_that_is_stored_upside_down(layout, tmp_path):
    """COCO's tools leave it so; YOLO, the hub's library and labelling tools turn it, and the boxes are for that."""
    root, annotations = write(tmp_path / "coco")
    path = root / "train" / "train1.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
        shown = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    source = f"coco:{root}:{annotations}"
    if layout != "coco":
        source = LAYOUTS[layout](root, annotations, tmp_path / "other")
    data = open_boxes(source)
    assert data.train is not None
    image = next(data.train.image(k) for k in range(4) if b"eXIf" in data.train.encoded(k))
    assert torch.equal(image, shown if layout in ("coco", "roboflow") else shown.flip(1, 2))


@pytest.mark.parametrize(
    "more, said",
    [
        ("{x} {y} 0 0", r"kpt_shape: \[2, 2\] into data\.yaml"),
        ("{x} {y} 1 0 0 0", r"kpt_shape: \[2, 3\] into data\.yaml"),
        ("{x} {y} 2 0 0 0", r"needs shares .* \(of keypoints kpt_shape in the YAML\), got"),
        ("{x} {y} 0.99 0.01", None),
    ],
)
def test_yolos_keypoints_without_their_shape_are_noted(more, said, tmp_path):
    root, annotations = write(tmp_path / "coco")
    source = yolo(root, annotations, tmp_path / "other")
    for path in (tmp_path / "other" / "train" / "labels").iterdir():
        lines = [line for line in path.read_text().splitlines() for _ in range(2)]
        path.write_text(
            "\n".join(f"{line} {more.format(x=line.split()[1], y=line.split()[2])}" for line in lines)
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if said is not None and said.startswith("needs"):
            with pytest.raises(ValueError, match=said):
                open_boxes(source)
            return
        open_boxes(source)
    notes = [str(one.message) for one in caught if "kpt_shape" in str(one.message)]
    assert len(notes) == (said is not None)
    assert all(re.search(rf"18 of 18 lines of labels for train in .* {said}", note) for note in notes)


def test_yolos_turned_rectangles_are_no_keypoints(tmp_path):
    """Small ones in the middle would be a box with two keypoints inside it, too."""
    source = yolo(*write(tmp_path / "coco"), tmp_path / "other")
    for path in (tmp_path / "other" / "train" / "labels").iterdir():
        path.write_text("".join(f"0 0.45 0.4 0.5 0.{42 + n} 0.48 0.{52 + n} 0.43 0.5\n" for n in range(5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*no box to train on")
        open_boxes(source)
