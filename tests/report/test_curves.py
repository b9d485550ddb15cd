"""The picture in a run folder."""

import sys

import pytest
from PIL import Image

from outgrow.report.curves import draw_curves
from tests.report.records import as_of_old, detector, record


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


def test_a_record_of_old_is_drawn_alike(tmp_path):
    run = record("kd", 0, 80.0, corrected=True)
    draw_curves(run, tmp_path / "new.png")
    draw_curves(as_of_old(run), tmp_path / "old.png")
    assert (tmp_path / "new.png").read_bytes() == (tmp_path / "old.png").read_bytes()


def test_a_detector_is_drawn(tmp_path):
    draw_curves(detector("kd", 0, 43.0), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1300, 494)
