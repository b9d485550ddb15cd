"""Run distillation: single runs, comparisons, and the command line.

tasks.py          the task (classification or detection) of a source
distillation.py   one run, from a configuration to a record
audit.py          whether a teacher is worth listening to, before any training
evaluation.py     evaluate a model on the test split of a source
study.py          methods x seeds, for scripts
compare.py        `outgrow compare`: methods x pairs x seeds
  plan.py           the list of trainings, checked before the first one starts
  rehearsal.py      estimate time, memory and disk from a few steps
  work.py           one training, in any process
  executors.py      run trainings in this process, in several, on Ray or on Slurm
  board.py          progress of a comparison
tune.py           `outgrow tune`: weight, temperature and learning rate, chosen on held-out images
demo.py           `outgrow demo`: a comparison on handwritten digits
export.py         `outgrow export`
predict.py        `outgrow predict`
listing.py        `outgrow list`
recipes/          named configurations: networks, training and constants of losses
layers.py         merge recipe, file and flags into a configuration
cli.py            the command line
"""

from outgrow.run.distillation import distill, fill_cache
from outgrow.run.evaluation import evaluate_model

__all__ = ["distill", "evaluate_model", "fill_cache"]
