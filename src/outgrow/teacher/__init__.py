"""Teachers: frozen, corrected, cached. All are called as ``teacher(images, *, index=None) -> Outputs``.

teacher.py                      Teacher: any model, frozen, always in eval mode, without gradients
inference.py                    faster inference: batch norms folded, a precision for the teacher, torch.compile
correction.py                   BiasCorrection and CorrectedTeacher
correction_fit.py  noise.py     its fit; the fit where labels are wrong at an unknown rate
mixture.py                      Mixture and MixedTeacher: several teachers as one
folds.py  counts.py             values by fold, and their mean; tests on counts of right and wrong rows
views.py                        AveragedTeacher: one belief for each image, the mean over its views
cache.py                        a cache of outputs on disk, by epoch and sample
"""

from outgrow.teacher.correction import BiasCorrection, CorrectedTeacher
from outgrow.teacher.mixture import MixedTeacher, Mixture
from outgrow.teacher.teacher import BaseTeacher, GroupedClasses, NoTeacher, SelectedClasses, Teacher
from outgrow.teacher.views import AveragedTeacher

__all__ = [
    "AveragedTeacher",
    "BaseTeacher",
    "BiasCorrection",
    "CorrectedTeacher",
    "GroupedClasses",
    "MixedTeacher",
    "Mixture",
    "NoTeacher",
    "SelectedClasses",
    "Teacher",
]
