"""RT-DETR v2 and D-FINE of the library transformers as a student and as a teacher.

    detector(images, truth)                              a training step: its queries, its outputs for them, its losses
    detector.classify_as(images, queries, columns, ...)  its outputs for the queries of another detector
    detector.detect(images)                              boxes, classes, scores

A row is a query and a class (:mod:`outgrow.detection.queries`). The task loss is the one that the library computes from
labels, with its denoising queries. Images are resized to one size, without keeping the aspect ratio, as the library does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_convert

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.detector import Detector, Proposals, TrainingOutputs
from outgrow.detection.queries import Pairs, Queries, choose, partners, rows_of
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

    The features of its outputs are those of :func:`outgrow.detection.queries.rows_of`. Their maps are the levels of the
    encoder by stride: ``p3`` is 2**3 pixels of the resized image.
    """

    mean: Tensor
    std: Tensor
    row = "query and class"

    def __init__(self, net: Any, *, name: str, classes: tuple[str, ...], preparation: Preparation) -> None:
        super().__init__()
        if net.config.num_labels != len(classes):
            raise ValueError(
                f"Detector {name}: needs one output for each of {len(classes)} classes, got {net.config.num_labels}; pass "
                "every class once, without the background."
            )
        self.net = net
        self.name = name
        self.classes = classes
        self.preparation = preparation
        for key in ("mean", "std"):
            value = torch.tensor(getattr(preparation, key)).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)

    @cached_property
    def _matcher(self) -> Any:
        """The library's Hungarian matcher, which its losses use."""
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

        return RTDetrHungarianMatcher(self.net.config)

    def forward(self, images: Sequence[Tensor], truth: Sequence[Truth]) -> TrainingOutputs:
        """The forward pass of a training step. The library draws the noise of the denoising queries at random."""
        if not self.training:
            raise ValueError(
                f"Detector {self.name}: needs training mode for a training step, got eval mode; call train() first."
            )
        labels = self.labels(images, truth)
        seen = self._see(images, labels)
        assert seen.loss is not None
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
        columns = torch.arange(len(self.classes), device=object.device)
        return TrainingOutputs(_outputs(seen, chosen, queries, columns), queries, seen.loss)

    def classify_as(
        self,
        images: Sequence[Tensor],
        proposals: Proposals,
        columns: Int64[Tensor, " classes"],
        foreign: Int64[Tensor, " others"],
    ) -> Outputs:
        """As :meth:`Detector.classify_as`. A class that only this detector has is in no row: each has a sigmoid of its own."""
        assert isinstance(proposals, Queries)  # check_rows has refused other students
        seen = self._see(images, None)
        own = proposals.renumbered(columns, self.num_classes)
        chosen = partners(own, seen.boxes, self._match(seen, own.targets))
        return _outputs(seen, chosen, proposals, columns[1:] - 1)

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
        side = pixels.shape[2]
        return _Seen(
            logits=found.logits[:, -last:].float(),
            boxes=found.pred_boxes[:, -last:].float().clamp(0, 1),  # as the losses clamp them
            vectors=found.last_hidden_state[:, -last:].float(),
            maps={
                f"p{(side // value.shape[2]).bit_length() - 1}": value.float()
                for value in found.encoder_last_hidden_state
            },
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


def _outputs(seen: _Seen, chosen: Sequence[Tensor], queries: Queries, columns: Tensor) -> Outputs:
    logits, boxes, vectors = (_picked(part, chosen) for part in (seen.logits, seen.boxes, seen.vectors))
    return rows_of(queries, logits[:, columns], boxes, vectors, seen.maps)
