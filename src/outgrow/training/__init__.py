"""One loop that knows no method, and what a run needs around it.

config.py        what a run is made of, typed
task.py          what a task (classification, detection) gives a run
lesson.py        what both networks answer for one batch
trainer.py       the loop
optimizer.py  acceleration.py  guard.py  meter.py  processes.py     its parts
checkpoint.py  progress.py  provenance.py
"""
