"""Images as data URIs, embedded in a page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

MAX_SIDE = 160
"""Pixels of an embedded image's longer side: twice its size on the page."""
MAX_DRAWN_SIDE = 1000
"""The same for a picture with boxes and text drawn on it, which must stay legible."""
CRISP_SIDE = 64
"""Images up to this size are stored as PNG and enlarged without smoothing."""


@dataclass(frozen=True)
class Picture:
    """An embedded image; if ``crisp`` it is enlarged without smoothing."""

    uri: str
    width: int
    height: int
    crisp: bool


def picture(image: UInt8[Tensor, "3 height width"]) -> Picture:
    """An image to embed: PNG if it is small, else a JPEG of at most 160 pixels."""
    from PIL import Image

    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    crisp = max(pixels.size) <= CRISP_SIDE
    if not crisp:
        pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _embedded(pixels, crisp=crisp)


def drawn_picture(folder: str | Path, name: str) -> Picture:
    """The picture in a file of ``folder`` to embed, as a JPEG of at most 1000 pixels."""
    from PIL import Image

    # records may be untrusted: never embed a file from outside the folder
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"pictures of a page: needs files within the run's folder, got {name!r}; "
            "remove it from the record, or copy it to the folder."
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
