"""From a command to a result.

tasks.py          which task a source is for
distillation.py   one run from a configuration to a record
evaluation.py     a model on the test split of a source
study.py          methods x seeds
demo.py           the main job on handwritten digits
recipes/          which networks, how long, with which constants
listing.py        what `outgrow list` prints
cli.py            the command
"""

from outgrow.run.distillation import distill, fill_cache
from outgrow.run.evaluation import evaluate_model

__all__ = ["distill", "evaluate_model", "fill_cache"]
