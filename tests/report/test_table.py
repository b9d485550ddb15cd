"""A study in numbers, as text."""

import json
import re

import pytest

from outgrow.report.formats import latex, markdown, text
from outgrow.report.table import read_records, tabulate
from outgrow.report.text import markdown_table, text_table
from outgrow.training.record import RunRecord, parse_record
from tests.report.records import as_of_old, detector, detectors, record, study

CLASSIFIERS = """\
method   top-1, last epoch  best epoch     over no teacher       over teacher             over corrected        outgrew
-------  -----------------  -------------  --------------------  -----------------------  --------------------  -------
none     90.00 +- 0.50      90.25 +- 0.50                        +40.00 [+38.76, +41.24]  -2.00 [-5.29, +1.29]  \N{EN DASH}
kd       88.00 +- 1.00      88.25 +- 1.00  -2.00 [-3.24, -0.76]  +38.00 [+35.52, +40.48]  -4.00 [-8.30, +0.30]  no
outgrow  94.00 +- 0.50      94.25 +- 0.50  +4.00 [+1.52, +6.48]  +44.00 [+42.76, +45.24]  +2.00 [-0.15, +4.15]  no

teacher: 50.00 +- 0.00 % (4,000 parameters), wrong on 37.5 % of the training views
teacher after correction of its bias: 92.00 +- 1.00 %
student: 1,000 parameters, 3 seeds; differences are paired by seed, with 95 % intervals
outgrew: beats the teacher as it is, the teacher after correction, and the student alone, each by its interval"""


def test_a_study_of_classifiers():
    """As it was printed before there was another measure; a student without a teacher has none to outgrow."""
    assert text_table(tabulate(study())) == CLASSIFIERS


def test_the_correction_of_one_teacher_is_not_that_of_another():
    """Runs of two teachers may be compared: each student stands against its own."""
    records = study()
    for run in records["kd"]:
        run["teacher"] |= {"name": "made/other", "top1": 60.0}
    kd = next(row for row in tabulate(records).rows if row.method == "kd")
    assert kd.over_teacher.mean == kd.over_corrected.mean == 28.0
    same = next(row for row in tabulate(study()).rows if row.method == "kd")
    assert same.over_corrected.mean == -4.0


def test_a_heavier_kd_is_not_the_plain_one():
    """Whichever comes first."""
    heavier = [record("kd", seed, 80.0) for seed in range(3)]
    for run in heavier:
        run["config"]["method"]["weight"] = 4.0
    assert tabulate({"heavier": heavier, **study()}).plain == "kd"
    assert tabulate({**study(), "heavier": heavier}).plain == "kd"
    assert tabulate({"none": study()["none"], "heavier": heavier}).plain == "heavier"


def test_a_seed_in_which_nobody_corrected_the_teacher_is_left_out():
    """It stood as it is there, and in the mean beside the corrected one of other seeds."""
    records = study()
    corrected = next(name for name, runs in records.items() if runs[0].get("correction"))
    whole = next(row for row in tabulate(records).rows if row.method == "kd").over_corrected
    records[corrected] = records[corrected][:-1]
    fewer = next(row for row in tabulate(records).rows if row.method == "kd").over_corrected
    assert fewer.n == whole.n - 1
    assert fewer.mean == pytest.approx(whole.mean, abs=1.5)


def test_one_seed_is_not_several():
    assert "1,000 parameters, 1 seed; differences" in text_table(tabulate(study(seeds=1)))


@pytest.mark.parametrize("form", [text_table, markdown_table, text, markdown, latex])
def test_without_an_interval_no_table_says_that_it_has_not_outgrown(form):
    """As on the page, whose headline says that it was not shown."""
    table = tabulate(study(seeds=1))
    made = form(table) if form in (text_table, markdown_table) else form({"digits": table})
    lines = [line for line in made.splitlines() if "outgrow " in line]
    assert lines
    for line in lines:
        assert "\N{EN DASH}" in line
        assert not re.search(r"\b(no|yes)\b", line)


def test_records_of_old_make_the_same_table():
    old = {name: [as_of_old(run) for run in runs] for name, runs in study().items()}
    assert tabulate(old) == tabulate(study())


def test_a_study_of_detectors():
    table = tabulate(detectors())
    lines = text_table(table).splitlines()
    assert lines[0].startswith("method  box AP, last epoch  best epoch")
    assert "teacher: 40.00 +- 0.00 % box AP (4,000 parameters)" in lines
    assert markdown_table(table).startswith("| method | box AP, last epoch | best epoch |")
    assert "top" not in text_table(table)
    assert [row.outgrew for row in table.rows] == [False, True]


def test_as_json():
    values = json.loads(json.dumps(tabulate(detectors()).as_dict()))
    assert values["metric"] == "ap"
    assert values["rows"][1]["score"]["mean"] == 44.0


def test_measures_are_not_mixed():
    with pytest.raises(ValueError, match="needs runs with the same metric, got top1 and ap; put"):
        tabulate({"kd": [record("kd", 0, 90.0)], "none": [detector("none", 0, 40.0)]})


def write_runs(folder, records):
    for name, runs in records.items():
        for seed, run in enumerate(runs):
            (folder / name / f"seed{seed}").mkdir(parents=True)
            (folder / name / f"seed{seed}" / "record.json").write_text(json.dumps(run))


def test_runs_are_read_by_method_and_seed(tmp_path):
    write_runs(tmp_path, study())
    records = read_records(tmp_path)
    assert {name: [run.seed for run in runs] for name, runs in records.items()} == {
        "kd": [0, 1, 2],
        "none": [0, 1, 2],
        "outgrow": [0, 1, 2],
    }
    assert all(isinstance(run, RunRecord) for runs in records.values() for run in runs)
    assert text_table(tabulate({name: records[name] for name in study()})) == CLASSIFIERS


def test_typed_records_make_the_same_table():
    typed = {name: [parse_record(run) for run in runs] for name, runs in study().items()}
    assert tabulate(typed) == tabulate(study())


def test_runs_that_cannot_be_paired_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs finished runs as METHOD/seedK/record.json, got none under .*; give"
    ):
        read_records(tmp_path)
    write_runs(tmp_path, study())
    (tmp_path / "kd" / "seed2" / "record.json").write_text(json.dumps(record("kd", 1, 80.0)))
    with pytest.raises(
        ValueError, match=r"needs one run of each seed, got seed 1 again in .*seed2.*; move one"
    ):
        read_records(tmp_path)
    (tmp_path / "kd" / "seed2" / "record.json").unlink()
    with pytest.raises(ValueError, match=r"needs the same seeds for every method, got .*; run the missing"):
        read_records(tmp_path)
    (tmp_path / "kd" / "seed0" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match=r"needs a valid record in .*record.json, got .* errors"):
        read_records(tmp_path)


def test_without_a_correction_each_method_is_compared_with_its_own_teacher_twice():
    """Also where methods have other teachers, or other seeds."""
    table = tabulate(
        {
            "none": [record("none", seed, 40.0 + seed, teacher=None) for seed in (0, 1)],
            "kd": [record("kd", 0, 41.0)],
            "other": [record("kd", seed, 45.0 + seed, teacher=30.0) for seed in (0, 1)],
        }
    )
    row = next(row for row in table.rows if row.method == "other")
    assert row.over_teacher.mean == row.over_corrected.mean == 15.5
    assert table.corrected is None


def test_a_teacher_that_was_left_alone_has_no_second_score_where_a_seed_failed():
    """Its mean over fewer seeds looked like a correction that had changed it."""
    records = study()
    for run in (run for runs in records.values() for run in runs if run["teacher"]):
        run["teacher"] |= {"top1": 50.0 + run["config"]["seed"], "top1_corrected": None}
    corrected = next(name for name, runs in records.items() if runs[0].get("correction"))
    assert tabulate(records).corrected is None
    records[corrected] = records[corrected][:-1]
    assert tabulate(records).corrected is None


def test_without_a_correction_the_text_says_what_its_column_is():
    said, runs = "over corrected is over teacher", study()
    assert said not in text_table(tabulate(runs))
    del runs["outgrow"]
    assert said in text_table(tabulate(runs))
