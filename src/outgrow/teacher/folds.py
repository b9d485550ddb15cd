"""What is fitted fold by fold: a value for each fold, and their mean for rows that are in none."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.outputs import kind_of


def as_index(index: object, num_rows: int) -> Int[Tensor, " rows"]:
    """``index``; ``ValueError`` if it is not one whole number for each row: one alone would be taken for all."""
    numbers = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    if not isinstance(index, Tensor) or not numbers or index.shape != (num_rows,):
        raise ValueError(
            f"index: needs a tensor with one whole number for each of {num_rows} rows, got {kind_of(index)}; pass the number "
            "of each sample in the training set."
        )
    return index.long()


def with_mean(values: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "maps *shape"]:
    """The values of the folds, and their mean at the end."""
    stacked = torch.stack(list(values))
    return torch.cat([stacked, stacked.mean(dim=0, keepdim=True)]).float()


def fold_at(
    fold_of: Int[Tensor, " samples"], index: Int[Tensor, " rows"], *, num_rows: int
) -> Int[Tensor, " rows"]:
    """The fold of each sample; -1, the place of the mean, for those that were not fitted.

    >>> fold_at(torch.tensor([1, -1, 0]), torch.tensor([0, 1, 2, 3, -1]), num_rows=5)
    tensor([ 1, -1,  0, -1, -1])
    """
    index = as_index(index, num_rows)
    if not len(fold_of):
        return torch.full_like(index, -1)
    known = (index >= 0) & (index < len(fold_of))
    return torch.where(known, fold_of[index.clamp(0, len(fold_of) - 1)].long(), -1)
