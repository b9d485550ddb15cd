"""Detectors by name, from files, and what they say of their own and of others' proposals."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.ops import box_iou

from outgrow.detection.families.create import Shape, create_detector, format_name, parse_name, save_detector
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.families.fasterrcnn import FasterRCNNDetector
from outgrow.models import create_model, save_student
from outgrow.models.taps import BOX, BOX_IOU, OBJECTNESS, OBJECTS, PENULTIMATE
from tests.detection.scenes import CLASSES, TINY, detector, scenes


def test_names_round_trip():
    for name in (
        TINY,
        "fasterrcnn:torchvision/resnet18",
        "fasterrcnn:timm/mobilenetv2_100?levels=3-5&pad_type=same",
    ):
        assert format_name(*parse_name(name)) == name
    assert parse_name("fasterrcnn:torchvision/resnet18", 320)[1] == Shape(size=320)
    assert parse_name("fasterrcnn:torchvision/resnet18?size=400&max_size=500")[1] == Shape(
        size=400, max_size=500
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet18", "put fasterrcnn: before a backbone"),
        ("fasterrcnn:resnet18", "needs a backbone torchvision/NAME or timm/NAME"),
        ("fasterrcnn:torchvision/resnet19", "needs a classifier of torchvision, got 'resnet19'"),
        ("fasterrcnn:timm/resnet19", "needs a model of timm, got 'resnet19'"),
        (
            "fasterrcnn:torchvision/resnet18?levels=3-9",
            r"levels that the backbone has \(1, 2, 3, 4, 5\), got 3-9",
        ),
        ("fasterrcnn:torchvision/resnet18?levels=5-3", "got 5-3"),
        ("fasterrcnn:torchvision/resnet18?size=big", "needs a value such as 320 for size, got 'big'"),
        ("fasterrcnn:torchvision/resnet18?size", "needs key=value pairs"),
        ("fasterrcnn:torchvision/resnet18?pad_type=same", "needs no arguments for timm, got pad_type"),
        ("fasterrcnn:torchvision/vit_b_16", "levels that the backbone has"),
        ("fasterrcnn:torchvision/swin_t", "maps of several strides and channels first, got one without"),
        ("fasterrcnn:timm/swin_tiny_patch4_window7_224", "images of any size, got an error .* match model"),
        ("retinanet:timm/maxvit_tiny_rw_224", "images of any size, got an error .* divisible by window"),
        (
            "fcos:timm/swin_tiny_patch4_window7_224?strict_img_size=false",
            r"channels first, got maps of shape \(1, 16, 20, 192\)",
        ),
        (
            "ssdlite:timm/swin_tiny_patch4_window7_224?strict_img_size=false",
            "choose a convolutional one such as timm/convnext_atto",
        ),
        ("fasterrcnn:timm/resnet18?colour=red", "correct the arguments after the question mark"),
    ],
)
def test_errors_in_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_detector(name, CLASSES)


@pytest.mark.parametrize(
    "backbone",
    ["torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small", "timm/resnet10t"],
)
def test_backbones_of_both_libraries(backbone):
    made = create_detector(f"fasterrcnn:{backbone}?size=64&channels=8&head=8&rois=8&proposals=20", CLASSES)
    assert list(made.levels.values()) == ["p2", "p3", "p4", "p5", "p6"]
    batch = scenes()
    answer = made.train()(batch.images, batch.truth)
    answer.task.backward()
    assert answer.task.isfinite()
    assert {name for name, p in made.named_parameters() if p.grad is None} == set()
    assert not answer.outputs.features["p2"].isnan().any()


def test_features_are_named_by_stride():
    made, batch = detector(), scenes()
    features = made.train()(batch.images, batch.truth).outputs.features
    assert list(features) == ["p3", "p4", "p5", "p6", PENULTIMATE, BOX, BOX_IOU, OBJECTS, OBJECTNESS]
    side = features["p3"].shape[3] * 8
    for level in ("p4", "p5", "p6"):
        assert features[level].shape[3] == -(-side // 2 ** int(level[1]))


def test_its_outputs_for_its_own_proposals_are_the_same():
    """With batch norms in eval mode, the outputs of a detector for its own proposals are those of its training step."""
    made, batch = detector(), scenes()
    made.train()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    answer = made(batch.images, batch.truth)
    again = made.eval().classify(batch.images, answer.proposals)
    torch.testing.assert_close(again.logits, answer.outputs.logits, rtol=1e-4, atol=1e-4)
    assert set(answer.outputs.features) == {*again.features, OBJECTS, OBJECTNESS}
    for name, value in again.features.items():
        torch.testing.assert_close(value, answer.outputs.features[name], rtol=1e-3, atol=1e-3)


def test_a_detector_of_another_size_crops_the_same_regions():
    """Proposals are in pixels of the pictures: one that resizes to twice the size cuts out the same regions."""
    small, batch = detector(), scenes()
    answer = small.train()(batch.images, batch.truth)
    large = detector(1, TINY.replace("size=64", "size=128")).eval()
    seen = []
    pool = large.net.roi_heads.box_roi_pool
    handle = pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:]))
    large.classify(batch.images, answer.proposals)
    handle.remove()
    boxes, sizes = seen[0]
    for own, asked, size, image in zip(boxes, answer.proposals.boxes, sizes, batch.images, strict=True):
        height, width = image.shape[1:]
        assert min(size) == 128
        torch.testing.assert_close(own[:, 0::2] / size[1], asked[:, 0::2] / width, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own[:, 1::2] / size[0], asked[:, 1::2] / height, rtol=1e-5, atol=1e-5)


def test_labels_and_overlaps_against_a_slow_reference():
    made, batch = detector(), scenes()
    answer = made.train()(batch.images, batch.truth)
    proposals, features = answer.proposals, answer.outputs.features
    start = 0
    for boxes, t, image in zip(proposals.boxes, batch.truth, range(3), strict=True):
        rows = slice(start, start + len(boxes))
        start += len(boxes)
        assert (proposals.image[rows] == image).all()
        for row, box in zip(range(rows.start, rows.stop), boxes, strict=True):
            overlap = box_iou(box[None], t.boxes)[0] if len(t.boxes) else torch.zeros(1)
            best = int(overlap.argmax())
            if overlap[best] >= 0.5:
                assert proposals.label[row] == t.label[best]
                assert (proposals.truth[row] == t.boxes[best]).all()
                dx, dy, dw, dh = (features[BOX][row].detach() / torch.tensor([10.0, 10, 5, 5])).tolist()
                left, top, right, bottom = box.tolist()
                width, height = right - left, bottom - top
                x, y = left + width / 2 + dx * width, top + height / 2 + dy * height
                w, h = width * 2.718281828459045**dw, height * 2.718281828459045**dh
                moved = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
                high, wide = batch.images[image].shape[1:]
                moved = torch.minimum(moved.clamp_min(0), torch.tensor([wide, high, wide, high]))
                expected = float(box_iou(moved, t.boxes[best][None])[0, 0])
                assert float(features[BOX_IOU][row]) == pytest.approx(expected, abs=1e-3)
            else:
                assert proposals.label[row] == 0
                assert features[BOX_IOU][row] == 0
    assert (proposals.label > 0).sum() > 5
    assert not features[BOX_IOU].requires_grad
    assert features[BOX].requires_grad


def test_the_task_is_torchvisions_own_loss():
    made, batch = detector(), scenes()
    targets = [{"boxes": t.boxes, "labels": t.label} for t in batch.truth]
    torch.manual_seed(3)
    expected = sum(made.train().net([image.clone() for image in batch.images], targets).values())
    torch.manual_seed(3)
    torch.testing.assert_close(made(batch.images, batch.truth).task, expected)


def test_detections_are_torchvisions_own():
    made, batch = detector(), scenes()
    made.train()
    found = made.detect(batch.images)
    assert made.training
    made.eval()
    for ours, theirs in zip(found, made.net(list(batch.images)), strict=True):
        torch.testing.assert_close(ours.boxes, theirs["boxes"])
        torch.testing.assert_close(ours.score, theirs["scores"])
        assert (ours.label == theirs["labels"]).all()
    assert any(len(one.boxes) for one in found)


def test_a_frozen_detector_stays_frozen_and_answers_in_the_students_classes():
    made, batch = detector(), scenes()
    answer = made.train()(batch.images, batch.truth)
    teacher = detector(5, classes=("owl", "fox", "cat", "dog"))
    frozen = FrozenDetector(teacher, CLASSES).train()
    assert not any(module.training for module in frozen.modules())
    teacher.train()  # somebody else's call
    said = frozen(batch.images, answer.proposals)
    assert not teacher.training
    assert not said.logits.requires_grad
    place = torch.tensor([0, 3, 4, 1])  # cat, dog and owl among its own
    own = teacher.classify(
        batch.images,
        type(answer.proposals)(answer.proposals.boxes, place[answer.proposals.label], answer.proposals.truth),
    )
    assert (said.logits[:, 1:] == own.logits[:, place[1:]]).all()
    assert (said.features[BOX] == own.features[BOX]).all()
    for ours, theirs in zip(frozen.detect(batch.images), teacher.detect(batch.images), strict=True):
        kept = theirs.label != 2  # fox
        assert (place[ours.label] == theirs.label[kept]).all()
        assert (ours.boxes == theirs.boxes[kept]).all()


def test_what_a_teacher_believes_of_other_classes_is_background():
    """A region of a class that the student has not *is* background to it."""
    made, batch = detector(), scenes()
    answer = made.train()(batch.images, batch.truth)
    teacher = detector(5, classes=("cat", "dog", "fox", "owl"))
    frozen = FrozenDetector(teacher, ("owl", "cat"))
    proposals = type(answer.proposals)(
        answer.proposals.boxes, answer.proposals.label.clamp_max(2), answer.proposals.truth
    )
    believed = frozen(batch.images, proposals).logits.softmax(1)
    place = torch.tensor([0, 4, 1])
    own = teacher.classify(
        batch.images, type(proposals)(proposals.boxes, place[proposals.label], proposals.truth)
    ).logits.softmax(1)
    torch.testing.assert_close(believed[:, 1:], own[:, [4, 1]])
    torch.testing.assert_close(believed[:, 0], own[:, 0] + own[:, 2] + own[:, 3])


def test_a_box_is_compared_as_it_is_detected():
    """Cut off at the picture's border, like a detection."""
    made, batch = detector(), scenes()
    answer = made.train()(batch.images, batch.truth)
    boxes, label, truth = (
        answer.proposals.boxes,
        answer.proposals.label.clone(),
        answer.proposals.truth.clone(),
    )
    label[0], truth[0] = 1, boxes[0][0]
    with torch.no_grad():  # every box is moved to the left by half its width, and nothing else
        predictor = made.net.roi_heads.box_predictor.bbox_pred
        predictor.weight.zero_()
        predictor.bias.copy_(torch.tensor([-5.0, 0, 0, 0]).repeat(4))
    first = boxes[0].clone()
    first[0] = torch.tensor([0.0, 10, 40, 50])
    truth[0] = torch.tensor([0.0, 10, 20, 50])
    asked = type(answer.proposals)((first, *boxes[1:]), label, truth)
    said = made.eval().classify(batch.images, asked)
    assert said.features[BOX_IOU][0] == pytest.approx(1.0, abs=1e-4)


def test_a_teacher_without_the_students_classes_is_refused():
    with pytest.raises(ValueError, match="got no owl; its classes are cat, dog"):
        FrozenDetector(detector(classes=("cat", "dog")), CLASSES)


def test_autocast_keeps_boxes_in_full_precision():
    made, batch = detector(), scenes()
    with torch.autocast("cpu", torch.bfloat16):
        answer = made.train()(batch.images, batch.truth)
        found = made.detect(batch.images)
    assert answer.outputs.logits.dtype == torch.float32
    assert all(boxes.dtype == torch.float32 for boxes in answer.proposals.boxes)
    assert found[0].boxes.dtype == torch.float32


@pytest.mark.parametrize("name", [TINY, "fcos:timm/mobilenetv1_025_128?size=96&levels=3-5&channels=64"])
def test_an_image_that_would_be_resized_to_nothing_is_refused(name):
    made, batch = create_detector(name, CLASSES), scenes()
    thin = torch.zeros(3, 2, 2 * made.net.transform.max_size)
    assert len(made.detect([thin])) == 1
    with pytest.raises(
        ValueError, match=r"needs images at most \d+ times as long as wide .* got one of \d+x2; leave"
    ):
        made.detect([torch.zeros(3, 2, 2 * made.net.transform.max_size + 1)])
    assert len(made.train()(batch.images, batch.truth).outputs.logits)


# --- files


def test_a_detector_comes_back_from_its_file(tmp_path):
    made, batch = detector(), scenes()
    save_detector(made, tmp_path / "d.safetensors")
    again = create_detector(TINY, weights=tmp_path / "d.safetensors")
    assert again.classes == CLASSES
    for ours, theirs in zip(again.detect(batch.images), made.detect(batch.images), strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.score, theirs.score, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="the last layer is not loaded"):
        other = create_detector(TINY, ("a", "b"), weights=tmp_path / "d.safetensors")
    assert (other.net.rpn.head.cls_logits.weight == made.net.rpn.head.cls_logits.weight).all()
    with pytest.raises(
        ValueError, match=r"needs the weights of this detector, got .*tensors that do not fit"
    ):
        create_detector(TINY.replace("levels=3-5", "levels=4-5"), weights=tmp_path / "d.safetensors")


def same_boxes(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.score, theirs.score, rtol=1e-4, atol=1e-5)


def test_a_normalisation_of_ones_own_is_used_and_stays_with_the_file(tmp_path):
    made, batch = detector(), scenes()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    save_detector(made, tmp_path / "usual.safetensors")
    with pytest.warns(UserWarning, match=r"its file states mean .* and you gave \(0.1, 0.2, 0.3\)"):
        other = create_detector(TINY, weights=tmp_path / "usual.safetensors", mean=mean, std=std)
    # the same net sees the same numbers for images that are shifted and scaled the other way
    here, there = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    usual = [
        torch.tensor(v).view(3, 1, 1) for v in (made.net.transform.image_mean, made.net.transform.image_std)
    ]
    shifted = [(image - usual[0]) / usual[1] * there + here for image in batch.images]
    same_boxes(other.detect(shifted), made.detect(batch.images))
    save_detector(other, tmp_path / "own.safetensors")
    again = create_detector("fasterrcnn:", weights=tmp_path / "own.safetensors")
    same_boxes(again.detect(batch.images), other.detect(batch.images))


def test_a_backbone_keeps_the_normalisation_that_its_file_states(tmp_path):
    classifier = create_model("timm/mobilenetv1_025_128", 7, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_student(classifier, tmp_path / "c.safetensors")
    made = create_detector(TINY, CLASSES, weights=tmp_path / "c.safetensors")
    assert made.net.transform.image_mean == [0.1, 0.2, 0.3]
    assert made.net.transform.image_std == [0.4, 0.5, 0.6]


def test_a_normalisation_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="std"):
        create_detector(TINY, CLASSES, std=(0.1, 0.0, 0.1))


def test_classes_in_another_order_are_sorted(tmp_path):
    made, batch = detector(), scenes()
    save_detector(made, tmp_path / "d.safetensors")
    other = create_detector(TINY, ("owl", "cat", "dog"), weights=tmp_path / "d.safetensors")
    place = torch.tensor([0, 2, 3, 1])  # cat, dog, owl there
    for ours, theirs in zip(other.detect(batch.images), made.detect(batch.images), strict=True):
        assert (ours.label == place[theirs.label]).all()
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
    with pytest.warns(UserWarning, match="the last layer is not loaded"):  # as many, and others
        create_detector(TINY, ("cat", "dog", "fox"), weights=tmp_path / "d.safetensors")


def test_a_detector_is_found_in_the_files_of_training_scripts(tmp_path):
    made, batch = detector(), scenes()
    state = made.net.state_dict()
    average = torch.optim.swa_utils.AveragedModel(made.net, use_buffers=True).state_dict()
    for content in (
        {"model": {}, "model_ema": average},
        {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        {"model": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    ):
        torch.save({**content, "classes": list(CLASSES), "epoch": 3}, tmp_path / "d.pt")
        again = create_detector(TINY, weights=tmp_path / "d.pt")
        same_boxes(again.detect(batch.images), made.detect(batch.images))


def test_a_file_without_its_last_layer_says_nothing_of_classes(tmp_path):
    """Its scores would be those of random weights."""
    state = detector().net.state_dict()
    last = [key for key in state if "cls_score" in key]
    torch.save({"model": state, "classes": ["cat", "dog"]}, tmp_path / "fewer.pt")
    for key in last:
        state.pop(key)
    torch.save({"model": state, "classes": list(CLASSES)}, tmp_path / "none.pt")
    for classes in (None, ("a", "b")):
        with pytest.raises(
            ValueError, match=r"needs a name for each of the 3 classes of its file.* got 2 \(cat, dog\)"
        ):
            create_detector(TINY, classes, weights=tmp_path / "fewer.pt")
    with pytest.raises(ValueError, match=r"needs a last layer for the classes .* got .*none\.pt with none;"):
        create_detector(TINY, weights=tmp_path / "none.pt")
    with pytest.warns(UserWarning, match="the last layer is not loaded"):
        create_detector(TINY, ("a", "b"), weights=tmp_path / "none.pt")


def test_the_name_must_mean_the_detector_in_the_file(tmp_path):
    made = detector()
    save_detector(made, tmp_path / "d.safetensors")
    assert create_detector("fasterrcnn:", weights=tmp_path / "d.safetensors").name == TINY
    with pytest.raises(
        ValueError, match=r"anchors that the file was trained with \(anchors=4\), got anchors=8"
    ):
        create_detector(TINY.replace("&anchors=4", ""), weights=tmp_path / "d.safetensors")
    with pytest.warns(UserWarning, match="resizes images to 128, the file was trained at 64"):
        create_detector(TINY, weights=tmp_path / "d.safetensors", input_size=128)


def test_arguments_of_timm_have_types():
    assert parse_name("fasterrcnn:timm/resnet18?drop_path_rate=0.1&pad_type=same")[2] == {
        "drop_path_rate": 0.1,
        "pad_type": "same",
    }


def test_a_classifiers_file_becomes_the_backbone_with_frozen_norms(tmp_path):
    classifier = create_model("timm/mobilenetv1_025_128", 7)
    save_student(classifier, tmp_path / "c.safetensors")
    made = create_detector(TINY, CLASSES, weights=tmp_path / "c.safetensors")
    state = load_file(tmp_path / "c.safetensors")
    own = made.net.backbone.body.state_dict()
    assert len(own) > 50
    assert all((own[key] == state[key]).all() for key in own)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in made.net.backbone.body.modules())
    with pytest.raises(ValueError, match="needs a file of a whole detector, got a backbone"):
        create_detector(TINY, weights=tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"needs the weights of its backbone, got .* without"):
        create_detector("fasterrcnn:torchvision/resnet18", CLASSES, weights=tmp_path / "c.safetensors")


@pytest.mark.parametrize("name", ["timm/convnext_atto", "torchvision/mobilenet_v2"])
def test_a_classifiers_file_whose_keys_are_spelt_otherwise(name, tmp_path):
    classifier = create_model(name, 7)
    save_student(classifier, tmp_path / "c.safetensors")
    made = create_detector(
        f"fasterrcnn:{name}?levels=3-5&channels=8&head=8", CLASSES, weights=tmp_path / "c.safetensors"
    )
    wanted = {tuple(value.flatten()[:3].tolist()) for value in classifier.net.state_dict().values()}
    own = made.net.backbone.body.state_dict()
    assert all(tuple(v.flatten()[:3].tolist()) in wanted for k, v in own.items() if "num_batches" not in k)


def test_torchvisions_own_file_is_read(tmp_path):
    """The layout of torchvision's published Faster R-CNN: its keys, and COCO's 90 classes with gaps."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    ours = create_detector("fasterrcnn:torchvision/resnet50", weights=tmp_path / "coco.pth")
    assert ours.classes[0] == "person"
    assert len(ours.classes) == len(set(ours.classes)) == 90
    state = theirs.state_dict()
    own = ours.net.state_dict()
    assert set(own) == {key for key in state if not key.endswith("num_batches_tracked")}
    assert all((own[key] == state[key]).all() for key in own)


def test_names_of_classes_must_be_known(tmp_path):
    made = detector()
    save_file({k: v.contiguous() for k, v in made.net.state_dict().items()}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="needs the names of the 3 classes in the file"):
        create_detector(TINY, weights=tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="needs a file of a whole detector, got no weights"):
        create_detector(TINY)
    with pytest.raises(
        ValueError,
        match="for which torchvision has only torchvision/resnet50, torchvision/mobilenet_v3_large",
    ):
        create_detector("fasterrcnn:torchvision/resnet18", pretrained=True)
    with pytest.raises(ValueError, match="needs one output for each of 2 classes"):
        FasterRCNNDetector(made.net, name="x", classes=("a", "b"))
    with safetensors_metadata(tmp_path / "bare.safetensors", classes=["a", "b", "c"]) as path:
        assert create_detector(TINY, weights=path).classes == ("a", "b", "c")


def test_without_a_network_published_weights_say_so(monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(
        ValueError, match=r"needs published weights, which could not be downloaded .*no route to host"
    ):
        create_detector("fasterrcnn:torchvision/resnet18", CLASSES, pretrained=True)


class safetensors_metadata:
    """A copy of a file that says more of itself."""

    def __init__(self, path, **facts):
        self.path = path.with_name("said.safetensors")
        save_file(load_file(path), self.path, metadata={k: json.dumps(v) for k, v in facts.items()})

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.path.unlink()


def test_real_backbones(shared_data):
    for name, file in (
        ("timm/tf_efficientnet_lite0", "in1k_tf_efficientnet_lite0"),
        ("timm/mobilenetv1_025_128", "in1k_mobilenetv1_025_128"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = create_detector(
                f"fasterrcnn:{name}?levels=3-5&channels=16&head=16",
                CLASSES,
                weights=shared_data / "weights" / f"{file}.safetensors",
            )
        assert made.net.transform.image_mean == [0.5, 0.5, 0.5]


def test_classes_of_a_teacher_in_other_spellings_and_without_names():
    """Names are one for one whatever their case; numbers are no names, and count by position."""
    made, batch = detector(classes=("Cat", "polar_bear", "fox")), scenes()
    assert FrozenDetector(made, ("fox", "polar bear")).columns.tolist() == [0, 3, 2]
    numbers = detector(classes=("1", "2", "3"))
    with pytest.warns(UserWarning, match="its classes are taken by position"):
        frozen = FrozenDetector(numbers, ("cat", "dog", "owl"))
    assert frozen.columns.tolist() == [0, 1, 2, 3]
    assert len(batch.images)


def test_a_file_in_another_spelling_and_order_gives_its_last_layer(tmp_path):
    made = detector(classes=("Cat", "dog", "owl"))
    save_detector(made, tmp_path / "d.safetensors")
    other = create_detector(made.name, ("owl", "cat", "dog"), weights=tmp_path / "d.safetensors")
    predictor, own = other.net.roi_heads.box_predictor, made.net.roi_heads.box_predictor
    assert torch.equal(predictor.cls_score.weight, own.cls_score.weight[[0, 3, 1, 2]])
    boxes = own.bbox_pred.bias.view(4, 4)[[0, 3, 1, 2]].flatten()
    assert torch.equal(predictor.bbox_pred.bias, boxes)


def test_objects_are_shares_of_the_padded_maps():
    """Two annotated pictures of other sizes: a box of the first, resized and divided by the size of the padded batch."""
    made, batch = detector(), scenes()
    outputs = made.train()(batch.images, batch.truth).outputs
    height, width = (8 * side for side in outputs.features["p3"].shape[2:])
    found = outputs.features[OBJECTS]
    assert found.shape == (3, 2, 4)
    scale = 64 / 96  # the short side of the first picture
    expected = batch.truth[0].boxes * scale / torch.tensor([width, height, width, height])
    torch.testing.assert_close(found[0], expected, rtol=0.02, atol=0.01)
    assert not found[1].any()
    assert not found[2, 1].any()
