"""Files are whole or not there, and damage is seen."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from outgrow.machine.files import (
    NotWritten,
    check_writable,
    sealed,
    tensors_checksum,
    unsealed,
    write_atomically,
)


def test_a_file_appears_whole_with_the_umasks_mode(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a" / "b.txt", "text")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "b.txt").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "a" / "b.txt").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_what_stood_there_stays_where_writing_fails(tmp_path):
    file = tmp_path / "b.txt"
    file.write_text("before")

    def full(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    with pytest.raises(
        NotWritten, match=r"needs to write .*b.txt, got No space left on device; free some room"
    ):
        write_atomically(file, full)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_a_bug_in_a_writer_is_not_taken_for_a_disk(tmp_path):
    def broken(part):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        write_atomically(tmp_path / "x", broken)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out: needs a folder, got the file .*; name another"):
        check_writable(tmp_path / "file", what="--out")
    with pytest.raises(
        ValueError, match=r"--out: needs a folder that can be written, got a+ \(File name too"
    ):
        check_writable(Path("a" * 300), what="--out")
    with pytest.raises(
        ValueError, match=r"--out: needs a folder that can be written, got .*; name another or change"
    ):
        check_writable(tmp_path / "file" / "below", what="--out")
    with pytest.raises(ValueError, match=r"--out: needs about .* GiB, got .* free"):
        check_writable(tmp_path / "new", what="--out", room=1 << 60)
    check_writable(tmp_path / "new", what="--out")
    assert list((tmp_path / "new").iterdir()) == []


CONTENT = {"top1": 50.0, "nll": float("nan"), "names": ["a", "\u00e9"], "deep": {"x": float("inf"), "n": 3}}


def test_a_sealed_file_reads_back_without_nan():
    text = sealed(CONTENT)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert unsealed(text, where="x") == {**CONTENT, "nll": None, "deep": {"x": None, "n": 3}}
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_every_changed_number_is_seen():
    text = sealed({"top1": 50.25, "runs": [1, 2, 3], "name": "kd"})
    seen = 0
    for place, letter in enumerate(text):
        for other in "5a":
            changed = text[:place] + other + text[place + 1 :]
            if letter == other or letter.isspace():
                continue
            with pytest.raises(ValueError, match=r"needs .*, got .*; restore"):
                unsealed(changed, where="record.json")
            seen += 1
    assert seen > 100
    for cut in range(len(text) - 2):
        with pytest.raises(ValueError, match="needs JSON"):
            unsealed(text[:cut], where="record.json")


def test_json_without_a_checksum_is_taken_as_it_is():
    assert unsealed('{"a": 1}', where="x", optional=lambda content: "version" not in content) == {"a": 1}
    assert unsealed('{"a": 1, "checksum": null}', where="x") == {"a": 1}
    with pytest.raises(ValueError, match="changed or damaged"):
        unsealed('{"a": 1, "version": 2}', where="x", optional=lambda content: "version" not in content)


def test_a_checksum_of_tensors_sees_values_names_types_shapes_and_metadata():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    meta = {"model": "x", "checksum": "ignored"}
    first = tensors_checksum(state, meta)
    assert first == tensors_checksum(dict(reversed(state.items())), {"model": "x"})
    others = [
        ({**state, "a": state["a"] + 1e-7}, meta),
        ({**state, "a": state["a"].view(3, 2)}, meta),
        ({**state, "b": state["b"].int()}, meta),
        ({"c": state["a"], "b": state["b"]}, meta),
        (state, {"model": "y"}),
    ]
    assert len({first, *(tensors_checksum(*other) for other in others)}) == 6
