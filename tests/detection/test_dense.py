"""RetinaNet, FCOS and SSDLite: which rows they choose, what these say, and what a teacher answers."""

import pytest
import torch
from torchvision.models import detection
from torchvision.ops import box_iou

import outgrow
from outgrow.detection.evaluation import Found
from outgrow.detection.families import published
from outgrow.detection.families.create import (
    FAMILIES,
    create_detector,
    format_name,
    load_detector,
    parse_name,
    save_detector,
)
from outgrow.detection.families.detector import FrozenDetector, NoDetector, mismatch
from outgrow.detection.lesson import Balanced, Detect
from outgrow.detection.scores import coco_scores
from outgrow.knowledge import Rectifier
from outgrow.models.create import DETECTORS
from outgrow.models.taps import BOX, BOX_IOU
from outgrow.objective import Objective
from outgrow.outputs import IGNORE
from outgrow.training.config import TrainConfig
from outgrow.training.trainer import Trainer
from tests.detection import scenes as shared
from tests.detection.scenes import CLASSES, TINY

ON = "timm/mobilenetv1_025_128?size=64"
NAMES = {
    "retinanet": f"retinanet:{ON}&channels=8&anchors=2&negatives=40",
    "fcos": f"fcos:{ON}&channels=64&negatives=40",
    "ssdlite": f"ssdlite:{ON}&channels=32&negatives=40",
}
each = pytest.mark.parametrize("family", NAMES)


def scenes():
    """The shared scenes, with a crowd whose edge cuts no anchor exactly in half."""
    batch = shared.scenes()
    batch.truth[2].crowd[0] = torch.tensor([1.0, 1.0, 95.0, 45.0])
    return batch


def detector(family, seed=0, name=None, classes=CLASSES):
    """A detector whose scores differ, so that something is right and something wrong."""
    torch.manual_seed(seed)
    made = create_detector(name or NAMES[family], classes)
    head = made.net.head.classification_head
    with torch.no_grad():
        for layer in [head.cls_logits] if family != "ssdlite" else [block[1] for block in head.module_list]:
            layer.weight.mul_(20)
            layer.bias.add_(torch.randn(layer.bias.shape) + (2 if family != "ssdlite" else 0))
    return made


def targets(batch):
    return [{"boxes": t.boxes, "labels": t.label} for t in batch.truth]


def seen(made, batch):
    """The outputs of torchvision's head for all anchors, and its anchors, from its own forward pass."""
    kept = {}
    head = made.net.head.register_forward_hook(lambda _, __, out: kept.update(out))
    anchors = made.net.anchor_generator.register_forward_hook(lambda _, __, out: kept.update(anchors=out))
    sizes = made.net.transform.register_forward_hook(lambda _, __, out: kept.update(sizes=out[0].image_sizes))
    answer = made.train()(batch.images, batch.truth)
    for handle in (head, anchors, sizes):
        handle.remove()
    return answer, kept


def test_the_families_are_named_once():
    assert tuple(FAMILIES) == DETECTORS
    for name in NAMES.values():
        assert format_name(*parse_name(name)) == name
    with pytest.raises(ValueError, match="needs a multiple of 32 for channels"):
        create_detector("fcos:torchvision/resnet18?channels=48", CLASSES)
    with pytest.raises(ValueError, match=r"ssdlite:torchvision/resnet19: needs a classifier of torchvision"):
        create_detector("ssdlite:torchvision/resnet19", CLASSES)


@each
def test_the_task_is_torchvisions_own_loss_to_the_bit(family):
    made, batch = detector(family), scenes()
    expected = made.train().net([image.clone() for image in batch.images], targets(batch))
    task = made(batch.images, batch.truth).task
    assert torch.equal(task, sum(expected.values()))
    task.backward()
    assert {name for name, p in made.named_parameters() if p.grad is None} == set()
    assert "compute_loss" not in vars(made.net.head)


@each
def test_each_row_against_a_literal_computation(family):
    """Positives as torchvision's matcher has them, then the hardest negatives; their logits, boxes and overlaps."""
    made, batch = detector(family), scenes()
    answer, all_of = seen(made, batch)
    assert answer.outputs.logits.requires_grad
    assert answer.outputs.features[BOX].requires_grad
    rows, logits = answer.proposals, answer.outputs.logits.detach()
    features = {key: value.detach() for key, value in answer.outputs.features.items()}
    start = 0
    for at, (image, t) in enumerate(zip(batch.images, batch.truth, strict=True)):
        own, z = all_of["anchors"][at], all_of["cls_logits"][at].detach()
        height, width = all_of["sizes"][at]
        scale = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2)
        known = t.boxes / scale
        object_of = _matched(family, made, own, known)
        crowded = torch.zeros(len(own), dtype=torch.bool)
        for region in t.crowd:
            for number, box in enumerate(own * scale):
                left, top = torch.maximum(box[:2], region[:2])
                right, bottom = torch.minimum(box[2:], region[2:])
                inside = max(float(right - left), 0) * max(float(bottom - top), 0)
                crowded[number] |= inside >= 0.5 * float((box[2] - box[0]) * (box[3] - box[1]))
        expected = [(a, int(t.label[o])) for a, o in enumerate(object_of) if o >= 0]
        hard = []
        for a, o in enumerate(object_of):
            if (o == -1 and crowded[a]) or o == -2:
                continue
            if family == "ssdlite":
                if o == -1:
                    hard.append((float(-z[a].log_softmax(0)[0]), a, None))
            else:
                wrong = [k for k in range(1, len(CLASSES) + 1) if o < 0 or k != int(t.label[o])]
                k = max(wrong, key=lambda k: float(z[a, k]))
                hard.append((float(z[a, k]), a, k))
        hard.sort(key=lambda one: -one[0])
        negatives = [(a, k) for _, a, k in hard[:40]]
        count = len(rows.boxes[at])
        part = slice(start, start + count)
        start += count
        anchors = rows.anchor[part].tolist()
        split = len(expected)
        assert anchors[:split] == [a for a, _ in expected]
        assert count - split == min(40, len(hard))
        assert sorted(anchors[split:]) == sorted(a for a, _ in negatives)
        torch.testing.assert_close(rows.boxes[at], own[rows.anchor[part]] * scale)
        for row, a in zip(range(part.start, part.stop), anchors, strict=True):
            positive = row - part.start < split
            if family == "ssdlite":
                assert torch.equal(logits[row], z[a])
                assert int(rows.label[row]) == (int(t.label[object_of[a]]) if positive else 0)
            else:
                asked = dict(expected)[a] if positive else dict(negatives)[a]
                assert int(rows.asked[row]) == asked
                assert int(rows.label[row]) == int(positive)
                assert logits[row].tolist() == [0.0, float(z[a, asked])]
                assert float(logits[row].softmax(0)[1]) == pytest.approx(float(z[a, asked].sigmoid()))
            assert torch.equal(features[BOX][row], all_of["bbox_regression"][at, a].detach())
            if positive:
                assert torch.equal(rows.truth[row], t.boxes[object_of[a]])
                box = made.decode(features[BOX][row][None], own[a][None]) * scale
                limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
                overlap = box_iou(torch.minimum(box.clamp_min(0), limit), rows.truth[row][None])
                assert float(features[BOX_IOU][row]) == pytest.approx(float(overlap), abs=1e-4)
            else:
                assert features[BOX_IOU][row] == 0
    assert (rows.label > 0).sum() >= 5
    again = made(batch.images, batch.truth).proposals
    assert torch.equal(again.anchor, rows.anchor)  # nothing is drawn at random


def _matched(family, made, own, boxes):
    """The object of each anchor, as the papers and torchvision have it."""
    if not len(boxes):
        return [-1] * len(own)
    if family == "fcos":
        sides = (own[:, 2] - own[:, 0]).tolist()
        centres = ((own[:, :2] + own[:, 2:]) / 2).tolist()
        first, last = min(sides), max(sides)
        found = []
        for (x, y), side in zip(centres, sides, strict=True):
            best = []
            for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                reach = max(x - x0, y - y0, x1 - x, y1 - y)
                inside = min(x - x0, y - y0, x1 - x, y1 - y) > 0
                near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 1.5 * side
                low = 0 if side == first else 4 * side
                high = float("inf") if side == last else 8 * side
                if inside and near and low < reach < high:
                    best.append(((x1 - x0) * (y1 - y0), number))
            found.append(min(best)[1] if best else -1)
        return found
    overlap = box_iou(boxes, own)
    value, number = overlap.max(0)
    low = 0.4 if family == "retinanet" else 0.5
    found = torch.where(value >= 0.5, number, torch.where(value < low, -1, -2))
    if family == "retinanet":  # the best anchors of an object are its own whatever they overlap
        best = (overlap == overlap.max(1, keepdim=True).values).any(0)
        found = torch.where(best, number, found)
    else:
        found[overlap.max(1).indices] = torch.arange(len(boxes))
    return found.tolist()


@each
def test_a_teacher_answers_by_index(family):
    made, batch = detector(family), scenes()
    rows = made.train()(batch.images, batch.truth).proposals
    teacher = detector(family, 3)
    said = FrozenDetector(teacher, CLASSES)(batch.images, rows)
    kept = {}
    handle = teacher.net.head.register_forward_hook(lambda _, __, out: kept.update(out))
    teacher.net.eval()(list(batch.images))
    handle.remove()
    own = kept["cls_logits"][rows.image, rows.anchor]
    if family == "ssdlite":
        assert torch.equal(said.logits, own)
    else:
        assert torch.equal(said.logits[:, 1], own[torch.arange(len(own)), rows.asked])
        assert (said.logits[:, 0] == 0).all()
    assert torch.equal(said.features[BOX], kept["bbox_regression"][rows.image, rows.anchor])
    assert not said.logits.requires_grad


@each
def test_a_teacher_with_other_classes(family):
    """Classes are found by name; what a softmax gives to others counts as background."""
    made, batch = detector(family), scenes()
    rows = made.train()(batch.images, batch.truth).proposals
    teacher = detector(family, 3, classes=("owl", "fox", "cat", "dog"))
    said = FrozenDetector(teacher, CLASSES)(batch.images, rows).logits
    place = torch.tensor([0, 3, 4, 1])
    own = teacher.classify(batch.images, rows.in_classes(place)).logits
    if family != "ssdlite":
        assert torch.equal(said, own)
        foreign = rows.in_classes(torch.tensor([0, 1, 0, 2]))  # a side that lacks the second class
        assert ((foreign.label == IGNORE) == (rows.asked == 2)).all()
        return
    expected = own.softmax(1)
    torch.testing.assert_close(said.softmax(1)[:, 1:], expected[:, place[1:]])
    torch.testing.assert_close(said.softmax(1)[:, 0], expected[:, 0] + expected[:, 2])


@each
def test_anchors_in_crowds_and_between_thresholds_are_no_rows(family):
    made, batch = detector(family), scenes()
    step = made.train()(batch.images, batch.truth)
    lesson = Detect(2)(made, FrozenDetector(detector(family, 1), CLASSES), batch)
    assert (lesson.target.label != IGNORE).all()
    third = step.proposals.boxes[2]
    crowd = batch.truth[2].crowd[0]
    inside = (
        (torch.minimum(third[:, 2:], crowd[2:]) - torch.maximum(third[:, :2], crowd[:2])).clamp_min(0).prod(1)
    )
    share = inside / (third[:, 2:] - third[:, :2]).prod(1)
    assert ((share < 0.5) | (step.proposals.label[step.proposals.image == 2] > 0)).all()


@each
def test_the_gradient_of_kd_on_rows_against_the_plain_formula(family):
    made, batch = detector(family), scenes()
    teacher = FrozenDetector(detector(family, 1), CLASSES)
    rectify, objective = outgrow.preset("kd", loss="kd(temperature=2.0)", rule="pair")
    lesson = Detect(2)(made.train(), teacher, batch)
    logits = lesson.student.logits.detach().requires_grad_()
    student = outgrow.Outputs(logits, lesson.student.features)
    knowledge = Balanced(rectify)(lesson.teacher, lesson.target)
    result = objective(student, knowledge, lesson.target, 0.5, torch.zeros(()))
    result.total.backward()
    believed = outgrow.corrected_logits(knowledge)
    easy, hard = (objective.schedule(0.5).easy, objective.schedule(0.5).hard)
    factor = torch.where(knowledge.wrong, hard, easy) * knowledge.weight / len(logits)
    expected = 2.0 * factor[:, None] * ((logits / 2).softmax(1) - (believed / 2).softmax(1))
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-4, atol=1e-7)
    assert bool(knowledge.wrong.any())
    assert not bool(knowledge.wrong.all())


@each
def test_box_teaches_where_the_teachers_box_is_better(family):
    made, batch = detector(family), scenes()
    teacher = FrozenDetector(detector(family, 1), CLASSES)
    lesson = Detect(2)(made.train(), teacher, batch)
    own, other = lesson.student.features, lesson.teacher.features
    value = outgrow.losses.DETECTOR_LOSSES["box"]()(lesson.student, lesson.teacher, lesson.target)
    better = (lesson.target.label > 0) & (other[BOX_IOU] > own[BOX_IOU])
    apart = torch.nn.functional.smooth_l1_loss(own[BOX], other[BOX], beta=1 / 9, reduction="none").sum(1)
    assert bool(better.any())
    torch.testing.assert_close(value, torch.where(better, apart, 0.0))


@each
def test_detections_are_torchvisions_own_and_their_ap_is_cocos(family):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    made, batch = detector(family), scenes()
    found = made.train().detect(batch.images)
    assert made.training
    for ours, theirs in zip(found, made.eval().net(list(batch.images)), strict=True):
        kept = theirs["labels"] > 0
        assert torch.equal(ours.boxes, theirs["boxes"][kept])
        assert torch.equal(ours.score, theirs["scores"][kept])
        assert torch.equal(ours.label, theirs["labels"][kept])
    ids = [t.index for t in batch.truth]
    lines, results = [], []
    for t, one in zip(batch.truth, found, strict=True):
        for boxes, label, crowd in ((t.boxes, t.label, 0), (t.crowd, torch.ones(len(t.crowd), dtype=int), 1)):
            for box, number in zip(boxes.tolist(), label.tolist(), strict=True):
                left, top, right, bottom = box
                lines.append(
                    {
                        "id": len(lines) + 1,
                        "image_id": t.index,
                        "category_id": number,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": crowd,
                    }
                )
        for box, label, score in zip(one.boxes.tolist(), one.label.tolist(), one.score.tolist(), strict=True):
            left, top, right, bottom = box
            results.append(
                {
                    "image_id": t.index,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                }
            )
    assert results
    truth = {
        "images": [{"id": number, "width": 200, "height": 200} for number in ids],
        "annotations": lines,
        "categories": [{"id": at + 1, "name": name} for at, name in enumerate(CLASSES)],
    }
    whole = COCO()
    whole.dataset = {"info": {}, **truth}
    whole.createIndex()
    judge = COCOeval(whole, whole.loadRes(results), "bbox")
    judge.params.imgIds = ids
    judge.evaluate(), judge.accumulate(), judge.summarize()
    scores = coco_scores(truth, ids, (1, 2, 3), found)
    assert Found(found, scores).score == pytest.approx(100 * float(judge.stats[0]), abs=1e-6)


def test_layouts_that_differ_are_refused_with_the_option_to_set():
    batch = scenes()
    made = detector("retinanet")
    rows = made.train()(batch.images, batch.truth).proposals
    for name, message in (
        (NAMES["retinanet"].replace("size=64", "size=96"), "size 96 and 64.*set size"),
        (NAMES["retinanet"].replace("anchors=2", "anchors=4"), "other anchors.*set anchors alike"),
        (f"{NAMES['retinanet']}&levels=3-4", "set levels alike"),
        (
            NAMES["fcos"],
            "got fcos anchors for a student of retinanet anchors; choose two detectors of one family",
        ),
        (TINY, "got proposals for a student of retinanet anchors"),
    ):
        teacher = create_detector(name, CLASSES)
        with pytest.raises(ValueError, match=message):
            FrozenDetector(teacher, CLASSES)(batch.images, rows)
        features = FrozenDetector(teacher, CLASSES, features_only=True)
        said = features(batch.images, rows)
        assert (said.logits == 0).all()
        assert said.logits.shape == (len(rows.label), 2)
        assert {"p3", "p4"} <= set(said.features)
        lesson = Detect()(made, features, batch)
        objective = outgrow.Objective("fitnet(student='p3', teacher='p3')")
        objective.setup(lesson.student, lesson.teacher, num_samples=3)
        rectify = Balanced(outgrow.Rectifier("pair"))
        result = objective(
            lesson.student, rectify(lesson.teacher, lesson.target), lesson.target, 0.0, lesson.task
        )
        assert result.terms["fitnet"] > 0
    assert mismatch(made.layout, detector("retinanet", 4).layout) is None
    two = create_detector(TINY, CLASSES)
    rows = two.train()(batch.images, batch.truth).proposals
    with pytest.raises(ValueError, match="got retinanet anchors for a student of proposals"):
        FrozenDetector(made, CLASSES)(batch.images, rows)


@each
def test_its_file_says_its_name_and_classes(family, tmp_path):
    made, batch = detector(family), scenes()
    save_detector(made, tmp_path / "own.safetensors")
    for again in (
        load_detector(tmp_path / "own.safetensors"),
        create_detector(f"{family}:", weights=tmp_path / "own.safetensors"),
    ):
        assert (again.name, again.classes, again.negatives) == (made.name, CLASSES, 40)
        for one, other in zip(again.detect(batch.images), made.detect(batch.images), strict=True):
            torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
    turned = create_detector(NAMES[family], ("owl", "cat"), weights=tmp_path / "own.safetensors")
    rows = torch.tensor([0, 3, 1])
    head, own = turned.net.head.classification_head, made.net.head.classification_head
    if family == "ssdlite":
        new, old = head.module_list[2][1].weight, own.module_list[2][1].weight
    else:
        new, old = head.cls_logits.weight, own.cls_logits.weight
    assert torch.equal(new.unflatten(0, (-1, 3)), old.unflatten(0, (-1, 4))[:, rows])
    with pytest.warns(UserWarning, match="the last layer is not loaded"):
        create_detector(NAMES[family], ("a", "b", "c"), weights=tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="needs the file of a detector of the family fasterrcnn"):
        create_detector(TINY, CLASSES, weights=tmp_path / "own.safetensors")


FILES = [
    ("retinanet_resnet50_fpn", "retinanet:torchvision/resnet50"),
    ("retinanet_resnet50_fpn_v2", "retinanet:torchvision/retinanet_resnet50_fpn_v2"),
    ("fcos_resnet50_fpn", "fcos:torchvision/resnet50"),
    ("ssdlite320_mobilenet_v3_large", "ssdlite:torchvision/ssdlite320_mobilenet_v3_large"),
]


@pytest.mark.filterwarnings("ignore:.*resizes images to:UserWarning")
@pytest.mark.parametrize("builder, name", FILES)
def test_a_published_file_detects_what_torchvision_detects(builder, name, tmp_path):
    torch.manual_seed(0)
    sizes = {} if "ssdlite" in builder else {"min_size": 96, "max_size": 160}
    net = getattr(detection, builder)(weights=None, weights_backbone=None, **sizes).eval()
    last = net.head.classification_head
    for layer in [block[1] for block in last.module_list] if "ssdlite" in builder else [last.cls_logits]:
        torch.nn.init.normal_(layer.bias, -1.0 if "ssdlite" in builder else -3.0, 1.0)
    state = net.state_dict()
    if (
        builder.startswith("retinanet_resnet50_fpn") and "v2" not in builder
    ):  # published before the layers were renamed
        for part in ("classification_head", "regression_head"):
            for at in range(4):
                for kind in ("weight", "bias"):
                    state[f"head.{part}.conv.{2 * at}.{kind}"] = state.pop(f"head.{part}.conv.{at}.0.{kind}")
    torch.save(dict(state), tmp_path / "coco.pth")
    asked = name if "ssdlite" in builder else f"{name}?size=96"
    ours = create_detector(asked, weights=tmp_path / "coco.pth")
    assert ours.classes == published.coco_names()
    assert published.understood(state)[1]["model"] == name
    if builder in published.WITHOUT_EPSILON:
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    image = torch.rand(3, 96, 140)
    [found], [theirs] = ours.detect([image]), net([image])
    kept = theirs["labels"] > 0
    assert len(found.label) > 3
    assert torch.equal(found.label, theirs["labels"][kept])
    torch.testing.assert_close(found.score, theirs["scores"][kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes, theirs["boxes"][kept], rtol=1e-4, atol=1e-2)
    wrong = "fasterrcnn:torchvision/resnet50"
    with pytest.raises(ValueError, match="needs the file of a detector of the family fasterrcnn"):
        create_detector(wrong, weights=tmp_path / "coco.pth")


def test_ssdlite_needs_two_images():
    made, batch = detector("ssdlite"), scenes()
    with pytest.raises(ValueError, match="needs two images or more in a training step"):
        made.train()(batch.images[:1], batch.truth[:1])
    lesson = Detect(made.least)(made, FrozenDetector(detector("ssdlite", 1), CLASSES), type(batch)([], []))
    assert len(lesson.target.label) == 0


def test_ssdlite_does_not_search_its_modules_in_every_step(monkeypatch):
    made, batch = detector("ssdlite").train(), scenes()
    monkeypatch.setattr(
        made, "modules", lambda: pytest.fail("a walk over all modules costs 3 % of a small net's step")
    )
    made(batch.images, batch.truth)


def test_faster_rcnn_features_teach_a_dense_student():
    batch, student = scenes(), detector("fcos")
    teacher = FrozenDetector(create_detector(TINY, CLASSES), CLASSES, features_only=True)
    lesson = Detect()(student.train(), teacher, batch)
    assert (
        {"p3", "p4", "p5", "p6"} == set(lesson.student.features) - {"objects"} == set(lesson.teacher.features)
    )


@pytest.mark.parametrize("family", ["retinanet", "fcos", "ssdlite", "fasterrcnn"])
def test_a_student_without_a_teacher_has_its_losses_and_no_rows(family):
    made, batch = create_detector(TINY, CLASSES) if family == "fasterrcnn" else detector(family), scenes()
    torch.manual_seed(0)
    expected = made.train()(batch.images, batch.truth).task
    torch.manual_seed(0)
    lesson = Detect(made.least)(made, NoDetector(made.num_classes), batch)
    assert torch.equal(lesson.task, expected)
    assert len(lesson.target.label) == len(lesson.student.logits) == len(lesson.teacher.logits) == 0
    knowledge = Balanced(Rectifier("identity"))(lesson.teacher, lesson.target)
    result = Objective({})(lesson.student, knowledge, lesson.target, 0.0, lesson.task)
    assert torch.equal(result.total, expected)
    assert result.stats["wrong_rate"] == 0


class Steps:
    """Four steps of one image, of two, and of three: few rows and many, with objects and without."""

    num_samples, num_indices = 3, 8

    def __len__(self):
        return 4

    def epoch(self, epoch, start=0):
        batch = scenes()
        for some in ([1], [0, 2], [0, 1, 2], [2]):
            yield type(batch)([batch.images[at] for at in some], [batch.truth[at] for at in some])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_the_share_of_wrong_rows_is_a_count_over_the_epoch(family, accumulate):
    torch.manual_seed(0)
    counts = []

    def rectify(outputs, target):
        knowledge = Balanced(Rectifier("pair"))(outputs, target)
        counts.append((int(knowledge.wrong.sum()), int((target.label >= 0).sum())))
        return knowledge

    config = TrainConfig(epochs=1, batch_size=3, accumulate=accumulate, lr=1e-4, device="cpu")
    teacher = FrozenDetector(detector(family, 1), CLASSES)
    trainer = Trainer(detector(family), teacher, rectify, Objective("kd"), Steps(), config, Detect())
    (record,) = trainer.fit()
    wrong, labelled = map(sum, zip(*counts, strict=True))
    assert len({labelled for _, labelled in counts}) > 2
    assert record.wrong_rate == pytest.approx(wrong / labelled, rel=1e-6)
