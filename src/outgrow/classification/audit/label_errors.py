"""Training images whose label may be wrong: where a teacher that has not seen a label is sure of another one.

The search is cleanlab's (confident learning, Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), which is an
extra: ``pip install 'outgrow[audit]'``.
"""

import warnings
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

INSTALL = "pip install 'outgrow[audit]'"
OWN, OF_CHANCE = 0.02, 0.4
"""A label counts as contradicted below this probability, and below this part of 1 / classes. Measured on CIFAR-100's
coarse labels with a tenth of them flipped: three quarters of such rows are wrong, by a good teacher and by a weak one.
All of cleanlab's candidates are half right by the good one, and a quarter by the weak one."""


def installed() -> bool:
    """Whether cleanlab is installed."""
    return find_spec("cleanlab") is not None


def find_label_errors(label: Int[Tensor, " rows"], probability: Float[Tensor, "rows classes"]) -> list[int]:
    """Rows whose label contradicts the teacher, worst first. ``probability`` is from models not fitted on the labels.

    These are cleanlab's candidates whose own label is very unlikely. Rows that are only uncertain are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes without rows, and from its dependencies
        from cleanlab.filter import find_label_issues

        order = find_label_issues(
            labels=label.numpy(),
            pred_probs=probability.double().numpy(),
            filter_by="both",
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    rows = torch.as_tensor(order.copy(), dtype=torch.int64)
    own = probability[rows, label[rows]]
    contradicted = (own < min(OWN, OF_CHANCE / probability.shape[1])) & (
        probability[rows].argmax(1) != label[rows]
    )
    return rows[contradicted].tolist()
