"""What the page of a detector shows besides its measure."""

import re

import pytest
from PIL import Image

from outgrow.detection.page import page_sections
from outgrow.report.run_page import write_run_page
from outgrow.training.record import parse_record
from tests.report.reading import Page
from tests.report.records import detector, record
from tests.report.test_page import assert_self_contained


def write(path, run) -> tuple[str, Page]:
    write_run_page(path / "run.html", run, None, page_sections(run, path))
    html = (path / "run.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_every_number_is_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (1200, 600), (200, 150, 150)).save(tmp_path / "pictures" / "0001.png")
    html, page = write(tmp_path, detector("kd", 0, 43.0, pictures=("pictures/0001.png",)))
    assert_self_contained(html, page)
    for said in (
        "student teacher AP, mean over IoU 0.50 to 0.95 43.00 [41.0, 45.0] 40.00 [38.0, 42.0] AP at IoU 0.50 44.00 41.00",
        "AP of large objects, above 96\u00b2 pixels 48.00 (3 images) 45.00 (3 images)",
        "AP of the student minus the teacher's: +3.00 [+1.00, +5.00].",
        "95 % intervals over images",
        "They hold one training",
        "AP at IoU 0.75 45.00 42.00",
        "AP of small objects, below 32\u00b2 pixels \u2013 \u2013",
        "AR of large objects 54.00 51.00",
        "class objects found missed confused duplicated badly placed background AP (%)",
        "size of the weights 1.00 MiB 3.00 MiB",
        "time for one image 12.3 ms (95 % within 24.7; short side 320 pixels) 45.7 ms (95 % within 91.3; short side 320 pixels)",
        "Images of the test split.",
        "RBC student 2,000 1,700 300 31 32 33 34 43.00 [41.0, 45.0] teacher 2,000 1,500 500 31 32 33 34 43.00 [38.0, 42.0]",
        "<b>platelets</b> student 2,002 1,702",
    ):
        assert said in page.text, said
    (shown,) = page.all("img")
    assert (shown["width"], shown["height"]) == ("1000", "500")
    assert shown["src"].startswith("data:image/jpeg;base64,")
    assert "pictures/0001.png" in [attrs.get("href") for attrs in page.all("a")]
    assert (
        "student, IoU 0.50: mean 43.0; student, IoU 0.50 to 0.95: mean 21.5; teacher, IoU 0.50: mean 40.0"
        in html
    )


def test_without_a_teacher(tmp_path):
    html, page = write(tmp_path, detector("none", 0, 43.0, teacher=None))
    assert_self_contained(html, page)
    assert "AP at IoU 0.75 45.00 AP of small" in page.text
    assert "RBC 2,000 1,700" in page.text
    assert not page.all("img")


@pytest.mark.parametrize(
    "missing", ["numbers", "errors", "pictures", "curves", "cost", "intervals", "difference"]
)
def test_parts_may_be_missing(tmp_path, missing):
    run = detector("kd", 0, 43.0)
    del run["detection"][missing]
    html, page = write(tmp_path, run)
    assert_self_contained(html, page)
    assert ("COCO's numbers" in page.text) == (missing != "numbers")
    assert ("What was found, by class" in page.text) == (missing != "errors")
    assert ("minus the teacher's" in page.text) == (missing not in ("difference", "numbers"))


def test_a_legend_tells_the_lines_of_both_networks_apart(tmp_path):
    """In the page's wide version, too: no name stands beside these lines."""
    html, _ = write(tmp_path, detector("kd", 0, 43.0))
    recall = html[html.index('id="recall"') : html.index('id="cost"')]
    (legend,) = re.findall(r'<ul class="legend always".*?</ul>', recall, re.S)
    styles = re.findall(r'<li class="(.*?)".*?>(.*?)</li>', legend)
    assert styles == [
        ("s0 line", "student, IoU 0.50"),
        ("s0 dashes", "student, IoU 0.50 to 0.95"),
        ("teacher line", "teacher, IoU 0.50"),
        ("teacher dashes", "teacher, IoU 0.50 to 0.95"),
    ]


def test_a_classifier_has_no_such_part(tmp_path):
    assert page_sections(record("kd", 0, 80.0), tmp_path) == []
    assert len(page_sections(parse_record(detector("kd", 0, 43.0)), tmp_path)) == 1


def test_a_picture_that_is_not_there_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("pictures/0001.png", "text.png", "."):
        with pytest.raises(
            ValueError, match=f"needs an image in '{name}', got none in .*; write the pictures"
        ):
            page_sections(detector("kd", 0, 43.0, pictures=(name,)), tmp_path)


def test_a_record_opens_no_file_outside_its_folder(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    outside = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(outside)
    (run / "link.png").symlink_to(outside)
    (tmp_path / "run-other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "run-other" / "a.png")
    opened = []
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path))
    for name in (
        "../private.png",
        str(outside),
        "link.png",
        "pictures/../../private.png",
        "../run-other/a.png",
        "../../../../../../../../etc/passwd",
        "/etc/passwd",
    ):
        with pytest.raises(ValueError, match=r"needs files within the run's folder, got .*; remove it"):
            page_sections(detector("kd", 0, 43.0, pictures=(name,)), run)
    assert opened == []
