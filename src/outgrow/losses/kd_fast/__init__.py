"""A private fast path of ``kd``: cross-entropy and rectified KL in one pass, gradient in closed form.

batch.py                 what a pass is asked, and what it answers
dispatch.py              which pass a step takes, and how the gradient joins the graph
native.py  eager.py      the pass in C, and in PyTorch's own operations

The gradient of ``T^2 KL(q || p)`` in the student's logits is ``T (p - q)``, so no graph is kept. On a CPU
a small file in C walks the rows (``kd_rows.c``); elsewhere, and without a compiler, eager operations do.
:func:`outgrow.losses.kd.kd_loss` on :func:`outgrow.corrected_logits` is the reference, and what is used
wherever :func:`applies` says no.
"""

from outgrow.losses.kd_fast.batch import Scales
from outgrow.losses.kd_fast.dispatch import Fast, applies, compute_type, fused, total

__all__ = ["Fast", "Scales", "applies", "compute_type", "fused", "total"]
