"""From a command to a result.

tasks.py          which task a source is for
distillation.py   one run from a configuration to a record
evaluation.py     a model on the test split of a source
study.py          methods x seeds, from a script
compare.py        methods x pairs x seeds, from flags: the command of that name
  plan.py           what is to be trained, checked before the first of it
  rehearsal.py      what it will take, from a few steps of each kind
  work.py           one training, as any process does it
  executors.py      here, in processes, on Ray, on Slurm
  board.py          what is said meanwhile
demo.py           the main job on handwritten digits
recipes/          which networks, how long, with which constants
layers.py         from what was typed to a configuration
listing.py        what `outgrow list` prints
cli.py            the command
"""

from outgrow.run.distillation import distill, fill_cache
from outgrow.run.evaluation import evaluate_model

__all__ = ["distill", "evaluate_model", "fill_cache"]
