"""The page of one run."""

import sys

import pytest
from jinja2 import UndefinedError

from outgrow.report.card import model_card
from outgrow.report.parts import Section
from outgrow.report.run_page import write_run_page
from outgrow.training.deployment import Exported
from outgrow.training.record import parse_record
from tests.report.reading import Page
from tests.report.records import as_of_old, detector, features_alone, images, record
from tests.report.test_page import assert_self_contained


def write(path, run, test=None, sections=()) -> tuple[str, Page]:
    write_run_page(path / "run.html", run, images() if test is None else test, sections)
    html = (path / "run.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_every_number_is_there(tmp_path):
    html, page = write(tmp_path, record("outgrow", 1, 93.0, corrected=True))
    assert_self_contained(html, page)
    assert "made/student reaches 93.00 %; its teacher, made/teacher, reaches 50.00 %." in page.text
    for number in (
        "+43.00 points",
        "+1.00 points",
        "25.0 % of the teacher's",
        "92.00",
        "93.25",
        "0.4321",
        "1.5000",
    ):
        assert number in page.text
    for number in ("4,000", "1,000", "37.5 %", "0.2500", "0.5000", "map of the logits", "folder:made-up"):
        assert number in page.text
    assert "60.0 %, only the student" in page.text
    assert "seed: 1" in page.text  # the resolved configuration


def test_one_run_is_not_called_more(tmp_path):
    _, page = write(tmp_path, record("outgrow", 0, 93.0, corrected=True))
    assert "One run, one seed: nothing here says how far seeds differ." in page.text
    assert "has outgrown its teacher takes several seeds" in page.text
    assert "and has outgrown" not in page.text


def test_without_a_teacher(tmp_path):
    html, page = write(tmp_path, record("none", 0, 90.0, teacher=None, terms=("task",)))
    assert_self_contained(html, page)
    assert "made/student reaches 90.00 % without a teacher." in page.text
    assert not page.all("img")


def test_a_teacher_of_features_alone_is_wrong_nowhere(tmp_path):
    html, page = write(tmp_path, record("kd", 0, 90.0))
    assert "was wrong on 25.0 % of the training views" in page.text
    assert "wrong rows" in page.text
    html, page = write(tmp_path, features_alone(record("kd", 0, 90.0)))
    assert_self_contained(html, page)
    assert "was wrong" not in page.text
    assert "wrong rows" not in page.text


def test_a_teacher_of_other_classes(tmp_path):
    """It has no top-1 of its own: only after correction."""
    run = record("outgrow", 0, 90.0, corrected=True)
    run["teacher"] |= {"top1": 91.0, "top1_corrected": 91.0}
    del run["teacher"]["wrong_rate"]
    run["correction"]["raw"] = None
    _, page = write(tmp_path, run)
    assert "-1.00 points against the teacher" in page.text
    assert "the teacher mapped to these classes" in page.text
    assert "as it is, before" not in page.text


@pytest.mark.parametrize("epochs", [1, 2, 100])
@pytest.mark.parametrize("num_terms", [0, 1, 12])
def test_any_number_of_epochs_and_terms(tmp_path, epochs, num_terms):
    terms = tuple(f"term{i}" for i in range(num_terms))
    html, page = write(tmp_path, record("kd", 0, 80.0, epochs=epochs, terms=terms))
    assert_self_contained(html, page)
    assert len(page.all("svg")) == (4 if num_terms else 2)
    assert all(name in page.text for name in terms)


def test_text_is_escaped(tmp_path):
    run = record("kd", 0, 80.0, terms=("<script>term</script>",))
    run["student"]["name"] = run["teacher"]["name"] = "<script>name</script>"
    run["command"] = '"><img src=x onerror=alert(1)>'
    run["data"]["classes"] = ["<script>class</script>"] * 3
    html, page = write(tmp_path, run)
    assert_self_contained(html, page)
    assert "<script" not in html
    for said in ("<script>name</script>", "<script>term</script>", "<script>class</script>"):
        assert said in page.text


def test_a_record_of_old_makes_the_same_page(tmp_path):
    run = record("outgrow", 1, 93.0, corrected=True)
    assert write(tmp_path, as_of_old(run))[0] == write(tmp_path, run)[0]


def test_what_distill_returns_is_accepted_beside_a_record(tmp_path):
    run = record("outgrow", 1, 93.0, corrected=True)
    assert write(tmp_path, parse_record(run))[0] == write(tmp_path, run)[0]


def test_a_detector_speaks_of_its_own_measure(tmp_path):
    html, page = write(tmp_path, detector("kd", 0, 43.0))
    assert_self_contained(html, page)
    assert (
        "made/student reaches 43.00 % box AP; its teacher, made/teacher, reaches 40.00 % box AP." in page.text
    )
    assert "top-1" not in html
    assert "negative log-likelihood" not in page.text
    for said in (
        "box AP (%) at IoU 0.50 (%) parameters student, made/student 43.00 68.00 1,000",
        "at its best epoch, 4 43.25",
        "teacher, made/teacher 40.00 65.00 4,000",
        "+3.00 points against the teacher",
        "wrong on 25.0 % of the proposals in training",
    ):
        assert said in page.text, said
    _, page = write(tmp_path, detector("none", 0, 43.0, teacher=None))
    assert "made/student reaches 43.00 % box AP without a teacher." in page.text


@pytest.fixture
def made_up_task(tmp_path, monkeypatch):
    """A task of somebody else's: a package with a template."""
    (tmp_path / "made_up_task" / "templates").mkdir(parents=True)
    (tmp_path / "made_up_task" / "__init__.py").write_text("")
    (tmp_path / "made_up_task" / "templates" / "part.html").write_text(
        '{% import "parts.html" as parts %}<h2>{{ name }}</h2>{% call parts.scroll("Counts") %}{{ n | count }}{% endcall %}'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "made_up_task/part.html"
    sys.modules.pop("made_up_task", None)


def test_a_task_hands_in_its_sections(tmp_path, made_up_task):
    sections = [Section(made_up_task, {"name": name, "n": 12345}) for name in ("<b>first</b>", "second")]
    html, page = write(tmp_path, record("kd", 0, 80.0), sections=sections)
    assert_self_contained(html, page)
    assert "<b>first</b> 12,345 second 12,345" in page.text
    assert 'aria-label="Counts"' in html
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        write(tmp_path, record("kd", 0, 80.0), sections=[Section(made_up_task, {"n": 3})])


def test_compared_images_have_to_be_given(tmp_path):
    with pytest.raises(ValueError, match="needs the test images that its record refers to, got none; give"):
        write_run_page(tmp_path / "run.html", record("kd", 0, 80.0), None)


def test_a_detector_of_one_class_has_no_classes():
    run = detector("kd", 0, 44.0)
    run["data"]["classes"] = ["cell"]
    exported = Exported((), "pytorch", "", "object-detection", "")
    assert "boxes of 1 class: `cell`." in model_card(parse_record(run), exported)


def test_a_card_shows_a_loss_with_its_stars():
    """Of 0.8*crd + 2*fitnet Markdown would make an emphasis without them."""
    run = record("kd", 0, 90.0)
    run["config"]["method"]["loss"] = "kd + 0.8*crd + 2*fitnet"
    exported = Exported((), "pytorch", "", "image-classification", "")
    assert "- Method: `preset kd, loss kd + 0.8*crd + 2*fitnet`; 4 epochs" in model_card(
        parse_record(run), exported
    )
