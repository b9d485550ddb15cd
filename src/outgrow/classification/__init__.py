"""Images with one label each: a row is an image.

data.py         splits, training views, test images of a run
view.py         the preprocessing for evaluation and prediction
student.py      the student; any network trained alone
teacher.py      the teacher: loaded or trained, frozen, with the student's classes, corrected, cached
lesson.py       both networks' outputs for a batch
scores.py       top-1, top-5, likelihood on a split
metrics.py  order.py     accuracy by class and calibration; whether classes are in another order
record.py  cost.py  page.py          the record of a run and its page
export.py  layout.py  predict.py     files for deployment, and predictions
evaluation.py   the result of `outgrow evaluate`
rehearsal.py    a run on a few batches, to check and time it
audit/          the measurements of `outgrow audit`
task.py         the task that `outgrow.run` uses
"""

from outgrow.classification.lesson import Classify
from outgrow.classification.scores import Scores, evaluate

__all__ = ["Classify", "Scores", "evaluate"]
