"""Images as data URIs: a page carries them in itself."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

MAX_SIDE = 160
"""Pixels of the longer side in a page: twice what it is shown at."""
MAX_DRAWN_SIDE = 1000
"""The same of a picture with things drawn on it, which are read and not only seen."""
CRISP_SIDE = 64
"""Up to this size an image is stored exactly and enlarged pixel by pixel."""


@dataclass(frozen=True)
class Picture:
    """``crisp`` asks for sharp pixels when it is enlarged."""

    uri: str
    width: int
    height: int
    crisp: bool


def picture(image: UInt8[Tensor, "3 height width"]) -> Picture:
    """An image in the form that a page can carry: PNG if it is small, else a JPEG of at most 160 pixels."""
    from PIL import Image

    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    crisp = max(pixels.size) <= CRISP_SIDE
    if not crisp:
        pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _embedded(pixels, crisp=crisp)


def drawn_picture(folder: str | Path, name: str) -> Picture:
    """A file in ``folder`` with things drawn on it, as a JPEG of at most 1000 pixels."""
    from PIL import Image

    # a record may come from anybody: its page never has a file from elsewhere in it
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"pictures of a page: needs files within the run's folder, got {name!r}; "
            "take it out of the record, or copy it to the folder."
        )
    try:
        with Image.open(path) as file:
            pixels = file.convert("RGB")
    except OSError as error:
        raise ValueError(
            f"pictures of a page: needs an image in {name!r}, got none in {folder} ({type(error).__name__}); "
            "write the pictures before the page."
        ) from None
    pixels.thumbnail((MAX_DRAWN_SIDE, MAX_DRAWN_SIDE), Image.Resampling.LANCZOS)
    return _embedded(pixels, crisp=False)


def _embedded(pixels: Any, *, crisp: bool) -> Picture:
    file = io.BytesIO()
    if crisp:
        pixels.save(file, "PNG", optimize=True)
    else:
        pixels.save(file, "JPEG", quality=85)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = pixels.size
    return Picture(f"data:image/{'png' if crisp else 'jpeg'};base64,{text}", width, height, crisp)
