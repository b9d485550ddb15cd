"""Fixtures that all rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# One thread for the processes that tests start; `_one_thread` sets it for this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: each process has a part of the files in one piece, and takes from the others when it has done its own.

    A fixture of a module is then made once, not once in each process.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small are slower on two threads, ten times so on a busy machine; files run in parallel instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights: ``$OUTGROW_DATA``, else ``../shared/data`` beside the checkout.

    Skips where it is absent; in CI it must be there.
    """
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("OUTGROW_DATA", beside))
    if not folder.is_dir():
        assert not os.environ.get("CI"), f"CI needs the shared data, and {folder} is not there"
        pytest.skip(f"needs the shared data, and {folder} is not there (set OUTGROW_DATA)")
    return folder
