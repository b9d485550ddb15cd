"""The picture in a run folder."""

import sys

import pytest
from PIL import Image

from outgrow.report.curves import draw_curves
from tests.report.records import record


@pytest.mark.parametrize("epochs", [1, 30])
@pytest.mark.parametrize("num_terms", [0, 2, 14])
@pytest.mark.parametrize("teacher", [None, 50.0])
def test_any_run_is_drawn(tmp_path, epochs, num_terms, teacher):
    terms = tuple(f"term{i}" for i in range(num_terms))
    run = record("kd", 0, 80.0, epochs=epochs, terms=terms, teacher=teacher, corrected=teacher is not None)
    draw_curves(run, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1300, 494)
        low, high = picture.convert("L").getextrema()
    assert high - low > 100


def test_pyplot_is_left_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw_curves(record("kd", 0, 80.0), tmp_path / "curves.png")
    if before:
        import matplotlib.pyplot as plt

        assert plt.get_fignums() == []
    else:
        assert "matplotlib.pyplot" not in sys.modules
