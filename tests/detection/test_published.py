"""Files of torchvision's published detectors, which have older names than its present layers, and what they compute."""

import re
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import detection, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from outgrow.detection.families import published
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.families.detector import FrozenDetector

COCO80 = tuple(name for name in published.coco_names() if not name.startswith("("))


def made(builder, seed=0):
    """A detector as torchvision would publish it: statistics in its norms, and scores that differ."""
    torch.manual_seed(seed)
    net = getattr(detection, builder)(weights=None, weights_backbone=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            module.weight.data[:2] *= 1e-3  # a channel that is nearly off, where the epsilon counts
            module.running_var[:2] = 1e-6
    with torch.no_grad():
        # the features of a random MobileNet are small
        spread = 100 if "mobilenet" in builder else 0.3
        net.roi_heads.box_predictor.cls_score.weight.normal_(std=spread)
        net.roi_heads.box_predictor.cls_score.bias.normal_(std=1.5)
    return net


def old_names(state):
    """The names in the files that torchvision publishes: those before its version 0.13."""
    found = {}
    for key, value in state.items():
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        found[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    assert any(key not in state for key in found)
    return found


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 120, 160, generator=generator), torch.rand(3, 150, 110, generator=generator)]


def few(net):
    """With 40 proposals an image, for speed."""
    net.rpn._post_nms_top_n = {"training": 40, "testing": 40}
    return net


def theirs_as_published(monkeypatch, builder, state, **options):
    """What torchvision's own function makes of these weights."""
    kind = type(get_model_weights(builder).DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: dict(state))
    return few(getattr(detection, builder)(weights="DEFAULT", **options).eval())


def same(detector, pictures, theirs):
    few(detector.net)
    ours = detector.detect(pictures)
    assert sum(len(one.boxes) for one in ours) > 3
    for one, other in zip(ours, theirs, strict=True):
        assert (one.label == other["labels"]).all()
        torch.testing.assert_close(one.boxes, other["boxes"], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one.score, other["scores"], rtol=1e-5, atol=1e-5)


FILES = [
    ("fasterrcnn_resnet50_fpn", "torchvision/resnet50", 1333 / 800),
    pytest.param(
        "fasterrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn", 1333 / 800, marks=pytest.mark.slow
    ),
    ("fasterrcnn_resnet50_fpn_v2", "torchvision/fasterrcnn_resnet50_fpn_v2", 1333 / 800),
    ("fasterrcnn_mobilenet_v3_large_fpn", "torchvision/fasterrcnn_mobilenet_v3_large_fpn", 1333 / 800),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 2),
]


@pytest.mark.filterwarnings("ignore:.*resizes images to:UserWarning")
@pytest.mark.parametrize("builder, backbone, longest", FILES)
def test_a_published_file_detects_what_torchvision_detects(
    builder, backbone, longest, tmp_path, monkeypatch, pictures
):
    state = made(builder).state_dict()
    if "v2" not in builder:
        state = old_names(state)
    torch.save(state, tmp_path / "coco.pth")
    size = 128
    theirs = theirs_as_published(monkeypatch, builder, state, min_size=size, max_size=round(size * longest))
    name = f"fasterrcnn:{backbone}?size={size}"
    ours = create_detector(name, weights=tmp_path / "coco.pth")
    assert ours.name == name
    assert ours.classes == published.coco_names()
    expected = theirs(pictures)
    same(ours, pictures, expected)

    save_detector(ours, tmp_path / "own.safetensors")  # and it comes back from its own file, with its epsilon
    again = create_detector("fasterrcnn:", weights=tmp_path / "own.safetensors")
    assert again.name == name
    same(again, pictures, expected)

    downloaded = create_detector(name, pretrained=True)
    same(downloaded, pictures, expected)


def test_the_sizes_of_published_detectors():
    for builder in (key for key, one in published.BUILDERS.items() if one.family == "fasterrcnn"):
        kind = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=3)
        ours = create_detector(f"fasterrcnn:torchvision/{builder}", ("a", "b"))
        for field in ("min_size", "max_size"):
            assert getattr(ours.net.transform, field) == getattr(kind.transform, field)
        assert ours.net.rpn._post_nms_top_n == kind.rpn._post_nms_top_n
        assert ours.net.rpn.score_thresh == kind.rpn.score_thresh
        assert ours.name == f"fasterrcnn:torchvision/{builder}"
    with pytest.raises(ValueError, match="needs the layers of the published detector, got other levels"):
        create_detector("fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2?levels=3-5", ("a",))


@pytest.mark.filterwarnings("ignore:.*resizes images to:UserWarning")
def test_91_rows_are_80_classes_by_name_for_teacher_and_student(tmp_path):
    net = made("fasterrcnn_resnet50_fpn")
    torch.save(old_names(net.state_dict()), tmp_path / "coco.pth")
    name = "fasterrcnn:torchvision/resnet50?size=64"
    classes = tuple(reversed(COCO80))
    student = create_detector(name, classes, weights=tmp_path / "coco.pth")
    categories = get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.meta["categories"]
    rows = torch.tensor([0, *(categories.index(name) for name in classes)])
    predictor = net.roi_heads.box_predictor
    own = student.net.roi_heads.box_predictor
    assert torch.equal(own.cls_score.weight, predictor.cls_score.weight[rows])
    assert torch.equal(own.bbox_pred.weight.view(81, 4, -1), predictor.bbox_pred.weight.view(91, 4, -1)[rows])
    norms = [m for m in student.net.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert all(norm.eps == 0 for norm in norms)
    teacher = FrozenDetector(create_detector(name, weights=tmp_path / "coco.pth"), classes)
    assert teacher.columns.tolist() == rows.tolist()
    with pytest.warns(UserWarning, match="the last layer is not loaded"):
        create_detector(name, tuple(f"own {k}" for k in range(90)), weights=tmp_path / "coco.pth")


@pytest.mark.filterwarnings("ignore:.*resizes images to:UserWarning")
@pytest.mark.parametrize("from_published", [True, False])
def test_a_fine_tuned_file_does_not_say_its_epsilon(from_published, tmp_path, monkeypatch, pictures):
    """0 if it was trained from the published detector, 1e-5 if from the backbone: the tensors are the same."""
    published_state = made("fasterrcnn_resnet50_fpn").state_dict()
    net = theirs_as_published(monkeypatch, "fasterrcnn_resnet50_fpn", published_state, min_size=64)
    net.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(1024, 3)
    with torch.no_grad():
        net.roi_heads.box_predictor.cls_score.weight.normal_(std=0.3)
    norms = [module for module in net.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.0}
    if not from_published:
        for norm in norms:
            norm.eps = 1e-5
    theirs, name, path = net(pictures), "fasterrcnn:torchvision/resnet50?size=64", tmp_path / "own.pth"
    own = {"state_dict": net.state_dict(), "classes": ["a", "b"]}
    torch.save(own, path)
    message = r"own\.pth does not state the epsilon .* norms: 1e-5 is taken\. .* published .* 0: write norm_eps: 0\.0"
    with pytest.warns(UserWarning, match=message):
        assumed = create_detector(name, weights=path)
    torch.save({**own, "norm_eps": 0.0 if from_published else 1e-5}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stated = create_detector(name, weights=path)
        save_detector(stated, tmp_path / "own.safetensors")
        again = create_detector("fasterrcnn:", weights=tmp_path / "own.safetensors")
    for one in (stated, again, *(() if from_published else (assumed,))):
        same(one, pictures, theirs)
    torch.save({**own, "norm_eps": 1e-3}, path)
    with pytest.raises(ValueError, match=r"needs 0 or 1e-05 as norm_eps in the metadata of .*, got 0\.001"):
        create_detector(name, weights=path)


def test_norms_that_were_trained_have_the_usual_epsilon(tmp_path):
    """Frozen ones count no batches."""
    net = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save({"state_dict": net.state_dict(), "classes": ["a", "b"]}, tmp_path / "own.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_detector("fasterrcnn:torchvision/resnet50", weights=tmp_path / "own.pth")


@pytest.mark.parametrize(
    "builder, asked, said",
    [
        (
            "fasterrcnn_resnet50_fpn_v2",
            "resnet50",
            "use fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2, whose",
        ),
        (
            "fasterrcnn_mobilenet_v3_large_fpn",
            "mobilenet_v3_large",
            "use fasterrcnn:torchvision/fasterrcnn_mobilenet_v3_large_fpn or "
            "fasterrcnn:torchvision/fasterrcnn_mobilenet_v3_large_320_fpn, whose",
        ),
    ],
)
def test_a_file_under_another_name_says_its_own(builder, asked, said, tmp_path):
    torch.save(made(builder).state_dict(), tmp_path / "coco.pth")
    with pytest.raises(ValueError, match=said):
        create_detector(f"fasterrcnn:torchvision/{asked}", weights=tmp_path / "coco.pth")


def test_a_file_of_torchvision_has_its_own_anchors(tmp_path):
    torch.save(made("fasterrcnn_resnet50_fpn").state_dict(), tmp_path / "coco.pth")
    with pytest.raises(ValueError, match=r"needs the anchors .*\(anchors=8\), got anchors=4"):
        create_detector("fasterrcnn:torchvision/resnet50?anchors=4", weights=tmp_path / "coco.pth")


@pytest.mark.parametrize(
    "stated",
    [
        {"classes": ["__background__", "b", "c", "a"]},
        {"class_names": ["b", "c", "a"]},
        {"class_to_idx": {"b": 1, "c": 2, "a": 3}},
        {"class_to_idx": {"__background__": 0, "b": 1, "c": 2, "a": 3}},
        {"id2label": {1: "b", 2: "c", 3: "a"}},
    ],
)
def test_the_classes_that_a_file_of_torchvision_states(stated, tmp_path):
    name = "ssdlite:torchvision/ssdlite320_mobilenet_v3_large"
    net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": net.state_dict(), **stated}, tmp_path / "own.pth")
    assert create_detector(name, weights=tmp_path / "own.pth").classes == ("b", "c", "a")
    student = create_detector(name, ("a", "b", "c"), weights=tmp_path / "own.pth")  # without a warning
    bias = "head.classification_head.module_list.0.1.bias"
    rows = torch.tensor([0, 3, 1, 2])
    own, theirs = student.net.state_dict()[bias], net.state_dict()[bias]
    assert torch.equal(own.view(-1, 4), theirs.view(-1, 4)[:, rows])


def test_more_classes_than_a_file_has_are_refused(tmp_path):
    name = "ssdlite:torchvision/ssdlite320_mobilenet_v3_large"
    net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": net.state_dict(), "classes": ["a", "b", "c", "d"]}, tmp_path / "own.pth")
    for classes in (None, ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"a name for each of the 3 classes .* got 4 \(a, b, c, d\)"):
            create_detector(name, classes, weights=tmp_path / "own.pth")


def test_90_classes_with_names_are_not_cocos(tmp_path):
    own = [f"own {k}" for k in range(90)]
    net = made("fasterrcnn_mobilenet_v3_large_320_fpn")
    torch.save({"model": net.state_dict(), "class_names": own}, tmp_path / "own.pth")
    name = "fasterrcnn:torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
    assert create_detector(name, weights=tmp_path / "own.pth").classes == tuple(own)
