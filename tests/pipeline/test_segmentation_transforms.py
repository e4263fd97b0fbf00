"""An image and its label map are cropped, flipped and padded together."""

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.schema import Model, Protocol, Recipe
from bench.pipeline.segmentation_transforms import map_eval_view, map_train_view, photometric_distortion, sizes
from bench.seeding import forked

MODEL = Model(image_size=32, patch_size=8)
PROTOCOL = Protocol(resolution=32)
PLAIN = Recipe(interpolation="bilinear")


def painted(width: int = 60, height: int = 45) -> dict:
    """An image in which red tells the label (0, 40, 80, ... for 0, 1, 2, ...), in blocks of 15 pixels."""
    labels = np.add.outer(np.arange(height) // 15 * 4, np.arange(width) // 15).astype(np.uint8)
    pixels = np.stack([labels * 20, labels * 0 + 100, labels * 0 + 200], axis=-1).astype(np.uint8)
    return {"image": Image.fromarray(pixels), "map": labels, "label": -1}


def seen(view, seed: int, sample: dict | None = None) -> dict:
    with forked(seed):
        return view(sample or painted())


def test_image_and_map_stay_aligned():
    view = map_train_view(PLAIN, MODEL, PROTOCOL)
    agreeing = []
    for seed in range(30):
        out = seen(view, seed)
        inside = out["map"] != 255
        shown = (out["image"][0].float() / 20).round()
        agreeing.append((shown == out["map"])[inside].float().mean().item())
    assert np.mean(agreeing) > 0.85  # only the blurred borders between blocks differ
    assert min(agreeing) > 0.7


def test_maps_hold_only_labels_that_were_there_or_the_ignored_one():
    view = map_train_view(PLAIN, MODEL, Protocol(ignore_label=99))
    values = torch.cat([seen(view, seed)["map"].flatten() for seed in range(20)]).unique().tolist()
    assert set(values) == {*range(12), 99}


def test_what_is_missing_is_padded_with_the_mean_colour_and_ignored():
    out = seen(map_train_view(PLAIN, MODEL, PROTOCOL, zoom=(0.5, 0.5)), 0)
    assert out["image"].shape == (3, 32, 32)
    assert (out["map"][16:] == 255).all()
    assert (out["map"][:16, :21] != 255).all()
    assert out["image"][:, -1, -1].tolist() == [124, 116, 104]


def test_flip_turns_image_and_map():
    upright, turned = (
        map_train_view(PLAIN.model_copy(update={"flip": p}), MODEL, PROTOCOL, zoom=(1, 1)) for p in (0, 1)
    )
    square = painted(45, 45)
    assert torch.equal(seen(upright, 0, square)["map"].flip(1), seen(turned, 0, square)["map"])
    assert torch.equal(seen(upright, 0, square)["image"].flip(2), seen(turned, 0, square)["image"])


def test_crops_that_one_label_fills_are_drawn_again():
    rare = {"image": Image.new("RGB", (320, 320)), "map": np.zeros((320, 320), np.uint8)}
    rare["map"][:, 200:] = 1
    view = map_train_view(PLAIN, MODEL, PROTOCOL, zoom=(4, 4))
    filled = [len(seen(view, seed, rare)["map"].unique()) == 1 for seed in range(100)]
    assert np.mean(filled) < 0.3  # two of three crops would be, if each were taken as it falls


def test_colours_are_distorted_only_when_asked_for_and_the_map_never():
    plain, strong = (map_train_view(PLAIN.model_copy(update={"color_jitter": s}), MODEL, PROTOCOL) for s in (0, 0.5))
    pairs = [(seen(plain, seed), seen(strong, seed)) for seed in range(10)]
    assert all(torch.equal(a["map"], b["map"]) for a, b in pairs)
    assert any(not torch.equal(a["image"], b["image"]) for a, b in pairs)


def test_distortion_stays_within_the_published_ranges():
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    values = []
    for seed in range(400):
        with forked(seed):
            values.append(photometric_distortion(grey, 0.5).getpixel((0, 0))[0])
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5
    assert 0.2 < np.mean(np.array(values) == 100) < 0.3  # brightness and contrast are each left alone in half


def test_hue_turns_either_way_round_the_circle():
    red = Image.new("RGB", (1, 1), (200, 0, 0))
    turned = []
    for seed in range(200):
        with forked(seed):
            turned.append(photometric_distortion(red, 0.5).getpixel((0, 0)))
    greener, bluer = ([pixel for pixel in turned if pixel[c] > 0 == pixel[3 - c]] for c in (1, 2))
    assert min(len(greener), len(bluer)) > 10


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (32, 32), (300, 10), (3, 2)])
def test_the_scoring_view_keeps_the_map_at_its_own_size(size):
    sample = painted(*size)
    out = map_eval_view(PROTOCOL)(sample)
    assert np.array_equal(out["map"].numpy(), sample["map"])
    height, width = out["image"].shape[1:]
    assert max(width, height) == 128 if max(size) > 4 * min(size) else min(width, height) == 32


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (2, 90)])
def test_odd_sizes_give_whole_views(size):
    view = map_train_view(Recipe(color_jitter=0.5), MODEL, PROTOCOL)
    for seed in range(10):
        out = seen(view, seed, painted(*size))
        assert out["image"].shape == (3, 32, 32)
        assert out["map"].shape == (32, 32)


def test_no_size_is_smaller_than_the_resolution_and_those_that_are_count_there():
    protocol = Protocol(resolution=32, scales=(0.5, 0.75, 1.0, 1.25, 1.5))
    assert sizes(protocol) == {1.0: ("image", 3), 1.25: ("image 1.25", 1), 1.5: ("image 1.5", 1)}
    out = map_eval_view(protocol)(painted())
    assert [tuple(out[name].shape[1:]) for name in ("image", "image 1.25", "image 1.5")] == [
        (32, 43),
        (40, 53),
        (48, 64),
    ]
    assert out["map"].shape == (45, 60)


def test_a_squeezed_image_loses_its_aspect_and_its_map_does_not():
    out = map_eval_view(Protocol(resolution=32, whole=True))(painted())
    assert out["image"].shape == (3, 32, 32)
    assert out["map"].shape == (45, 60)
