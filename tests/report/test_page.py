"""The page of a study says what was measured, and nothing that was not."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from outgrow.report.page import write_page
from outgrow.report.run_page import write_run_page
from outgrow.report.table import Table, tabulate
from outgrow.training.record import METRICS
from tests.report.reading import Page
from tests.report.records import as_of_old, correction, detectors, images, record, study

ABOUT = {"none": "no teacher", "kd": "plain KD", "outgrow": "ours"}


def write(path: Path, records=None, *, title="A study", about=ABOUT, notes=(), test=None) -> tuple[str, Page]:
    records = study() if records is None else records
    write_page(
        path / "page.html",
        title=title,
        records=records,
        table=tabulate(records),
        about=about,
        test=images() if test is None else test,
        notes=notes,
    )
    html = (path / "page.html").read_text(encoding="utf-8")
    return html, Page(html)


def assert_self_contained(html: str, page: Page) -> None:
    """Nothing is fetched and nothing runs."""
    assert not page.all("script")
    assert not page.all("link")
    loaded = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "xlink:href", "poster", "action", "data")
    ]
    assert all(value is not None and value.startswith(("data:image/", "#")) for value in loaded)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "url(" not in html
    assert "@import" not in html


def test_every_number_is_there(tmp_path):
    _, page = write(tmp_path)
    table = tabulate(study())
    for row in table.rows:
        for summary in (row.score, row.score_best):
            assert f"{summary.mean:.2f} \u00b1 {summary.deviation:.2f}" in page.text
        for d in (row.over_none, row.over_teacher, row.over_corrected):
            if d is not None:
                assert f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]" in page.text
        assert f"{row.parameters:,}" in page.text
    assert table.teacher is not None
    assert table.corrected is not None
    for number in (f"{table.teacher.mean:.2f}", f"{table.corrected.mean:.2f}", "4,000", "37.5 %", "25.0 %"):
        assert number in page.text
    # ours over plain KD: 6, and half a point less or more with the seed
    assert "+6.00 [+4.76, +7.24]" in page.text


def test_the_correction_and_the_conditions_are_there(tmp_path):
    _, page = write(tmp_path)
    for c in correction()["candidates"]:
        assert f"{100 * c['accuracy']:.2f} %" in page.text
        assert f"{c['nll']:.4f}" in page.text
    assert correction()["reason"] in page.text
    assert "93.00 %" in page.text  # corrected teacher of seed 2
    for condition in ("0, 1, 2", "folder:made-up", "1,234 for training, 20 for testing", "a made-up machine"):
        assert condition in page.text
    for condition in (
        "torch 9.9.9",
        "abcdef012345+",
        "outgrow demo --out a&b",
        "0123abcd",
        "90.0 seconds in 9 runs",
    ):
        assert condition in page.text
    assert "preset outgrow" in page.text


def test_headline_of_a_student_that_outgrew(tmp_path):
    _, page = write(tmp_path)
    assert (
        "The best student, ours, gains 4.00 points over no teacher, but has not outgrown its teacher."
        in page.text
    )
    better = study()
    for run in better["outgrow"]:
        run["teacher"]["top1_corrected"] = 70.0
    _, page = write(tmp_path, better)
    assert "gains 4.00 points over no teacher, and has outgrown its teacher." in page.text
    assert "3 of 3" in page.text
    assert page.text.count("does not hold") == 0


def test_headline_of_noise(tmp_path):
    records = study()
    for run, top1 in zip(records["outgrow"], (90.0, 94.0, 88.0), strict=True):
        run["student"]["top1"] = top1
    _, page = write(tmp_path, records)
    assert "is 0.67 points ahead of no teacher, which is within the noise of 3 seeds" in page.text
    assert ", gains " not in page.text


def test_headline_when_nothing_helped(tmp_path):
    records = study()
    for run in records["none"]:
        run["student"]["top1"] += 9
    _, page = write(tmp_path, records)
    assert (
        "The student without a teacher is the best, with 99.00 %: no distillation helped here." in page.text
    )


def test_one_seed_has_no_interval(tmp_path):
    html, page = write(tmp_path, study(seeds=1))
    assert not re.search(r"\b(inf|nan)\b", page.text)
    assert "inf" not in re.findall(r'points="([^"]*)"', html)
    assert "in the one seed that was run" in page.text
    assert "whether it outgrew its teacher was not shown" in page.text
    assert page.text.count("one seed: no interval") == 3


def test_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    html, page = write(tmp_path, title=evil, about={"outgrow": f"ours {evil}"}, notes=[f"*Note* {evil}"])
    assert_self_contained(html, page)
    assert "<script" not in html
    assert evil in page.text
    assert "<script>alert('class')</script>" in page.text
    assert "<em>Note</em>" in html


def test_nothing_comes_from_elsewhere(tmp_path):
    html, page = write(tmp_path)
    assert_self_contained(html, page)
    assert not re.search(r"https?://", html)


def test_images_are_captioned(tmp_path):
    _, page = write(tmp_path)
    shown = page.all("img")
    assert len(shown) == 2
    for attrs in shown:
        assert attrs["class"] == "crisp"
        assert attrs["src"].startswith("data:image/png;base64,")
        assert attrs["alt"]
    assert "teacher: dog student: cat (right)" in page.text
    assert "The first 2 of 12 such images" in page.text
    for share in ("20.0 %, both", "5.0 %, only the teacher", "60.0 %, only the student", "15.0 %, neither"):
        assert share in page.text


def test_photographs_are_small(tmp_path):
    html, page = write(tmp_path, test=images(side=600))
    shown = page.all("img")
    assert shown
    for attrs in shown:
        assert "class" not in attrs
        assert attrs["src"].startswith("data:image/jpeg;base64,")
        assert max(int(attrs["width"]), int(attrs["height"])) == 160
    assert len(html) < 200_000


def test_plots_are_drawn(tmp_path):
    html, page = write(tmp_path)
    plots = page.all("svg")
    assert [attrs["class"] for attrs in plots] == ["plot wide", "plot narrow"] * 2
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert "ours 94.00" in plots[0]["aria-label"]
    lists = re.findall(r'points="([^"]+)"', html)
    # a line and a band of three methods, in two sizes
    assert len(lists) == 12
    for numbers in lists:
        assert all(math.isfinite(float(n)) for n in re.split("[ ,]", numbers))


def test_the_reader_finds_tags_that_are_not_closed():
    with pytest.raises(AssertionError):
        Page("<div><p></div>")


@pytest.mark.parametrize("missing", ["none", "kd", "outgrow"])
def test_a_study_may_lack_a_method(tmp_path, missing):
    records = {name: runs for name, runs in study().items() if name != missing}
    html, page = write(tmp_path, records)
    assert_self_contained(html, page)
    assert ("over no teacher" in page.text) == (missing != "none")
    assert ("correction of the teacher" in page.text) == (missing != "outgrow")


def test_a_study_without_any_teacher(tmp_path):
    html, page = write(tmp_path, {"none": study()["none"]})
    assert_self_contained(html, page)
    assert not page.all("img")
    assert "outgrown" not in page.text
    assert "90.00 \u00b1 0.50" in page.text


def test_no_examples_and_one_epoch(tmp_path):
    records = {"kd": [record("kd", s, 80.0 + s, examples=(), epochs=1) for s in range(2)]}
    for run in records["kd"]:
        run["compared"]["only_student"] = 0
    html, page = write(tmp_path, records)
    assert_self_contained(html, page)
    assert "There is no such image." in page.text


def test_a_teacher_that_was_left_alone(tmp_path):
    records = study()
    for run in records["outgrow"]:
        del run["teacher"]["top1_corrected"]
        raw = run["correction"]["raw"]
        run["correction"] |= {
            "candidates": [raw],
            "chosen": raw,
            "used": False,
            "reason": "it has memorised them.",
        }
    _, page = write(tmp_path, records)
    assert "Here the teacher was left as it is." in page.text
    assert "no correction was used" in page.text
    assert "it has memorised them." in page.text


def test_a_teacher_of_other_classes(tmp_path):
    """What is called the teacher there is its map to these classes, and the page says so."""
    records = study()
    for runs in (records["kd"], records["outgrow"]):
        for run in runs:
            run["teacher"] |= {"top1": 70.0, "top1_corrected": 70.0}
            run["correction"] = {**correction(), "raw": None}
    _, page = write(tmp_path, records)
    assert "the teacher, mapped to these classes" in page.text
    assert "as it is, before any correction" not in page.text
    assert "the map to these classes is the correction" in page.text


def test_all_images_are_called_all(tmp_path):
    records = study()
    for run in records["outgrow"]:
        run["compared"]["only_student"] = 2
    _, page = write(tmp_path, records)
    assert "All 2 such images (seed" in page.text


def test_old_records_make_the_same_page(tmp_path):
    old = {name: [as_of_old(run) for run in runs] for name, runs in study().items()}
    assert write(tmp_path, old)[0] == write(tmp_path)[0]


def test_a_study_of_detectors_speaks_of_its_own_measure(tmp_path):
    records = detectors()
    table = tabulate(records)
    write_page(
        tmp_path / "page.html", title="Cells", records=records, table=table, about=ABOUT, test=None, notes=()
    )
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert_self_contained(html, page)
    assert not re.search("top.?1", page.text, re.IGNORECASE)
    assert not any("top-1" in str(attrs) for _, attrs in page.tags)
    for said in (
        "Box AP of plain KD at the last epoch: 44.00 \u00b1 1.00 % (3 seeds).",
        "The teacher reaches 40.00 % box AP on the test images.",
        "Box AP on the test images in percent, mean",
        "Box AP by epoch",
        "points of box AP over no teacher",
        "44.25 \u00b1 1.00",
    ):
        assert said in page.text, said


def test_a_table_of_other_records_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs at least one finished run of each method, got \['none', 'kd'"
    ):
        write_page(
            tmp_path / "p.html", title="", records={}, table=tabulate(study()), about={}, test=images()
        )
    empty = Table(METRICS["top1"], (), None, None, None, None)
    with pytest.raises(ValueError, match="make the table with tabulate"):
        write_page(tmp_path / "p.html", title="", records={}, table=empty, about={}, test=images())


def test_in_a_browser(tmp_path):
    """A real one draws ink all over the page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a headless chromium on the path")
    from PIL import Image

    write(tmp_path)
    write_run_page(tmp_path / "run.html", record("outgrow", 0, 93.0, corrected=True), images())
    for name in ("page", "run"):
        shot = tmp_path / f"{name}.png"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2000", "--hide-scrollbars"]
        command += [f"--screenshot={shot}", (tmp_path / f"{name}.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as picture:
            grey = picture.convert("L")
            assert grey.size == (1200, 2000)
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 50
        for top in range(0, 2000, 500):
            low, high = grey.crop((0, top, 1200, top + 500)).getextrema()
            assert high - low > 100, f"{name}: nothing is drawn from {top} on"
