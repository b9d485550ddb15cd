"""Finished runs of a study are kept, and only those of its own configuration."""

import json

import pytest

from outgrow.run import study
from outgrow.run.study import run_study
from outgrow.training.config import merge
from tests.run.test_distill import SMALL, interrupted_after

BASE = merge(SMALL, {"train": {"epochs": 1, "precision": "auto"}})
METHODS = {"none": {"preset": "none"}}


@pytest.fixture
def distilled(monkeypatch):
    """How often a run was made."""
    made, own = [], study.distill
    monkeypatch.setattr(study, "distill", lambda *args, **options: made.append(1) or own(*args, **options))
    return made


def test_finished_runs_are_kept(tmp_path, distilled):
    first = run_study(BASE, METHODS, [0], out=tmp_path)
    assert run_study(BASE, METHODS, [0], out=tmp_path) == first
    assert len(distilled) == 1
    with pytest.raises(ValueError, match=r"got a finished run .* --overwrite"):
        run_study(merge(BASE, {"train": {"lr": 0.01}}), METHODS, [0], out=tmp_path)
    run_study(merge(BASE, {"train": {"lr": 0.01}}), METHODS, [0], out=tmp_path, overwrite=True)
    assert len(distilled) == 3


def test_a_run_that_was_begun_continues(tmp_path, monkeypatch):
    whole = run_study(BASE, METHODS, [0], out=tmp_path / "whole")
    with interrupted_after(monkeypatch, 1):
        run_study(BASE, METHODS, [0], out=tmp_path / "broken")
    resumed = run_study(BASE, METHODS, [0], out=tmp_path / "broken")
    assert resumed["none"][0].student == whole["none"][0].student


def test_a_record_from_before_a_field_was_there(tmp_path, distilled):
    run_study(BASE, METHODS, [0], out=tmp_path)
    file = tmp_path / "none" / "seed0" / "record.json"
    record = json.loads(file.read_text())
    record["checksum"] = None
    del record["config"]["train"]["compile"]
    file.write_text(json.dumps(record))
    run_study(BASE, METHODS, [0], out=tmp_path)
    assert len(distilled) == 1
    record["config"]["train"]["since_removed"] = 1
    file.write_text(json.dumps(record))
    run_study(BASE, METHODS, [0], out=tmp_path)
    assert len(distilled) == 1


def test_a_damaged_record_is_not_taken(tmp_path):
    run_study(BASE, METHODS, [0], out=tmp_path)
    file = tmp_path / "none" / "seed0" / "record.json"
    file.write_text(file.read_text().replace('"top1": ', '"top1": 1', 1))
    with pytest.raises(ValueError, match="changed or damaged since"):
        run_study(BASE, METHODS, [0], out=tmp_path)
