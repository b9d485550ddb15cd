"""YAML of users: what is read is what they see."""

import pytest
import yaml

from outgrow.machine.files import parse_yaml
from outgrow.training.config import assignments, load_config


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is there twice, in lines 1 and 3; leave out one"),
        ("train: {lr: 0.1, lr: 0.2}", "the key 'lr' is there twice"),
        ("names:\n  0: cat\n  1: dog\n  1: eel\n", "the key 1 is there twice"),
        ("a: 010", r"010 is another number in YAML \(8\); write it without leading zeros"),
        ("a: [064]", "064 is another number"),
        ("a: 1:30", r"1:30 is another number in YAML \(90\)"),
        ("a: 1:30.5", r"1:30.5 is another number in YAML \(90.5\)"),
        ("a: -007", "-007 is another number"),
        ("a: &x 1\nb: *x\n", "aliases"),
    ],
)
def test_what_is_not_plain_is_refused(text, message):
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text)


def test_what_is_plain():
    text = "a: 10\nb: 0\nc: -3\nd: '010'\ne: 0x10\nf: 1_000\ng: 0.5\nh: {i: 1}\nj: {i: 2}\n"
    found = {"a": 10, "b": 0, "c": -3, "d": "010", "e": 16, "f": 1000, "g": 0.5, "h": {"i": 1}, "j": {"i": 2}}
    assert parse_yaml(text) == found


def test_its_users_say_where(tmp_path):
    with pytest.raises(
        ValueError, match=r"--set train.epochs: needs a YAML value, got '010' \(010 is another"
    ):
        assignments(["train.epochs=010"])
    file = tmp_path / "a.yaml"
    file.write_text("train: {lr: 0.1}\ntrain: {epochs: 2}\n")
    with pytest.raises(
        ValueError, match=r"--config: needs a YAML file, got .*a.yaml.*'train' is there twice"
    ):
        load_config(file)
