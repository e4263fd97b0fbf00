"""DeiT: its numbers as published, its teacher, its two heads. The losses themselves: parity/test_g03."""

import pytest
import torch
from PIL import Image

from bench import methods
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import deit
from bench.methods.classification import build_classifier
from bench.methods.deit import Renormalised

SMALL = Model(trunk="vit", width=24, depth=2, heads=3, image_size=16, patch_size=8, classes=5, distilled=True)
VARIANTS = ["", "soft", "soft-as-released", "usual", "none"]


def stage(variant="", **options):
    """The supervised stage of a variant, at toy size."""
    method = methods.read("deit")
    changes = method.variants[variant].set if variant else {}
    own = {a.rpartition(".")[2]: value for a, value in changes.items() if ".options." in a}
    return Stage(
        kind="supervised",
        method="deit",
        task="toy",
        model=SMALL.model_copy(update={"distilled": changes.get("model.distilled", True)}),
        recipe=Recipe(**method.recipe["supervised"]),
        options=method.options["supervised"] | own | options,
        protocol=Protocol(resolution=16),
    )


def teacher():
    torch.manual_seed(7)
    return build_classifier(Model(trunk="timm:test_resnet", image_size=16, classes=5), Recipe())


def objective(variant="", **options):
    trained = teacher()
    torch.manual_seed(0)
    return deit.objective(stage(variant, **options), {"teacher": trained})


def batch():
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"image": images, "label": torch.arange(4), "position": torch.arange(4)}


def test_the_published_recipe_is_the_papers_table_9():
    recipe = stage().recipe
    assert recipe.lr * recipe.batch_size / recipe.lr_reference_batch == pytest.approx(1e-3)
    assert (recipe.epochs, recipe.weight_decay, recipe.warmup_epochs, recipe.clip_grad) == (300, 0.05, 5, 0.0)
    assert (recipe.drop_path, recipe.label_smoothing, recipe.mixup, recipe.cutmix) == (0.1, 0.1, 0.8, 1.0)
    assert (recipe.random_erasing, recipe.repeats, recipe.model_ema) == (0.25, 3, 0.99996)
    assert (recipe.rand_augment, recipe.schedule) == ("rand-m9-mstd0.5-inc1", "cosine-per-epoch")


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_student_and_never_the_teacher(variant):
    ours = objective(variant).train()
    ours(ours.prepare(batch(), seed=0, step=0, batch_size=4))["loss"].backward()
    for name, parameter in ours.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert reached != name.startswith("teacher."), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_when_the_gradient_is_followed(variant):
    ours, losses = objective(variant).train(), []
    optimiser = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        losses.append(ours(ours.prepare(batch(), seed=0, step=0, batch_size=4))["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_student_and_teacher_see_the_same_mixed_images():
    ours = objective(alpha=1.0).eval()
    prepared = ours.prepare(batch(), seed=0, step=0, batch_size=4)
    assert not torch.equal(prepared["image"], batch()["image"])
    answer = ours.teacher.backbone(prepared["image"]).argmax(-1)
    expected = torch.nn.functional.cross_entropy(ours.predict(prepared)["dist"], answer, reduction="sum")
    torch.testing.assert_close(ours(prepared)["loss"], expected)


def test_hard_distillation_gives_each_head_half_of_the_loss():
    ours, given = objective().eval(), batch()
    outputs = ours(given)
    torch.testing.assert_close(outputs["loss"], (outputs["label_loss"] + outputs["teacher_loss"]) / 2)
    labels = ours.loss(ours.predict(given)["cls"], ours.target(given))
    torch.testing.assert_close(outputs["label_loss"], labels)


def test_the_released_code_divides_the_soft_loss_by_the_classes_as_well():
    paper, released = (objective("soft", soft_scaling=word).eval()(batch()) for word in ("batchmean", "authors"))
    torch.testing.assert_close(released["teacher_loss"] * 5, paper["teacher_loss"])


def test_a_teacher_stays_in_evaluation_mode_and_out_of_the_checkpoint():
    ours = objective().train()
    assert ours.backbone.training
    assert not any(module.training for module in ours.teacher.modules())
    assert not any(key.startswith("teacher") for key in ours.trainable_state())


def test_without_a_teacher_it_is_a_plain_classifier():
    ours = deit.objective(stage("none"), {})
    assert set(ours.predict(batch())) == {"logits"}
    assert methods.read("deit").variants["none"].set["stages"] == ["supervised"]


def test_both_heads_and_their_mean_are_predicted():
    outputs = objective().eval().predict(batch())
    torch.testing.assert_close(outputs["logits"], (outputs["cls"] + outputs["dist"]) / 2)
    assert not torch.allclose(outputs["cls"], outputs["dist"])


@pytest.mark.parametrize(
    ("option", "complaint"),
    [({"distillation": "hart"}, "Did you mean hard"), ({"soft_scaling": "author"}, "Did you mean authors")],
)
def test_a_word_that_means_nothing_is_refused(option, complaint):
    with pytest.raises(BenchError, match=complaint):
        objective(**option)


def test_an_unknown_published_teacher_is_refused():
    with pytest.raises(BenchError, match="timm has no model 'regnetty_160'"):
        objective(teacher="regnetty_160")


def test_a_published_teacher_sees_images_normalised_its_own_way():
    network = teacher().backbone.eval()
    network.pretrained_cfg = dict(network.pretrained_cfg) | {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    pixels, protocol = torch.rand(2, 3, 16, 16), Protocol()
    ours, theirs = (
        (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in ((protocol.mean, protocol.std), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    )
    torch.testing.assert_close(Renormalised(network, protocol)(ours), network(theirs), atol=1e-4, rtol=1e-4)


def test_the_view_erases_as_the_recipe_says():
    image = Image.new("RGB", (30, 20), (10, 200, 90))
    seen = deit.view(stage())({"image": image, "label": 3})
    assert seen["image"].shape == (3, 16, 16)
    assert seen["image"].is_floating_point()  # erased pixels are noise of the normalised scale
