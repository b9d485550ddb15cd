"""Finished runs of a study are kept, and only those of its own configuration."""

import json

import pytest

from outgrow.run import study
from outgrow.run.study import run_study
from outgrow.training.config import merge
from tests.test_run import SMALL

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
    assert run_study(BASE, METHODS, [0], out=tmp_path) == json.loads(json.dumps(first))
    assert len(distilled) == 1
    run_study(merge(BASE, {"train": {"lr": 0.01}}), METHODS, [0], out=tmp_path)
    assert len(distilled) == 2


def test_a_record_from_before_a_field_was_there(tmp_path, distilled):
    run_study(BASE, METHODS, [0], out=tmp_path)
    file = tmp_path / "none" / "seed0" / "record.json"
    record = json.loads(file.read_text())
    del record["config"]["train"]["compile"]
    file.write_text(json.dumps(record))
    run_study(BASE, METHODS, [0], out=tmp_path)
    assert len(distilled) == 1
    record["config"]["train"]["since_removed"] = 1
    file.write_text(json.dumps(record))
    run_study(BASE, METHODS, [0], out=tmp_path)
    assert len(distilled) == 2
