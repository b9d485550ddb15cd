"""The task of a source. A task is a folder with ``task.py:TASK``. If it has its own kind of source, that kind is
listed here."""

from importlib import import_module

from outgrow.training.task import Task

SOURCES = {"coco": "detection"}
"""Tasks by the kind of source, the part before the colon. All other kinds are for classification."""


def task_name(source: str) -> str:
    """The name of the task of ``source``.

    >>> task_name("coco:images:annotations"), task_name("folder:photos")
    ('detection', 'classification')
    """
    return SOURCES.get(source.partition(":")[0], "classification")


def task_of(source: str) -> Task:
    """The task of ``source``, imported on use."""
    task: Task = import_module(f"outgrow.{task_name(source)}.task").TASK
    return task
