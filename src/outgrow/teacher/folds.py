"""What is fitted fold by fold: a value for each fold, and their mean for rows that are in none."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def with_mean(values: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "maps *shape"]:
    """The values of the folds, and their mean at the end."""
    stacked = torch.stack(list(values))
    return torch.cat([stacked, stacked.mean(dim=0, keepdim=True)]).float()


def fold_at(fold_of: Int[Tensor, " samples"], index: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The fold of each sample; -1, the place of the mean, for those that were not fitted.

    >>> fold_at(torch.tensor([1, -1, 0]), torch.tensor([0, 1, 2, 3, -1]))
    tensor([ 1, -1,  0, -1, -1])
    """
    if not len(fold_of):
        return torch.full_like(index, -1)
    known = (index >= 0) & (index < len(fold_of))
    return torch.where(known, fold_of[index.clamp(0, len(fold_of) - 1)].long(), -1)
