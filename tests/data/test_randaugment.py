"""Each operation against Pillow's, or against its definition."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from outgrow.data.randaugment import _table, apply, randaugment, settings

from .helpers import picture

NAMES = list(settings(9.0))
PILLOW = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255


def applied(image: Image.Image, name: str, sign: int, magnitude: float = 9.0) -> Tensor:
    table = _table(magnitude, torch.device("cpu"))
    return apply(pixels(image), table[2 * NAMES.index(name) + sign].unsqueeze(0))


def test_the_list_of_operations() -> None:
    assert len(NAMES) == len(set(NAMES)) == 13
    assert set(PILLOW) < set(NAMES)


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("sign", [0, 1])
def test_blends_agree_with_pillow(name: str, sign: int) -> None:
    for number in range(5):
        image = picture(number, height=20, width=24)
        expected = pixels(PILLOW[name](image).enhance((1.81, 0.19)[sign]))
        # Pillow works in bytes, its grey too
        torch.testing.assert_close(applied(image, name, sign), expected, atol=3 / 255, rtol=0)


def test_solarise_posterise_autocontrast_agree_with_pillow() -> None:
    for number in range(5):
        image = picture(number, height=20, width=24)
        assert (
            (applied(image, "posterise", 0) * 255)
            .round()
            .equal((pixels(ImageOps.posterize(image, 4)) * 255).round())
        )
        torch.testing.assert_close(
            applied(image, "solarise", 0, 5.0), pixels(ImageOps.solarize(image, 128)), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            applied(image, "autocontrast", 0), pixels(ImageOps.autocontrast(image)), atol=1.01 / 255, rtol=0
        )


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_agree_with_pillow(name: str) -> None:
    side, sign = 32, 0
    image = picture(3, height=side, width=side)
    m = settings(9.0)[name][sign].move
    # Pillow's affine takes pixels from the corner; ours takes sides from the centre
    c = (side - 1) / 2 + 0.5
    matrix = (
        m[0], m[1], m[2] * side + c - m[0] * c - m[1] * c,
        m[3], m[4], m[5] * side + c - m[3] * c - m[4] * c,
    )  # fmt: skip
    moved = image.transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    difference = (applied(image, name, sign) - pixels(moved)).abs()
    assert difference.mean() < 0.01  # they differ in the row of pixels where the image ends
    assert difference[..., 8:16, 8:16].max() < 2 / 255


def test_identity_is_exact_and_every_operation_but_it_does_something() -> None:
    image = picture(1, height=20, width=20).point(lambda value: value // 2 + 40)
    assert torch.equal(applied(image, "identity", 0), pixels(image))
    for name in NAMES[1:]:
        assert not torch.equal(applied(image, name, 0), pixels(image)), name


def test_batched_is_one_by_one_and_in_range() -> None:
    images = torch.cat([pixels(picture(number, height=16, width=16)) for number in range(64)])
    index = torch.arange(1000, 1064)
    views = randaugment(images, index, seed=0, epoch=1, magnitude=9.0)
    for k in range(0, 64, 7):
        alone = randaugment(images[k : k + 1], index[k : k + 1], seed=0, epoch=1, magnitude=9.0)
        assert torch.equal(views[k : k + 1], alone)
    assert views.min() >= 0
    assert views.max() <= 1
    assert not torch.equal(views, randaugment(images, index, seed=0, epoch=2, magnitude=9.0))


def test_flat_images_stay_finite() -> None:
    flat = torch.full((13, 3, 8, 8), 0.5)
    rows = _table(9.0, torch.device("cpu"))[::2]
    assert apply(flat, rows).isfinite().all()
