"""The contracts hold for a detector: rows are proposals, features are images.

One distillation step of torchvision's Faster R-CNN on random images: the student's proposals go
through both RoI heads, the student's own matcher says what each proposal is, background included.
"""

import pytest
import torch

import outgrow
from outgrow import IGNORE, Objective, Outputs, Rectifier, Target, Term
from outgrow.losses import LOSSES
from tests.reference import losses as reference
from tests.reference import rules


@pytest.fixture(scope="module")
def detectors():
    from torchvision.models import resnet18
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    def build(seed):
        torch.manual_seed(seed)
        trunk = resnet18(weights=None)
        backbone = BackboneWithFPN(trunk, {"layer3": "0", "layer4": "1"}, [256, 512], 32)
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.ops import MultiScaleRoIAlign

        return FasterRCNN(
            backbone,
            num_classes=4,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
            box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
            min_size=64,
            max_size=64,
            rpn_post_nms_top_n_train=40,
            box_batch_size_per_image=24,
        )

    return build(0), build(1).eval().requires_grad_(False)


def step(student, teacher):
    """Rows and features of both networks, as a detection trainer would gather them."""
    torch.manual_seed(2)
    images = list(torch.rand(2, 3, 64, 64))
    truth = [
        {"boxes": torch.tensor([[8.0, 8, 40, 40], [30, 30, 60, 60]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},  # an image without boxes
    ]
    student.train()
    batch, truth = student.transform(images, truth)
    features = student.backbone(batch.tensors)
    proposals, _ = student.rpn(batch, features, truth)
    head = student.roi_heads
    proposals, _, labels, _ = head.select_training_samples([p.detach() for p in proposals], truth)
    logits = head.box_predictor(head.box_head(head.box_roi_pool(features, proposals, batch.image_sizes)))[0]
    with torch.no_grad():
        other = teacher.backbone(batch.tensors)
        t = teacher.roi_heads
        teacher_logits = t.box_predictor(t.box_head(t.box_roi_pool(other, proposals, batch.image_sizes)))[0]
    label = torch.cat(labels)
    image = torch.cat([torch.full((len(p),), i) for i, p in enumerate(proposals)])
    label[1::7] = IGNORE  # proposals between the matcher's thresholds take part in nothing
    target = Target(label, image=image, may_ignore=True)
    return Outputs(logits, dict(features)), Outputs(teacher_logits, dict(other)), target


def test_one_step(detectors):
    student_out, teacher_out, target = step(*detectors)
    assert (target.label == 0).any()  # background rows
    assert (target.label > 0).any()
    knowledge = Rectifier("pair")(teacher_out, target)
    objective = Objective(
        {"roi": LOSSES["kd"](), "fpn": Term(LOSSES["fitnet"]("0", "0"), weight=0.1)}, schedule="linear"
    )
    objective.setup(student_out, teacher_out, num_samples=2)
    detector_loss = student_out.logits.square().mean()  # stands for the detector's own sum
    result = objective(student_out, knowledge, target, 0.25, task=detector_loss)
    result.total.backward()
    assert result.total.isfinite()
    assert set(result.terms) == {"task", "roi", "fpn"}
    backbone = detectors[0].backbone
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.fpn.parameters())

    # against a slow literal reference, row by row
    valid = target.label != IGNORE
    easy = hard = 0.0
    for s, z, y in zip(
        student_out.logits.detach().double(), teacher_out.logits.double(), target.label.tolist(), strict=True
    ):
        if y == IGNORE:
            continue
        t = rules.softmax(z.tolist(), 4.0)
        wrong = z[y] < z.max()
        q = torch.tensor(rules.pair(t, y) if wrong else t, dtype=torch.float64)
        value = float(reference.kd(s[None], 4.0 * q.log()[None], None)[0])
        easy, hard = (easy, hard + value) if wrong else (easy + value, hard)
    count = int(valid.sum())
    assert float(result.stats["roi.easy"]) == pytest.approx(easy / count, rel=1e-4)
    assert float(result.stats["roi.hard"]) == pytest.approx(hard / count, rel=1e-4)
    assert float(result.terms["roi"]) == pytest.approx((0.75 * easy + 0.25 * hard) / count, rel=1e-4)


def test_an_image_that_is_all_background_still_teaches_its_features(detectors):
    student_out, teacher_out, target = step(*detectors)
    knowledge = Rectifier("drop")(teacher_out, target)
    objective = Objective(LOSSES["fitnet"]("0", "0"), task_weight=0.0)
    objective.setup(student_out, teacher_out, num_samples=2)
    assert objective(student_out, knowledge, target, 0.5).total > 0


def test_classes_must_agree(detectors):
    student_out, teacher_out, target = step(*detectors)
    knowledge = outgrow.rectify(Outputs(torch.cat([teacher_out.logits, teacher_out.logits], 1)), target)
    with pytest.raises(ValueError, match="got 8 and 4"):
        Objective("kd")(student_out, knowledge, target, 0.0)
