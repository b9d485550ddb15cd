"""Fixtures that all rooms share."""

import os
from pathlib import Path

import pytest


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
