"""From encoded bytes to RGB pixels, as a viewer shows them.

    orientation    EXIF's, applied
    alpha          laid over :data:`BACKGROUND`, also of palettes and of a single transparent colour
    16 bits        by their range, 0 to 65535: what is dark in them stays dark
    32 bits        whole numbers and fractions by the range that they fill; see :func:`_to_bytes`
    animations     the first frame; :func:`has_frames` tells them
    ICC profiles   not applied: torchvision and timm do not, and published weights were trained without

What cannot be decoded whole is a ValueError with the file's name, never half a picture.
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
"""Of what pixels a file has: part of every fingerprint, so that no cache outlives a change here."""
BACKGROUND = (255, 255, 255)
"""What is seen through transparent pixels: white, as on a page."""
HEAD = 64
"""Bytes that tell the kind of a picture."""
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
"""What undoes each of EXIF's orientations."""


def decode(data: bytes, *, where: Callable[[], str], stored_size: tuple[int, int] | None = None) -> "Image":
    """Encoded bytes as an RGB image; ValueError naming ``where()`` where they are not a whole picture.

    ``stored_size`` (width, height) is what somebody measured of it: pixels that are stored in that size
    are not turned, whatever EXIF says.
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
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(
            f"data: needs images that Pillow can decode, got {where()} ({len(data)} bytes: {_reason(error)}); "
            "replace the file or remove it from the data set."
        ) from error


def to_tensor(image: "Image") -> UInt8[Tensor, "3 height width"]:
    """An RGB image of PIL as a tensor."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture that Pillow reads."""
    return (
        head.startswith((b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or head.startswith(b"\x00\x00\x00\x0cjP  ")
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
        or (head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" and len(head) > 14)
    )


def has_frames(head: bytes) -> bool:
    """Whether a file has more pictures than its first: an animation, or a TIFF of several pages.

    ``head`` is the whole file, or as much of it as is at hand: of a long GIF the announcement counts.
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
    except (IndexError, struct.error):  # damaged, or longer than what is at hand
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
    """ValueError where a chunk that matters does not have its checksum: Pillow does not look at those of pixels."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            break  # truncated: Pillow says how
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
    """EXIF's; 1 (upright) where there is none, or where it cannot be read: the pixels may still be whole."""
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
    """Grey values of more than 8 bits as bytes.

    16 bits: of 65535. 32 bits say nothing of their scale: numbers that all lie in 0..255 are bytes, whole
    numbers up to 65535 are 16 bits, fractions in [0, 1] are shares, and anything else is stretched from its
    least to its largest.
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
    if type(error).__name__ == "UnidentifiedImageError":  # its text names an object in memory
        return "of no kind that Pillow knows"
    return str(error).strip() or type(error).__name__
