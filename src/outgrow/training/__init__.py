"""The training loop, which does not depend on the method, and what a run needs around it.

config.py                          the typed configuration of a run
folder.py                          the folder of a run
processes.py  watch.py             ranks and collectives; the end of all processes when one fails
progress.py  tracking.py           what a run prints; TensorBoard and other trackers
task.py  lesson.py                 the interface of a task; the outputs of both networks for one batch
noise.py  unlabelled.py            what a run makes of wrong labels, and says of images without labels
fitting.py                         a trainer run to the end, with reports and checkpoints
trainer.py                         the loop
optimizer.py  acceleration.py      its parts: optimiser and learning rate; device, precision, torch.compile
guard.py  meter.py  average.py     a loss that is not finite; means of an epoch; averaged weights
checkpoint.py                      from which an interrupted training continues
record.py  provenance.py           the record of a run; its versions, commit, command and hardware
audit.py  deployment.py            the record of an audit, effects of rules; the interface of `outgrow export`
"""
