"""Records of both measures, and of before there were two, are read alike; what is none is refused in words."""

import copy
import json
import re
from pathlib import Path

import pytest

from outgrow.training.progress import MEASURES
from outgrow.training.record import METRICS, RunRecord, common_metric, parse_record, read_record
from tests.report.records import as_of_old, detector, features_alone, record

RESULTS = Path(__file__).parents[2] / "results" / "records"


def facts(run):
    run = parse_record(run)
    return (
        run.metric,
        run.student_score,
        run.best_score,
        run.epoch_scores,
        run.teacher_score,
        run.corrected_score,
    )


def test_a_classifier():
    run = record("outgrow", 1, 92.0, corrected=True)
    assert facts(run) == ("top1", 92.0, 92.25, [(2, 46.0), (4, 92.0)], 50.0, 92.0)
    run = parse_record(run)
    assert (run.seed, run.preset, run.teacher_wrong_rate) == (1, "outgrow", 0.375)
    assert run.method_text.startswith("preset outgrow")
    assert "None" not in run.method_text


def test_a_detector():
    run = detector("kd", 0, 44.0)
    assert facts(run) == ("ap", 44.0, 44.25, [(2, 22.0), (4, 44.0)], 40.0, None)
    platelets = parse_record(run).detection.errors.student[2]
    assert (platelets.name, platelets.badly_placed, platelets.ap) == ("<b>platelets</b>", 33, 46.0)


def test_no_teacher():
    for run in (record("none", 0, 90.0, teacher=None), detector("none", 0, 90.0, teacher=None)):
        run = parse_record(run)
        assert (run.teacher, run.teacher_score, run.corrected_score) == (None, None, None)
        assert run.as_dict()["teacher"] == {}


def test_the_rows_that_a_teacher_gets_wrong_if_it_says_anything_of_them():
    assert parse_record(record("kd", 0, 90.0)).wrong_rate == 0.25
    old = record("none", 0, 90.0, teacher=None)
    old["epochs"][-1]["wrong_rate"] = 0.0  # as it was written once
    assert parse_record(old).wrong_rate is None
    of_features = parse_record(features_alone(detector("kd", 0, 90.0)))
    assert of_features.wrong_rate is None
    assert of_features.as_dict()["epochs"][0]["wrong_rate"] is None


@pytest.mark.parametrize("corrected", [False, True])
def test_a_record_of_old(corrected):
    run = record("kd", 0, 92.0, corrected=corrected)
    old = as_of_old(run)
    assert "metric" not in old
    assert "score" not in old["epochs"][0]
    assert facts(old) == facts(run)


def test_an_epoch_at_zero_was_tested():
    run = detector("kd", 0, 44.0)
    run["epochs"][1]["score"] = 0.0
    assert facts(run)[3] == [(2, 0.0), (4, 44.0)]


def test_a_class_without_a_name_is_called_by_its_number():
    run = record("kd", 0, 90.0)
    assert parse_record(run).class_name(1) == "dog"
    assert parse_record(run).class_name(-1) == "class -1"
    del run["data"]["classes"]  # early records
    assert parse_record(run).class_name(1) == "class 1"


@pytest.mark.parametrize("made", [record("outgrow", 1, 92.0, corrected=True), detector("kd", 0, 44.0)])
def test_what_is_read_is_written_again(made, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(made))
    run = read_record(tmp_path / "record.json")
    assert run.as_dict() == made
    assert parse_record(run) is run


def test_every_published_record_is_read():
    found = [path for path in sorted(RESULTS.rglob("*.json")) if '"epochs"' in path.read_text()]
    runs = [path for path in found if isinstance(json.loads(path.read_text()).get("student"), dict)]
    assert len(runs) > 100
    for path in runs:
        content, again = json.loads(path.read_text()), read_record(path).as_dict()
        for key in content.keys() - {"config", "epochs", "checksum"}:
            assert again[key] == content[key], f"{path.name}: {key}"


def changed(path, value):
    """A record with ``value`` at ``path``; without what is there where it is ``gone``."""
    run = copy.deepcopy(record("outgrow", 1, 92.0, corrected=True) | {"version": 2})
    *way, last = path
    place = run
    for key in way:
        place = place[key]
    if value == "gone":
        del place[last]
    else:
        place[last] = value
    return run


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "run, said",
    [
        (None, "needs a mapping"),
        ([], "needs a mapping"),
        ({}, "errors, the first at student"),
        ({"student": {}}, "the first at student.name"),
        ({"name": "somebody", "scripts": {}}, "needs a valid record"),
        (changed(["student"], "gone"), "at student"),
        (changed(["student"], "resnet"), "at student"),
        (changed(["student", "top1"], "many"), "at student.top1"),
        (changed(["student", "top1"], NAN), "at student.top1"),
        (changed(["student", "nll"], INF), "at student.nll"),
        (changed(["teacher"], ["a", "b"]), "at teacher"),
        (changed(["epochs"], None), "at epochs"),
        (changed(["epochs"], []), "at epochs"),
        (changed(["epochs"], {"1": {}}), "at epochs"),
        (changed(["epochs", 1, "score"], NAN), "at epochs.1.score"),
        (changed(["epochs", 0, "loss"], NAN), "at epochs.0.loss"),
        (changed(["epochs", 0, "terms"], {"kd": -INF}), "at epochs.0.terms.kd"),
        (changed(["epochs", 0], 3), "at epochs.0"),
        (changed(["compared", "examples", 0, "position"], 1.5), "at compared.examples.0.position"),
        (changed(["correction", "candidates"], "none"), "at correction.candidates"),
        (changed(["config"], 3), "at config"),
        (changed(["config", "seed"], "first"), "at config.seed"),
        (changed(["metric"], "f1"), "one of the metrics top1, ap, got 'f1'"),
        (changed(["metric"], ["top1"]), "at metric"),
        (changed(["version"], 3), "layout 2 or older in a file, got 3"),
        (changed(["version"], "new"), "layout 2 or older in a file, got 'new'"),
        (changed(["versions"], "all"), "at versions"),
    ],
)
def test_what_is_no_record_is_refused_in_three_parts(run, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parse_record(run, where="a file")
    assert re.search(r"report: needs .*, got .*; (rerun|read) ", str(error.value), re.DOTALL)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000, "[1]", "NaN"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"report: needs .*record.json.*; re(run|store) the"):
        read_record(path)
    with pytest.raises(ValueError, match=r"report: needs a run's record.json, got .*nowhere"):
        read_record(tmp_path / "nowhere")


def test_a_measure_that_is_not_there_is_named():
    run = record("kd", 0, 90.0)
    del run["student"]["top1_best"]
    with pytest.raises(ValueError, match="needs top1_best of the student, got a record without it; rerun"):
        _ = RunRecord.model_validate(run).best_score


def test_every_measure_has_its_words():
    assert list(METRICS) == list(MEASURES)
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.name == MEASURES[key]
        assert metric.title.lower() == metric.name.lower()
        assert "43.20 %" in metric.sentence.format(43.2)


def test_what_cannot_be_compared():
    runs = [parse_record(record("kd", 0, 90.0)), parse_record(detector("kd", 0, 40.0))]
    with pytest.raises(
        ValueError, match=re.escape("with the same metric, got top1 and ap; put the runs of each metric")
    ):
        common_metric(runs)
    with pytest.raises(ValueError, match="got no runs"):
        common_metric([])
