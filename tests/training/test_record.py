"""Records of both measures, and of before there were two, are read alike."""

import re

import pytest

from outgrow.training.progress import MEASURES
from outgrow.training.record import (
    METRICS,
    best_score,
    common_metric,
    corrected_score,
    epoch_scores,
    metric_of,
    student_score,
    teacher_score,
)
from tests.report.records import as_of_old, detector, record


def facts(run):
    return (
        metric_of(run).key,
        student_score(run),
        best_score(run),
        epoch_scores(run),
        teacher_score(run),
        corrected_score(run),
    )


def test_a_classifier():
    run = record("outgrow", 1, 92.0, corrected=True)
    assert facts(run) == ("top1", 92.0, 92.25, [(2, 46.0), (4, 92.0)], 50.0, 92.0)


def test_a_detector():
    run = detector("kd", 0, 44.0)
    assert facts(run) == ("ap", 44.0, 44.25, [(2, 22.0), (4, 44.0)], 40.0, None)


def test_no_teacher():
    for run in (record("none", 0, 90.0, teacher=None), detector("none", 0, 90.0, teacher=None)):
        assert teacher_score(run) is None
        assert corrected_score(run) is None


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
    assert epoch_scores(run) == [(2, 0.0), (4, 44.0)]


def test_every_measure_has_its_words():
    assert list(METRICS) == list(MEASURES)
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.name == MEASURES[key]
        assert metric.title.lower() == metric.name.lower()
        assert "43.20 %" in metric.sentence.format(43.2)


def test_what_cannot_be_read_or_compared():
    with pytest.raises(ValueError, match=r"judged by one of top1, ap, got 'f1'; read the record with"):
        metric_of({"metric": "f1"})
    with pytest.raises(
        ValueError, match=re.escape("judged by one measure, got top1 and ap; give the runs of each measure")
    ):
        common_metric([record("kd", 0, 90.0), detector("kd", 0, 40.0)])
    with pytest.raises(ValueError, match="got no runs"):
        common_metric([])
