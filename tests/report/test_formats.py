"""One table, written five ways; and comparisons that know of each other."""

import csv
import io
import json
import re

import pytest
from scipy import stats

from outgrow.report import formats
from outgrow.report.page import write_overview, write_page
from outgrow.report.table import compare, tabulate
from tests.report.reading import Page
from tests.report.records import images, record, study
from tests.report.test_page import assert_self_contained


def tables(**options):
    return compare({"": study()}, **options)


def test_text_and_markdown_say_the_same():
    said = formats.text(tables())
    line = next(line for line in said.splitlines() if line.startswith("outgrow"))
    # 4.00 +- 1.00 and 6.00 +- 1.50 in three seeds at 97.5 %: 6.2053 * 1.5 / sqrt(3) = 5.37
    assert "+4.00 [+0.42, +7.58]" in line
    assert "+6.00 [+0.63, +11.37]" in line
    cells = [cell for cell in re.split(r"\s{2,}", line) if cell]
    row = next(line for line in formats.markdown(tables()).splitlines() if line.startswith("| outgrow"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells
    assert "for all 2 comparisons with a baseline together (Bonferroni)" in said


def test_markdown_shows_names_as_they_are():
    """Of 0.8*crd + 2*fitnet it would make an emphasis without the stars, of <b> bold letters."""
    name = "kd + 0.8*crd + 2*fitnet | <b>x_1</b>"
    said = formats.markdown(compare({"": {"none": study()["none"], name: study()["kd"]}}))
    assert r"| kd + 0.8\*crd + 2\*fitnet \| \<b>x_1\</b> | 88.00 +- 1.00 |" in said


def test_csv_has_every_number():
    lines = list(csv.DictReader(io.StringIO(formats.csv_text(tables()))))
    row = {line["method"]: line for line in lines}["outgrow"]
    values = [[run["student"]["top1"] for run in study()[name]] for name in ("outgrow", "kd")]
    test = stats.ttest_rel(*values)
    assert float(row["kd: p"]) == pytest.approx(test.pvalue)
    assert float(row["kd: low_together"]) == pytest.approx(test.confidence_interval(0.975).low)
    assert float(row["kd: p_holm"]) == pytest.approx(2 * test.pvalue)
    assert float(row["kd: p_exact"]) == 0.25


def test_a_baseline_called_teacher_has_columns_of_its_own():
    records = study()
    found = compare({"": {"teacher": records["none"], "kd": records["kd"]}})[""]
    (line,) = [
        one for one in csv.DictReader(io.StringIO(formats.csv_text({"": found}))) if one["method"] == "kd"
    ]
    assert float(line["method teacher: difference"]) == -2.0
    assert float(line["teacher: difference"]) == 38.0


def test_latex_is_booktabs_with_plain_letters():
    records = {"none": study()["none"], "100 %_of & {it}": study()["kd"]}
    said = formats.latex(compare({"": records}))
    assert said.count(r"\toprule") == said.count(r"\bottomrule") == 1
    assert r"100 \%\_of \& \{it\} & 88.00 $\pm$ 1.00 & -2.00 [-3.24, -0.76]" in said
    spec = formats.latex(compare({"": {"none": study()["none"], "a|b (x > 1)": study()["kd"]}}))
    assert "a$|$b (x $>$ 1) & 88.00" in spec
    rows = [line for line in said.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1


def test_json_has_no_infinity():
    content = json.loads(formats.as_json(compare({"": study(seeds=1)}), protocol=["said"]))
    assert content["protocol"] == ["said"]
    assert content["studies"][""]["rows"][1]["versus"][0]["together"]["low"] is None


def test_a_baseline_is_chosen_by_name():
    found = compare({"": study()}, ["outgrow"])[""]
    assert found.baselines == ("outgrow",)
    assert [[one.baseline for one in row.versus] for row in found.rows] == [["outgrow"], ["outgrow"], []]
    with pytest.raises(
        ValueError, match="needs one of the methods 'none', 'kd', 'outgrow', got 'ours'; name"
    ):
        compare({"": study()}, ["ours"])


def test_the_null_is_found_by_its_preset():
    records = study()
    found = compare({"": {"first": records["kd"], "by itself": records["none"]}})[""]
    assert (found.null, found.plain, found.baselines) == ("by itself", "first", ("by itself", "first"))


def test_two_studies_are_one_family():
    both = compare({"a": study(), "b": study()})
    assert [table.together for table in both.values()] == [4, 4]
    one = tables()[""].rows[2].versus[1]
    two = both["a"].rows[2].versus[1]
    assert two.p == one.p
    assert two.p_holm == pytest.approx(4 * one.p)
    assert two.together.low < one.together.low


def test_a_method_of_one_seed_is_not_counted():
    both = compare({"": {**study(), "tried once": study(seeds=1)["kd"]}})[""]
    assert both.together == 2
    assert both.rows[2].versus[1].together == tables()[""].rows[2].versus[1].together
    assert compare({"": study(seeds=1)})[""].together == 1


def test_all_intervals_of_a_table_are_widened_alike():
    """Also where seeds that failed leave a method one seed in common with a baseline."""
    records = {**study(seeds=3), "other": [record("kd", seed, 93.0 + seed**2) for seed in range(1, 3)]}
    del records["none"][1]
    table = compare({"": records})[""]
    assert table.together == 3
    for row in table.rows:
        for one in row.versus:
            if one.baseline == "none":
                assert one.together == row.over_none
    kd = next(one for one in table.rows[1].versus if one.baseline == "none")
    ours, alone = (
        [run["student"]["top1"] for run in records[name] if run["config"]["seed"] != 1]
        for name in ("kd", "none")
    )
    found = stats.ttest_rel(ours, alone).confidence_interval(1 - 0.05 / 3)
    assert (kd.together.low, kd.together.high) == pytest.approx((found.low, found.high))


def test_the_teacher_of_a_seed_is_that_of_any_method():
    """The first method with a teacher has one seed: the others' seeds have a teacher, too."""
    all_seeds = study()
    (table,) = compare(
        {"": {"none": all_seeds["none"], "once": study(seeds=1)["kd"], "kd": all_seeds["kd"]}}
    ).values()
    assert table.teacher is not None
    assert table.teacher.n == len(all_seeds["kd"])
    none = table.rows[0].over_teacher
    assert none is not None
    assert none.n == len(all_seeds["none"])


def test_a_table_by_itself_is_not_widened():
    assert tabulate(study()).together == 1
    assert tabulate(study()).rows[2].versus == ()


def test_a_teacher_of_its_own(tmp_path):
    """Runs of two teachers: each student is held against its own."""
    first = [record("kd", s, 90.0 + s, teacher=50.0) for s in range(3)]
    second = [record("kd", s, 90.0 + s, teacher=60.0) for s in range(3)]
    found = compare({"": {"first": first, "second": second}})[""]
    assert [row.over_teacher.mean for row in found.rows] == [41.0, 31.0]
    assert found.teacher.mean == 50.0
    assert found.other_teachers == ("second",)
    said = "he differences of second are to another teacher, or to another score of it"
    assert said in formats.text({"": found})
    write_page(
        tmp_path / "page.html",
        title="Two teachers",
        records={"first": first, "second": second},
        table=found,
        about={},
        test=images(),
    )
    assert said in Page((tmp_path / "page.html").read_text()).text
    assert compare({"": study()})[""].other_teachers == ()


def test_the_page_of_a_comparison(tmp_path):
    found = tables()[""]
    write_page(
        tmp_path / "page.html",
        title="T",
        records=study(),
        table=found,
        about={},
        test=images(),
        protocol=["All methods of a seed share <a teacher>."],
    )
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert_self_contained(html, page)
    for said in (
        "All methods of a seed share <a teacher>.",
        # difference, together, alone, Holm, t, flips, seeds
        "outgrow +6.00 [+0.63, +11.37] [+2.27, +9.73] 0.040 0.020 0.250 3",
        "2 comparisons with each baseline",
        "look real 10 times in 100",
        "with so few seeds it cannot go below 0.250",
        "The intervals on this page are widened for 2 comparisons",
    ):
        assert said in page.text, said
    assert "not widened" not in page.text


def test_the_page_of_one_seed_has_no_numbers_that_are_none(tmp_path):
    found = compare({"": study(seeds=1)})[""]
    write_page(
        tmp_path / "page.html", title="T", records=study(seeds=1), table=found, about={}, test=images()
    )
    text = Page((tmp_path / "page.html").read_text()).text
    assert not re.search(r"\b(inf|nan|None)\b", text)


def test_the_page_above_several_pairs(tmp_path):
    found = compare({"a -> b": study(), "c -> <d>": study()})
    write_overview(
        tmp_path / "index.html",
        title="T",
        tables=found,
        pages={"a -> b": "pair1.html", "c -> <d>": "pair2.html"},
    )
    page = Page((tmp_path / "index.html").read_text())
    assert [link["href"] for link in page.all("a")] == ["pair1.html", "pair2.html"]
    assert "c -> <d>" in page.text
    assert "4 comparisons with each baseline" in page.text


def test_without_a_correction_the_text_says_what_its_column_is():
    said, runs = "over corrected is over teacher", study()
    assert said not in formats.text(compare({"": runs}))
    del runs["outgrow"]
    table = compare({"": runs})
    assert said in formats.text(table)
    row = next(row for row in table[""].rows if row.method == "kd")
    assert row.over_corrected == row.over_teacher
