"""Combine losses, row weights and a schedule into the training loss.

schedule.py     pure functions: progress -> weights of task, easy and hard rows
terms.py        a loss with its weight, rows and warmup
objective.py    the weighted sum of task and distillation losses over rows
presets.py      named pairs of rectifier and objective
"""

from outgrow.objective.objective import Objective
from outgrow.objective.presets import PRESETS, Preset, preset
from outgrow.objective.schedule import SCHEDULES, Schedule, Weights, make_schedule
from outgrow.objective.terms import Rows, Term

__all__ = [
    "PRESETS",
    "SCHEDULES",
    "Objective",
    "Preset",
    "Rows",
    "Schedule",
    "Term",
    "Weights",
    "make_schedule",
    "preset",
]
