"""Images with one label each: a row is an image.

data.py                              splits, training views, test images of a run
view.py                              the preprocessing for evaluation and prediction
student.py                           the student; any network trained alone
teacher.py                           the teacher: loaded or trained, frozen, with the student's classes, corrected
names.py  order.py                   its classes among the data's; whether they are in another order
augmentation.py                      how much less it knows of augmented images
correction.py  mixture.py            the correction of its bias; several teachers as one
views.py  caching.py                 its beliefs averaged over views; its cache
trust.py                             the fit of its reliability, by which rows may be weighed
lesson.py                            both networks' outputs for a batch
scores.py  metrics.py                top-1, top-5, likelihood on a split; accuracy by class and calibration
record.py  cost.py                   the record of a run; size and speed of a network
page.py  templates/                  the sections of its page
export.py  layout.py  predict.py     files for deployment, and predictions
evaluation.py                        the result of `outgrow evaluate`
rehearsal.py  held_out.py            a run on a few batches, to check and time it; one tested on held-out images
audit/                               the measurements of `outgrow audit`
task.py                              the task that `outgrow.run` uses
"""

from outgrow.classification.lesson import Classify
from outgrow.classification.scores import Scores, evaluate

__all__ = ["Classify", "Scores", "evaluate"]
