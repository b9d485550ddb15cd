"""RT-DETR v2 and D-FINE of the library transformers as a student and as a teacher.

    detector(images, truth)               a training step: its queries, its outputs for them, its losses
    detector.classify(images, queries)    its outputs for the queries of another detector
    detector.detect(images)               boxes, classes, scores

A row is a query and a class (:mod:`outgrow.detection.families.queries`). The task loss is the one that the library computes from
labels, with its denoising queries. Images are resized to one size, without keeping the aspect ratio, as the library does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_convert

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.families.detector import (
    Detector,
    Layout,
    Proposals,
    TrainingOutputs,
    by_annotation,
    no_task,
    task_alone,
    with_objects,
)
from outgrow.detection.families.queries import LAYOUT, Pairs, Queries, choose, partners, rows_of
from outgrow.outputs import Outputs

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preparation:
    """How images in [0, 1] become the input: the height and width, and mean and std if it is normalised."""

    size: tuple[int, int]
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @property
    def normalises(self) -> bool:
        return self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class _Seen:
    """What the network says of a batch, without its denoising queries."""

    logits: Float[Tensor, "images queries classes"]
    boxes: Float[Tensor, "images queries 4"]
    vectors: Float[Tensor, "images queries width"]
    maps: dict[str, Tensor]
    loss: Tensor | None


class TransformerDetector(Detector):
    """``net`` (transformers' model for object detection) for ``classes``.

    The features of its outputs are those of :func:`outgrow.detection.families.queries.rows_of`. Their maps are the levels of the
    encoder by stride: ``p3`` is 2**3 pixels of the resized image.
    """

    mean: Tensor
    std: Tensor
    family = "transformer"

    def __init__(self, net: Any, *, name: str, classes: tuple[str, ...], preparation: Preparation) -> None:
        if net.config.num_labels != len(classes):
            raise ValueError(
                f"Detector {name}: needs one output for each of {len(classes)} classes, got {net.config.num_labels}; pass "
                "every class once, without the background."
            )
        levels = [f"p{stride.bit_length() - 1}" for stride in net.config.feat_strides]
        super().__init__(
            net,
            name=name,
            classes=classes,
            outputs=len(classes) + 1,  # without an object no class has a high score
            levels=dict(zip(levels, levels, strict=True)),
        )
        self.preparation = preparation
        for key in ("mean", "std"):
            value = torch.tensor(getattr(preparation, key)).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)

    @property
    def layout(self) -> Layout:
        return LAYOUT

    @property
    def regions(self) -> None:
        return None

    @property
    def reported(self) -> tuple[float, int]:
        return 0.0, self.net.config.num_queries

    @cached_property
    def _matcher(self) -> Any:
        """The library's Hungarian matcher, which its losses use."""
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

        return RTDetrHungarianMatcher(self.net.config)

    def forward(
        self, images: Sequence[Tensor], truth: Sequence[Truth], *, rows: bool = True
    ) -> TrainingOutputs:
        """The forward pass of a training step. The library draws the noise of the denoising queries at random."""
        self.check_training()
        labels = self.labels(images, truth)
        seen = self._see_all(images, labels, truth)
        assert seen.loss is not None
        if not rows:
            return task_alone(seen.loss, images, self.num_classes)
        pairs = self._match(seen, labels)
        num = [len(one["boxes"]) for one in labels]
        chosen = choose(seen.logits, pairs, num)
        object, goal = _objects(chosen, pairs, labels)
        queries = Queries.of(
            sizes=[(image.shape[-2], image.shape[-1]) for image in images],
            counts=[len(one) for one in chosen],
            object=object,
            query=_picked(seen.boxes, chosen).detach(),
            goal=goal,
            num_classes=len(self.classes),
        )
        # the input is all of an image, so shares of it are shares of a map
        shares = [{"boxes": box_convert(one["boxes"], "cxcywh", "xyxy")} for one in labels]
        outputs = with_objects(
            _outputs(seen, chosen, queries), shares, torch.empty(1, 1, device=object.device)
        )
        return TrainingOutputs(outputs, queries, seen.loss)

    def classify(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for another detector's queries. A class that only this one has is in no row: each has its own sigmoid."""
        assert isinstance(proposals, Queries)  # a FrozenDetector compares the layouts
        seen = self._see(images, None)
        chosen = partners(proposals, seen.boxes, self._match(seen, proposals.targets))
        return _outputs(seen, chosen, proposals)

    def levels_of(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        return self._see(images, None).maps

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """As many detections per image as there are queries, as transformers' image processor chooses them."""
        training = self.training
        self.eval()
        try:
            seen = self._see(images, None)
        finally:
            self.train(training)
        return [
            Detections(*found(logits, boxes, image.shape[-2:]))
            for logits, boxes, image in zip(seen.logits, seen.boxes, images, strict=True)
        ]

    def pixels(self, images: Sequence[Tensor]) -> Float[Tensor, "images 3 height width"]:
        """The input of ``net``."""
        resized = [
            F.interpolate(
                image[None], self.preparation.size, mode="bilinear", antialias=True, align_corners=False
            )
            for image in images
        ]
        batch = torch.cat(resized)
        return (batch - self.mean) / self.std if self.preparation.normalises else batch

    def labels(self, images: Sequence[Tensor], truth: Sequence[Truth]) -> list[dict[str, Tensor]]:
        """The ground truth in the layout that ``net`` takes as ``labels``."""
        found = []
        for image, one in zip(images, truth, strict=True):
            height, width = image.shape[-2:]
            scale = one.boxes.new_tensor([width, height, width, height])
            boxes = box_convert(one.boxes, "xyxy", "cxcywh") / scale
            found.append({"class_labels": one.label - 1, "boxes": boxes})
        return found

    def _see(self, images: Sequence[Tensor], labels: list[dict[str, Tensor]] | None) -> _Seen:
        pixels = self.pixels(images)
        found = self.net(pixel_values=pixels, labels=labels)
        last = self.net.config.num_queries
        loss = found.loss
        if loss is not None and self.net.config.num_denoising > 0 and found.denoising_meta_values is None:
            # a batch without objects has no denoising queries: their weights get a zero gradient, which DDP waits for
            loss = loss + 0.0 * self.net.model.denoising_class_embed.weight.sum()
        return _Seen(
            logits=found.logits[:, -last:].float(),
            boxes=found.pred_boxes[:, -last:].float().clamp(0, 1),  # as the losses clamp them
            vectors=found.last_hidden_state[:, -last:].float(),
            maps={
                name: value.float()
                for name, value in zip(self.levels, found.encoder_last_hidden_state, strict=True)
            },
            loss=loss,
        )

    def _see_all(
        self, images: Sequence[Tensor], labels: list[dict[str, Tensor]], truth: Sequence[Truth]
    ) -> _Seen:
        """What the network says of a batch. Images without annotations go through it by themselves: its losses, and the
        denoising queries made of labels, are those of the others."""
        known, rest = by_annotation(truth)
        if not rest:
            return self._see(images, labels)
        parts = [self._see([images[at] for at in rest], None)]
        loss = None if known else no_task(self.net)
        if known:
            parts.append(self._see([images[at] for at in known], [labels[at] for at in known]))
            loss = parts[1].loss
        order = torch.tensor([*rest, *known], device=self.mean.device).argsort()

        def joined(values: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(values))[order]

        return _Seen(
            logits=joined([part.logits for part in parts]),
            boxes=joined([part.boxes for part in parts]),
            vectors=joined([part.vectors for part in parts]),
            maps={name: joined([part.maps[name] for part in parts]) for name in self.levels},
            loss=loss,
        )

    def _match(self, seen: _Seen, labels: list[dict[str, Tensor]]) -> Pairs:
        return self._matcher({"logits": seen.logits.detach(), "pred_boxes": seen.boxes.detach()}, labels)


def found(
    logits: Float[Tensor, "queries classes"], boxes: Float[Tensor, "queries 4"], size: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in pixels of an image of ``size`` (height, width), labels from 1 on, and scores, highest first."""
    height, width = size
    score, at = logits.sigmoid().flatten().topk(logits.shape[0])
    corners = box_convert(boxes, "cxcywh", "xyxy")[at // logits.shape[1]]
    return corners * corners.new_tensor([width, height, width, height]), at % logits.shape[1] + 1, score


def _objects(
    chosen: Sequence[Tensor], pairs: Pairs, labels: list[dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The class of each chosen query's object (from 1 on, 0 without one) and the object's box."""
    objects, goals = [], []
    for queries, (_, which), label in zip(chosen, pairs, labels, strict=True):
        which = which.to(queries.device)
        rest = len(queries) - len(which)  # the matched queries come first
        objects.append(F.pad(label["class_labels"][which] + 1, (0, rest)))
        goals.append(F.pad(label["boxes"][which], (0, 0, 0, rest)))
    return torch.cat(objects), torch.cat(goals)


def _picked(values: Float[Tensor, "images queries width"], chosen: Sequence[Tensor]) -> Tensor:
    each = values.shape[1]
    return values.flatten(0, 1)[torch.cat([number * each + at for number, at in enumerate(chosen)])]


def _outputs(seen: _Seen, chosen: Sequence[Tensor], queries: Queries) -> Outputs:
    logits, boxes, vectors = (_picked(part, chosen) for part in (seen.logits, seen.boxes, seen.vectors))
    return rows_of(queries, logits, boxes, vectors, seen.maps)
