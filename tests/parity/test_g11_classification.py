"""Fine-tuned BEiT classifiers: tokens of the last block, pooled features, logits and loss."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bench.backbones import build
from bench.heads import ClassificationHead
from bench.objective import Classify, Loss
from bench.spec import Model

GOLDEN = "g11_finetune_and_segmentation"
CASES = "[cm]*"  # cls_token, mean_pool_fc_norm


@pytest.fixture
def ours(case):
    size = json.loads((case / "config.json").read_text())["model"]
    model = Model(
        trunk="beit",
        width=size["embed_dim"],
        depth=size["depth"],
        heads=size["num_heads"],
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        position="relative",
        layer_scale=size["init_values"],
    )
    pool = "mean" if size["use_mean_pooling"] else "token"
    head = ClassificationHead(model.width, size["num_classes"], pool=pool)
    classifier = Classify(build(model, norm=pool == "token"), head, classes=size["num_classes"], loss=Loss())
    state = load_file(case / "params.safetensors")
    kept = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
    of_head = ("head", "fc_norm")
    classifier.load_trainable_state(
        {("head." if k.startswith(of_head) else "backbone.") + k: v for k, v in kept.items()}
    )
    return classifier.eval()


@torch.no_grad()
def test_tokens_features_logits_and_loss_are_the_recorded_ones(case, ours):
    batch, recorded = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    batch = {"image": batch["images"], "label": batch["labels"]}
    torch.testing.assert_close(ours.backbone(batch["image"]).tokens, recorded["last_block_tokens"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.features(batch), recorded["pooled_features"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.predict(batch)["logits"], recorded["logits"], atol=2e-5, rtol=0)
    found = ours(batch)
    torch.testing.assert_close(found["loss"] / found["count"], recorded["cross_entropy"], atol=0, rtol=2e-6)


def test_our_position_index_is_the_authors(case, ours):
    recorded = load_file(case / "params.safetensors")
    for number, block in enumerate(ours.backbone.blocks):
        expected = recorded[f"blocks.{number}.attn.relative_position_index"]
        assert torch.equal(block.attn.relative_position_index, expected)
