"""The demo: both comparisons, with an epoch each."""

import json
import warnings
from dataclasses import replace

import pytest

from outgrow.classification.data import open_run_data
from outgrow.run import demo
from outgrow.training.config import build_config, merge
from outgrow.training.record import read_record
from tests.report.reading import Page

SHORT = {
    "train": {"epochs": 1, "eval_every": 1, "max_steps": 2},
    "teacher_train": {"epochs": 1, "max_steps": 2},
    "teacher": {"correct_views": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    short = {
        name: replace(
            case, base=merge(case.base, SHORT), unlabelled=merge(case.unlabelled, {"train": SHORT["train"]})
        )
        for name, case in demo.CASES.items()
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(demo, "CASES", short)
        return out, demo.run_demo(out, seeds=2)


def test_both_comparisons_have_all_their_methods(run):
    out, tables = run
    for name, case in demo.CASES.items():
        assert [row.method for row in tables[name].rows] == list(case.about)
        assert {path.parent.parent.name for path in (out / name).glob("*/seed*/record.json")} == set(
            case.about
        )
    assert set(json.loads((out / "table.json").read_text())) == set(demo.CASES)


def test_the_first_page_leads_to_both(run):
    out, _ = run
    page = Page((out / "index.html").read_text())
    links = {tag["href"] for tag in page.all("a")}
    assert {f"{name}/index.html" for name in demo.CASES} <= links
    assert all((out / name / "index.html").is_file() for name in demo.CASES)
    assert all(case.title in page.text for case in demo.CASES.values())
    assert "plain KD + unlabelled" in page.text
    assert "over no teacher" in page.text
    assert "with each baseline" not in page.text
    assert "outgrow, unlabelled" not in page.text


def test_digits_without_labels_go_to_the_methods_that_say_so(run):
    out, _ = run
    rows = {
        path.parent.parent.name: read_record(path).data
        for path in (out / "few-labels").glob("*/seed0/record.json")
    }
    assert {name: data.train for name, data in rows.items()} == dict.fromkeys(rows, 50)
    assert {name for name, data in rows.items() if data.unlabelled} == {
        "kd, unlabelled",
        "outgrow, unlabelled",
    }


def test_students_take_as_many_steps_with_unlabelled_digits_as_without():
    case = demo.CASES["few-labels"]
    labelled = case.base["train"]["batch_size"] - round(
        case.unlabelled["data"]["unlabelled_share"] * case.base["train"]["batch_size"]
    )
    rows = case.base["data"]["train_rows"]
    steps = -(-rows // case.base["train"]["batch_size"]) * case.base["train"]["epochs"]
    assert steps == -(-rows // labelled) * case.unlabelled["train"]["epochs"]


@pytest.mark.parametrize("name", list(demo.CASES))
def test_no_teacher_has_seen_a_digit_of_its_students(name, monkeypatch):
    config = build_config(demo.CASES[name].base)
    taught = []
    monkeypatch.setattr(demo, "train_alone", lambda config, rows, data, network: taught.append(rows))
    demo.CASES[name].teacher(config)
    (rows,) = taught
    data = open_run_data(config)
    assert not set(rows.index.tolist()) & set(data.train.index.tolist())
    if name == "few-labels":
        assert len(rows) == demo.KNOWN
        true = dict(zip(data.others.index.tolist(), data.others.labels.tolist(), strict=True))
        assert all(
            true[i] == label for i, label in zip(rows.index.tolist(), rows.labels.tolist(), strict=True)
        )
