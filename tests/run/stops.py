"""Runs that end in the middle, as if they had been killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from outgrow.training.checkpoint import Checkpoint


class _Stop(Exception):
    pass


@contextmanager
def stopped_after(saves: int) -> Iterator[None]:
    """The block has to end with this number of checkpoints, right after the last one is written."""
    saved, done = Checkpoint.save, 0

    def save(self: Checkpoint, *args: Any, **kwargs: Any) -> None:
        nonlocal done
        saved(self, *args, **kwargs)
        done += 1
        if done == saves:
            raise _Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(_Stop):
            yield
