"""Every part of ``benchmarks.reliability`` with small numbers and a fixed seed: no outcome is a bad one."""

import pytest
from benchmarks.reliability import (
    GOOD,
    KILL,
    KILLED,
    PARTS,
    configurations,
    damage,
    is_bad,
    kills,
    soak,
    three_parts,
)


def test_every_part_is_tried_here():
    assert set(PARTS) == {"kills", "damage", "configurations", "soak"}


@pytest.mark.slow  # tests/run and tests/detection kill runs, too
@pytest.mark.parametrize("name", ["kd", "detector"])
def test_killed_runs_end_in_the_same_bits(name):
    assert name in KILLED
    counts = kills(1, seed=1, methods=[name])
    assert counts["same"] == 1
    assert not any(map(is_bad, counts))
    assert counts[f"{KILL}ed while the teacher was trained"] >= 1


def test_damaged_files_are_refused_or_change_nothing():
    counts = damage(11, seed=3)
    assert counts.total() == 11
    assert counts["refused"] >= 5
    assert not any(map(is_bad, counts)), counts


def test_configurations_run_or_are_refused():
    counts = configurations(12, seed=1)
    assert counts.total() == 12
    assert counts["ran"] >= 1
    assert counts["refused"] >= 1
    assert not any(map(is_bad, counts)), counts


@pytest.mark.slow
def test_memory_and_handles_stay_flat():
    assert soak(600) == {"flat": 1}


@pytest.mark.parametrize(
    "message, whole",
    [
        ("data: needs a folder, got a file; name another.", True),
        ("data: needs a folder, got a file", False),
        ("data: a file is no folder; name another.", False),
        ("configuration: train.lr: input should be greater than 0, got -1; correct it", True),
        ("configuration: train.lr: input should be greater than 0, got -1", False),
        ("configuration: there is no field train.epoch; did you mean train.epochs?", True),
    ],
)
def test_a_message_has_three_parts(message, whole):
    assert three_parts(message) == whole
    assert is_bad("refused, vague")
    assert not any(map(is_bad, GOOD))
