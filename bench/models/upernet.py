"""UperNet over a plain Vision Transformer: a pyramid of four of its layers, and the heads that read it.

Names and shapes are mmsegmentation's and BEiT's, so that a checkpoint maps one to one: their `backbone.fpn1.0.weight`,
`decode_head.*` and `auxiliary_head.*` are `decoder.fpn1.0.weight`, `decoder.decode_head.*` and so on here.
Shapes: B images, N = g * g patches, D width, C classes.

Sources: BEiT semantic_segmentation/backbone/beit.py and configs/_base_/models/upernet_beit.py (golden g11);
mmsegmentation 0.11, decode_heads/uper_head.py, psp_head.py and fcn_head.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.dropout import ChannelDropout

STRIDES = (4, 8, 16, 32)  # of the levels, in pixels of the image
POOLS = (1, 2, 3, 6)  # sides to which the coarsest level is pooled
AUXILIARY_LEVEL = 2  # that the auxiliary head reads, of stride 16
AUXILIARY_CHANNELS = 256
AUXILIARY_WEIGHT = 0.4  # of its loss; that of the decode head is 1
DROPOUT = 0.1
STD = 0.01  # of a classifier's starting weights


def pyramid_layers(depth: int) -> tuple[int, ...]:
    """Numbers (from 0) of the blocks whose outputs make the pyramid: 3, 5, 7, 11 of 12, and 7, 11, 15, 23 of 24."""
    return tuple(max(1, round(depth * share)) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1))


class UperNet(nn.Module):
    """Patch tokens (B, N, D) of four blocks -> {"logits": (B, C, size, size)}, in training also "auxiliary".

    layers: numbers of these blocks, from 0. patch_size: a power of two.
    """

    def __init__(self, width: int, classes: int, *, size: int, patch_size: int, depth: int) -> None:
        super().__init__()
        _check(size, patch_size)
        self.size, self.layers = size, pyramid_layers(depth)
        for level, stride in enumerate(STRIDES, start=1):
            self.add_module(f"fpn{level}", _rescaling(width, patch_size, stride))
        self.decode_head = UperHead([width] * len(STRIDES), width, classes)
        self.auxiliary_head = FcnHead(width, AUXILIARY_CHANNELS, classes)

    def pyramid(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Patch tokens of the four blocks as feature maps (B, D, h, h), the finest first."""
        maps = [to_feature_map(patches) for patches in layers]
        return [self.get_submodule(f"fpn{level}")(features) for level, features in enumerate(maps, start=1)]

    def forward(self, *layers: Tensor) -> dict[str, Tensor]:
        if self.training and len(layers[0]) == 1 and not dist.is_initialized():
            raise BenchError(
                "decoder 'upernet' has batch norm, which cannot be trained on one image at a time; "
                "set batch_size and --micro-batch-size to 2 or more"
            )
        levels = self.pyramid(layers)
        outputs = {"logits": upsample(self.decode_head(levels), self.size)}
        if self.training:
            outputs["auxiliary"] = upsample(self.auxiliary_head(levels[AUXILIARY_LEVEL]), self.size)
        return outputs


def _check(size: int, patch_size: int) -> None:
    if patch_size & (patch_size - 1) or size < STRIDES[-1]:
        raise BenchError(
            f"decoder 'upernet' needs a patch_size that is a power of 2 and an image_size of at least {STRIDES[-1]}, "
            f"not {patch_size} and {size}; decoder 'setr-pup' takes any"
        )


def _rescaling(width: int, patch_size: int, stride: int) -> nn.Module:
    """From one feature per patch to one per `stride` pixels of the image.

    Up: transposed convolutions that double the side, with norm and GELU between them; down: max pooling.
    """
    doublings = int(math.log2(patch_size) - math.log2(stride))
    if doublings == 0:
        return nn.Identity()
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings)
    steps: list[nn.Module] = [nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)]
    for _ in range(doublings - 1):
        steps += [nn.BatchNorm2d(width), nn.GELU(), nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)]
    return nn.Sequential(*steps)


class UperHead(nn.Module):
    """Levels of a pyramid, the finest first, -> logits (B, C, h, h) at the size of the finest.

    The coarsest level goes through pyramid pooling, each finer level adds the one above it (FPN), and all are
    concatenated and fused. P-UperNet (arXiv 1807.10221) section 3.1.
    """

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        last = widths[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), Convolution(last, channels, kernel=1)) for side in POOLS
        )
        self.bottleneck = Convolution(last + len(POOLS) * channels, channels)
        self.lateral_convs = nn.ModuleList(Convolution(width, channels, kernel=1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(Convolution(channels, channels) for _ in widths[:-1])
        self.fpn_bottleneck = Convolution(len(widths) * channels, channels)
        self.dropout = ChannelDropout(DROPOUT)
        self.conv_seg = _classifier(channels, classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        side = levels[0].shape[-1]
        # Not strict: the coarsest level has no lateral convolution, but pyramid pooling.
        laterals = [*(lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=False))]
        laterals.append(self._pyramid_pooling(levels[-1]))
        for finer in range(len(laterals) - 2, -1, -1):
            laterals[finer] = laterals[finer] + upsample(laterals[finer + 1], laterals[finer].shape[-1])
        refined = [*(fpn(lateral) for fpn, lateral in zip(self.fpn_convs, laterals, strict=False)), laterals[-1]]
        fused = self.fpn_bottleneck(torch.cat([upsample(level, side) for level in refined], dim=1))
        return self.conv_seg(self.dropout(fused))

    def _pyramid_pooling(self, level: Tensor) -> Tensor:
        contexts = [upsample(pool(level), level.shape[-1]) for pool in self.psp_modules]
        return self.bottleneck(torch.cat([level, *contexts], dim=1))


class FcnHead(nn.Module):
    """One level (B, D, h, h) -> logits (B, C, h, h): a convolution and a classifier."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Convolution(width, channels))
        self.dropout = ChannelDropout(DROPOUT)
        self.conv_seg = _classifier(channels, classes)

    def forward(self, level: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(level)))


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; the side stays. Starts as Kaiming normal by fan-out (mmcv ConvModule)."""

    def __init__(self, inputs: int, channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(features)))


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=STD)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return layer


def to_feature_map(patches: Tensor) -> Tensor:
    """Patch tokens (B, N, D) as a feature map (B, D, g, g)."""
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).reshape(len(patches), -1, side, side)


def upsample(features: Tensor, side: int) -> Tensor:
    """Resize bilinearly: (B, C, h, h) -> (B, C, side, side)."""
    if features.shape[-1] == side:
        return features
    return F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
