"""Dense detectors: a row is an anchor or a point, chosen from all of an image.

Of the tens of thousands of anchors of an image, these are rows:

    positives    every anchor that the student's matcher assigns to an object
    negatives    the ``negatives`` hardest others, by the student's own scores: a fixed number an image

Nothing is drawn at random. Anchors that the matcher leaves out (between its thresholds) and those in crowd regions are
no rows, as their class is not known.

RetinaNet and FCOS score each class on its own, by a sigmoid. Their rows ask about one class, with the logits
``[0, z]``, whose softmax is that sigmoid exactly: label 1 is an object of the class, 0 background. A positive asks
about the class of its object, a negative about the wrong class with the highest score. A positive anchor can so be a
negative, too, of another class. SSDLite has a softmax over all classes, so its rows are like those of Faster R-CNN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from outgrow.detection.boxes import Detections, Truth, in_crowd
from outgrow.detection.families.detector import (
    Detector,
    Layout,
    Proposals,
    TrainingOutputs,
    anchors_of,
    by_annotation,
    full_precision,
    no_task,
    overlap_with_truth,
    scale_to,
    task_alone,
    with_objects,
)
from outgrow.models.taps import BOX, BOX_IOU, OBJECTNESS
from outgrow.outputs import IGNORE, Outputs

NEGATIVES = 256
"""The default number of negatives of an image."""


@dataclass(frozen=True)
class Anchors(Proposals):
    """Rows that are anchors: ``anchor`` is the number of each in its image, of ``count`` anchors.

    ``asked`` is the class that a row asks about, by the detector's number of it; None if a row has a logit for each
    class. ``classes`` are the student's, by the same numbers.
    """

    anchor: Int64[Tensor, " rows"]
    count: int
    asked: Int64[Tensor, " rows"] | None
    classes: Int64[Tensor, " classes"]
    of: Layout

    @property
    def layout(self) -> Layout:
        return self.of

    @property
    def all_classes(self) -> bool:
        return self.asked is None

    def in_classes(self, columns: Int64[Tensor, " classes"]) -> "Proposals":
        classes = columns[self.classes]
        if self.asked is None:
            return replace(self, label=columns[self.label], classes=classes)
        asked = columns[self.asked]
        # a class that the other side lacks has no number there but the background's
        return replace(self, asked=asked, classes=classes, label=torch.where(asked > 0, self.label, IGNORE))


class DenseDetector(Detector):
    """A detector whose rows are anchors or points. Subclasses are the families."""

    one_class = True
    """Whether each class has a score of its own (a sigmoid)."""

    def __init__(
        self, net: Any, *, name: str, classes: tuple[str, ...], outputs: int, negatives: int = NEGATIVES
    ) -> None:
        super().__init__(net, name=name, classes=classes, outputs=outputs)
        self.negatives = negatives

    @property
    def layout(self) -> Layout:
        return anchors_of(self.net, self.family, self.levels, self.places())

    def places(self) -> tuple[Any, ...]:
        """The anchors of a place, for each level."""
        generator = self.net.anchor_generator
        return tuple(zip(generator.sizes, generator.aspect_ratios, strict=True))

    def losses(
        self,
        targets: list[dict[str, Tensor]],
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        maps: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """torchvision's losses, and for each image the object of each anchor: -1 background, -2 left out."""
        raise NotImplementedError

    def decode(
        self, regression: Float[Tensor, "rows 4"], anchors: Float[Tensor, "rows 4"]
    ) -> Float[Tensor, "rows 4"]:
        """The boxes of a regression."""
        return self.net.box_coder.decode_single(regression, anchors)

    def forward(
        self, images: Sequence[Tensor], truth: Sequence[Truth], *, rows: bool = True
    ) -> TrainingOutputs:
        self.check_training()
        targets = [{"boxes": t.boxes, "labels": t.label} for t in truth]
        batch, targets = self.net.transform(self.resizable(images), targets)
        maps, heads = self._run(batch.tensors)
        with full_precision(batch.tensors):
            anchors = self.net.anchor_generator(batch, list(maps.values()))
            task, matched = self._task(targets, heads, anchors, list(maps.values()), truth)
            if not rows:
                return task_alone(task, images, self.num_classes)
            back = [scale_to(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            places = torch.stack(anchors)
            chosen = self._choose(heads["cls_logits"].detach(), torch.stack(matched), places, back, truth)
            outputs = self._outputs(maps, heads, places, back, images, chosen)
            return TrainingOutputs(with_objects(outputs, targets, batch.tensors), chosen, task)

    def classify(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        assert isinstance(proposals, Anchors)  # a FrozenDetector compares the layouts
        batch, _ = self.net.transform(self.resizable(images))
        maps, heads = self._run(batch.tensors)
        with full_precision(batch.tensors):
            anchors = self.net.anchor_generator(batch, list(maps.values()))
            if len(anchors[0]) != proposals.count:
                raise ValueError(
                    f"Detector {self.name}: needs as many anchors as the student, {proposals.count} for these images, got "
                    f"{len(anchors[0])}, as its backbone rounds the sizes of maps otherwise; set another size, or distil "
                    "features only (for example --loss fitnet)."
                )
            back = [scale_to(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            return self._outputs(maps, heads, torch.stack(anchors), back, images, proposals)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        training = self.training
        self.eval()
        try:
            with full_precision(images[0]):
                found = self.net(self.resizable(images))
        finally:
            self.train(training)
        # a net that is not trained yet may find background: torchvision's has an output for it
        kept = [(one, one["labels"] > 0) for one in found]
        return [
            Detections(f["boxes"][at].float(), f["labels"][at], f["scores"][at].float()) for f, at in kept
        ]

    def _task(
        self,
        targets: list[dict[str, Tensor]],
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        maps: Sequence[Tensor],
        truth: Sequence[Truth],
    ) -> tuple[Float[Tensor, ""], list[Tensor]]:
        """The losses of the images with annotations, and the object of each anchor in all images."""
        known, rest = by_annotation(truth)
        if not rest:
            losses, matched = self.losses(targets, heads, anchors, maps)
            return reduce(torch.add, losses.values()), matched
        task = None if known else no_task(self.net)
        found: dict[int, Tensor] = {}
        for part in (known, rest):
            if not part:
                continue
            with torch.set_grad_enabled(part is known and torch.is_grad_enabled()):
                losses, matched = self.losses(
                    [targets[at] for at in part],
                    {name: value[part] for name, value in heads.items()},
                    [anchors[at] for at in part],
                    [value[part] for value in maps],
                )
            found |= dict(zip(part, matched, strict=True))
            if part is known:
                task = reduce(torch.add, losses.values())
        assert task is not None
        return task, [found[at] for at in range(len(truth))]

    def _run(self, batch: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The maps and the outputs for all anchors. Losses and boxes need float32, as anchors take the maps' type."""
        maps = self.net.backbone(batch)
        heads = self.net.head(list(maps.values()))
        return {key: value.float() for key, value in maps.items()}, {
            key: value.float() for key, value in heads.items()
        }

    @torch.no_grad()
    def _choose(
        self,
        logits: Float[Tensor, "images anchors classes"],
        matched: Int64[Tensor, "images anchors"],
        anchors: Float[Tensor, "images anchors 4"],
        back: Sequence[Tensor],
        truth: Sequence[Truth],
    ) -> Anchors:
        positive = matched >= 0
        starts = torch.tensor([0, *(len(t.label) for t in truth[:-1])]).cumsum(0).to(matched.device)
        objects = (matched + starts[:, None])[positive]  # numbers in the batch
        label = torch.cat([t.label for t in truth])[objects]
        usable = matched == -1
        for at, t in enumerate(truth):
            if len(t.crowd):
                usable[at] &= ~in_crowd(anchors[at] * back[at], t)
        hardness, asked = self._hardness(logits, positive, label)
        if asked is not None:
            usable = usable | positive
        hardness = torch.where(usable, hardness, -torch.inf)
        hardest, places = hardness.topk(min(self.negatives, hardness.shape[1]), dim=1)
        chosen = hardest.isfinite()

        images = torch.cat([positive.nonzero()[:, 0], chosen.nonzero()[:, 0]])
        order = images.argsort(stable=True)  # by image, positives first, then the hardest first
        anchor = torch.cat([positive.nonzero()[:, 1], places[chosen]])[order]
        rest = torch.zeros_like(places[chosen])
        boxes = torch.cat([t.boxes for t in truth])[objects]
        drawn = torch.cat([boxes, boxes.new_zeros(len(rest), 4)])[order]
        if asked is None:
            known, about = torch.cat([label, rest])[order], None
        else:
            known = torch.cat([torch.ones_like(label), rest])[order]
            about = torch.cat([label, asked.gather(1, places)[chosen]])[order]
        of, counts = images[order], images.bincount(minlength=len(truth)).tolist()
        return Anchors(
            boxes=(anchors[of, anchor] * torch.stack(list(back))[of]).split(counts),
            label=known,
            truth=drawn,
            anchor=anchor,
            count=matched.shape[1],
            asked=about,
            classes=torch.arange(1, self.num_classes, device=matched.device),
            of=self.layout,
        )

    def _hardness(
        self,
        logits: Float[Tensor, "images anchors classes"],
        positive: Tensor,
        label: Int64[Tensor, " positives"],
    ) -> tuple[Float[Tensor, "images anchors"], Int64[Tensor, "images anchors"] | None]:
        """How hard each anchor is as a negative, and the class that it then asks about."""
        if not self.one_class:
            return logits.logsumexp(dim=2) - logits[..., 0], None  # the loss of an anchor on background
        hardness, asked = logits[..., 1:].max(dim=2)
        others = logits[positive][:, 1:].scatter(1, label[:, None] - 1, -torch.inf)
        hardness[positive], asked[positive] = others.max(dim=1)
        return hardness, asked + 1

    def _outputs(
        self,
        maps: dict[str, Tensor],
        heads: dict[str, Tensor],
        anchors: Float[Tensor, "images anchors 4"],
        back: Sequence[Tensor],
        images: Sequence[Tensor],
        rows: Anchors,
    ) -> Outputs:
        image = rows.image
        logits = heads["cls_logits"][image, rows.anchor]
        if rows.asked is not None:
            z = logits.gather(1, rows.asked[:, None])
            logits = torch.cat([torch.zeros_like(z), z], dim=1)
        own = heads["bbox_regression"][image, rows.anchor]
        moved = self.decode(own.detach(), anchors[image, rows.anchor])
        overlap = overlap_with_truth(moved, back, images, rows)
        levels = {self.levels[key]: value for key, value in maps.items()}
        objectness = self._objectness(heads["cls_logits"], rows.classes)
        return Outputs(logits, {**levels, BOX: own, BOX_IOU: overlap, OBJECTNESS: objectness})

    def _objectness(
        self, logits: Float[Tensor, "images anchors outputs"], classes: Int64[Tensor, " classes"]
    ) -> Float[Tensor, "images anchors"]:
        """The logit of there being an object of ``classes``: of the best class, where each has a score of its own. Other
        classes count as background."""
        known = logits[..., classes]
        if self.one_class:
            return known.amax(dim=2)
        others = torch.ones(logits.shape[2], dtype=torch.bool, device=logits.device).index_fill(
            0, classes, False
        )
        return known.logsumexp(dim=2) - logits[..., others].logsumexp(dim=2)


@contextmanager
def recorded_match(head: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Records what torchvision's matcher assigned, which its losses do not return.

    A net passes it to ``compute_loss`` of its head as the last argument.
    """
    seen: list[list[Tensor]] = []
    compute: Any = head.compute_loss

    def record(
        targets: list[dict[str, Tensor]],
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        seen.append(matched)
        return compute(targets, heads, anchors, matched)

    head.__dict__["compute_loss"] = record
    try:
        yield seen
    finally:
        del head.__dict__["compute_loss"]
