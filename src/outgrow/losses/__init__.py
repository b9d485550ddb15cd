"""Distillation losses: one file per paper.

base.py          the base classes: one value per row, per image, per batch
adapters.py      what losses on features share: pairs of taps, adapters between shapes
across.py        all rows of several processes, or a mean over them
kd_fast/         a fast path of `kd`

Each other file is one loss: a function, and a module that wraps it. :data:`LOSSES` has the modules by name. Your own
loss needs no entry: pass the object to :class:`outgrow.Objective`.
"""

from collections.abc import Callable

from outgrow import spec
from outgrow.losses.at import AT
from outgrow.losses.base import BatchLoss, Fixture, ImageLoss, Loss, RowLoss
from outgrow.losses.box import Box
from outgrow.losses.cc import CC
from outgrow.losses.crd import CRD
from outgrow.losses.ctkd import CTKD
from outgrow.losses.cwd import CWD
from outgrow.losses.dist import DIST
from outgrow.losses.dkd import DKD
from outgrow.losses.fgd import FGD
from outgrow.losses.fitnet import FitNet
from outgrow.losses.jsd import JSD
from outgrow.losses.kd import KD
from outgrow.losses.kdsvd import KDSVD
from outgrow.losses.mgd import MGD
from outgrow.losses.nkd import NKD
from outgrow.losses.normkd import NormKD
from outgrow.losses.nst import NST
from outgrow.losses.objectness import Objectness
from outgrow.losses.ofd import OFD
from outgrow.losses.pkd import PKD
from outgrow.losses.pkt import PKT
from outgrow.losses.ppi import PPI
from outgrow.losses.rc import RC
from outgrow.losses.reverse_kl import ReverseKL
from outgrow.losses.reviewkd import ReviewKD
from outgrow.losses.rkd import RKD
from outgrow.losses.rld import RLD
from outgrow.losses.semiparametric import Semiparametric
from outgrow.losses.slam import SLaM
from outgrow.losses.sld import SLD
from outgrow.losses.sp import SP
from outgrow.losses.standardize import Standardize
from outgrow.losses.ttm import TTM
from outgrow.losses.vid import VID
from outgrow.losses.wsl import WSL
from outgrow.losses.wttm import WTTM

__all__ = [
    "DETECTOR_LOSSES",
    "LOSSES",
    "BatchLoss",
    "Fixture",
    "ImageLoss",
    "Loss",
    "RowLoss",
    "Standardize",
    "make_loss",
]

LOSSES: dict[str, Callable[..., Loss]] = {
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "ppi": PPI,
    "nkd": NKD,
    "ttm": TTM,
    "wttm": WTTM,
    "normkd": NormKD,
    "ctkd": CTKD,
    "wsl": WSL,
    "rld": RLD,
    "rc": RC,
    "sld": SLD,
    "slam": SLaM,
    "semiparametric": Semiparametric,
    "jsd": JSD,
    "reverse_kl": ReverseKL,
    "standardize": Standardize,
    "fitnet": FitNet,
    "at": AT,
    "nst": NST,
    "kdsvd": KDSVD,
    "ofd": OFD,
    "vid": VID,
    "reviewkd": ReviewKD,
    "mgd": MGD,
    "cwd": CWD,
    "pkd": PKD,
    "rkd": RKD,
    "pkt": PKT,
    "sp": SP,
    "cc": CC,
    "crd": CRD,
}

DETECTOR_LOSSES: dict[str, Callable[..., Loss]] = {"box": Box, "fgd": FGD, "objectness": Objectness}
"""Losses on outputs, or features, that only detectors have."""


def make_loss(text: str | spec.Call, *, temperature: float | None = None) -> Loss:
    """The loss that ``text`` names, such as ``"kd"``, ``"kd(4)"`` or ``"dkd(beta=6)"``.

    ``temperature`` is passed to the loss if it softens logits and ``text`` gives no temperature.
    """
    calls = spec.parse(text) if isinstance(text, str) else [text]
    if len(calls) != 1 or calls[0].weight != 1:
        raise ValueError(
            f"loss: needs one loss without a weight, got {text!r}; pass several to Objective(loss=...)."
        )
    registry = {**LOSSES, **DETECTOR_LOSSES}
    factory = spec.lookup(registry, calls[0].name, kind="loss")
    call = spec.bind(factory, calls[0], kind="loss")
    softens = getattr(factory, "softens", False)
    if temperature is not None and softens and "temperature" not in call.arguments:
        call = call._replace(arguments={**call.arguments, "temperature": temperature})
    return spec.build(registry, call, kind="loss")
