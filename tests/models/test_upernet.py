"""UperNet: its pyramid and heads have mmsegmentation's names and shapes, and learn alike on any number of processes."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from bench.config.schema import Model, Recipe
from bench.errors import BenchError
from bench.methods.segmentation import Segment, build_segmenter
from bench.models.dropout import ChannelDropout, seed_dropout
from bench.models.sync_batchnorm import sync_batch_norms
from bench.models.upernet import FcnHead, UperHead, UperNet, pyramid_layers

LAYERS = [torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def decoder(patch_size: int = 16, size: int = 64, depth: int = 12) -> UperNet:
    torch.manual_seed(0)
    return UperNet(12, 3, size=size, patch_size=patch_size, depth=depth)


def test_the_pyramid_reads_the_published_blocks():
    assert pyramid_layers(12) == (3, 5, 7, 11)
    assert pyramid_layers(24) == (7, 11, 15, 23)
    assert pyramid_layers(4) == (0, 1, 2, 3)
    assert all(0 <= block < depth for depth in range(1, 40) for block in pyramid_layers(depth))


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_the_levels_have_the_same_strides_for_every_patch_size(patch_size):
    levels = decoder(patch_size, size=8 * patch_size).pyramid([torch.randn(1, 64, 12)] * 4)
    assert [8 * patch_size // level.shape[-1] for level in levels] == [4, 8, 16, 32]


@pytest.mark.parametrize(("patch_size", "size"), [(6, 48), (16, 16)])
def test_a_pyramid_that_cannot_be_built_is_refused(patch_size, size):
    with pytest.raises(BenchError, match="power of 2 and an image_size of at least 32"):
        decoder(patch_size, size=size)


def test_names_and_shapes_are_those_of_mmsegmentation():
    shapes = {name: tuple(value.shape) for name, value in decoder().state_dict().items()}
    expected = {
        "fpn1.0.weight": (12, 12, 2, 2),
        "fpn1.1.running_mean": (12,),
        "fpn1.3.bias": (12,),
        "fpn2.0.weight": (12, 12, 2, 2),
        "decode_head.conv_seg.weight": (3, 12, 1, 1),
        "decode_head.psp_modules.3.1.conv.weight": (12, 12, 1, 1),
        "decode_head.psp_modules.0.1.bn.running_var": (12,),
        "decode_head.bottleneck.conv.weight": (12, 60, 3, 3),
        "decode_head.lateral_convs.2.conv.weight": (12, 12, 1, 1),
        "decode_head.fpn_convs.2.bn.bias": (12,),
        "decode_head.fpn_bottleneck.conv.weight": (12, 48, 3, 3),
        "auxiliary_head.convs.0.conv.weight": (256, 12, 3, 3),
        "auxiliary_head.convs.0.bn.weight": (256,),
        "auxiliary_head.conv_seg.bias": (3,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not [name for name in shapes if re.match(r"fpn[34]|.*dropout|.*conv\.bias", name)]


def mmseg_name(name: str) -> str:
    """The name of one of transformers' tensors in mmsegmentation."""
    renamed = re.sub(r"psp_modules\.blocks\.(\d)\.conv\.", r"psp_modules.\1.1.", name)
    for theirs, ours in (("convolution", "conv"), ("normalization", "bn"), ("classifier", "conv_seg")):
        renamed = renamed.replace(theirs, ours)
    return renamed.replace("psp_bottleneck", "bottleneck")


def test_heads_give_the_logits_of_transformers_with_the_same_weights():
    from transformers import BeitConfig
    from transformers.models.beit.modeling_beit import BeitFCNHead, BeitUperHead

    config = BeitConfig(hidden_size=12, num_labels=3, num_attention_heads=2, num_hidden_layers=2)
    levels = [torch.randn(2, 12, side, side) for side in (16, 8, 4, 2)]
    for ours, theirs in (
        (UperHead([12] * 4, 12, 3), BeitUperHead(config)),
        (FcnHead(12, 256, 3), BeitFCNHead(config)),
    ):
        for name, value in ours.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if "running_var" in name else value.normal_(std=0.3)
        state = ours.state_dict()
        theirs.load_state_dict({name: state[mmseg_name(name)] for name in theirs.state_dict()})
        read = levels if isinstance(ours, UperHead) else levels[2]
        torch.testing.assert_close(ours.eval()(read), theirs.eval()(levels), rtol=1e-4, atol=1e-4)


def test_the_auxiliary_head_speaks_only_while_learning():
    net = decoder()
    assert {name: tuple(value.shape) for name, value in net.train()(*LAYERS).items()} == {
        "logits": (2, 3, 64, 64),
        "auxiliary": (2, 3, 64, 64),
    }
    assert set(net.eval()(*LAYERS)) == {"logits"}


def weighted_norm() -> nn.Sequential:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    return nn.Sequential(norm)


def through(norm: nn.Sequential, pictures: torch.Tensor, upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    """What comes out, the gradients, and the running statistics."""
    pictures = pictures.clone().requires_grad_()
    output = norm(pictures)
    output.backward(upstream)
    layer = norm[0]
    return {
        "out": output.detach(),
        "gradient": pictures.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }


def learner(**recipe: Any) -> Segment:
    """UperNet over a tiny trunk with a bias table in each block."""
    torch.manual_seed(0)
    shape = Model(trunk="beit", width=12, depth=4, heads=2, image_size=32, patch_size=8, position="relative")
    whole = shape.model_copy(update={"classes": 3, "decoder": "upernet"})
    return build_segmenter(whole, Recipe(**recipe), ignore_label=255)


def scene() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 32, 32), generator=generator).to(torch.uint8)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    return {"image": image, "map": labels, "position": torch.arange(2)}


def test_both_heads_learn_and_the_auxiliary_one_counts_for_less():
    objective, given = learner().train(), scene()
    batch = objective.prepare(given, seed=0, step=0, batch_size=2)
    torch.manual_seed(1)
    sums = objective(batch)
    sums["loss"].backward()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    torch.manual_seed(1)
    outputs = objective.predict(batch)
    main, auxiliary = (
        nn.functional.cross_entropy(outputs[name], given["map"].long(), reduction="sum")
        for name in ("logits", "auxiliary")
    )
    torch.testing.assert_close(sums["loss"], main + 0.4 * auxiliary)


def test_one_image_at_a_time_is_refused_while_learning():
    with pytest.raises(BenchError, match="cannot be trained on one image at a time"):
        decoder().train()(*(layer[:1] for layer in LAYERS))
    assert decoder().eval()(*(layer[:1] for layer in LAYERS))["logits"].shape[0] == 1


def test_a_frozen_trunk_is_left_as_it_is_while_the_heads_learn():
    objective = learner(freeze=True, drop_path=0.5).train()
    assert [part.training for part in (objective.backbone, objective.decoder)] == [False, True]
    assert {name.partition(".")[0] for name, p in objective.named_parameters() if p.requires_grad} == {"decoder"}
    assert any(name.startswith("backbone.") for name in objective.trainable_state())  # and is saved with them


def test_whole_channels_are_dropped_the_same_for_an_image_in_any_batch():
    layer, pictures = ChannelDropout(0.5).train(), torch.ones(4, 32, 3, 3)
    seed_dropout(layer, seed=0, step=3, positions=torch.arange(4))
    together = layer(pictures)
    assert together.flatten(2).std(-1).max() == 0
    assert set(together.unique().tolist()) == {0.0, 2.0}
    seed_dropout(layer, seed=0, step=3, positions=torch.tensor([2]))
    assert torch.equal(layer(pictures[:1]), together[2:3])


class Meeting:
    """Stands for two processes: two threads whose all_reduce waits for the other."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.brought: list[torch.Tensor] = []

    def all_reduce(self, value: torch.Tensor) -> None:
        self.brought.append(value.clone())
        self.barrier.wait()
        value.copy_(self.brought[0] + self.brought[1])
        self.barrier.wait()
        self.brought.clear()
        self.barrier.wait()


def test_batch_norm_of_two_processes_is_that_of_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pictures, upstream = (torch.randn(4, 3, 2, 2, generator=generator) * 3 + 5 for _ in range(2))
    alone = through(weighted_norm(), pictures, upstream)
    shared = [weighted_norm() for _ in range(2)]
    for norm in shared:
        sync_batch_norms(norm, torch.device("cpu"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", Meeting().all_reduce)
    with ThreadPoolExecutor(2) as pool:
        halves = [
            pool.submit(through, norm, pictures[own], upstream[own])
            for norm, own in zip(shared, (slice(0, 1), slice(1, 4)), strict=True)
        ]
    first, second = (half.result() for half in halves)
    for name in ("out", "gradient"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), alone[name], rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):
        torch.testing.assert_close(first[name] + second[name], alone[name], rtol=1e-4, atol=1e-4)
    for name in ("mean", "variance"):
        torch.testing.assert_close(first[name], alone[name])
        assert torch.equal(first[name], second[name])
