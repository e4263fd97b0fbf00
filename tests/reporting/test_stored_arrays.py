"""Pictures as objectives store them, and as figures take them."""

import numpy as np

from bench.config.schema import Protocol
from bench.reporting.figures.stored_arrays import normalise

PROTOCOL = Protocol()


def test_pixels_stay_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    assert np.array_equal(normalise({"images": images}, PROTOCOL)["images"], images)


def test_normalised_images_become_the_pixels_they_were() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    mean, deviation = (np.array(values)[None, :, None, None] for values in (PROTOCOL.mean, PROTOCOL.std))
    normalised = ((images / 255 - mean) / deviation).astype(np.float32)
    assert np.array_equal(normalise({"image": normalised}, PROTOCOL)["images"], images)


def test_images_between_zero_and_one_become_pixels() -> None:
    images = np.linspace(0, 1, 48).reshape(1, 3, 4, 4)
    assert normalise({"images": images}, PROTOCOL)["images"].max() == 255


def test_a_prediction_is_a_class_or_a_map_by_its_axes() -> None:
    assert set(normalise({"prediction": np.zeros(3), "label": np.zeros(3)}, PROTOCOL)) == {"predictions", "labels"}
    assert set(normalise({"prediction": np.zeros((3, 4, 4)), "map": np.zeros((3, 4, 4))}, PROTOCOL)) == {
        "predicted_maps", "maps",
    }  # fmt: skip


def test_numbers_of_words_and_classes_are_whole_and_hidden_is_true_or_false() -> None:
    arrays = normalise({"words": np.ones((1, 2, 2), np.float32), "hidden": np.ones((1, 2, 2), np.float32)}, PROTOCOL)
    assert arrays["words"].dtype == np.int64
    assert arrays["hidden"].dtype == bool
