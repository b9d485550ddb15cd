"""Decode image files to RGB pixels, as an image viewer does.

    orientation    EXIF's is applied
    alpha          blended over :data:`BACKGROUND`, also for palettes and for a single transparent colour
    16 bits        scaled from 0..65535, so that dark images stay dark
    32 bits        scaled by their range of values; see :func:`_to_bytes`
    animations     the first frame; :func:`has_frames` detects them
    ICC profiles   not applied: torchvision and timm do not, and published weights were trained without

A file that cannot be decoded completely raises ``ValueError`` with its name.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

VERSION = 2
"""Version of the decoding: part of every cache key, so that a change here invalidates cached pixels."""
ADVICE = "replace the file, remove it, or set data.on_fault=skip to leave out all such images."
"""What to do about an image of a data set that cannot be decoded."""
BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as on a page."""
HEAD = 64
"""Bytes at the start of a file that identify its format."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""PIL's transpose method that undoes each of EXIF's orientations."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations whose width is the stored height."""


def decode(
    data: bytes,
    *,
    where: Callable[[], str],
    stored_size: tuple[int, int] | None = None,
    advice: str = ADVICE,
) -> "Image":
    """Decode an image to RGB; ``ValueError`` with ``where()`` if it cannot be decoded completely.

    ``advice`` ends the message: what the user of the caller can do. ``stored_size`` (width, height) is the size that the
    annotations give. If the stored pixels have this size, EXIF's orientation is ignored.
    """
    from PIL import Image

    try:
        if not data:
            raise ValueError("an empty file")
        if data.startswith(_PNG):
            _check_png(data)
        with Image.open(io.BytesIO(data)) as image:
            turn = _TURNS.get(_orientation(image))
            size = image.size
            image.load()
            rgb = _to_rgb(image)
        if turn is not None and image.format != "TIFF" and size != stored_size:
            rgb = rgb.transpose(Image.Transpose[turn])
        return rgb
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(
            f"data: needs images that Pillow can decode, got {where()} ({len(data)} bytes: {_reason(error)}); {advice}"
        ) from error


def sizes_of(file: io.BytesIO | io.BufferedReader) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Width and height of an encoded image as stored, and as a viewer shows it. Only its header is read.

    None if that cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            sideways = _orientation(image) in _SIDEWAYS
            if sideways and image.format == "TIFF":
                # Pillow always turns a TIFF, so its pixels have one size. Older versions state it only after that.
                seen = int(image.tag_v2[257]), int(image.tag_v2[256])  # type: ignore[attr-defined]
                return seen, seen
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, ...
        return None
    return (width, height), (height, width) if sideways else (width, height)


def to_tensor(image: "Image") -> UInt8[Tensor, "3 height width"]:
    """Convert an RGB PIL image to a tensor."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an image format that Pillow can read."""
    return (
        head.startswith((b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or head.startswith(b"\x00\x00\x00\x0cjP  ")
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
        or (head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" and len(head) > 14)
    )


def has_frames(head: bytes) -> bool:
    """Whether a file has more than one frame: an animation, or a TIFF with several pages.

    ``head`` is the complete file or its first bytes. For a GIF that is cut off, the NETSCAPE2.0 loop extension
    counts as an animation.
    """
    try:
        if head.startswith((b"GIF87a", b"GIF89a")):
            return _frames_of_gif(head) > 1
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return head[12:16] == b"VP8X" and bool(head[20] & 2)
        if head.startswith(_PNG):
            control = head.find(b"acTL")
            return (
                0 < control < head.find(b"IDAT")
                and struct.unpack(">I", head[control + 4 : control + 8])[0] > 1
            )
        if head.startswith((b"II*\0", b"MM\0*")):
            order = "<" if head.startswith(b"II") else ">"
            first = struct.unpack(order + "I", head[4:8])[0]
            entries = struct.unpack(order + "H", head[first : first + 2])[0]
            end = first + 2 + 12 * entries
            return struct.unpack(order + "I", head[end : end + 4])[0] != 0
    except (IndexError, struct.error):  # damaged, or ``head`` is too short
        return False
    return False


def _frames_of_gif(data: bytes) -> int:
    count, at = 0, 13
    if data[10] & 0x80:
        at += 3 << ((data[10] & 7) + 1)
    try:
        while data[at] in (0x21, 0x2C):
            if data[at] == 0x2C:
                count += 1
                flags = data[at + 9]
                at += 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
            else:
                at += 2
            while data[at]:
                at += data[at] + 1
            at += 1
    except IndexError:
        return max(count, 2 if b"NETSCAPE2.0" in data else 0)
    return count


def _check_png(data: bytes) -> None:
    """``ValueError`` if the checksum of a critical chunk is wrong; Pillow does not verify those of the pixels."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            break  # truncated
        if kind[:1].isupper() and zlib.crc32(data[at + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise ValueError(
                f"the checksum of its {kind.decode('latin-1')} at byte {at} is wrong: it is damaged"
            )
        if kind == b"IEND":
            return
        at = end + 4
    raise ValueError("it ends before its last chunk: it is truncated")


def _orientation(image: "Image") -> int:
    """EXIF's orientation; 1 (upright) if it is absent or cannot be read, because the pixels may still be intact."""
    try:
        return int(image.getexif().get(274, 1))
    except Exception:
        return 1


def _to_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    palette = image.palette if image.mode == "P" else None
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if see_through or (palette is not None and palette.mode.endswith("A")):
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, (*BACKGROUND, 255)), seen).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: "np.ndarray") -> "np.ndarray":
    """Scale grey values of more than 8 bits to 0..255.

    16-bit values are divided by 65535. The scale of 32-bit values is not stored, so it is inferred: values in
    0..255 stay, integers up to 65535 count as 16 bits, floats in [0, 1] are multiplied by 255. Any other range
    is stretched from its minimum and maximum to 0..255.
    """
    import numpy as np

    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("it has values that are not finite")
    least, largest = float(wide.min()), float(wide.max())
    whole = values.dtype.kind in "iu"
    if least >= 0 and not whole and largest <= 1:
        wide = wide * 255
    elif least >= 0 and largest <= 255:
        pass
    elif least >= 0 and whole and largest <= 65535:
        wide = wide / 257
    else:
        wide = (wide - least) * 255 / (largest - least) if largest > least else np.zeros_like(wide)
    return (wide + 0.5).astype(np.uint8)


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its message has the repr of a BytesIO
        return "not a format that Pillow knows"
    return str(error).strip() or type(error).__name__
