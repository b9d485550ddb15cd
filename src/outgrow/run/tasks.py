"""Which task a source is for. A task is a folder with ``task.py:TASK`` and, where its sources have a kind of
their own, a line here."""

from importlib import import_module

from outgrow.training.task import Task

SOURCES = {"coco": "detection"}
"""Kinds of sources (what stands before the colon) that are not for classification."""


def task_name(source: str) -> str:
    """The room of the task that ``source`` is for.

    >>> task_name("coco:images:annotations"), task_name("folder:photos")
    ('detection', 'classification')
    """
    return SOURCES.get(source.partition(":")[0], "classification")


def task_of(source: str) -> Task:
    """The task that ``source`` is for; imported on use."""
    task: Task = import_module(f"outgrow.{task_name(source)}.task").TASK
    return task
