"""Views give the pixels that the published pipelines give, and draw only from the global generators."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as theirs

from bench.config.schema import Model, Protocol, Recipe
from bench.errors import BenchError
from bench.pipeline.color_jitter import Jitter, jitter_and_crop
from bench.pipeline.transforms import crop_flip_jitter, eval_view, normalise, to_unit, train_view, two_views
from bench.seeding import forked

IMAGENET = Protocol()
SMALL = Model(image_size=32, patch_size=8)


def picture(seed: int = 0, width: int = 61, height: int = 47) -> Image.Image:
    """An image of soft colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def sample(seed: int = 0, **size) -> dict:
    return {"image": picture(seed, **size), "label": 7}


def seen(view, seed: int, given: dict | None = None) -> dict:
    with forked(seed):
        return view(given or sample(seed))


def timm_view(recipe: Recipe, protocol: Protocol = IMAGENET):
    """The pipeline that DeiT's and BEiT's fine-tuning build with timm."""
    return create_transform(
        32,
        is_training=True,
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.rand_augment or None,
        interpolation=recipe.interpolation,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        re_count=1,
        mean=protocol.mean,
        std=protocol.std,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(color_jitter=0.4, interpolation="bilinear"),
        Recipe(color_jitter=0.3, rand_augment="rand-m9-mstd0.5-inc1"),
        Recipe(random_erasing=0.25),
        Recipe(color_jitter=0.3, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.9),
    ],
    ids=["crop and flip", "jitter", "RandAugment", "erasing", "DeiT"],
)
def test_the_training_view_equals_that_of_timm_bit_for_bit(recipe):
    protocol = Protocol(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ours, reference = train_view(recipe, SMALL, protocol), timm_view(recipe, protocol)
    for seed in range(20):
        image = seen(ours, seed)["image"]
        with forked(seed):
            expected = reference(picture(seed))
        assert torch.equal(normalise(image, protocol.mean, protocol.std), expected), seed


def test_the_strongest_posterizing_gives_black_and_no_error():
    view = train_view(Recipe(rand_augment="rand-m10-n1-p1-inc1", flip=0), SMALL, IMAGENET)
    assert any(not seen(view, seed)["image"].any() for seed in range(60))


def test_colour_jitter_has_no_effect_while_rand_augment_is_on():
    plain = train_view(Recipe(rand_augment="rand-m9"), SMALL, IMAGENET)
    jittered = train_view(Recipe(rand_augment="rand-m9", color_jitter=0.4), SMALL, IMAGENET)
    assert torch.equal(seen(plain, 3)["image"], seen(jittered, 3)["image"])


def test_only_random_erasing_makes_the_view_float():
    kinds = [seen(train_view(Recipe(random_erasing=p), SMALL, IMAGENET), 0)["image"].dtype for p in (0.0, 0.5)]
    assert kinds == [torch.uint8, torch.float32]


def beit_views(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The two views in the plainest way: the whole image is jittered and turned, one box is resized twice."""
    image = theirs.ColorJitter(0.4, 0.4, 0.4)(image)
    image = theirs.RandomHorizontalFlip(0.5)(image)
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((32, 32), Image.Resampling.BICUBIC), cut.resize((16, 16), Image.Resampling.LANCZOS)


def test_the_two_views_are_jittered_flipped_and_cut_as_the_authors_do():
    view = two_views(Recipe(color_jitter=0.4), SMALL, IMAGENET)
    for seed in range(40):
        ours = seen(view, seed)
        with forked(seed):
            large, small = beit_views(picture(seed))
        assert torch.equal(ours["image"], torch.from_numpy(np.array(large)).permute(2, 0, 1)), seed
        assert torch.equal(ours["token_image"], torch.from_numpy(np.array(small)).permute(2, 0, 1)), seed


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 0, 1, 3]])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_jitter_of_a_cut_is_the_cut_of_the_jittered_image(order, factor):
    image, box = picture(), (7, 3, 40, 30)
    whole = image
    for change in order:
        name = ("brightness", "contrast", "saturation", None)[change]
        whole = getattr(theirs.functional, f"adjust_{name}")(whole, factor) if name else whole
    ours = jitter_and_crop(image, box, Jitter(order, factor, factor, factor))
    assert ours.tobytes() == whole.crop(box).tobytes()


def test_the_pretraining_view_is_the_first_of_the_two_views():
    recipe = Recipe(color_jitter=0.4)
    single, double = crop_flip_jitter(recipe, SMALL, IMAGENET), two_views(recipe, SMALL, IMAGENET, token_size=24)
    assert torch.equal(seen(single, 5)["image"], seen(double, 5)["image"])
    assert set(seen(single, 5)) == {"image", "label"}
    assert seen(double, 5)["token_image"].shape == (3, 24, 24)


@pytest.mark.parametrize(("resolution", "ratio", "short"), [(32, 0.875, 36), (40, 0.9, 44), (24, 1.0, 24)])
@pytest.mark.parametrize("size", [(61, 47), (30, 90), (36, 36), (5, 4), (1, 1)])
def test_the_scoring_view_resizes_the_short_side_and_cuts_the_centre(resolution, ratio, short, size):
    protocol = Protocol(resolution=resolution, crop_ratio=ratio)
    image = picture(1, *size)
    reference = theirs.Compose(
        [
            theirs.Resize(short, interpolation=theirs.InterpolationMode.BICUBIC),
            theirs.CenterCrop(resolution),
            theirs.PILToTensor(),
        ]
    )
    ours = eval_view(protocol)({"image": image, "label": 3})
    assert torch.equal(ours["image"], reference(image))
    assert ours["label"] == 3


def test_the_scoring_view_draws_nothing():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    eval_view(IMAGENET)(sample())
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    assert before[0] == after[0]
    assert (before[1] == after[1]).all()
    assert torch.equal(before[2], after[2])


EVERYTHING = Recipe(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, color_jitter=0.4)
VIEWS = {
    "train": train_view(EVERYTHING, SMALL, IMAGENET),
    "pretrain": crop_flip_jitter(EVERYTHING, SMALL, IMAGENET),
    "two": two_views(EVERYTHING, SMALL, IMAGENET),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_same_seeds_give_the_same_view_and_other_seeds_another(name):
    first, again, other = (seen(VIEWS[name], seed, sample())["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", VIEWS)
def test_views_travel_to_worker_processes(name):
    travelled = pickle.loads(pickle.dumps(VIEWS[name]))
    assert torch.equal(seen(travelled, 4)["image"], seen(VIEWS[name], 4)["image"])


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (400, 1)])
def test_images_of_a_few_pixels_are_taken_whole(name, size):
    for seed in range(10):
        image = seen(VIEWS[name], seed, sample(width=size[0], height=size[1]))["image"]
        assert image.shape == (3, 32, 32)


def test_an_image_of_one_pixel_fills_the_view_with_its_colour():
    view = train_view(Recipe(), SMALL, IMAGENET)
    for seed in range(20):
        image = seen(view, seed, {"image": Image.new("RGB", (1, 1), (10, 20, 30)), "label": 0})["image"]
        assert image.unique(dim=1).flatten().unique().tolist() == [10, 20, 30]


def test_normalising_equals_torchvision_and_leaves_float_alone():
    image = picture()
    expected = theirs.Compose([theirs.ToTensor(), theirs.Normalize(IMAGENET.mean, IMAGENET.std)])(image)
    pixels = theirs.PILToTensor()(image)
    assert torch.equal(normalise(pixels[None], IMAGENET.mean, IMAGENET.std)[0], expected)
    assert normalise(expected, IMAGENET.mean, IMAGENET.std) is expected
    assert (to_unit(pixels).max(), pixels.dtype) == (pixels.max() / 255, torch.uint8)


@pytest.mark.parametrize("setting", ["auto", "rand-x9", "rand-mfoo", "rand-tfoo"])
def test_a_rand_augment_setting_that_timm_cannot_read_is_named(setting):
    with pytest.raises(BenchError, match=f"rand_augment = '{setting}'"):
        train_view(Recipe(rand_augment=setting), SMALL, IMAGENET)


def test_a_crop_range_the_wrong_way_round_is_named():
    with pytest.raises(BenchError, match=r"crop_scale = \[1, 0.5\]"):
        train_view(Recipe(crop_scale=(1.0, 0.5)), SMALL, IMAGENET)
