"""Pixels as a viewer shows them: values by hand."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from outgrow.data.pixels import BACKGROUND, decode, has_frames, is_picture, sizes_of


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def seen(data: bytes, **options: tuple[int, int]) -> np.ndarray:
    return np.asarray(decode(data, where=lambda: "it", **options))


def of(values: object, kind: type) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=kind))


TURNED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
    9: [[1, 2, 3], [4, 5, 6]],  # no orientation of EXIF's
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(of([[1, 2, 3], [4, 5, 6]], np.uint8), kind, exif=exif)
    assert seen(data)[..., 0].tolist() == TURNED[orientation]


def test_orientation_of_a_phone() -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = Image.new("RGB", (32, 16))
    image.paste((255, 0, 0), (0, 0, 32, 8))  # its upper half, which is the right half when turned
    for kind in ("JPEG", "WEBP"):
        pixels = seen(encoded(image, kind, exif=exif, quality=95)).astype(int)
        assert pixels.shape == (32, 16, 3)
        assert (pixels[:, 10:, 0] > 200).all()
        assert (pixels[:, :6, 0] < 50).all()


def test_a_picture_that_was_measured_is_not_turned() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(of([[1, 2, 3], [4, 5, 6]], np.uint8), exif=exif)
    assert seen(data, stored_size=(3, 2))[..., 0].tolist() == TURNED[1]
    assert seen(data, stored_size=(2, 3))[..., 0].tolist() == TURNED[6]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_pixels(orientation: int, kind: str) -> None:
    """Boxes are placed by the one, and drawn on the other."""
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(of([[1, 2, 3], [4, 5, 6]], np.uint8), kind, exif=exif)
    found = sizes_of(io.BytesIO(data))
    assert found is not None
    for size, options in ((found[1], {}), (found[0], {"stored_size": found[0]})):
        assert decode(data, where=lambda: "it", **options).size == size


def test_broken_exif_is_no_broken_picture() -> None:
    data = encoded(of([[1, 2]], np.uint8), exif=b"Exif\0\0nonsense that is no EXIF")
    assert seen(data)[..., 0].tolist() == [[1, 2]]


def test_16_bits_of_grey() -> None:
    values = [[0, 128, 129, 257, 32767, 32768, 65278, 65535]]
    assert seen(encoded(of(values, np.uint16)))[0, :, 0].tolist() == [0, 0, 1, 1, 127, 128, 254, 255]
    assert seen(encoded(of(values, np.uint16), "TIFF"))[0, :, 2].tolist() == [0, 0, 1, 1, 127, 128, 254, 255]
    ramp = np.linspace(0, 65535, 256 * 257).reshape(256, 257)
    assert abs(seen(encoded(of(ramp, np.uint16))).mean() - 127.5) < 0.1


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png16(colour: int, samples: list[int]) -> bytes:
    """A PNG of one pixel with 16 bits a sample: Pillow writes none in colour."""
    head = (1).to_bytes(4, "big") * 2 + bytes([16, colour, 0, 0, 0])
    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in samples)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bits_of_colour() -> None:
    assert seen(png16(2, [65535, 32896, 0]))[0, 0].tolist() == [255, 128, 0]
    assert seen(png16(6, [65535, 32896, 0, 65535]))[0, 0].tolist() == [255, 128, 0]
    assert seen(png16(6, [65535, 32896, 0, 0]))[0, 0].tolist() == [255, 255, 255]
    assert seen(png16(4, [32896, 65535]))[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    "values, kind, expected",
    [
        ([[0, 128, 255]], np.int32, [0, 128, 255]),  # bytes
        ([[0, 257, 65535]], np.int32, [0, 1, 255]),  # 16 bits
        ([[-100, 0, 100]], np.int32, [0, 128, 255]),  # from the least to the largest
        ([[0, 1_000_000]], np.int32, [0, 255]),
        ([[0.0, 0.5, 1.0]], np.float32, [0, 128, 255]),  # shares
        ([[0.0, 100.4, 255.0]], np.float32, [0, 100, 255]),
        ([[-1.0, 0.0, 3.0]], np.float32, [0, 64, 255]),
        ([[700.0, 700.0]], np.float32, [0, 0]),
    ],
)
def test_32_bits(values: list, kind: type, expected: list[int]) -> None:
    assert seen(encoded(of(values, kind), "TIFF"))[0, :, 1].tolist() == expected


def test_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match=r"got it .*values that are not finite"):
        seen(encoded(of([[0.0, np.nan]], np.float32), "TIFF"))


def test_alpha_is_laid_over_white() -> None:
    assert BACKGROUND == (255, 255, 255)
    pixels = of([[[255, 0, 0, 255], [255, 0, 0, 0], [100, 0, 0, 51]]], np.uint8)
    expected = [[255, 0, 0], [255, 255, 255], [224, 204, 204]]  # 0.2 * 100 + 0.8 * 255
    assert seen(encoded(pixels))[0].tolist() == expected
    assert seen(encoded(of([[[7, 255], [7, 0]]], np.uint8)))[0].tolist() == [[7, 7, 7], [255, 255, 255]]
    assert seen(encoded(pixels, "TIFF"))[0].tolist() == expected
    webp = seen(encoded(pixels, "WEBP", lossless=True, exact=True))
    assert webp[0, 1].tolist() == [255, 255, 255]


def test_a_palette_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    assert seen(encoded(image))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert seen(encoded(image, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    assert seen(encoded(image, "GIF", transparency=1))[0, 1].tolist() == [255, 255, 255]
    half = seen(encoded(image, transparency=bytes([255, 0, 128])))[0].tolist()
    assert half[:2] == [[10, 20, 30], [255, 255, 255]]
    assert half[2] == [162, 167, 172]  # 128/255 of 70, the rest white


def test_one_transparent_colour() -> None:
    grey = encoded(of([[5, 6]], np.uint8), transparency=5)
    assert seen(grey)[0].tolist() == [[255, 255, 255], [6, 6, 6]]
    rgb = encoded(of([[[1, 2, 3], [4, 5, 6]]], np.uint8), transparency=(1, 2, 3))
    assert seen(rgb)[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_other_colours() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert seen(encoded(cmyk, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert np.abs(seen(encoded(cmyk, "JPEG", quality=100))[0, 0].astype(int) - [255, 0, 0]).max() < 4
    assert seen(encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"))[0, 0].tolist() == [0, 0, 0]
    assert seen(encoded(of([[9]], np.uint8)))[0, 0].tolist() == [9, 9, 9]
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 255])
    assert seen(encoded(bits))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


FRAMES = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    one = encoded(FRAMES[0], kind, **options)
    two = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)
    assert seen(two)[0, 0].tolist() == [255, 0, 0]
    assert has_frames(two)
    assert not has_frames(one)
    assert is_picture(two[:64])


def test_what_is_a_picture() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"):
        assert is_picture(encoded(FRAMES[0].resize((32, 32)), kind)[:64]), kind
    for head in (
        b"",
        b"BM",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"RIFF1234WAVE",
        b"label,name\n1,a\n",
        b"BMW is a car, not",
    ):
        assert not is_picture(head)


def test_damage_is_found() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(Image.fromarray(noise), kind)
        with pytest.raises(
            ValueError, match=r"Pillow can decode, got it \(\d+ bytes: .*\); replace the file"
        ):
            seen(whole[: len(whole) // 2])
    png = encoded(Image.fromarray(noise))
    for place in range(20, len(png) - 20, 97):
        flipped = png[:place] + bytes([png[place] ^ 4]) + png[place + 1 :]
        with pytest.raises(ValueError, match=r"checksum|truncated|broken"):
            seen(flipped)


def test_a_bomb_is_refused_by_its_size() -> None:
    head = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"got it .*900000000 pixels\) exceeds limit of 178956970"):
        seen(bomb)
