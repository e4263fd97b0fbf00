"""Heads: from a backbone's tokens to logits, by image or by pixel.

Shapes: B images, P prefix tokens, N = grid * grid patches, D width, C classes.

Departs from the reference: SETR-PUP normalises with group norm where mmsegmentation uses synchronised batch norm, so
that neither the number of processes nor gradient accumulation changes a result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from bench.models.upernet import to_feature_map, upsample

STD = 0.02  # of a linear layer's starting weights, as in DeiT and BEiT
EPS = 1e-6  # of every LayerNorm in the authors' networks, PyTorch's own is 1e-5


class ClassificationHead(nn.Module):
    """Tokens (B, P + N, D) -> {"logits": (B, C)}, and "cls" and "dist" when there is a distillation token.

    pool: 'mean' averages the patch tokens, then norms (BEiT modeling_finetune.py); 'token' reads the class token,
    which the backbone has normed. With a distillation token each of the two has a linear layer of its own, and the
    logits are the mean of theirs (DeiT models.py).
    init_scale: weights start normal with deviation 0.02 * init_scale. bias: starting value of the biases.
    representation: a tanh layer before the class token's classifier (P-ViT section 3.1). eps: of the norm.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        pool: Literal["mean", "token"],
        prefix_tokens: int = 1,
        init_scale: float = 1.0,
        bias: float = 0.0,
        representation: bool = False,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.pool, self.prefix_tokens = pool, prefix_tokens
        self.fc_norm = nn.LayerNorm(width, eps=eps) if pool == "mean" else nn.Identity()
        self.representation = _representation(width) if representation else nn.Identity()
        self.head = _linear(width, classes, std=STD * init_scale, bias=bias)
        self.head_dist = _linear(width, classes, std=STD * init_scale, bias=bias) if self.distilled else None

    @property
    def distilled(self) -> bool:
        """Whether a distillation token is read beside the class token."""
        return self.pool == "token" and self.prefix_tokens == 2

    def features(self, tokens: Tensor) -> Tensor:
        """What the classifier reads of each image: (B, D)."""
        if self.pool == "mean":
            return self.fc_norm(tokens[:, self.prefix_tokens :].mean(dim=1))
        return self.representation(tokens[:, 0])

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.features(tokens))
        if self.head_dist is None:
            return {"logits": logits}
        distilled = self.head_dist(tokens[:, 1])
        return {"logits": (logits + distilled) / 2, "cls": logits, "dist": distilled}


def _linear(width: int, classes: int, *, std: float, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=std)  # the authors truncate at +-2, a hundred deviations away
    nn.init.constant_(layer.bias, bias)
    return layer


def _representation(width: int) -> nn.Sequential:
    # flax's lecun_normal, a truncated normal, is close enough to a normal of deviation 1 / sqrt(width).
    return nn.Sequential(_linear(width, width, std=width**-0.5), nn.Tanh())


class LayerwiseProbe(nn.Module):
    """Linear classifiers, one per block, on its class token and mean patch token: {"logits": ..., "layer1": ..., ...}.

    "logits" are those of block `layer` (from 1). Source: BEiT run_linear_eval.py; P-BEiT Table 9 reports the ninth
    of twelve blocks and the fourteenth of twenty-four.
    """

    def __init__(self, width: int, classes: int, *, depth: int, layer: int, prefix_tokens: int = 1) -> None:
        super().__init__()
        self.layer, self.prefix_tokens = layer, prefix_tokens
        self.linear = nn.ModuleList(_linear(2 * width, classes, std=0.01) for _ in range(depth))

    def features(self, tokens: Tensor) -> Tensor:
        """Class token and mean patch token of one block: (B, 2 D)."""
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=-1)

    def forward(self, layers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        logits = [linear(self.features(tokens)) for linear, tokens in zip(self.linear, layers, strict=True)]
        return {"logits": logits[self.layer - 1]} | {f"layer{i}": block for i, block in enumerate(logits, start=1)}


class LinearSegmentation(nn.Module):
    """Patch tokens (B, N, D) -> {"logits": (B, C, size, size)}: norm, one linear layer, bilinear upsampling."""

    def __init__(self, width: int, classes: int, *, size: int, depth: int) -> None:
        super().__init__()
        self.size, self.layers = size, (depth - 1,)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = _linear(width, classes, std=STD)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        return {"logits": upsample(to_feature_map(self.head(self.norm(patches))), self.size)}


class SetrPup(nn.Module):
    """Patch tokens (B, N, D) -> {"logits": (B, C, size, size)} by progressive upsampling.

    3 x 3 convolution, norm, ReLU, upsampling by 2, as often as it takes to reach the image's size (four times for
    patches of 16 pixels). Source: P-BEiT Table 14; mmsegmentation setr_up_head.py and setr_pup.py.
    """

    def __init__(
        self, width: int, classes: int, *, size: int, patch_size: int, depth: int, channels: int = 256
    ) -> None:
        super().__init__()
        self.size, self.layers = size, (depth - 1,)
        self.norm = nn.LayerNorm(width, eps=EPS)
        inputs = [width, *[channels] * (math.ceil(math.log2(patch_size)) - 1)]
        self.steps = nn.ModuleList(_convolution(width_in, channels) for width_in in inputs)
        self.head = _linear(channels, classes, std=STD)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        features = to_feature_map(self.norm(patches))
        for step in self.steps:
            features = upsample(step(features), 2 * features.shape[-1])
        logits = self.head(features.movedim(1, -1)).movedim(-1, 1)
        return {"logits": upsample(logits, self.size)}


def _convolution(inputs: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, channels), channels), nn.ReLU())
