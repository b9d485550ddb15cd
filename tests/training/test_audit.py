"""What rules would do to a teacher's rows, counted by hand; the record survives its file."""

import pytest
import torch

from outgrow.training.audit import rule_effects

LOG = torch.tensor(
    [
        [0.6, 0.3, 0.1],  # right
        [0.5, 0.3, 0.2],  # wrong: label 1
        [0.7, 0.2, 0.1],  # wrong: label 2
        [0.2, 0.2, 0.6],  # right
    ]
).log()
LABEL = torch.tensor([0, 1, 2, 2])


@pytest.fixture(scope="module")
def effects():
    return {one.name: one for one in rule_effects(LOG, LABEL)}


def test_every_rule_is_there_once(effects):
    assert set(effects) == {
        "identity",
        "drop",
        "pair",
        "swap",
        "label_smooth",
        "lead",
        "sort",
        "project",
        "boost",
    }


def test_only_wrong_rows_change(effects):
    assert effects["identity"].changed == 0
    assert all(one.changed == 50 for name, one in effects.items() if name != "identity")


def test_probability_that_is_moved_is_total_variation(effects):
    at = effects["swap"].at[0]
    assert at.temperature == 1
    assert at.moved == pytest.approx(100 * (0.2 + 0.6) / 4)
    assert at.on_top == 100
    # pair: m (1 + t_a) / (1 + m) on the label, of t = (0.3 of 0.8) and (0.1 of 0.8)
    gained = [0.8 * (1 + t) / 1.8 - t for t in (0.3, 0.1)]
    assert effects["pair"].at[0].moved == pytest.approx(100 * sum(gained) / 4, rel=1e-5)
    assert effects["identity"].at[0].moved == 0
    assert effects["identity"].at[0].on_top == 50


def test_a_rule_may_fail_to_bring_the_label_to_the_top():
    logits = torch.tensor([[0.01, 0.20, 0.19, 0.15, 0.15, 0.15, 0.15]]).log()
    pair = next(one for one in rule_effects(logits, torch.tensor([0])) if one.name == "pair")
    assert pair.at[0].on_top == 0


def test_what_is_removed_moves_nothing(effects):
    drop = effects["drop"]
    assert drop.removes
    assert drop.at[0].moved is None
    assert drop.at[0].on_top == 100  # of the rows that are left


def test_a_teacher_that_is_wrong_everywhere_leaves_nothing_to_drop_keep():
    drop = next(one for one in rule_effects(LOG[1:3], LABEL[1:3]) if one.name == "drop")
    assert (drop.changed, drop.at[0].on_top) == (100, 100)


def test_temperature_is_that_of_the_probabilities(effects):
    moved = [one.moved for one in effects["swap"].at]
    assert moved[0] > moved[1] > moved[2] > 0
    assert not effects["swap"].depends_on_temperature
    assert effects["pair"].depends_on_temperature
