"""What a classifier's page adds: warnings that are true, and numbers that are those of the record."""

import math

import pytest
from markupsafe import escape

from outgrow.classification.page import images_needed, page_sections, page_warnings
from outgrow.training.record import (
    BinRecord,
    Both,
    ClassesRecord,
    ClassificationRecord,
    ComparedRecord,
    CostRecord,
    LatencyRecord,
    parse_record,
)
from tests.report.records import record


def compared(both, teacher, student, neither):
    return ComparedRecord(both_right=both, only_teacher=teacher, only_student=student, neither=neither)


@pytest.mark.parametrize(
    "counts, needed",
    [
        # worked by hand: p = 0.2, d = 0.1; (1.959964 * 0.447214 + 0.841621 * 0.435890)**2 / 0.01
        ((60, 5, 15, 20), 154.597),
        # p = 0.02, d = 0.01: (1.959964 * 0.141421 + 0.841621 * 0.141067)**2 / 0.0001
        ((600, 5, 15, 380), 1567.41),
    ],
)
def test_images_that_a_difference_needs(counts, needed):
    total, difference, found = images_needed(compared(*counts))
    assert total == sum(counts)
    assert difference == pytest.approx(100 * (counts[2] - counts[1]) / total)
    assert found == pytest.approx(needed, rel=1e-3)


def test_no_difference_needs_no_number():
    assert images_needed(compared(10, 0, 0, 5))[2] is None
    assert images_needed(compared(10, 3, 3, 5))[2] == math.inf


def with_parts(teacher=50.0, majority=10.0, counts=(60, 5, 15, 20)):
    classes = ClassesRecord(
        balanced_accuracy=70.0,
        ece=4.2,
        per_class=(100.0, 40.0, None),
        reliability=(
            BinRecord(confidence=60.0, accuracy=50.0, count=4),
            BinRecord(confidence=None, accuracy=None, count=0),
        ),
        confusion=((6, 0, 0), (3, 2, 0), (0, 0, 0)),
    )
    cost = CostRecord(
        bytes=3 << 20,
        flops=2_480_000,
        latency=(LatencyRecord(batch=1, size=32, median=1.25, p95=2.5, repeats=50),),
    )
    base = parse_record(record("kd", 0, 93.0, teacher=teacher))
    return base.model_copy(
        update={
            "compared": compared(*counts),
            "classification": ClassificationRecord(
                majority=majority,
                counts=(6, 5, 0),
                classes=Both(student=classes, teacher=classes),
                cost=Both(student=cost, teacher=cost),
            ),
        }
    )


def test_warnings_are_given_where_they_are_true():
    assert page_warnings(with_parts(counts=(600, 50, 150, 200))) == []
    (small,) = page_warnings(with_parts(counts=(60, 6, 15, 19)))
    assert "has 100 images: a difference of 9.00 points" in small
    assert "About 210 images" in small
    (equal,) = page_warnings(with_parts(counts=(10, 3, 3, 5)))
    assert "shows no difference between them" in equal
    (below,) = page_warnings(with_parts(majority=50.0))
    assert "The teacher is right on 50.00 %" in below
    assert "most frequent class would be right on 50.00 %" in below
    # all test images are of one class: that says nothing about the teacher
    assert page_warnings(with_parts(teacher=100.0, majority=100.0, counts=(60, 5, 15, 20))) == []


@pytest.mark.parametrize("counts", [(60, 5, 15, 20), (60, 15, 5, 20), (10, 12, 2, 31), (0, 0, 6, 4)])
def test_a_difference_that_a_paired_test_shows_is_not_called_chance(counts):
    """Even on fewer images than would be needed to show the like of it in four of five cases."""
    assert mcnemar(*counts[1:3]) < 0.05
    assert page_warnings(with_parts(counts=counts)) == []


def mcnemar(one, other):
    tail = sum(math.comb(one + other, k) for k in range(min(one, other) + 1))
    return 2 * tail / 2 ** (one + other)


def test_a_section_shows_what_the_record_holds():
    (section,) = page_sections(with_parts())
    html = str(section.html())
    for text in ("3.00 MiB", "2.5 million", "1.2 ms (95 % within 2.5; 32 pixels)", "4.2 points", "70.0"):
        assert text in html, text
    # the worst class first; one without images last, with a dash
    names = with_parts().data.classes
    table = html[html.index('id="classes"') : html.index("mean over classes")]
    order = [table.index(f">{escape(names[number])}<") for number in (1, 0, 2)]
    assert order == sorted(order)
    assert table.count("\u2013") == 2


def test_older_records_have_no_such_section():
    assert page_sections(parse_record(record("kd", 0, 93.0))) == []
