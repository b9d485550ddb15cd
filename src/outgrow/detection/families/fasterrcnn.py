"""Faster R-CNN: a row is a proposal.

The network is torchvision's Faster R-CNN with a feature pyramid, on any backbone. A detector classifies the proposals
of any other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.families import detectron2, published
from outgrow.detection.families.detector import (
    Detector,
    Layout,
    Proposals,
    TrainingOutputs,
    anchors_of,
    by_annotation,
    full_precision,
    matched_boxes,
    no_task,
    overlap_with_truth,
    scale_to,
    task_alone,
    with_objects,
)
from outgrow.detection.families.family import Family
from outgrow.detection.families.pyramid import build_pyramid
from outgrow.models.taps import BOX, BOX_IOU, OBJECTNESS, PENULTIMATE
from outgrow.outputs import Outputs

STRIDE_TO_ANCHOR = 8.0
"""Side of a level's anchors divided by its stride, in the paper and in torchvision."""


@dataclass(frozen=True)
class Shape:
    """The size of a Faster R-CNN. The defaults are the paper's and torchvision's, for images like COCO's."""

    family: ClassVar[str] = "fasterrcnn"

    size: int = 800
    """Pixels of the short side after resizing."""
    max_size: int | None = None
    """The most pixels of the long side; None is ``size`` * 1333 / 800, or as the published detector has it."""
    levels: tuple[int, int] = (2, 5)
    """The finest and the coarsest map taken from the backbone, as log2 of the stride. One more level is pooled."""
    channels: int = 256
    """Channels of each level of the pyramid."""
    head: int = 1024
    """Width of the two layers that classify a proposal."""
    rois: int = 512
    """Proposals sampled per image in a training step."""
    proposals: int = 2000
    """Proposals kept per image in training, from which ``rois`` are sampled; half as many in evaluation."""
    anchors: float = STRIDE_TO_ANCHOR
    """Side of a level's anchors divided by its stride; smaller for smaller objects."""
    style: str = "torchvision"
    """Whose details of anchors, pooling and strides: torchvision's, or those of :mod:`outgrow.detection.families.detectron2`."""


class FasterRCNNDetector(Detector):
    """A detector whose rows are its proposals.

    PENULTIMATE, among the features, is the input of the classification layer, per row.
    """

    family = "fasterrcnn"

    def __init__(self, net: FasterRCNN, *, name: str, classes: tuple[str, ...]) -> None:
        outputs = net.roi_heads.box_predictor.cls_score.out_features
        super().__init__(net, name=name, classes=classes, outputs=outputs)

    @property
    def regions(self) -> Layout:
        generator = self.net.rpn.anchor_generator
        places = tuple(zip(generator.sizes, generator.aspect_ratios, strict=True))
        return anchors_of(
            self.net,
            self.family,
            self.levels,
            (type(generator).__name__, *places),
            rows="regions",
        )

    @property
    def reported(self) -> tuple[float, int]:
        heads = self.net.roi_heads
        return heads.score_thresh, heads.detections_per_img

    def forward(
        self, images: Sequence[Tensor], truth: Sequence[Truth], *, rows: bool = True
    ) -> TrainingOutputs:
        """The forward pass of a training step. torchvision draws the proposals at random."""
        self.check_training()
        targets = [{"boxes": t.boxes, "labels": t.label} for t in truth]
        batch, targets = self.net.transform(self.resizable(images), targets)
        maps = self._maps(batch.tensors)
        with full_precision(batch.tensors):
            boxes, region_losses, objectness = self._regions(batch, maps, targets, truth)
            heads = self.net.roi_heads
            boxes, matched, labels, moves = heads.select_training_samples(boxes, targets)
            vectors, logits, deltas = self._heads(maps, boxes, batch.image_sizes)
            known, rest = by_annotation(truth)
            if not rest:
                losses = [*region_losses, *fastrcnn_loss(logits, deltas, labels, moves)]
            elif known:
                annotated = [truth[at].labelled for at, own in enumerate(labels) for _ in own]
                counted = torch.tensor(annotated, device=logits.device)
                losses = fastrcnn_loss(
                    logits[counted],
                    deltas[counted],
                    [labels[at] for at in known],
                    [moves[at] for at in known],
                )
                losses = [*region_losses, *losses]
            else:
                losses = [no_task(self.net)]
            task = torch.stack(losses).sum()
            if not rows:
                return task_alone(task, images, self.num_classes)
            label = torch.cat(labels)
            back = [scale_to(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            proposals = Proposals(
                boxes=tuple(b * s for b, s in zip(boxes, back, strict=True)),
                label=label,
                truth=torch.cat(
                    [matched_boxes(t.boxes, which) for t, which in zip(truth, matched, strict=True)]
                ),
            )
            outputs = self._outputs(maps, vectors, logits, deltas, boxes, back, images, proposals)
            outputs = with_objects(outputs, targets, batch.tensors)
            outputs = replace(outputs, features={**outputs.features, OBJECTNESS: objectness})
        return TrainingOutputs(outputs, proposals, task)

    def classify(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for the proposals of another detector. The detector must be in eval mode."""
        batch, _ = self.net.transform(self.resizable(images))
        maps = self._maps(batch.tensors)
        with full_precision(batch.tensors):
            back = [scale_to(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            boxes = [b / s for b, s in zip(proposals.boxes, back, strict=True)]
            vectors, logits, deltas = self._heads(maps, boxes, batch.image_sizes)
            outputs = self._outputs(maps, vectors, logits, deltas, boxes, back, images, proposals)
            if self.shows_regions:
                scores, _ = self.net.rpn.head(list(maps.values()))
                outputs = replace(outputs, features={**outputs.features, OBJECTNESS: _by_anchor(scores)})
            return outputs

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in pixels of the images, highest score first. Runs in eval mode and restores the mode."""
        training = self.training
        self.eval()
        try:
            batch, _ = self.net.transform(self.resizable(images))
            maps = self._maps(batch.tensors)
            with full_precision(batch.tensors):
                boxes, _ = self.net.rpn(batch, maps, None)
                found, _ = self.net.roi_heads(maps, boxes, batch.image_sizes, None)
                sizes = [tuple(image.shape[-2:]) for image in images]
                found = self.net.transform.postprocess(found, batch.image_sizes, sizes)
        finally:
            self.train(training)
        return [Detections(f["boxes"].float(), f["labels"], f["scores"].float()) for f in found]

    def _regions(
        self,
        batch: ImageList,
        maps: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        truth: Sequence[Truth],
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "images anchors"]]:
        """The proposals of each image, the losses of those with annotations, and the score of each anchor."""
        known, rest = by_annotation(truth)
        if not (known and rest):
            with _recorded_scores(self.net.rpn.head) as seen:
                found, losses = self.net.rpn(batch, maps, targets)
            return found, [] if rest else [*losses.values()], _by_anchor(seen)
        boxes: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}
        for part in (rest, known):  # the losses are those of the last
            some = ImageList(batch.tensors[part], [batch.image_sizes[at] for at in part])
            own = {name: value[part] for name, value in maps.items()}
            with _recorded_scores(self.net.rpn.head) as seen:
                found, losses = self.net.rpn(some, own, [targets[at] for at in part])
            boxes |= dict(zip(part, found, strict=True))
            scores |= dict(zip(part, _by_anchor(seen), strict=True))
        every = range(len(truth))
        return [boxes[at] for at in every], [*losses.values()], torch.stack([scores[at] for at in every])

    def _maps(self, batch: Tensor) -> dict[str, Tensor]:
        """The pyramid in float32, as the heads do not run in half precision."""
        return {key: value.float() for key, value in self.net.backbone(batch).items()}

    def _heads(
        self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.net.roi_heads
        vectors = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
        return vectors, *heads.box_predictor(vectors)

    def _outputs(
        self,
        maps: dict[str, Tensor],
        vectors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        back: list[Tensor],
        images: Sequence[Tensor],
        proposals: Proposals,
    ) -> Outputs:
        rows = torch.arange(len(logits), device=logits.device)
        # background rows read class 0's regression, which is neither trained nor used
        own = deltas.view(len(logits), -1, 4)[rows, proposals.label]
        moved = self.net.roi_heads.box_coder.decode_single(own.detach(), torch.cat(list(boxes)))
        overlap = overlap_with_truth(moved, back, images, proposals)
        levels = {self.levels[key]: value for key, value in maps.items()}
        return Outputs(logits, {**levels, PENULTIMATE: vectors, BOX: own, BOX_IOU: overlap})


def _by_anchor(scores: Sequence[Tensor]) -> Float[Tensor, "images anchors"]:
    """The scores of the region proposals by level, one for each anchor of a place, as one row an image."""
    return torch.cat([one.permute(0, 2, 3, 1).flatten(1).float() for one in scores], dim=1)


@contextmanager
def _recorded_scores(head: nn.Module) -> Iterator[list[Tensor]]:
    """Records the scores of the region proposals, which torchvision's step does not return."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, output: seen.extend(output[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _build(backbone: str, shape: Shape, arguments: dict[str, Any], outputs: int, pretrained: bool) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    if shape.style == detectron2.STYLE and (backbone not in detectron2.BACKBONES or shape.levels != (2, 5)):
        raise ValueError(
            f"fasterrcnn:{backbone}: needs {', '.join(detectron2.BACKBONES)} and levels 2-5 for style={detectron2.STYLE}, got "
            f"{backbone} and {'-'.join(map(str, shape.levels))}; use one of them, or leave the style out."
        )
    pyramid, spec = build_pyramid(
        "fasterrcnn",
        backbone,
        levels=shape.levels,
        channels=shape.channels,
        pretrained=pretrained,
        arguments=arguments,
    )
    sizes = tuple((round(stride * shape.anchors),) for stride in pyramid.strides)
    resolution = 7
    net = FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        # the pooled level is only for large anchors: features are not taken from it
        box_roi_pool=MultiScaleRoIAlign(list(pyramid.levels[:-1]), resolution, sampling_ratio=2),
        box_head=TwoMLPHead(shape.channels * resolution**2, shape.head),
        box_predictor=FastRCNNPredictor(shape.head, outputs),
        min_size=shape.size,
        max_size=shape.max_size or round(shape.size * published.LONGEST),
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        rpn_pre_nms_top_n_train=shape.proposals,
        rpn_post_nms_top_n_train=shape.proposals,
        rpn_pre_nms_top_n_test=max(shape.proposals // 2, 1),
        rpn_post_nms_top_n_test=max(shape.proposals // 2, 1),
        box_batch_size_per_image=shape.rois,
    )
    if shape.style == detectron2.STYLE:
        detectron2.set_style(net, pyramid.strides, pyramid.levels[:-1])
    return net


FAMILY = Family(
    name="fasterrcnn",
    shape=Shape,
    build=_build,
    wrap=lambda net, _, name, classes: FasterRCNNDetector(net, name=name, classes=classes),
    heads="roi_heads.",
    class_layers=r"roi_heads\.box_predictor\.",
    outputs=lambda state: len(state.get(published.SCORES, ())),
    by_class=True,
    unseen=("anchors", "style"),
)
