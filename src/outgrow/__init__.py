"""Knowledge distillation in which the student may outgrow the teacher.

rectify, objective = outgrow.preset("paper")
student_out = student(images)
teacher_out = teacher(images)
knowledge = rectify(teacher_out, target)
result = objective(student_out, knowledge, target, progress)
result.total.backward()
"""

from typing import TYPE_CHECKING

from outgrow.outputs import IGNORE, UNLABELLED, Knowledge, ObjectiveResult, Outputs, Target, flatten_rows
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.teacher import BiasCorrection, CorrectedTeacher, Teacher
from outgrow.knowledge import Rectifier, corrected_logits, rectify
from outgrow import losses
from outgrow.objective.schedule import Weights
from outgrow.objective import Objective, Term
from outgrow.objective.presets import preset

if TYPE_CHECKING:
    from outgrow.models import create_model
    from outgrow.run import distill

__version__ = "0.1.0"

__all__ = [
    "IGNORE",
    "UNLABELLED",
    "Outputs",
    "Target",
    "Knowledge",
    "ObjectiveResult",
    "flatten_rows",
    "PENULTIMATE",
    "Taps",
    "Teacher",
    "BiasCorrection",
    "CorrectedTeacher",
    "Rectifier",
    "rectify",
    "corrected_logits",
    "losses",
    "Weights",
    "Objective",
    "Term",
    "preset",
    "create_model",
    "distill",
]


def __getattr__(name: str) -> object:
    """``create_model`` and ``distill`` on use: what they stand on takes seconds to import."""
    if name == "create_model":
        from outgrow.models import create_model

        return create_model
    if name == "distill":
        from outgrow.run import distill

        return distill
    raise AttributeError(f"module 'outgrow' has no attribute {name!r}")
