"""ViT: its numbers as published, and the classifier they make."""

import pytest
import torch
from PIL import Image

from bench import methods
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import vit

SMALL = Model(trunk="vit", width=24, depth=2, heads=3, image_size=16, patch_size=8, classes=5)


def stage(variant="", **options):
    """The supervised stage of a variant, at toy size."""
    method = methods.read("vit")
    recipe, own = dict(method.recipe["supervised"]), dict(method.options["supervised"])
    for address, value in (method.variants[variant].set if variant else {}).items():
        *words, name = address.split(".")
        (own if words[-1] == "options" else recipe)[name] = value
    return Stage(
        kind="supervised",
        method="vit",
        task="toy",
        model=SMALL,
        recipe=Recipe(**recipe),
        options=own | options,
        protocol=Protocol(resolution=16),
    )


def test_the_published_recipe_is_the_papers_table_3():
    recipe = stage().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (300, 4096, 3e-3, 0.3)
    assert (recipe.warmup_steps, recipe.dropout, recipe.clip_grad, recipe.schedule) == (10000, 0.1, 1.0, "cosine")


def test_the_strong_variant_is_the_mae_papers_table_11():
    recipe = stage("strong").recipe
    assert recipe.lr * recipe.batch_size / recipe.lr_reference_batch == pytest.approx(1.6e-3)
    assert (recipe.betas, recipe.weight_decay, recipe.warmup_epochs, recipe.warmup_steps) == ((0.9, 0.95), 0.3, 20, 0)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.drop_path) == (0.8, 1.0, 0.1, 0.1)
    assert (recipe.model_ema, recipe.dropout, recipe.clip_grad) == (0.9999, 0.0, 0.0)


@pytest.mark.parametrize("variant", ["", "strong", "augreg"])
def test_every_variant_learns(variant):
    torch.manual_seed(0)
    objective = vit.objective(stage(variant), {})
    images = torch.randn(4, 3, 16, 16)
    given = {"image": images, "label": torch.arange(4), "position": torch.arange(4)}
    optimiser, losses = torch.optim.AdamW(objective.parameters(), lr=1e-3), []
    for _ in range(10):
        optimiser.zero_grad()
        prepared = objective.prepare(given | {"image": images.clone()}, seed=0, step=0, batch_size=4)
        losses.append(objective(prepared)["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_the_classifier_starts_undecided_as_the_authors_do():
    objective = vit.objective(stage(), {}).eval()
    assert objective.predict({"image": torch.randn(2, 3, 16, 16)})["logits"].abs().max() == 0


def test_the_sigmoid_variant_starts_with_every_class_unlikely():
    objective = vit.objective(stage("augreg"), {}).eval()
    assert (objective.predict({"image": torch.randn(2, 3, 16, 16)})["logits"] == -6.9).all()


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(BenchError, match=r"no initialisation 'vitt'.*Did you mean vit"):
        vit.objective(stage(initialisation="vitt"), {})


def test_the_view_gives_an_image_of_the_models_size_and_its_label():
    image = Image.new("RGB", (30, 20), (10, 200, 90))
    seen = vit.view(stage())({"image": image, "label": 3})
    assert seen["image"].shape == (3, 16, 16)
    assert seen["label"] == 3
