"""BEiT: its numbers as published, its variants, and what the student may see. The numbers: parity/test_g01."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from bench import methods
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Data, Stage
from bench.errors import BenchError
from bench.methods import beit, masked_images, tokenizer
from bench.methods.beit import RecoverPixels, RecoverVisualTokens
from bench.methods.tokenizer import TrainTokenizer
from bench.models import dvae
from bench.pipeline.masking import BlockMasking
from bench.seeding import seed_cpu

SMALL = Model(trunk="beit", width=24, depth=2, heads=3, image_size=32, patch_size=8)
VARIANTS = ["", "plain", "plus", "random-masking", "pixels", "random-pixels", "recover-all", "no-hiding"]


def stage(variant="", kind="pretrain", **options):
    """A stage of a variant, at toy size."""
    method = methods.read("beit")
    changes = method.variants[variant].set if variant else {}
    own = {address.rpartition(".")[2]: value for address, value in changes.items() if ".options." in address}
    model = {address.split(".")[1]: value for address, value in changes.items() if address.startswith("model.")}
    return Stage(
        kind=kind,
        method="beit",
        task="toy",
        model=SMALL.model_copy(update=model),
        recipe=Recipe(**method.recipe[kind]),
        options=method.options[kind] | own | options,
        protocol=Protocol(resolution=32),
    )


def trained_tokenizer():
    torch.manual_seed(7)
    return tokenizer.objective(stage(kind="tokenizer", words=16, width=16))


def objective(variant="", seed=0, **options):
    trained = trained_tokenizer()
    torch.manual_seed(seed)
    return beit.objective(stage(variant, **options), {"tokenizer": trained})


def batch(variant="", images=4):
    view = beit.view(stage(variant))
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    random.seed(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(images)]
    samples = [view({"image": picture, "label": -1}) for picture in pictures]
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "token_image", "hidden")}
    return stacked | {"image": stacked["image"] / 127.5 - 1, "position": torch.arange(images)}


def prepared(ours, given):
    return ours.prepare(given, seed=0, step=0, batch_size=len(given["image"]))


def test_the_published_recipes_are_the_papers_tables_12_and_13():
    recipe = stage().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.min_lr) == (800, 2048, 1.5e-3, 1e-5)
    assert (recipe.warmup_epochs, recipe.clip_grad, recipe.weight_decay, recipe.drop_path) == (10, 3.0, 0.05, 0.1)
    tuning = Recipe(**methods.read("beit").recipe["finetune"])
    assert (tuning.epochs, tuning.batch_size, tuning.lr, tuning.layer_decay) == (100, 1024, 4e-3, 0.65)
    assert (tuning.pool, tuning.head_init_scale, tuning.mixup, tuning.random_erasing) == ("mean", 0.001, 0.8, 0.25)


def test_the_default_is_the_plain_trunk_of_the_published_numbers():
    method = methods.read("beit")
    assert method.model | method.variants["plain"].set == method.model | {
        "model.position": method.model["position"],
        "model.layer_scale": method.model["layer_scale"],
    }
    assert (method.model["position"], method.model["layer_scale"]) == ("absolute", 0.0)


def test_at_14x14_patches_the_published_counts_are_hidden():
    published = stage()
    model = Model(trunk="beit", image_size=224, patch_size=16)
    assert masked_images.masking(model, published.options) == BlockMasking(14, 75, 16, 196)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_student_and_never_the_tokenizer(variant):
    ours = objective(variant, seed=1).train()
    with torch.no_grad():  # relative tables and the like start at zero, where some gradients vanish
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours(prepared(ours, batch(variant)))["loss"].backward()
    for name, parameter in ours.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached != name.startswith("tokenizer."), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_when_the_gradient_is_followed(variant):
    ours, given, losses = objective(variant).train(), batch(variant), []
    optimiser = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        losses.append(float((loss := ours(prepared(ours, given))["loss"]).detach()))
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_hidden_patches_do_not_reach_the_student():
    ours, given = objective().eval(), batch()
    cover = given["hidden"].unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    other = given | {"image": torch.where(cover, torch.randn_like(given["image"]), given["image"])}
    assert not torch.equal(given["image"], other["image"])
    assert torch.equal(ours.predictions(given), ours.predictions(other))


def test_the_tokenizer_sees_the_whole_picture():
    ours, given = objective().eval(), batch()
    seen = []
    ours.tokenizer.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    ours(given)
    torch.testing.assert_close(seen[0], 2 * (given["token_image"].float() / 255) - 1)


def test_the_loss_is_the_mean_over_hidden_patches_in_plain_loops():
    ours, given = objective().eval(), batch()
    outputs = ours(given)
    tokens = ours.backbone.norm(ours.backbone(given["image"], given["hidden"]).tokens)[:, 1:]
    words = ours.tokenizer.encode(given["token_image"] / 255)
    losses = [
        -torch.log_softmax(ours.lm_head(tokens[image, patch]), dim=-1)[words[image, patch]]
        for image, patch in given["hidden"].nonzero().tolist()
    ]
    assert outputs["count"] == given["hidden"].sum()
    torch.testing.assert_close(outputs["loss"], torch.stack(losses).sum())


def test_recovering_all_asks_for_every_patch_and_still_hides_some():
    ours, given = objective("recover-all").eval(), batch("recover-all")
    assert given["hidden"].any()
    assert ours(given)["count"] == given["hidden"].numel()


def test_without_hiding_the_whole_picture_is_seen_and_there_is_no_mask_token():
    ours, given = objective("no-hiding"), batch("no-hiding")
    assert not given["hidden"].any()
    assert not hasattr(ours.backbone, "mask_token")
    assert ours(given)["count"] == given["hidden"].numel()


def test_pixels_are_those_of_the_patch():
    ours, given = objective("pixels"), batch("pixels")
    assert isinstance(ours, RecoverPixels)
    row, column = 2, 3
    patch = given["image"][1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    assert torch.equal(masked_images.patchify(given["image"], 8)[1, 4 * row + column], patch.flatten())


def test_no_tokenizer_is_trained_for_pixels():
    variants = methods.read("beit").variants
    assert all("tokenizer" not in variants[name].set["stages"] for name in ("pixels", "random-pixels", "dalle"))


@pytest.mark.parametrize("variant", ["", "pixels"])
def test_parts_of_a_batch_add_up_to_the_whole(variant):
    ours, given = objective(variant).eval(), batch(variant)
    parts = [ours({name: value[part] for name, value in given.items()}) for part in (slice(0, 1), slice(1, 4))]
    for name, whole in ours(given).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole)


def test_two_seeds_differ_and_one_repeats():
    first, again, other = objective(seed=1), objective(seed=1), objective(seed=2)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_trained_tokenizer_is_used_as_it_was_trained():
    before = trained_tokenizer().tokenizer.state_dict()
    after = objective().tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_tokenizer_stays_in_evaluation_mode_and_out_of_the_checkpoint():
    ours = objective().train()
    assert isinstance(ours, RecoverVisualTokens) and ours.backbone.training
    assert not any(module.training for module in ours.tokenizer.modules())
    assert not any(key.startswith("tokenizer") for key in ours.trainable_state())


def test_a_reduced_precision_is_checked_once_after_the_first_step():
    class Wrong(dvae.DiscreteVAE):
        def features(self, images):
            return super().features(images) * (-1 if torch.is_autocast_enabled("cpu") else 1)

    torch.manual_seed(0)
    made = tokenizer.build(SMALL, {"words": 16, "width": 16})
    made.__class__ = Wrong
    trained = TrainTokenizer(made, kl_weight=0.0, kl_ramp=1.0, temperature=1.0, cooling=1.0)
    ours = beit.objective(stage(tokenizer_precision="bf16"), {"tokenizer": trained})
    ours(batch())
    with pytest.raises(BenchError, match="tokenizer_precision = 'fp32' always works"):
        ours.after_step(0.1)


def test_words_must_be_as_large_as_patches():
    ours = stage()
    other = ours.model_copy(update={"model": SMALL.model_copy(update={"patch_size": 16})})
    with pytest.raises(BenchError, match=r"4 pixels of the half-size image, for patches of 8, but .* 16"):
        beit.objective(other, {"tokenizer": trained_tokenizer()})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"recover": "hiden"}, "Did you mean hidden"),
        ({"masking": "none"}, "hides nothing to recover; set pretrain.options.recover to 'all'"),
        ({"tokenizer_precision": "bf15"}, "Did you mean bf16"),
        ({"tokenizer": "nowhere"}, "'nowhere': no such folder"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, complaint):
    with pytest.raises(BenchError, match=complaint):
        objective(**options)


def test_pictures_show_what_is_hidden_and_what_the_words_say():
    shown = objective().pictures(batch(images=3))
    assert {name: value.shape for name, value in shown.items()} == {
        "image": (3, 3, 32, 32),
        "hidden": (3, 4, 4),
        "words": (3, 4, 4),
        "reconstruction": (3, 3, 16, 16),
    }
    assert shown["hidden"].dtype == bool


def test_pixels_have_no_words_to_show():
    assert set(objective("pixels").pictures(batch("pixels"))) == {"image", "hidden"}


def with_data(images=4, **options):
    data = Data(dataset="demo", split="pretrain", identity="these", images=images)
    return stage(**options).model_copy(update={"data": {"train": data}})


def test_fixed_views_show_an_image_alike_and_hide_other_patches():
    view = beit.view(with_data(views="fixed"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    seen = []
    for epoch in range(2):
        seed_cpu(epoch)
        seen.append(view({"image": picture, "label": -1, "index": 3}))
    for name in ("image", "token_image"):
        assert torch.equal(seen[0][name], seen[1][name])
    assert not torch.equal(seen[0]["hidden"], seen[1]["hidden"])
    other = view({"image": picture, "label": -1, "index": 4})
    assert not torch.equal(seen[0]["image"], other["image"])


def test_words_of_fixed_views_are_looked_up_once(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    asked = with_data(views="fixed")
    ours = beit.objective(asked, {"tokenizer": trained_tokenizer()})
    given = batch() | {"index": torch.tensor([2, 0, 3, 1])}
    first = ours.visual_tokens(given)
    assert torch.equal(first, ours.tokenizer.encode(given["token_image"].float() / 255))
    again = beit.objective(asked, {"tokenizer": trained_tokenizer()})
    monkeypatch.setattr(again.tokenizer, "encode", lambda images: pytest.fail("looked at an image twice"))
    assert torch.equal(again.visual_tokens(given), first)
    (file,) = (tmp_path / "words").glob("*.npy")
    assert np.load(file).dtype == np.uint16


def test_words_of_another_tokenizer_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    given = batch() | {"index": torch.arange(4)}
    for seed in (7, 8):
        torch.manual_seed(seed)
        trained = tokenizer.objective(stage(kind="tokenizer", words=16, width=16))
        ours = beit.objective(with_data(views="fixed"), {"tokenizer": trained})
        assert torch.equal(ours.visual_tokens(given), ours.tokenizer.encode(given["token_image"].float() / 255))
    assert len(list((tmp_path / "words").glob("*.npy"))) == 2


def test_a_view_that_does_not_exist_is_refused():
    with pytest.raises(BenchError, match=r"no pretrain.options.views 'frozen'; available: fixed, random"):
        beit.view(stage(views="frozen"))
