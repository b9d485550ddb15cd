"""The side-by-side measurements run, on tiny nets and random images; what they measure is not looked at."""

import importlib.util
import json
import sys

import pytest
from benchmarks import __main__, growth, objective, step_profile, students, throughput
from benchmarks.turns import Worker
from benchmarks.ways import Task

TINY = ("cifar/resnet8", "cifar/resnet8")


def test_ways_take_turns():
    ways = ("plain", "torchdistill", "cached")  # the others run below
    (row,) = throughput.measure(
        pairs=[TINY], steps=1, repeat=2, batch=4, num=16, workers=0, threads=1, ways=ways
    )
    there = importlib.util.find_spec("torchdistill") is not None
    assert set(row["ways"]) == set(ways) - (set() if there else {"torchdistill"})
    for way in row["ways"].values():
        assert way["n"] == 2
        assert 0 < way["low"] <= way["rate"] <= way["high"]
        assert way["peak_bytes"] >= way["start_bytes"] > 0
    assert row["ratios"]["cached / plain"]["ratio"] > 0


def test_an_epoch_must_hold_the_rounds():
    with pytest.raises(ValueError, match="at least 12 steps, got 4"):
        throughput.measure(pairs=[TINY], steps=4, repeat=2, batch=4, num=16)


def test_an_error_in_a_way_reaches_the_parent():
    with Worker(1) as worker:
        with pytest.raises(RuntimeError, match="KeyError: 'nonsense'"):
            worker.start(Task("nonsense", *TINY, num=4, batch=2))
        assert worker.start(Task("student", *TINY, num=4, batch=2)) > 0  # it lives on
        assert worker.step(1).seconds > 0


def test_students_with_and_without_a_cache():
    result = students.measure(pair=TINY, students=2, epochs=1, num=8, batch=4, threads=1)
    assert {len(seconds) for seconds in result["seconds"].values()} == {2}
    assert result["share"]["all"] > 0


def test_growth_of_a_step():
    rows = growth.of_step(settings=((2, 16), (4, 8)), pair=TINY, images=4, repeat=1, threads=1)
    assert [(row["batch"], row["size"]) for row in rows] == [(2, 16), (4, 8)]


def test_profile_of_a_step():
    found = step_profile.measure(pair=TINY, steps=3, batch=4)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert {"convolution, backward", "convolution, forward", "objective", "loader"} <= set(found["shares"])


def test_the_command_saves_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.setattr(objective, "measure", lambda device: [{"device": device}])  # seconds, not minutes
    __main__.main(["--only", "objective", "--device", "cpu", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "objective.json").read_text())
    assert saved["result"] == [{"device": "cpu"}]
    assert {"versions", "commit", "command", "hardware"} <= set(saved)
