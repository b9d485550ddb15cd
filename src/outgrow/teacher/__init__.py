"""Teachers: frozen, corrected, cached. Every one is called as ``teacher(images, *, index=None) -> Outputs``.

teacher.py          Teacher: any model, frozen, always in eval mode, without a gradient
inference.py        the same outputs with less work: batch norms folded, own precision, torch.compile
correction.py       BiasCorrection and CorrectedTeacher; correction_fit.py is the fit
cache.py            outputs kept on disk, by view
"""

from outgrow.teacher.correction import BiasCorrection, CorrectedTeacher
from outgrow.teacher.teacher import BaseTeacher, NoTeacher, SelectedClasses, Teacher

__all__ = [
    "BaseTeacher",
    "BiasCorrection",
    "CorrectedTeacher",
    "NoTeacher",
    "SelectedClasses",
    "Teacher",
]
