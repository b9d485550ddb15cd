"""What ``outgrow predict`` says about boxes."""

import json

import pytest
import torch
from PIL import Image

from outgrow.detection.families.create import save_detector
from outgrow.run.predict import predict_files
from tests.detection.scenes import detector


def test_finding_nothing_is_said(tmp_path):
    """A new detector has no box with a high score: a file of nothing looks like a fault of the command."""
    save_detector(detector(), tmp_path / "model.safetensors")
    Image.fromarray(torch.zeros(60, 80, 3, dtype=torch.uint8).numpy()).save(tmp_path / "a.png")
    for score, nothing in ((1.0, True), (0.0, False)):
        said = []
        predict_files(
            tmp_path / "model.safetensors",
            [str(tmp_path / "a.png")],
            out=tmp_path / "boxes.json",
            score=score,
            log=said.append,
        )
        assert any("no boxes" in line and "--score" in line for line in said) == nothing
        (row,) = json.loads((tmp_path / "boxes.json").read_text())
        assert (row["boxes"] == []) == nothing


def test_the_image_that_cannot_be_resized_is_named(tmp_path):
    save_detector(detector(), tmp_path / "model.safetensors")
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    with pytest.raises(ValueError, match=r"line\.png: Detector .* needs images at most .* got one of 3000x1"):
        predict_files(
            tmp_path / "model.safetensors", [str(tmp_path / "line.png")], out=tmp_path / "boxes.json"
        )
