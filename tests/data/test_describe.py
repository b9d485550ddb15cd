from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outgrow.data.describe import describe_data, write_contact_sheet

from .helpers import picture, write_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_lines(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train/a": 4, "train/b": 3, "val/a": 2, "val/b": 1}, sides=(100, 120))
    (tmp_path / "p" / "train" / "a" / "000.png").write_bytes(
        (tmp_path / "p" / "val" / "a" / "000.png").read_bytes()
    )
    (tmp_path / "p" / "val" / "b" / "000.png").write_bytes(b"no picture")
    text = "\n".join(describe_data(f"folder:{tmp_path / 'p'}", on_fault="skip"))
    for part in (
        "2 classes",
        "7 images  a 4, b 3",
        "2 images  a 2, b 0",
        "100 x 100 to 120 x 120",
        "input size 224 x 224",
        "1 test images are among the training images",
        "1 images cannot be decoded and are left out",
        "note: 1 of 2 test images are among the training images",
    ):
        assert part in text, text
    text = "\n".join(describe_data(f"folder:{tmp_path / 'p'}", size=64))
    assert "input size 64 x 64" in text
    assert "0 images are known to be broken" in text
    assert "input size 8 x 8, the size of the images" in "\n".join(describe_data("digits"))


def test_the_sheet_shows_what_a_net_sees(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train/a": 9, "train/b": 3, "val/a": 2, "val/b": 1}, sides=(100,))
    with Image.open(write_contact_sheet(f"folder:{tmp_path / 'p'}", tmp_path / "s.png", size=100)) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 104 + 4, 4 * 104 + 4, 3)
    assert np.array_equal(sheet[4:104, 4:104], np.asarray(picture(0, height=100, width=100)))
    assert np.array_equal(sheet[108:208, 316:416], np.asarray(picture(11, height=100, width=100)))
    with Image.open(write_contact_sheet("digits", tmp_path / "d.png")) as digits:
        assert digits.size == (4 * 100 + 4, 2 * 100 + 4), "small pictures are shown larger"
