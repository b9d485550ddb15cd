"""Each operation against Pillow's, and each draw against plain Python."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from outgrow.data.randaugment import operations, randaugment
from outgrow.data.randomness import Stream, integer_at, uniform_at
from outgrow.data.transforms import to_float

from .helpers import picture

NAMES = list(operations(9.0))
BLENDS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def applied(image: Image.Image, name: str, sign: int, magnitude: float = 9.0) -> Tensor:
    return operations(magnitude)[name](pixels(image), sign)


def furthest(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def test_the_list_of_operations() -> None:
    # a draw is a place in this list, so its order is part of the format of a view
    assert " ".join(NAMES) == (
        "identity shear_x shear_y translate_x translate_y rotate brightness contrast saturation sharpness "
        "solarise posterise autocontrast"
    )


@pytest.mark.parametrize("name", BLENDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_blends_agree_with_pillow(name: str, sign: int) -> None:
    for number in range(5):
        image = picture(number, height=20, width=24)
        expected = pixels(BLENDS[name](image).enhance(1 + sign * 0.81))
        assert furthest(applied(image, name, sign), expected) <= 2


def test_solarise_posterise_autocontrast_agree_with_pillow() -> None:
    for number in range(5):
        image = picture(number, height=20, width=24)
        assert torch.equal(applied(image, "posterise", 1), pixels(ImageOps.posterize(image, 4)))
        assert torch.equal(applied(image, "solarise", 1, 5.0), pixels(ImageOps.solarize(image, 128)))
        assert furthest(applied(image, "autocontrast", 1), pixels(ImageOps.autocontrast(image))) <= 1


@pytest.mark.parametrize("height, width", [(32, 32), (24, 40)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_agree_with_pillow(name: str, sign: int, height: int, width: int) -> None:
    image = picture(3, height=height, width=width)
    # output to input, in pixels around the centre: x' = a x + b y + c, y' = d x + e y + f
    a, b, c, d, e, f = {
        "shear_x": (1, sign * 0.27, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.27, 1, 0),
        "translate_x": (1, 0, sign * 0.9 * 150 / 331 * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 0.9 * 150 / 331 * height),
        "rotate": (
            np.cos(np.pi * 0.15), sign * np.sin(np.pi * 0.15), 0,
            -sign * np.sin(np.pi * 0.15), np.cos(np.pi * 0.15), 0,
        ),
    }[name]  # fmt: skip
    x, y = width / 2, height / 2
    matrix = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)  # Pillow's is from the corner
    moved = image.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    difference = (applied(image, name, sign).int() - pixels(moved).int()).abs()
    assert difference.double().mean() < 2.5  # they differ in the row of pixels where the image ends
    assert difference.flatten().sort().values[: int(0.8 * difference.numel())].max() <= 2


def test_an_edge_is_between_the_image_and_grey() -> None:
    white = Image.new("RGB", (20, 20), (250,) * 3)
    for name in ("rotate", "shear_x", "translate_y"):
        moved = applied(white, name, 1, 7.3)
        assert moved.min() == 128
        assert moved.max() == 250


def test_identity_is_exact_and_every_operation_but_it_does_something() -> None:
    image = picture(1, height=20, width=20).point(lambda value: value // 2 + 40)
    assert torch.equal(applied(image, "identity", 1), pixels(image))
    for name in NAMES[1:]:
        assert not torch.equal(applied(image, name, 1), pixels(image)), name


def test_views_are_the_operations_drawn_in_turn() -> None:
    images = torch.cat([pixels(picture(number, height=16, width=12)) for number in range(64)])
    index = torch.arange(1000, 1064)
    views = randaugment(to_float(images), index, seed=3, epoch=1, magnitude=9.0)
    for image, view, number in zip(images, views, index.tolist(), strict=True):
        expected = image.unsqueeze(0)
        for stream in (Stream.RANDAUGMENT, Stream.RANDAUGMENT + 2):
            name = NAMES[integer_at(3, 1, number, stream, high=13)]
            sign = -1 if uniform_at(3, 1, number, stream + 1) < 0.5 else 1
            expected = operations(9.0)[name](expected, sign)
        assert torch.equal(view, to_float(expected)[0])
    assert not torch.equal(views, randaugment(to_float(images), index, seed=3, epoch=2, magnitude=9.0))
    none = randaugment(to_float(images[:0]), index[:0], seed=3, epoch=1, magnitude=9.0)
    assert none.shape == (0, 3, 16, 12)


@pytest.mark.parametrize("magnitude", [0.0, 10.0])
def test_flat_and_tiny_images_at_both_ends_of_magnitude(magnitude: float) -> None:
    for side in (1, 2, 8):
        flat = torch.full((40, 3, side, side), 0.5)
        views = randaugment(flat, torch.arange(40), seed=0, epoch=0, magnitude=magnitude)
        assert 0 <= views.min() <= views.max() <= 1
