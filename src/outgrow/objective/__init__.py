"""How much each loss counts, on which rows, at which point of the training.

schedule.py     pure functions: progress -> weights of task, easy and hard rows
objective.py    the only place where losses, weights, rows and reduction meet
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
