"""Pictures without annotations: no loss of a detector reads them, no label of theirs is read, and the student learns from the
teacher what they show."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import outgrow
from outgrow.detection.boxes import Detections, Scenes
from outgrow.detection.data import open_boxes
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.lesson import Balanced, Detect, balance
from outgrow.detection.loader import MixedScenes, make_scene_loader
from outgrow.detection.run_data import train_scenes
from outgrow.detection.unlabelled import marked, marked_by, open_pictures
from outgrow.losses.box import Box
from outgrow.models.taps import OBJECTS
from outgrow.outputs import UNLABELLED
from outgrow.run import distill
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from tests.detection.layouts import LAYOUTS
from tests.detection.scenes import CLASSES, scenes, truth
from tests.detection.test_knowledge import FAMILIES, LOSSES, lesson_of, make, refusal
from tests.detection.test_layouts import write as write_splits
from tests.detection.test_run import NAME, SHAPE, cells, small, weights  # noqa: F401  (fixtures)
from tests.run.stops import stopped_after

each = pytest.mark.parametrize("family", FAMILIES)


def unlabelled(boxes=((20, 10, 70, 50),), label=(2,)):
    """A picture of the size of the first of the shared scenes, so that a batch is padded to the same size."""
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(9))
    return image, replace(truth(boxes, label, index=11), labelled=False)


def with_unlabelled(batch, *more):
    images, seen = zip(*(more or (unlabelled(),)), strict=True)
    # between the labelled ones: a step may hold them in any order
    return Scenes(
        [*batch.images[:1], *images, *batch.images[1:]], [*batch.truth[:1], *seen, *batch.truth[1:]]
    )


def still(made):
    """A student in training mode whose step depends on nothing but its batch: frozen batch norms, no sampling."""
    made.train()
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    if made.family == "fasterrcnn":
        made.net.rpn.fg_bg_sampler.batch_size_per_image = 10**6
        made.net.roi_heads.fg_bg_sampler.batch_size_per_image = 10**6
    return made


def step(student, batch):
    torch.manual_seed(5)  # the noise of denoising queries
    student.zero_grad()
    answer = student(batch.images, batch.truth)
    answer.task.backward()
    return answer, [None if p.grad is None else p.grad.clone() for p in student.parameters()]


@each
def test_the_detectors_own_losses_leave_them_out(family):
    student = still(make(family))
    alone, gradient = step(student, scenes())
    mixed, other = step(student, with_unlabelled(scenes()))
    torch.testing.assert_close(mixed.task, alone.task, rtol=1e-4, atol=1e-5)
    scale = max(float(g.abs().max()) for g in gradient if g is not None)
    for one, two in zip(gradient, other, strict=True):
        if one is None:
            assert two is None or not two.any()
        else:
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4 * scale)
    assert len(mixed.outputs.logits) > len(alone.outputs.logits)


@each
def test_a_poisoned_label_changes_no_bit_of_the_task(family):
    student = still(make(family))
    one, gradient = step(student, with_unlabelled(scenes()))
    two, other = step(student, with_unlabelled(scenes(), unlabelled([[0, 0, 128, 96]], [3])))
    assert torch.equal(one.task, two.task)
    assert all(a is b or torch.equal(a, b) for a, b in zip(gradient, other, strict=True))


@each
def test_their_rows_have_no_label_and_the_teacher_teaches_on_them(family):
    student, teacher = still(make(family)), FrozenDetector(make(family, seed=1), CLASSES)
    batch = Scenes(*map(list, zip(unlabelled(), strict=True)))
    told = Detect()(student, teacher, batch)
    assert len(told.target.label) > 0
    assert (told.target.label == UNLABELLED).all()
    assert told.task.item() == 0.0
    rectify, objective = outgrow.preset("kd", rule="pair")
    knowledge = Balanced(rectify)(told.teacher, told.target)
    assert not knowledge.wrong.any()
    result = objective(told.student, knowledge, told.target, 0.5, told.task)
    result.total.backward()
    assert result.stats["unlabelled"] == 1.0
    gradients = [p.grad for p in student.parameters() if p.requires_grad]
    assert all(one is not None for one in gradients)  # DDP waits for all of them
    assert any(one.any() for one in gradients)


@each
def test_a_row_is_chosen_for_each_box_that_the_teacher_finds(family):
    batch = with_unlabelled(scenes(), unlabelled([[20, 10, 70, 50]], [2]))
    proposals = still(make(family))(batch.images, batch.truth).proposals
    assert ((proposals.label > 0) & (proposals.image == 1)).any()


@pytest.mark.parametrize("loss", LOSSES)
@each
def test_every_loss_runs_beside_them(family, loss):
    if refusal(family, family, loss) is not None:
        pytest.skip("refused for this family: tests/detection/test_knowledge.py")
    told, result = lesson_of(make(family), make(family, seed=1), loss, with_unlabelled(scenes()))
    assert result.total.isfinite()
    assert (told.target.label == UNLABELLED).any()


def test_boxes_are_learnt_where_the_teacher_finds_an_object():
    """``box`` compares with what the teacher found: its own box is the better one there."""
    student, teacher = make("fasterrcnn"), make("fasterrcnn", seed=1)
    batch = Scenes(*map(list, zip(unlabelled(), strict=True)))
    told, result = lesson_of(student, teacher, "box", batch)
    value = Box().rows(told.student, told.teacher, told.target)
    assert (value[told.teacher.features["box_iou"] == 0] == 0).all()
    assert (value > 0).any()
    assert result.terms["box"] > 0


@each
def test_the_objects_of_maps_are_those_that_the_teacher_finds(family):
    """What ``fgd`` weights by, of a picture without annotations as of any other."""
    batch = with_unlabelled(scenes(), unlabelled([[0, 0, 64, 48]], [2]))  # a quarter of the picture
    objects = Detect()(
        still(make(family)), FrozenDetector(make(family, seed=1), CLASSES), batch
    ).student.features[OBJECTS]
    left, top, right, bottom = objects[1, 0].tolist()
    assert (left, top) == (0, 0)
    assert 0.3 < right <= 0.51
    assert 0.3 < bottom <= 0.51
    assert not objects[1, 1:].any()


def test_objects_of_unlabelled_rows_are_those_that_the_teacher_sees():
    label = torch.tensor([UNLABELLED, UNLABELLED, UNLABELLED, UNLABELLED])
    logits = torch.tensor([[0.0, 3.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    weight = balance(outgrow.rectify(logits, outgrow.Target(label, may_ignore=True))).weight
    torch.testing.assert_close(weight, torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]))


# -- the pictures of a source --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(small):  # noqa: F811
    return open_boxes(small)


def known(data):
    return {"training": data.train, "test": data.test, "validation": data.val}


def test_pictures_of_the_labelled_data_are_left_out(labelled, shared_data, tmp_path):
    folder = tmp_path / "more" / "deep"
    folder.mkdir(parents=True)
    for split in (labelled.train, labelled.test):
        for at in range(2):
            (folder / f"{len(list(folder.iterdir()))}.jpg").write_bytes(split.encoded(at))
    with pytest.raises(
        ValueError, match=r"needs images that are not in the labelled data, got 4 that all are"
    ):
        open_pictures(f"folder:{tmp_path / 'more'}", known=known(labelled))
    others = sorted((shared_data / "bccd" / "val").glob("*.jpg"))[10:13]
    for other in others:
        shutil.copy(other, tmp_path / "more")
    found = open_pictures(f"folder:{tmp_path / 'more'}", known=known(labelled))
    assert sorted(found.split.name(at) for at in range(3)) == sorted(other.name for other in others)
    assert len(found.split) == 3
    assert not any(found.split.truth(at).labelled or len(found.split.truth(at).boxes) for at in range(3))
    assert [n for n in found.notes if "left out 2 of 7" in n and "test images" in n]
    assert found.split.image(0).shape[1:] == found.split.size(0)


def test_annotations_of_the_source_are_not_used(labelled, small, tmp_path):  # noqa: F811
    _, images, annotations = small.split(":")
    poisoned = tmp_path / "poisoned"
    shutil.copytree(annotations, poisoned)
    file = poisoned / "instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    one, two = (
        open_pictures(f"coco:{images}:{where}", known={"test": labelled.test})
        for where in (annotations, poisoned)
    )
    assert one.fingerprint == two.fingerprint
    assert len(one.split) == 6
    assert not one.split.file.num_objects


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """Pictures of a train and a val split with boxes, in COCO's layout."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return write_splits(tmp_path / "plain")


def content_of(file, **changes):
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def no_label_files(root):
    for path in root.rglob("labels"):
        shutil.rmtree(path)
    path = root / "data.yaml"
    path.write_text(path.read_text().split("nc:")[0])


def no_lists(root):
    shutil.rmtree(root / "Annotations")
    shutil.rmtree(root / "ImageSets")
    for path in (root / "JPEGImages").glob("val*"):
        path.unlink()


def no_objects(root):
    import datasets

    (path,) = (root / "data").glob("train*")
    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(root / "cache"))
    datasets.Dataset.from_list(
        list(data.select_columns("image").cast_column("image", datasets.Image(decode=False))),
        features=datasets.Features({"image": datasets.Image()}),
    ).to_parquet(path)
    next((root / "data").glob("valid*")).unlink()


STRIPPED = {
    "roboflow": lambda root: content_of(
        root / "train" / "_annotations.coco.json", annotations=None, categories=None
    ),
    "yolo": no_label_files,
    "voc": no_lists,
    "hub": no_objects,
}
SPOILED = {
    "roboflow": lambda root: content_of(
        root / "train" / "_annotations.coco.json", annotations=["none"], categories=[3]
    ),
    "yolo": lambda root: (root / "train" / "labels" / "train1.txt").write_text("9 40 50 60 70"),
    "voc": lambda root: (root / "Annotations" / "train1.xml").write_text("<annotation>"),
}


def names(found):
    return sorted(found.split.encoded(at) for at in range(len(found.split)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_of_pictures_needs_no_annotations(layout, plain, tmp_path):
    images, annotations = plain
    expected = open_pictures(f"folder:{images / 'train'}", known={})
    source = LAYOUTS[layout](images, annotations, tmp_path / "other")
    whole = open_pictures(source, known={})
    assert names(whole) == names(expected)
    assert len(names(whole)) == 4
    for spoil in (SPOILED.get(layout), STRIPPED[layout]):
        if spoil is not None:
            spoil(tmp_path / "other")
            found = open_pictures(source, known={})
            assert names(found) == names(whole)
            assert found.fingerprint == whole.fingerprint
            assert (found.notes, found.faults) == ((), ())
            assert found.split.image(0).shape[1:] == found.split.size(0)
    data = open_boxes(f"coco:{images}:{annotations}")
    with pytest.raises(ValueError, match="that are not in the labelled data, got 4 that all are"):
        open_pictures(source, known={"training": data.train})


@pytest.mark.parametrize("name", ["image_info_train.json", "instances_train.json"])
def test_cocos_unlabelled_set_lists_images_alone(name, plain):
    images, annotations = plain
    (annotations / "instances_val.json").unlink()
    file = annotations / "instances_train.json"
    content_of(file, annotations=None)
    file = file.rename(annotations / name)
    expected = names(open_pictures(f"folder:{images / 'train'}", known={}))
    for where in (annotations, file):
        assert names(open_pictures(f"coco:{images}:{where}", known={})) == expected
    assert names(open_pictures(f"coco:{images}", known={})) == expected
    content_of(file, images=[])
    with pytest.raises(ValueError, match=r"needs one or more images, got an empty list in .*; add some"):
        open_pictures(f"coco:{images}", known={})
    content_of(file, images=None)
    with pytest.raises(ValueError, match=r"needs a list of images, got .*json without a list of images"):
        open_pictures(f"coco:{images}", known={})
    shutil.copy(file, annotations / "captions.json")
    if name != "instances_train.json":
        with pytest.raises(
            ValueError, match=r"needs .* a single file that lists images, got captions.json, im"
        ):
            open_pictures(f"coco:{images}", known={})


def test_faults_of_pictures_are_named(plain, tmp_path):
    images, annotations = plain
    file = annotations / "instances_train.json"
    content_of(file, images=[*json.loads(file.read_text())["images"], {"id": 9}, {"file_name": "gone.png"}])
    with pytest.raises(
        ValueError, match=r"got 2 with faults .*image number 4 of .*text as file_name.*image gone\.png of"
    ):
        open_pictures(f"coco:{images}:{annotations}", known={})
    found = open_pictures(f"coco:{images}:{annotations}", known={}, on_fault="skip")
    assert len(found.split) == 4
    assert len(found.faults) == 2
    assert "left out 2 images" in found.notes[0]
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    with pytest.raises(ValueError, match=r"needs the images of a split \(train\) in .*, got names; add them"):
        open_pictures(f"yolo:{tmp_path}", known={})
    with pytest.raises(ValueError, match=r"needs JPEGImages in .*, got no JPEGImages in .*; pass the folder"):
        open_pictures(f"voc:{tmp_path}", known={})


def test_digests_of_parts_are_not_compared_with_those_of_whole_files(labelled, small):  # noqa: F811
    """In a large set the digest of a large file covers a part of it. A copy in a small folder has another one."""
    checked = open_pictures(small, known={"test": labelled.test})
    assert not any("not checked" in note for note in checked.notes)
    found = open_pictures(small, known={"test": replace(labelled.test, sampled=True)})
    assert any(
        "it was not checked whether unlabelled images of" in note and "are also test images" in note
        for note in found.notes
    )


def test_some_of_them_are_the_first_of_a_seeded_shuffle(labelled, small):  # noqa: F811
    options = {"known": {"test": labelled.test}}
    few, again, others = (
        open_pictures(small, rows=3, seed=seed, **options).split.index.tolist() for seed in (1, 1, 2)
    )
    assert few == again != others
    assert len(few) == 3


def test_what_is_no_source_of_pictures(labelled, tmp_path):
    for spec, reason in {
        "digits": "needs pictures as files, from folder:PATH, .* got 'digits'; write",
        f"folder:{tmp_path / 'none'}": "needs an existing folder of pictures, got .*; check the path",
        f"folder:{tmp_path}": "needs at least one picture below .*, got none; add some",
    }.items():
        with pytest.raises(ValueError, match=reason):
            open_pictures(spec, known=known(labelled))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"an image whose size can be read, got 'none' in image broken.jpg"):
        open_pictures(f"folder:{tmp_path}", known=known(labelled))


def test_boxes_below_the_score_say_nothing(labelled, small):  # noqa: F811
    pictures = open_pictures(small, known={"test": labelled.test}).split.subset(torch.tensor([4, 1]))
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 20.0, 20.0]])
    found = [
        Detections(boxes, torch.tensor([1, 3]), torch.tensor([0.9, 0.1])),
        Detections(boxes.flip(0), torch.tensor([2, 2]), torch.tensor([0.5, 0.4])),
    ]
    seen = marked(pictures, found)
    assert [seen.truth(at).label.tolist() for at in range(2)] == [[1], [2, 2]]
    assert seen.truth(0).boxes.tolist() == boxes[:1].tolist()
    assert not seen.truth(1).labelled
    assert seen.subset(torch.tensor([1])).truth(0).boxes.tolist() == boxes.flip(0).tolist()


# -- batches -------------------------------------------------------------------------------------------------------


def test_batches_go_through_all_of_them_and_continue_anywhere(labelled, small):  # noqa: F811
    pictures = open_pictures(small, known={"test": labelled.test}).split
    few = labelled.train.subset(torch.arange(4))

    def loader():
        return MixedScenes(
            make_scene_loader(few, batch_size=2, shuffle=True, flip=True),
            make_scene_loader(pictures, batch_size=2, shuffle=True, flip=True, seed=3, drop_last=True),
        )

    def shown(batches):
        return [[(t.index, t.labelled) for t in batch.truth] for batch in batches]

    made = loader()
    epochs = [shown(made.epoch(epoch)) for epoch in range(3)]
    assert all(
        [flag for _, flag in batch] == [True, True, False, False] for epoch in epochs for batch in epoch
    )
    seen = [index for epoch in epochs for batch in epoch for index, flag in batch if not flag]
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(pictures.index.tolist())
    assert shown(loader().epoch(1, start=1)) == epochs[1][1:]
    assert (made.num_samples, len(made)) == (8, 2)


# -- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(small, weights, tmp_path_factory):  # noqa: F811
    """The layer of a run with a teacher that was trained for a few steps, and pictures without annotations."""
    out = tmp_path_factory.mktemp("taught")
    wide = f"fasterrcnn:timm/mobilenetv1_025_128?{SHAPE}&channels=8&head=24"
    teaching = {"epochs": 30, "batch_size": 3, "lr": 5e-3, "eval_every": 30}
    layer = {
        "data": {"source": small, "workers": 0, "train_rows": 4},
        "student": {"name": NAME, "weights": str(weights)},
        "teacher": {"name": wide, "weights": str(weights), "train": True},
        "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, "eval_every": 2},
        "teacher_train": teaching,
        "method": {"preset": "kd", "loss": "kd + box"},
    }
    distill(build_config(merge(layer, {"out": str(out / "first")})))
    return merge(layer, {"teacher": {"train": False, "weights": str(out / "first" / "teacher.safetensors")}})


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def run(layer, out, reporter=None, **more):
    return distill(build_config(merge(layer, {"out": str(out)}, more)), reporter=reporter)


@pytest.mark.filterwarnings("ignore:data. left out:outgrow.data.notes.DataWarning")
def test_a_run_with_pictures_without_annotations(taught, small, tmp_path):  # noqa: F811
    _, images, annotations = small.split(":")
    poisoned = tmp_path / "poisoned"
    shutil.copytree(annotations, poisoned)
    file = Path(poisoned, "instances_train.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": content["annotations"][-1:]}))
    record = run(taught, tmp_path / "one", data={"unlabelled": small})
    assert record["data"]["train"] == 4
    assert record["data"]["unlabelled"] == 2
    assert record["epochs"][-1]["stats"]["unlabelled"] > 0
    run(taught, tmp_path / "two", data={"unlabelled": f"coco:{images}:{poisoned}"})
    notes = Notes()
    alone = run(taught, tmp_path / "three", notes)
    assert not any("adds nothing" in note for note in notes.notes)
    blind = Notes()
    short = {"train": {"epochs": 1, "max_steps": 1, "eval_every": 1}, "method": {"loss": "dkd + box"}}
    distill(build_config(merge(taught, {"data": {"unlabelled": small}}, short)), reporter=blind)
    assert any(note.startswith("dkd, which needs a label, adds nothing") for note in blind.notes)
    assert alone["data"]["unlabelled"] is None
    assert sum("all 4 training pictures have annotations" in note for note in notes.notes) == 1
    bits = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert bits[0] == bits[1] != bits[2]


@pytest.mark.filterwarnings("ignore:data. left out:outgrow.data.notes.DataWarning")
@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_task_of_a_batch_in_parts_is_that_of_the_whole(small, weights, accumulate):  # noqa: F811
    """RetinaNet's loss is a mean over images; with four parts three have no annotated picture."""
    name = "retinanet:timm/mobilenetv1_025_128?size=96&channels=8"
    net = {"name": name, "weights": str(weights)}
    layer = {
        "data": {
            "source": small,
            "workers": 0,
            "train_rows": 3,
            "unlabelled": small,
            "unlabelled_share": 0.75,
        },
        "student": net,
        "teacher": {**net, "train": True},
        "train": {"epochs": 1, "batch_size": 4, "max_steps": 1},
        "teacher_train": {"epochs": 1, "batch_size": 3, "max_steps": 1},
        "method": {"preset": "kd", "loss": "kd"},
    }
    whole, parts = (
        distill(build_config(merge(layer, {"train": {"accumulate": number}}))) for number in (1, accumulate)
    )
    assert parts["epochs"][0]["terms"]["task"] == pytest.approx(whole["epochs"][0]["terms"]["task"], rel=1e-3)


def test_every_one_of_them_is_seen_whatever_its_orientation(labelled, small):  # noqa: F811
    pictures = open_pictures(small, known={"test": labelled.test}).split
    sizes = pictures.file.sizes.clone()
    sizes[:2] = sizes[:2].flip(1) + 200  # two are higher than wide
    pictures = replace(pictures, file=replace(pictures.file, sizes=sizes))
    config = build_config(
        {"data": {"source": small, "workers": 0, "unlabelled_share": 0.5}, "train": {"batch_size": 8}}
    )
    loader = train_scenes(config, config.train, labelled.train, torch.device("cpu"), unlabelled=pictures)
    passes = [loader.unlabelled.plan.batches(epoch) for epoch in range(30)]
    assert {int(at) for batches in passes for batch in batches for at in batch} == set(range(len(pictures)))


@pytest.mark.filterwarnings("ignore:data. left out:outgrow.data.notes.DataWarning")
def test_a_student_without_a_teacher_does_not_see_them(taught, small, tmp_path):  # noqa: F811
    nobody = merge(
        taught, {"method": {"preset": "none", "loss": None}, "teacher": {"name": "none", "weights": None}}
    )
    notes = Notes()
    record = run(nobody, tmp_path / "none", notes, data={"unlabelled": small})
    assert not any("add some with" in note for note in notes.notes)
    assert sum("without labels are left out" in note for note in notes.notes) == 1
    assert record["epochs"][-1]["stats"]["unlabelled"] == 0


@pytest.mark.filterwarnings("ignore:data. left out:outgrow.data.notes.DataWarning")
def test_stopped_and_continued_is_the_same_run(taught, small, tmp_path):  # noqa: F811
    more = merge(taught, {"data": {"unlabelled": small, "unlabelled_share": 0.25}, "train": {"epochs": 3}})
    run(more, tmp_path / "whole")
    with stopped_after(saves=2):
        run(more, tmp_path / "stopped")
    distill(build_config(merge(more, {"out": str(tmp_path / "stopped")})), resume=True)
    whole, stopped = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


class _Finder:
    """Finds the whole of each picture, with its height in thousandths as the score."""

    def detect(self, images):
        return [
            Detections(
                torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]]),
                torch.tensor([1]),
                torch.tensor([image.shape[1] / 1000]),
            )
            for image in images
        ]


def _look(rank, store, source, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pictures = open_pictures(source, known={}).split.subset(torch.arange(5))
    found = marked_by(_Finder(), pictures, torch.device("cpu"))
    torch.save([found.truth(at).boxes for at in range(5)], f"{out}-{rank}")
    dist.destroy_process_group()


def test_processes_share_the_pictures_and_all_know_what_was_found(small, tmp_path):  # noqa: F811
    mp.spawn(_look, (str(tmp_path / "store"), small, str(tmp_path / "found")), nprocs=2)
    pictures = open_pictures(small, known={}).split.subset(torch.arange(5))
    alone = marked_by(_Finder(), pictures, torch.device("cpu"))
    for rank in (0, 1):
        for at, boxes in enumerate(torch.load(tmp_path / f"found-{rank}")):
            assert torch.equal(boxes, alone.truth(at).boxes)
            assert len(boxes) == 1
