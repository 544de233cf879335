"""Images: values, resizing, layout, and the augmentation's bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlacoach.errors import ConfigError
from vlacoach.policies.preprocessing import augment_images, preprocess_images

HALF = (0.5, 0.5, 0.5)


def test_values_run_from_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    pixels = preprocess_images(images, 1, HALF, HALF)
    torch.testing.assert_close(pixels.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_mean_and_standard_deviation_belong_to_channels():
    images = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    pixels = preprocess_images(images, 2, (0.0, 0.5, 0.2), (1.0, 0.5, 0.4))
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 1.0, 2.0]))


def test_channels_move_and_rows_stay():
    images = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    images[0, 1, 0, 3, 2] = 255
    pixels = preprocess_images(images, 4, HALF, HALF)
    assert pixels.shape == (1, 2, 3, 4, 4)
    assert pixels[0, 1, 2, 0, 3] == 1
    assert (pixels == 1).sum() == 1


def test_resizing_is_antialiased():
    """A one-pixel checkerboard shrunk by four is gray everywhere; sampling without a filter would leave stripes."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    images = torch.from_numpy(board)[None, :, :, None].expand(1, 64, 64, 3)
    pixels = preprocess_images(images, 16, HALF, HALF)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels[..., 2:-2, 2:-2].abs().max() < 0.05


@pytest.mark.parametrize("images", [torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_other_layouts_are_refused(images):
    with pytest.raises(ConfigError, match="uint8"):
        preprocess_images(images, 4, HALF, HALF)


def test_augmentation_shifts_whole_pixels_and_repeats_the_border():
    ramp = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(64, 32, 32, 3)
    moved = augment_images(ramp, torch.Generator().manual_seed(0), max_shift=3, brightness=0.0)
    shifts = moved[:, 16, 16, 0].int() - 16
    assert set(shifts.tolist()) == set(range(-3, 4))
    for image, shift in zip(moved, shifts.tolist(), strict=True):
        expected = (torch.arange(32) + shift).clamp(0, 31)
        assert torch.equal(image[5, :, 1].long(), expected)


def test_brightness_stays_within_its_bounds_and_does_not_wrap():
    gray = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    bright = augment_images(gray, torch.Generator().manual_seed(0), max_shift=0, brightness=0.2)[:, 0, 0, 0]
    assert 80 <= bright.min() < 85
    assert 115 < bright.max() <= 120
    white = torch.full((50, 4, 4, 3), 250, dtype=torch.uint8)
    assert augment_images(white, torch.Generator().manual_seed(0), brightness=0.2).min() >= 199


def test_the_same_generator_gives_the_same_images():
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    first, second = (augment_images(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment_images(images, torch.Generator().manual_seed(2)))
