"""The training loop, which does not depend on the method, and what a run needs around it.

config.py        the typed configuration of a run
task.py          the interface of a task (classification, detection)
lesson.py        the outputs of both networks for one batch
trainer.py       the loop
optimizer.py  acceleration.py  guard.py  meter.py  processes.py     its parts
checkpoint.py  progress.py  tracking.py  provenance.py
"""
