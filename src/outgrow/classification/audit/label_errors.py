"""Training images whose label may be wrong: where a teacher that has not seen a label is sure of another one.

The search is cleanlab's (confident learning, Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), which is an
extra: ``pip install 'outgrow[audit]'``.
"""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

INSTALL = "pip install 'outgrow[audit]'"


def installed() -> bool:
    """Whether cleanlab is there."""
    return find_spec("cleanlab") is not None


def find_label_errors(
    label: Int[Tensor, " rows"], probability: Float[Tensor, "rows classes"]
) -> Sequence[int]:
    """Rows whose label contradicts a confident probability, worst first. ``probability`` has not seen the labels.

    A row counts only where another class leads: what is merely unsure is left alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own about classes without rows, and its dependencies'
        from cleanlab.filter import find_label_issues

        order = find_label_issues(
            labels=label.numpy(),
            pred_probs=probability.double().numpy(),
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    rows = torch.as_tensor(order.copy(), dtype=torch.int64)
    return rows[probability[rows].argmax(1) != label[rows]].tolist()
