"""Which rows the teacher gets wrong (the paper's *bias elimination*)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from outgrow.outputs import UNLABELLED, Target


def safe_label(label: Int[Tensor, " rows"], num_classes: int) -> Int[Tensor, " rows"]:
    """Labels that are safe to index with: rows without a label get class 0, whose value is not used."""
    return label.clamp(0, num_classes - 1)


def all_labelled(name: str, label: Tensor, target: Target, num_classes: int, *, whose: str) -> bool:
    """Whether every row has a label. ``ValueError`` for one that is no class of ``whose`` logits."""
    if not len(label):
        return True
    low, high = label.aminmax()
    if low.item() >= 0 and high.item() < num_classes:
        return True
    bad = ((label < 0) & (label != UNLABELLED) | (label >= num_classes)) & target.takes_part
    if bad.any():
        row = int(bad.nonzero()[0])
        advice = ""
        if num_classes == 1:
            advice = ", give a network of two classes two outputs"
        elif whose == "teacher":
            advice = ", map a teacher of other classes with outgrow.CorrectedTeacher"
        raise ValueError(
            f"target: needs every {name} in 0..{num_classes - 1} (the {whose}'s classes), got {int(label[row])} in "
            f"row {row}; check the label column{advice}, or mark rows to leave out with -100 and rows without a label with -1."
        )
    return False


def check_label(target: Target, num_classes: int, *, whose: str) -> None:
    """``ValueError`` for labels that are no class of ``whose`` logits. On the CPU only, and once for a target.

    Elsewhere the check would need a sync, and while compiling a break of the graph.
    """
    if (
        target.label.device.type != "cpu"
        or torch.compiler.is_compiling()
        or num_classes in target.in_range_of
    ):
        return
    for name in ("label", "partner"):
        label = getattr(target, name)
        if label is not None:
            all_labelled(name, label, target, num_classes, whose=whose)
    target.in_range_of.add(num_classes)


def label_logit(logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The logit of each row's label."""
    return logits.gather(1, label[:, None])[:, 0]


def top_class(logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The class with the largest logit; a label that shares the maximum is the top class."""
    largest, top = logits.max(dim=1)
    return torch.where(label_logit(logits, label) >= largest, label, top)


def wrong_rows(
    logits: Float[Tensor, "rows classes"],
    target: Target,
    *,
    largest: Float[Tensor, " rows"] | None = None,
    all_valid: bool = False,
) -> Bool[Tensor, " rows"]:
    """True where another class has a larger logit than the label.

    A tie counts as right. On a row blended by mixup or CutMix the teacher is right if its top class is
    either of the two labels. Ignored rows and rows without a label are not wrong. A row with NaN counts as
    right: no rule rewrites or removes it, so the NaN shows in the loss. ``largest`` (of each row) and
    ``all_valid`` (every row has a label in range) save work where they are known.

    >>> wrong_rows(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), Target(torch.tensor([0, 0])))
    tensor([ True, False])
    """
    num_classes = logits.shape[1]
    if num_classes == 0 or logits.shape[0] == 0:
        return torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    largest = logits.amax(dim=1) if largest is None else largest
    label = target.label if all_valid else safe_label(target.label, num_classes)
    wrong = largest > label_logit(logits, label)
    if target.partner is not None and target.mix is not None:
        partner_wrong = largest > label_logit(logits, safe_label(target.partner, num_classes))
        # a label whose share is zero does not count
        wrong = (wrong | (target.mix <= 0)) & (partner_wrong | (target.mix >= 1))
    return wrong if all_valid else wrong & target.valid
