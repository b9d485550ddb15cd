"""Batched views against slow ones, image by image, with draws from plain Python integers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from outgrow.data import Augment
from outgrow.data.randomness import Stream, integer_at, uniform_at
from outgrow.data.transforms import GREY, crop_flip, cutout, mix_views, partners, to_float

SEED, EPOCH = 3, 5


def some_images(num: int = 40, *, height: int = 10, width: int = 12) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (num, 3, height, width), dtype=np.uint8)
    )


def one_crop_flip(image: np.ndarray, index: int, *, by: int, mode: str, flip: bool) -> np.ndarray:
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (by, by), (by, by)), mode=mode)
    top = integer_at(SEED, EPOCH, index, Stream.CROP_Y, high=2 * by + 1)
    left = integer_at(SEED, EPOCH, index, Stream.CROP_X, high=2 * by + 1)
    view = padded[:, top : top + height, left : left + width]
    mirrored = flip and uniform_at(SEED, EPOCH, index, Stream.FLIP) < 0.5
    return view[:, :, ::-1] if mirrored else view


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("by", [0, 1, 4, 9])
@pytest.mark.parametrize("flip", [True, False])
def test_crop_and_flip(padding: str, mode: str, by: int, flip: bool) -> None:
    images, index = some_images(), torch.arange(100, 140)
    views = crop_flip(images, index, seed=SEED, epoch=EPOCH, crop_padding=by, padding=padding, flip=flip)
    expected = [
        one_crop_flip(image.numpy(), number, by=by, mode=mode, flip=flip)
        for image, number in zip(images, index.tolist(), strict=True)
    ]
    assert torch.equal(views, torch.from_numpy(np.stack(expected)))


def test_crop_reaches_every_offset_and_flips_half() -> None:
    # a single bright pixel in the centre shows where each crop was taken
    images = torch.zeros(4000, 3, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    views = crop_flip(images, torch.arange(4000), seed=0, epoch=0, crop_padding=4, flip=False)
    places = views[:, 0].flatten(1).argmax(1)
    assert len(places.unique()) == 81
    ramp = torch.arange(9, dtype=torch.uint8).expand(4000, 3, 9, 9).contiguous()
    views = crop_flip(ramp, torch.arange(4000), seed=0, epoch=0, crop_padding=0)
    assert abs((views[:, 0, 0, 0] == 8).double().mean() - 0.5) < 0.04


def test_reflection_wider_than_the_image_is_refused() -> None:
    with pytest.raises(
        ValueError, match="crop_padding below the image's side for reflection, got 12 for 10x12"
    ):
        crop_flip(some_images(), torch.arange(40), seed=0, epoch=0, crop_padding=12, padding="reflect")


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout(side: int) -> None:
    images, index = to_float(some_images()), torch.arange(7, 47)
    views = cutout(images, index, seed=SEED, epoch=EPOCH, side=side)
    for image, view, number in zip(images, views, index.tolist(), strict=True):
        expected = image.clone()
        top = integer_at(SEED, EPOCH, number, Stream.CUTOUT_Y, high=10) - side // 2
        left = integer_at(SEED, EPOCH, number, Stream.CUTOUT_X, high=12) - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = GREY
        assert torch.equal(view, expected)
        assert (view == GREY).any()


def test_to_float_is_exact_at_the_ends() -> None:
    pixels = to_float(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1))
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert torch.equal(
        (pixels * 255).round().to(torch.uint8)[0, 0].flatten(), torch.arange(256, dtype=torch.uint8)
    )


def test_partners_are_drawn_by_index() -> None:
    index = torch.arange(5000)
    drawn = partners(index, seed=0, epoch=0, num=50)
    assert torch.equal(drawn[100:200], partners(index[100:200], seed=0, epoch=0, num=50))
    assert drawn.unique().tolist() == list(range(50))


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.2, 0.0), (0.0, 1.0), (0.0, 0.4), (0.3, 1.0)])
def test_label_share_is_pixel_share(mixup: float, cutmix: float) -> None:
    # black partners under white views: the mean of the pixels is the view's share
    white, black = torch.ones(500, 3, 8, 11), torch.zeros(500, 3, 8, 11)
    views, share = mix_views(white, black, torch.arange(500), seed=1, epoch=2, mixup=mixup, cutmix=cutmix)
    assert share.min() >= 0
    assert share.max() <= 1
    torch.testing.assert_close(views.mean((1, 2, 3)), share, atol=2e-6, rtol=0)
    mixed = ((views > 0) & (views < 1)).flatten(1).any(1).double().mean()
    if not cutmix:
        assert mixed > 0.9
    elif not mixup:
        assert mixed == 0
    else:
        assert 0.3 < mixed < 0.6  # half of the samples, less those with a share of nearly 0 or 1


@pytest.mark.parametrize("alpha", [1.0, 0.2, 2.0])
def test_mixup_shares_follow_the_beta_distribution(alpha: float) -> None:
    from scipy.stats import beta, kstest

    ones = torch.ones(5000, 3, 1, 1)
    _, share = mix_views(ones, ones, torch.arange(5000), seed=0, epoch=0, mixup=alpha)
    assert kstest(share.double().numpy(), beta(alpha, alpha).cdf).statistic < 1.95 / math.sqrt(
        5000
    )  # p = 0.001


def test_cutmix_box_is_one_rectangle_of_the_partner() -> None:
    white, black = torch.ones(200, 3, 16, 16), torch.zeros(200, 3, 16, 16)
    views, _ = mix_views(white, black, torch.arange(200), seed=0, epoch=0, cutmix=1.0)
    for view in views:
        hole = view[0] == 0
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])
        assert torch.equal(view[0], view[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "needs crop_padding >= 0, got -1"),
        ({"mixup": float("nan")}, "needs mixup >= 0, got nan"),
        ({"randaugment": 11.0}, "magnitude from 0 to 10, got 11"),
        ({"padding": "mirror"}, "'zero' or 'reflect', got 'mirror'"),
        ({"resized_crop": (0.5, 0.1)}, r"0 < smallest <= largest <= 1, got \(0.5, 0.1\)"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    from jaxtyping import TypeCheckError

    # the type checker of the test run is first where the type itself is wrong
    with pytest.raises((ValueError, TypeCheckError), match=message if "padding" not in options else None):
        Augment(**options)
