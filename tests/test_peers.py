"""The same losses in torchdistill (the extra ``peers``): one number, or a difference with its reason."""

import pytest
from benchmarks.peers import compare, failures

pytest.importorskip("torchdistill")


def test_values_and_gradients_agree_or_say_why_not():
    rows = compare()
    names = {"kd", "standardize", "dist", "at", "vid", "rkd", "pkt", "sp", "cc", "crd"}
    assert {row.name for row in rows} == names
    for row in rows:
        agrees = row.ratio == pytest.approx(1, abs=1e-6) and row.gradient < 1e-6
        assert agrees != bool(row.why), row
    assert {row.name for row in rows if not row.why} == names - {"sp"}


def test_the_traps_on_the_cards():
    ratio = {(row.name, row.setting): row.ratio for row in compare()}
    assert ratio["kd", "T 4, alpha 0"] == pytest.approx(1 / 16)
    assert ratio["kd", "T 4, alpha 0.1, reduction mean"] == pytest.approx(0.171, abs=1e-3)
    assert ratio["at", "mode paper"] == pytest.approx(24, rel=0.02)
    assert ratio["sp", "batchmean"] == pytest.approx(0.11, abs=5e-3)
    assert ratio["cc", "gaussian"] == pytest.approx(31, rel=0.02)
    assert [error.split(":")[0] for error in failures().values()] == ["TypeError", "AttributeError"]
