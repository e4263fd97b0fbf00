"""Heads: what they read, how they start, the size of what they give."""

import pytest
import torch

from bench.models.heads import ClassificationHead, LayerwiseProbe, LinearSegmentation, SetrPup

TOKENS = torch.randn(2, 18, 12, generator=torch.Generator().manual_seed(0))  # class, distillation, 16 patches


def test_mean_pooling_reads_the_patches_and_no_other_token():
    head = ClassificationHead(12, 5, pool="mean", prefix_tokens=2)
    others = TOKENS.clone()
    others[:, :2] = 9.0
    assert torch.equal(head(TOKENS)["logits"], head(others)["logits"])
    mean = TOKENS[:, 2:].mean(1)
    expected = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(head.features(TOKENS), expected)


def test_token_pooling_reads_the_class_token_alone():
    head = ClassificationHead(12, 5, pool="token")
    torch.testing.assert_close(head(TOKENS)["logits"], TOKENS[:, 0] @ head.head.weight.T)


def test_with_a_distillation_token_the_logits_are_the_mean_of_two_heads():
    head = ClassificationHead(12, 5, pool="token", prefix_tokens=2)
    outputs = head(TOKENS)
    torch.testing.assert_close(outputs["dist"], TOKENS[:, 1] @ head.head_dist.weight.T)
    torch.testing.assert_close(outputs["logits"], (outputs["cls"] + outputs["dist"]) / 2)


@pytest.mark.parametrize(("scale", "spread"), [(1.0, 0.02), (0.001, 2e-5), (0.0, 0.0)])
def test_the_classifier_starts_at_the_scale_asked_for(scale, spread):
    torch.manual_seed(0)
    head = ClassificationHead(400, 50, pool="mean", init_scale=scale, bias=-6.9)
    assert head.head.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert (head.head.bias == -6.9).all()


def test_a_representation_layer_bounds_what_the_classifier_reads():
    head = ClassificationHead(12, 5, pool="token", representation=True)
    assert head.features(100 * TOKENS).abs().max() <= 1.0


def test_a_probe_reads_class_token_and_mean_patch_of_every_block():
    build_probe = LayerwiseProbe(12, 5, depth=3, layer=2, prefix_tokens=2)
    layers = (TOKENS, 2 * TOKENS, 3 * TOKENS)
    outputs = build_probe(layers)
    assert set(outputs) == {"logits", "layer1", "layer2", "layer3"}
    assert torch.equal(outputs["logits"], outputs["layer2"])
    read = torch.cat([6 * TOKENS[:, 0] / 2, 3 * TOKENS[:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(outputs["layer3"], read @ build_probe.linear[2].weight.T)


def test_the_linear_decoder_puts_each_patch_where_it_was():
    decoder = LinearSegmentation(12, 3, size=32, depth=2)
    patches = torch.zeros(1, 16, 12)
    patches[:, 6, :6] = 5.0  # row 1, column 2 of 4 x 4
    change = (decoder(patches)["logits"] - decoder(torch.zeros(1, 16, 12))["logits"]).abs().sum(1)[0]
    row, column = divmod(change.argmax().item(), 32)
    assert (row // 8, column // 8) == (1, 2)
    assert change[24:, :8].max() == 0


@pytest.mark.parametrize(("patch_size", "size", "steps"), [(16, 64, 4), (8, 32, 3), (6, 24, 3)])
def test_progressive_upsampling_undoes_the_patches(patch_size, size, steps):
    decoder = SetrPup(12, 3, size=size, patch_size=patch_size, depth=2, channels=8)
    assert len(decoder.steps) == steps
    assert decoder(torch.randn(2, 16, 12))["logits"].shape == (2, 3, size, size)


def test_progressive_upsampling_of_one_image_does_not_depend_on_the_others():
    decoder = SetrPup(12, 3, size=64, patch_size=16, depth=2, channels=8).train()
    patches = torch.randn(4, 16, 12)
    torch.testing.assert_close(decoder(patches)["logits"][:1], decoder(patches[:1])["logits"])
