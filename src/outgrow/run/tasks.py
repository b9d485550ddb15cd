"""The task of a source.

A task is a folder with ``task.py:TASK``. If it has its own kind of source, that kind is listed here.
"""

from functools import lru_cache
from importlib import import_module

from outgrow.training.record import RunRecord
from outgrow.training.task import Task

SOURCES = {"coco": "detection", "yolo": "detection", "voc": "detection"}
"""Tasks by the kind of source, the part before the colon. Of the other kinds only hf may have boxes, which its
columns say; all else is for classification."""


def task_name(source: str) -> str:
    """The name of the task of ``source``.

    >>> task_name("coco:images:annotations"), task_name("folder:photos")
    ('detection', 'classification')
    """
    kind, _, where = source.partition(":")
    if kind == "hf" and _has_boxes(where):
        return "detection"
    return SOURCES.get(kind, "classification")


def finished_task(record: RunRecord) -> str:
    """The name of the task of a finished run, whose data may be gone."""
    return "classification" if record.detection is None else "detection"


@lru_cache(maxsize=32)
def _has_boxes(where: str) -> bool:
    from outgrow.data.hub import has_boxes

    return has_boxes(where)


def task_of(source: str) -> Task:
    """The task of ``source``, imported on use."""
    task: Task = import_module(f"outgrow.{task_name(source)}.task").TASK
    return task
