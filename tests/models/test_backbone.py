"""Backbones: hiding, layers, attention, hand-over between stages, stochastic depth."""

import copy

import pytest
import timm
import torch
from torch import nn

from bench.config.schema import Model, Recipe
from bench.errors import BenchError
from bench.models.backbone import build, convnet
from bench.models.drop_path import DropPath, seed_drop_path
from bench.models.init import initialise
from bench.models.pos_embed import resize_embedding
from bench.models.transfer import submodule_state, transfer

POSITIONS = ["absolute", "relative", "shared-relative"]


def model(**changes):
    small = {"trunk": "beit", "width": 24, "depth": 3, "heads": 3, "image_size": 32, "patch_size": 8}
    return Model(**(small | changes))


def lively(module):
    """The module with every parameter random, so that nothing cancels."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", POSITIONS)
def test_what_is_in_hidden_patches_does_not_reach_the_tokens(position, images):
    backbone = lively(build(model(position=position), mask_token=True))
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 0] = True
    changed = images.clone()
    changed[:, :, :8, :8] += 1.0  # the first patch
    torch.testing.assert_close(backbone(images, hidden).tokens, backbone(changed, hidden).tokens)
    assert not torch.allclose(backbone(images).tokens, backbone(changed).tokens)


@pytest.mark.parametrize("position", POSITIONS)
def test_hidden_patches_still_tell_where_they_are(position, images):
    backbone = lively(build(model(position=position), mask_token=True))
    tokens = backbone(images, torch.ones(2, 16, dtype=torch.bool)).tokens
    assert not torch.allclose(tokens[:, 1], tokens[:, 6])


def test_only_a_backbone_that_hides_patches_has_a_mask_token():
    assert "mask_token" in build(model(), mask_token=True).state_dict()
    assert "mask_token" not in build(model()).state_dict()


@pytest.mark.parametrize("trunk", ["beit", "vit"])
def test_tokens_after_the_last_block_are_timms(trunk, images):
    backbone = lively(build(model(trunk=trunk)))
    kind = timm.models.beit.Beit if trunk == "beit" else timm.models.VisionTransformer
    theirs = kind(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, global_pool="token")
    theirs.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone.norm(backbone(images).tokens), theirs.eval().forward_features(images))


def test_a_distillation_token_stands_behind_the_class_token(images):
    backbone = lively(build(model(trunk="vit", distilled=True)))
    assert backbone.prefix_tokens == 2
    assert backbone(images).tokens.shape == (2, 18, 24)
    assert backbone.patches(backbone(images).tokens).shape == (2, 16, 24)


def test_layers_come_in_the_order_asked_for_and_the_last_is_the_output(images):
    backbone = lively(build(model()))
    features = backbone(images, layers=(2, 0))
    assert torch.equal(features.layers[0], features.tokens)
    assert torch.equal(features.layers[1], backbone.blocks[0](backbone.embed(images)))


@pytest.mark.parametrize("position", POSITIONS)
def test_attention_weights_reproduce_what_the_block_computes(position, images):
    backbone = lively(build(model(position=position, depth=1)))
    block, width = backbone.blocks[0], backbone.width
    weights = backbone.attention_map(images)  # (B, H, N)
    inputs, seen = block.norm1(backbone.embed(images)), {}
    block.attn.proj.register_forward_pre_hook(lambda module, args: seen.update(mixed=args[0]))
    backbone(images)
    values = (inputs @ block.attn.qkv.weight[2 * width :].T + block.attn.v_bias).view(2, 17, 3, 8).transpose(1, 2)
    own = (1 - weights.sum(-1, keepdim=True)) * values[:, :, 0]  # the class token's attention to itself
    mixed = own + (weights.unsqueeze(-2) @ values[:, :, 1:]).squeeze(-2)
    torch.testing.assert_close(mixed.flatten(1), seen["mixed"][:, 0])


def test_gradient_checkpointing_changes_no_gradient(images):
    gradients = []
    for again in (False, True):
        backbone = lively(build(model(position="shared-relative"), Recipe(drop_path=0.5))).train()
        backbone.gradient_checkpointing = again
        seed_drop_path(backbone, seed=0, step=0, positions=torch.arange(2), batch_size=2)
        backbone(images).tokens.square().sum().backward()
        gradients.append([p.grad for name, p in backbone.named_parameters() if not name.startswith("norm")])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"trunk": "bait"}, "Did you mean beit"),
        ({"heads": 5}, "width 24 does not divide into 5 heads"),
        ({"image_size": 30}, "image_size 30 does not divide into patches of 8"),
        ({"distilled": True}, "no distillation token"),
        ({"trunk": "vit", "position": "relative"}, "no relative positions"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(changes, complaint):
    with pytest.raises(BenchError, match=complaint):
        build(model(**changes))


def test_an_unknown_convolutional_network_is_refused():
    with pytest.raises(BenchError, match="Did you mean regnety_160"):
        convnet(Model(trunk="timm:regnety160", classes=10))


def test_a_convolutional_network_takes_its_options_and_classes():
    network = convnet(Model(trunk="timm:resnet18", classes=7, options={"in_chans": 1}))
    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


# Hand-over


def test_a_shared_table_is_cloned_into_every_block_and_the_mask_token_left_behind(images):
    old = lively(build(model(position="shared-relative"), mask_token=True))
    new = build(model(position="relative"), norm=False).eval()
    report = transfer(old.state_dict(), new)
    torch.testing.assert_close(new(images).tokens, old(images).tokens)
    assert len(report.shared) == 3
    assert set(report.left) == {"mask_token", "norm.weight", "norm.bias"}
    tables = [block.attn.relative_position_bias_table for block in new.blocks]
    assert tables[0].data_ptr() != tables[1].data_ptr()


def test_every_tensor_is_accounted_for_when_positions_are_resized():
    old, new = lively(build(model())), build(model(image_size=48))
    report = transfer(old.state_dict(), new)
    assert report.resized == ("pos_embed",)
    assert {*report.matched, *report.resized} == set(new.state_dict())
    assert torch.equal(new.pos_embed[:, 0], old.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ({"trunk": "vit", "distilled": True}, {"trunk": "vit"}, "dist_token"),
        ({"depth": 2}, {}, "lacks.*blocks.2"),
        ({}, {"position": "relative"}, "does not take: pos_embed"),
        ({"width": 48}, {}, "shapes differ.*48"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(old, new, complaint):
    with pytest.raises(BenchError, match=complaint):
        transfer(build(model(**old)).state_dict(), build(model(**new)))


def test_a_part_of_a_state_is_found_under_its_own_names():
    assert submodule_state({"backbone.norm.bias": torch.ones(1), "head.bias": torch.zeros(1)}, "backbone") == {
        "norm.bias": 1
    }


def test_resizing_an_embedding_of_a_constant_keeps_the_constant():
    resized = resize_embedding(torch.full((1, 17, 5), 0.3), 6, prefix_tokens=1)
    torch.testing.assert_close(resized, torch.full((1, 37, 5), 0.3))


# Starting weights


def test_the_authors_of_vit_start_queries_keys_and_values_as_three_matrices():
    backbone = build(Model(trunk="vit", width=192, depth=1, heads=3, image_size=32))
    initialise(backbone, "vit")
    bound = (6 / (192 + 192)) ** 0.5
    assert 0.99 * bound < backbone.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert backbone.cls_token.abs().max() == 0
    assert 0.015 < backbone.pos_embed.std() < 0.025
    assert 0 < backbone.blocks[0].mlp.fc1.bias.abs().max() < 1e-5


def test_an_unknown_style_of_starting_weights_is_refused():
    with pytest.raises(BenchError, match="Did you mean beit-pretrain"):
        initialise(nn.Linear(2, 2), "beit-pretraining")


# Stochastic depth


def test_rates_of_stochastic_depth_grow_linearly_over_the_blocks():
    backbone = build(model(), Recipe(drop_path=0.2))
    rates = [block.drop_path1.rate for block in list(backbone.blocks)[1:]]
    assert rates == pytest.approx([0.1, 0.2])
    assert isinstance(backbone.blocks[0].drop_path1, nn.Identity)


def test_processes_and_accumulation_do_not_change_what_is_dropped():
    backbone = lively(build(model(), Recipe(drop_path=0.6))).train()
    images = torch.randn(8, 3, 32, 32)

    def tokens(positions, step):
        seed_drop_path(backbone, seed=3, step=step, positions=positions, batch_size=8)
        return backbone(images[positions]).tokens

    whole = tokens(torch.arange(8), 0)
    parts = [torch.tensor([0, 4]), torch.tensor([7, 3, 1, 5, 2, 6])]
    for positions in parts:
        torch.testing.assert_close(tokens(positions, 0), whole[positions])
    assert not torch.allclose(tokens(torch.arange(8), 1), whole)


def test_a_branch_is_dropped_as_often_as_the_rate_says_and_its_mean_is_kept():
    layer = DropPath(0.3).train()
    seed_drop_path(
        nn.Sequential(nn.Linear(1, 1), layer), seed=0, step=0, positions=torch.arange(20000), batch_size=20000
    )
    branch = layer(torch.ones(20000, 1))
    assert (branch == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert branch.mean().item() == pytest.approx(1.0, abs=0.03)


def test_nothing_is_dropped_when_evaluating():
    backbone = lively(build(model(), Recipe(drop_path=0.9)))
    plain = copy.deepcopy(backbone)
    for block in plain.blocks:
        block.drop_path1 = block.drop_path2 = nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(images).tokens, plain(images).tokens)
