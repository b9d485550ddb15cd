"""The parts of a classification record besides accuracy: results by class, calibration, cost, comparison."""

import torch
from torch import nn

from outgrow.classification.cost import measure_cost
from outgrow.classification.data import RunData
from outgrow.classification.metrics import classification_metrics, reliability_diagram
from outgrow.classification.scores import Scores
from outgrow.models import Network
from outgrow.training.record import (
    BinRecord,
    Both,
    ClassesRecord,
    ClassificationRecord,
    ComparedRecord,
    ExampleRecord,
)

NUM_EXAMPLES = 24
"""Number of recorded images that only the student gets right, and likewise only the teacher."""
MAX_CONFUSED = 200
"""Largest number of classes for which a record has the confusion matrix."""
DECODED_SIZE = 32
"""Side in pixels at which the cost of a network without an input size is measured. This is the case for images in
memory that are not square."""


def classification_record(
    data: RunData,
    student: Network,
    scores: Scores,
    teacher: nn.Module | None,
    teacher_scores: Scores | None,
    device: torch.device,
) -> ClassificationRecord:
    """Both networks on the test images, by class, and their cost on this machine."""
    label = scores.label
    counts = torch.bincount(label, minlength=data.num_classes)
    return ClassificationRecord(
        majority=100 * int(counts.max()) / len(label),
        counts=tuple(counts.tolist()),
        classes=Both(
            student=_classes(scores, data.num_classes),
            teacher=None if teacher_scores is None else _classes(teacher_scores, data.num_classes),
        ),
        cost=Both(
            student=measure_cost(student, _size(student), device),
            teacher=measure_cost(teacher, _size(teacher), device) if isinstance(teacher, Network) else None,
        ),
    )


def _classes(scores: Scores, num_classes: int) -> ClassesRecord:
    found = classification_metrics(scores.logits, scores.label, num_classes)
    bins = reliability_diagram(scores.logits, scores.label)
    return ClassesRecord(
        balanced_accuracy=found.balanced_accuracy,
        ece=found.ece,
        per_class=tuple(found.per_class),
        reliability=tuple(
            BinRecord(confidence=b.confidence, accuracy=b.accuracy, count=b.count) for b in bins
        ),
        confusion=tuple(map(tuple, found.confusion)) if num_classes <= MAX_CONFUSED else None,
    )


def _size(network: Network) -> int:
    return network.input_spec.size or DECODED_SIZE


def compare(data: RunData, teacher: Scores | None, student: Scores) -> ComparedRecord | None:
    """Counts by which network is right, and the first images that only one of them gets right."""
    if teacher is None:
        return None

    def examples(where: torch.Tensor) -> tuple[ExampleRecord, ...]:
        return tuple(
            ExampleRecord(
                position=i,
                label=int(data.test.labels[i]),
                teacher=int(teacher.predicted[i]),
                student=int(student.predicted[i]),
            )
            for i in where.nonzero()[:NUM_EXAMPLES, 0].tolist()
        )

    only_student, only_teacher = ~teacher.right & student.right, teacher.right & ~student.right
    return ComparedRecord(
        both_right=int((teacher.right & student.right).sum()),
        only_teacher=int(only_teacher.sum()),
        only_student=int(only_student.sum()),
        neither=int((~teacher.right & ~student.right).sum()),
        examples=examples(only_student),
        lost=examples(only_teacher),
    )
