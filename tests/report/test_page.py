"""The page of a study says what was measured, and nothing that was not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from outgrow.report.page import write_page
from outgrow.report.run_page import write_run_page
from outgrow.report.table import Table, tabulate
from outgrow.training.record import METRICS, parse_record
from tests.report.reading import Page
from tests.report.records import as_of_old, correction, detectors, features_alone, images, record, study

EVIL = "<script>alert('\"1\"')</script>"

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
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if not (
            tag == "a" and str(value).startswith("pictures/")
        )  # a link: nothing is fetched before a click
        if name in ("src", "href", "srcset", "xlink:href", "poster", "action", "data")
    ]
    assert all(value is not None and value.startswith(("data:image/", "#")) for value in loaded)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)


def test_every_number_is_there(tmp_path):
    """Means, deviations and intervals of the made-up study, worked out by hand.

    Half a point less and more in three seeds is a deviation of 0.50; a difference's interval is 4.3027 (Student's
    t, two degrees) times its deviation by the root of three: 1.24 for 0.5, 2.48 for 1.0, 3.73 for 1.5.
    """
    _, page = write(tmp_path)
    for line in (
        # method, last epoch, best epoch, over none, over KD, over the teacher, over the corrected teacher
        "no teacher 90.00 \u00b1 0.50 90.25 \u00b1 0.50 \u2013 +2.00 [+0.76, +3.24] +40.00 [+38.76, +41.24] "
        "-2.00 [-5.29, +1.29] \u2013 \u2013 1,000",
        "plain KD 88.00 \u00b1 1.00 88.25 \u00b1 1.00 -2.00 [-3.24, -0.76] \u2013 +38.00 [+35.52, +40.48] "
        "-4.00 [-8.30, +0.30] no 1 of 3 25.0 % 1,000",
        "ours 94.00 \u00b1 0.50 94.25 \u00b1 0.50 +4.00 [+1.52, +6.48] +6.00 [+2.27, +9.73] "
        "+44.00 [+42.76, +45.24] +2.00 [-0.15, +4.15] no 2 of 3 25.0 % 1,000",
        "teacher as it is made/teacher 50.00 \u00b1 0.00 37.5 % 4,000",
        "teacher, corrected 92.00 \u00b1 1.00",
    ):
        assert line in page.text, line


def test_the_correction_and_the_conditions_are_there(tmp_path):
    _, page = write(tmp_path)
    for said in (
        "as it is 51.25 % 1.2345",
        "temperature alone 51.25 % 1.1000",
        "map of the logits 300 91.25 % 0.3125 chosen",
        "Why, in seed 0: map of the logits is used: it is better by <0.9> nats.",
        "2 map of the logits, ridge 300 yes 50.00 % 93.00 %",  # seed, choice, used, before and after
        "seeds 0, 1, 2",
        "data folder:made-up",
        "rows 1,234 for training, 20 for testing",
        "hardware a made-up machine",
        "versions outgrow 0.1.0, torch 9.9.9",
        "commit abcdef012345+ (the plus",
        "command outgrow demo --out a&b",
        "data fingerprint 0123abcd",
        "time 90.0 seconds in 9 runs",
        "started 2030-01-01T00:00:00Z to 2030-01-03T00:00:00Z",
        "ours preset outgrow",
        "seed: 0",  # the resolved configuration
    ):
        assert said in page.text, said


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


def test_headline_of_seeds_that_not_both_have(tmp_path):
    """The best by its own seeds, and behind at the others': a difference keeps its sign."""
    records = study()
    for run, top1 in zip(records["outgrow"], (86.0, 86.5, 99.0), strict=True):
        run["student"]["top1"] = top1
    del records["none"][2], records["kd"][2]
    _, page = write(tmp_path, records)
    assert "is 4.00 points behind no teacher, by the same in all seeds" in page.text
    records["outgrow"][1]["student"]["top1"] = 86.4
    _, page = write(tmp_path, records)
    assert "is 4.05 points behind no teacher, in the 2 seeds that both have" in page.text


def test_one_image_is_not_all_of_several(tmp_path):
    records = study(seeds=1)
    compared = records["outgrow"][0]["compared"]
    compared["examples"] = compared["examples"][:1]
    compared["only_student"] = 1
    _, page = write(tmp_path, records)
    assert "The only such image." in page.text


def test_headline_when_nothing_helped(tmp_path):
    records = study()
    for run in records["none"]:
        run["student"]["top1"] += 9
    _, page = write(tmp_path, records)
    assert (
        "The student without a teacher is the best, with 99.00 %: no distillation helped here." in page.text
    )


def test_headline_when_the_null_lacks_a_hard_seed(tmp_path):
    """Its mean is the highest, and it is behind at every seed that both have."""
    records = study()
    for name, scores in (("none", (70.0, 71.0)), ("kd", (72.0, 73.2, 50.0)), ("outgrow", (70.5, 71.5, 40.0))):
        records[name] = records[name][: len(scores)]
        for run, top1 in zip(records[name], scores, strict=True):
            run["student"]["top1"] = top1
    _, page = write(tmp_path, records)
    assert "no distillation helped" not in page.text
    assert (
        "The student without a teacher has the highest mean, 70.50 %, but over other seeds: plain KD is 2.10 points ahead of "
        "it in the 2 seeds that both have." in page.text
    )


def test_a_comparison_without_an_interval_is_neither_won_nor_lost(tmp_path):
    """The same difference in all seeds has none, as one seed has none."""
    records = {name: runs for name, runs in study().items() if name != "outgrow"}
    for seed, (none, kd) in enumerate(zip(records["none"], records["kd"], strict=True)):
        none["student"]["top1"], kd["student"]["top1"] = 70.0 + seed, 75.0 + seed
        kd["teacher"]["top1"] = 60.0 + seed
    _, page = write(tmp_path, records)
    assert "whether it outgrew its teacher was not shown" in page.text
    assert "of 3" not in page.text


def test_one_seed_has_no_interval(tmp_path):
    html, page = write(tmp_path, study(seeds=1))
    assert not re.search(r"\b(inf|nan)\b", page.text)
    assert not re.search(r'[" ,](inf|nan)', "".join(re.findall("<svg.*?</svg>", html, re.DOTALL)))
    assert "in the one seed that was run" in page.text
    assert "whether it outgrew its teacher was not shown" in page.text
    assert page.text.count("one seed: no interval") == 3


def test_text_is_escaped(tmp_path):
    records = {EVIL: [record("kd", s, 80.0 + s) for s in range(2)], **study(seeds=2)}
    for runs in records.values():
        for run in runs:
            for place in ("command", "hardware", "commit", "started"):
                run[place] = EVIL
            run["data"] |= {"source": EVIL, "fingerprint": EVIL, "classes": [EVIL] * 3}
            run["versions"] = {EVIL: EVIL}
            run["student"]["name"] = run["teacher"]["name"] = EVIL
            if run["teacher"] == {"name": EVIL}:
                run["teacher"] = {}
            if run["correction"]:
                run["correction"] |= {"reason": EVIL, "chosen": run["correction"]["chosen"] | {"name": EVIL}}
    html, page = write(
        tmp_path, records, title=EVIL, about={"outgrow": f"ours {EVIL}"}, notes=[f"*Note* {EVIL}"]
    )
    assert_self_contained(html, page)
    assert "<script" not in html
    assert page.text.count(EVIL) > 12
    assert "<em>Note</em>" in html


def test_very_long_names_are_whole_in_the_tables_and_short_in_the_plots(tmp_path):
    name = "name" * 200
    html, page = write(tmp_path, {name: [record("kd", s, 80.0 + s) for s in range(2)], **study(seeds=2)})
    assert name in page.text
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", html)
    assert "name" * 7 + "n\u2026" in drawn
    assert max(map(len, drawn)) < 60


def test_nothing_comes_from_elsewhere(tmp_path):
    html, page = write(tmp_path)
    assert_self_contained(html, page)
    assert not re.search(r"https?://", html)


def test_images_are_captioned(tmp_path):
    _, page = write(tmp_path)
    shown = [attrs for attrs in page.all("img") if attrs["alt"]]  # the enlarged ones have none
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
    shown = [attrs for attrs in page.all("img") if attrs["alt"]]
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
    assert all(attrs["role"] == "img" for attrs in plots)
    said = "At the end: no teacher 90.00, plain KD 88.00, ours 94.00, teacher 50.00 across"
    assert html.count(said) == 2
    assert html.count("Dot plot of points of top-1 over no teacher.") == 2
    # both sizes have the mean over seeds at its last epoch, and seed 1 of plain KD: 89 against 90.5
    assert html.count("<title>plain KD, epoch 4: 88.00</title>") == 2
    assert html.count("<title>plain KD: -1.50</title>") == 2


def test_what_distill_returns_is_accepted_beside_records(tmp_path):
    typed = {name: [parse_record(run) for run in runs] for name, runs in study().items()}
    assert write(tmp_path, typed)[0] == write(tmp_path)[0]


def test_the_same_study_is_the_same_page(tmp_path):
    assert write(tmp_path)[0] == write(tmp_path)[0]


def test_a_position_beyond_the_test_images_is_named(tmp_path):
    for position in (20, -1):
        records = {"kd": [record("kd", 0, 80.0, examples=(1, position))]}
        with pytest.raises(
            ValueError, match=f"needs a test image at position {position}, got 20 test images; give the data"
        ):
            write(tmp_path, records)


def test_a_wide_table_scrolls_by_itself(tmp_path):
    html, page = write(tmp_path)
    wrapped = re.findall(r'<div class="scroll[^>]*>\s*<table', html)
    assert len(wrapped) == len(page.all("table")) > 3
    assert all(
        attrs["tabindex"] == "0" and attrs["aria-label"]
        for attrs in page.all("div")
        if (attrs.get("class") or "").startswith("scroll")
    )


def test_the_reader_finds_tags_that_are_not_closed():
    with pytest.raises(AssertionError):
        Page("<div><p></div>")


def test_a_teacher_of_features_alone_is_wrong_nowhere(tmp_path):
    records = study()
    rate = tabulate(records).rows[1].wrong_rate
    assert rate == 0.25
    assert write(tmp_path, records)[0].count("25.0 %") == 2
    records["kd"] = [features_alone(run) for run in records["kd"]]
    assert tabulate(records).rows[1].wrong_rate is None
    assert write(tmp_path, records)[0].count("25.0 %") == 1


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
    assert "no correction changed its score, so this is the line above" in page.text
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
    """A real one draws ink all over the page, and the plots in the colours of its scheme."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a headless chromium on the path")
    from PIL import Image

    def shot(name: str, width: int, scheme: int) -> Image.Image:
        path = tmp_path / f"{name}.png"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2400",
            "--hide-scrollbars",
        ]
        command += [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={path}"]
        command.append((tmp_path / f"{name}.html").as_uri())
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(path) as picture:
            return picture.convert("RGB")

    write(tmp_path)
    write_run_page(tmp_path / "run.html", record("outgrow", 0, 93.0, corrected=True), images())
    light, dark = "#0b7a57", "#4fd39f"  # the first line, in each scheme
    for name in ("page", "run"):
        for width, scheme, own, other in (
            (1200, 1, light, dark),
            (390, 1, light, dark),
            (1200, 0, dark, light),
        ):
            picture = shot(name, width, scheme)
            assert picture.size == (width, 2400)
            colours = {colour for _, colour in picture.getcolors(1 << 24)}
            assert tuple(bytes.fromhex(own[1:])) in colours
            assert tuple(bytes.fromhex(other[1:])) not in colours
            for top in range(0, 2400, 600):
                low, high = picture.convert("L").crop((0, top, width, top + 600)).getextrema()
                assert high - low > 100, f"{name}: nothing is drawn from {top} on"
