"""Sizes and places by the rules, pixels against Pillow's."""

import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from outgrow.data.geometry import INTERPOLATIONS, centre_view, crop_batch, crop_picture, resized_crop_box
from outgrow.data.pixels import to_tensor

from .helpers import picture

SIZES = [(40, 40), (31, 77), (90, 33), (64, 65)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "crop_pct"), [(24, 1.0), (24, 0.875), (32, 0.7)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_evaluation_view_is_pillows(
    height: int, width: int, size: int, crop_pct: float, interpolation: str
) -> None:
    image = picture(1, height=height, width=width)
    short = math.floor(size / crop_pct)
    high, wide = int(short * height / min(height, width)), int(short * width / min(height, width))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    expected = to_tensor(
        image.resize((wide, high), Image.Resampling[interpolation.upper()]).crop(
            (left, top, left + size, top + size)
        )
    )
    options = {"size": size, "crop_pct": crop_pct, "interpolation": interpolation}
    assert torch.equal(to_tensor(centre_view(image, **options)), expected)
    batched = centre_view(to_tensor(image).unsqueeze(0) / 255, **options)
    torch.testing.assert_close(batched[0].clamp(0, 1), expected / 255, atol=2 / 255, rtol=0)


def test_short_side_is_rounded_down() -> None:
    image = picture(2, height=240, width=240)
    view = centre_view(image, size=240, crop_pct=0.882, interpolation="bicubic")  # 240 / 0.882 is 272.1
    expected = image.resize((272, 272), Image.Resampling.BICUBIC).crop((16, 16, 256, 256))
    assert torch.equal(to_tensor(view), to_tensor(expected))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resized_crop_is_pillows(interpolation: str) -> None:
    image = picture(2, height=50, width=70)
    for index in range(10):
        box = resized_crop_box(50, 70, scale=(0.08, 1.0), seed=0, epoch=0, index=index)
        top, left, height, width = box
        expected = image.crop((left, top, left + width, top + height)).resize(
            (24, 24), Image.Resampling[interpolation.upper()]
        )
        assert torch.equal(
            crop_picture(image, box, size=24, interpolation=interpolation), to_tensor(expected)
        )


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_have_the_asked_area_and_ratio(height: int, width: int) -> None:
    boxes = torch.tensor(
        [resized_crop_box(height, width, scale=(0.2, 0.6), seed=0, epoch=0, index=k) for k in range(2000)]
    ).double()
    top, left, high, wide = boxes.t()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()
    area, ratio = high * wide / (height * width), wide / high
    assert area.min() > 0.17
    assert area.max() < 0.65
    assert ratio.min() > 0.7
    assert ratio.max() < 1.43
    if (height, width) == (40, 40):  # nothing has to be refused, so both are as drawn
        assert abs(area.mean() - 0.4) < 0.01
        assert abs(ratio.log().mean()) < 0.02


def test_fallback_is_the_largest_centre_crop() -> None:
    # no crop of all the area with a ratio up to 4/3 fits a strip
    assert resized_crop_box(10, 100, scale=(1.0, 1.0), seed=0, epoch=0, index=0) == (0, 43, 10, 13)
    assert resized_crop_box(100, 10, scale=(1.0, 1.0), seed=0, epoch=0, index=0) == (43, 0, 13, 10)


def test_batched_resized_crop() -> None:
    image = to_tensor(picture(3, height=30, width=30)).unsqueeze(0) / 255
    whole = torch.tensor([[0, 0, 30, 30]])
    torch.testing.assert_close(crop_batch(image, whole, size=30), image, atol=1e-5, rtol=0)
    part = torch.tensor([[5, 8, 16, 16]])
    torch.testing.assert_close(crop_batch(image, part, size=16), image[..., 5:21, 8:24], atol=1e-5, rtol=0)
    enlarged: Tensor = crop_batch(image, part, size=32)
    theirs = crop_picture(picture(3, height=30, width=30), (5, 8, 16, 16), size=32, interpolation="bilinear")
    # away from the edge, where ours sees past the box and Pillow does not
    torch.testing.assert_close(enlarged[0, :, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2] / 255, atol=2 / 255, rtol=0)
