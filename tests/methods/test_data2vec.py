"""data2vec: its numbers as published, its teacher, its targets. The numbers themselves: parity/test_g02."""

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image

from bench import methods
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods import data2vec, masked_images
from bench.methods.data2vec import Decay, feature_std, target_layers
from bench.pipeline.masking import BlockMasking

SMALL = Model(
    trunk="beit", width=24, depth=4, heads=3, image_size=32, patch_size=8, position="shared-relative", layer_scale=1e-4
)


def stage(**options):
    """The pretraining stage, at toy size."""
    method = methods.read("data2vec")
    return Stage(
        kind="pretrain",
        method="data2vec",
        task="toy",
        model=SMALL,
        recipe=Recipe(**method.recipe["pretrain"]),
        options=method.options["pretrain"] | options,
        protocol=Protocol(resolution=32),
    )


def objective(seed=0, **options):
    torch.manual_seed(seed)
    return data2vec.objective(stage(**options), {})


def batch(images=4):
    view = data2vec.view(stage())
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    random.seed(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(images)]
    samples = [view({"image": picture, "label": -1}) for picture in pictures]
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "hidden")}
    return stacked | {"image": stacked["image"] / 127.5 - 1, "position": torch.arange(images)}


def prepared(ours, given):
    return ours.prepare(given, seed=0, step=0, batch_size=len(given["image"]))


def shaken(ours):
    """The student away from its teacher, no parameter at zero."""
    with torch.no_grad():
        for parameter in [*ours.backbone.parameters(), *ours.lm_head.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return ours


def test_the_published_recipe_is_the_released_commands():
    recipe = stage().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.min_lr) == (800, 2048, 2e-3, 1e-5)
    assert (recipe.warmup_epochs, recipe.clip_grad, recipe.drop_path, recipe.attn_dropout) == (10, 3.0, 0.25, 0.05)
    tuning = Recipe(**methods.read("data2vec").recipe["finetune"])
    assert (tuning.lr, tuning.layer_decay, tuning.drop_path, tuning.weight_decay) == (4e-3, 0.65, 0.2, 0.0)


def test_at_14x14_patches_the_published_counts_are_hidden():
    model = Model(trunk="beit", image_size=224, patch_size=16)
    assert masked_images.masking(model, stage().options) == BlockMasking(14, 120, 16, 196)


@pytest.mark.parametrize(
    ("depth", "top", "layers"),
    [
        (12, 0.5, (6, 7, 8, 9, 10, 11)),
        (24, 6.0, tuple(range(18, 24))),
        (4, 1.0, (3,)),
        (4, 0.1, (3,)),
        (3, 3.0, (0, 1, 2)),
    ],
)
def test_the_last_blocks_are_chosen_by_share_or_count(depth, top, layers):
    assert target_layers(depth, top) == layers


@pytest.mark.parametrize("top", [0.0, 5.0, -1.0])
def test_more_blocks_than_there_are_cannot_be_chosen(top):
    with pytest.raises(BenchError, match="the backbone has 1 to 4 blocks"):
        objective(top_layers=top)


def test_gradients_reach_the_student_and_never_the_teacher():
    ours = shaken(objective()).train()
    ours(prepared(ours, batch()))["loss"].backward()
    for name, parameter in ours.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached != name.startswith("teacher."), name


def test_the_loss_falls_when_the_gradient_is_followed():
    ours, given, losses = objective().train(), batch(), []
    optimiser = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=1e-3)
    for step in range(10):
        optimiser.zero_grad()
        losses.append(float((loss := ours(prepared(ours, given))["loss"]).detach()))
        loss.backward()
        optimiser.step()
        ours.after_step((step + 1) / 10)
    assert losses[-1] < losses[0]


def test_hidden_patches_reach_the_teacher_and_not_the_student():
    ours, given = objective().eval(), batch()
    cover = given["hidden"].unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    other = given | {"image": torch.where(cover, torch.randn_like(given["image"]), given["image"])}
    assert torch.equal(ours.predictions(given), ours.predictions(other))
    assert not torch.allclose(ours.targets(given), ours.targets(other), atol=1e-2)


def test_targets_are_the_normalised_mean_of_normalised_layers_in_plain_numpy():
    ours, given = shaken(objective()).eval(), batch()

    def normalised(values):
        centred = values - values.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    layers = ours.teacher(given["image"], layers=(2, 3)).layers
    mean = sum(normalised(layer[:, 1:].double().numpy()) for layer in layers) / 2
    expected = normalised(mean)[given["hidden"].numpy()]
    np.testing.assert_allclose(ours.targets(given).numpy(), expected, atol=1e-4)


def test_the_target_norm_can_be_left_out():
    given = batch()
    spreads = [objective(norm_targets=on).targets(given).std(dim=1) for on in (True, False)]
    assert (abs(spreads[0] - 1) < 0.05).all()
    assert (spreads[1] < spreads[0]).any()


def test_the_teacher_keeps_the_decay_and_takes_the_rest():
    ours = shaken(objective(decay=0.9))
    before, student = copy.deepcopy(ours.teacher), dict(ours.backbone.named_parameters())
    ours.after_step(0.5)
    for name, parameter in before.named_parameters():
        expected = 0.9 * parameter + 0.1 * student[name]
        torch.testing.assert_close(ours.teacher.get_parameter(name), expected, msg=name)


def test_the_decay_is_constant_as_published():
    assert {Decay(0.9998, epochs=8).at(step, steps=80) for step in range(80)} == {0.9998}


def test_a_ramp_rises_from_its_start_and_ends_at_the_decay():
    decay = Decay(0.9, start=0.5, ramp=0.5, epochs=4)
    assert [decay.at(step, steps=8) for step in range(8)] == pytest.approx([0.5, 0.6, 0.7, 0.8] + 4 * [0.9])


def test_the_ramp_goes_on_where_a_checkpoint_left_it():
    first = objective(decay_ramp=1.0)
    for step in range(3):
        first.after_step((step + 1) / 10)
    second = objective(seed=1, decay_ramp=1.0)
    second.load_trainable_state(first.trainable_state())
    for ours in (first, second):
        shaken_by = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in ours.backbone.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=shaken_by))
        ours.after_step(4 / 10)
    for parameter, other in zip(first.teacher.parameters(), second.teacher.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_the_teacher_starts_as_the_student_and_stays_in_evaluation_mode():
    ours = objective().train()
    for name, parameter in ours.backbone.named_parameters():
        assert torch.equal(parameter, ours.teacher.get_parameter(name))
    assert ours.backbone.training
    assert not any(module.training for module in ours.teacher.modules())


def test_stochastic_depth_moves_the_student_and_not_the_teacher():
    ours, given = objective().train(), batch()
    torch.manual_seed(0)
    targets = [ours.targets(ours.prepare(given, seed=0, step=step, batch_size=4)) for step in range(2)]
    assert torch.equal(*targets)
    predictions = [ours.predictions(ours.prepare(given, seed=0, step=step, batch_size=4)) for step in range(2)]
    assert not torch.equal(*predictions)


def test_the_teacher_is_in_the_checkpoint():
    saved = objective().trainable_state()
    assert any(key.startswith("teacher.") for key in saved) and "steps_done" in saved


def test_the_loss_counts_hidden_patches():
    ours, given = shaken(objective()).eval(), batch()
    outputs = ours(given)
    distance = (ours.predictions(given) - ours.targets(given)).abs()
    each = torch.where(distance < 2, distance**2 / 4, distance - 1)  # beta = 2
    assert outputs["count"] == given["hidden"].sum()
    torch.testing.assert_close(outputs["loss"] / outputs["count"], each.mean())


def test_parts_of_a_batch_add_up_to_the_whole():
    ours, given = shaken(objective()).eval(), batch()
    parts = [ours({name: value[part] for name, value in given.items()}) for part in (slice(0, 1), slice(1, 4))]
    for name in ("loss", "count"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], ours(given)[name])


def test_a_collapsed_representation_has_no_spread():
    assert feature_std(torch.ones(5, 3)) == 0
    assert feature_std(torch.tensor([[0.0, 0.0], [2.0, 4.0]])) == pytest.approx(1.5)


def test_data2vec_needs_hidden_patches():
    with pytest.raises(BenchError, match="data2vec predicts hidden patches; use 'block' or 'random'"):
        data2vec.view(stage(masking="none"))


def test_pictures_show_what_is_hidden():
    shown = objective().pictures(batch(images=2))
    assert {name: value.shape for name, value in shown.items()} == {"image": (2, 3, 32, 32), "hidden": (2, 4, 4)}
