"""Images with one label each: a row is an image.

data.py         splits, training views, test images of a run
student.py      the student; any network trained alone
teacher.py      loaded or trained, frozen, in the student's classes, corrected, cached
lesson.py       a batch -> both networks' outputs
scores.py       top-1, top-5, likelihood on a split
evaluation.py   the result of `outgrow evaluate`
task.py         the task that `outgrow.run` uses
"""

from outgrow.classification.lesson import Classify
from outgrow.classification.scores import Scores, evaluate

__all__ = ["Classify", "Scores", "evaluate"]
