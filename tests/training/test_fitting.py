"""What the checkpoint of a teacher that is trained first belongs to."""

import pytest

from outgrow.training.config import build_config
from outgrow.training.fitting import teacher_checkpoint


def test_a_teacher_of_ones_own_is_known_by_its_file(tmp_path):
    nets = tmp_path / "nets.py"
    nets.write_text("net = 1\n")
    config = build_config({"teacher": {"name": f"py:{nets}:net", "train": True}})
    teacher_checkpoint(tmp_path, config, "data").save({})
    assert teacher_checkpoint(tmp_path, config, "data").load() is not None
    nets.write_text("net = 2\n")
    with pytest.raises(ValueError, match=r"--resume: needs the run that wrote .* teacher\.name \(was py:"):
        teacher_checkpoint(tmp_path, config, "data").load()
