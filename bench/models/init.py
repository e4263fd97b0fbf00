"""Weight initialisation, as each method's authors draw it (golden g12).

Only what the authors draw at random or rescale: norm weights of 1, biases and relative-bias tables of 0 and the
constant of LayerScale come with the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.init import normal_, trunc_normal_, xavier_uniform_, zeros_

from bench.errors import unknown

STD = 0.02
EMBEDDINGS = ("cls_token", "dist_token", "mask_token", "pos_embed")


@torch.no_grad()
def initialise(module: nn.Module, style: str, std: float = STD) -> None:
    """Draw the weights of a backbone, or of a pretraining objective with its head, from torch's global generator.

    beit-pretrain: normal with deviation `std` (the authors' 0.02) truncated at +-`std`, patch projection included,
    residual projections divided by sqrt(2 * layer); BEiT modeling_pretrain.py, data2vec modeling_cyclical.py.
    beit-finetune: the same without the truncation, patch projection as PyTorch has it; BEiT modeling_finetune.py.
    deit: like beit-finetune, residual projections as they are; DeiT models.py.
    vit: Xavier-uniform layers whatever `std`, class token 0; google-research/vision_transformer models_vit.py.
    Raises BenchError for any other style.
    """
    if style not in STYLES:
        raise unknown("initialisation", style, STYLES)
    STYLES[style](module, std)


def _beit_pretrain(module: nn.Module, std: float) -> None:
    def draw(weight: Tensor) -> None:
        trunc_normal_(weight, std=std, a=-std, b=std)

    _draw_layers(module, draw, nn.Linear, nn.Conv2d)
    _draw_embeddings(module, draw)
    _rescale_residuals(module)


def _beit_finetune(module: nn.Module, std: float) -> None:
    _deit(module, std)
    _rescale_residuals(module)


def _deit(module: nn.Module, std: float) -> None:
    def draw(weight: Tensor) -> None:
        # The authors truncate at +-2, a hundred deviations away: drawing that by inversion may give a weight of 2.
        nn.init.normal_(weight, std=std)

    _draw_layers(module, draw, nn.Linear)
    _draw_embeddings(module, draw)


def _vit(module: nn.Module, std: float) -> None:
    _draw_layers(module, _xavier, nn.Linear)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            # flax's lecun_normal: the constant is the deviation of a standard normal truncated at two deviations.
            deviation = (layer.weight[0].numel()) ** -0.5 / 0.87962566103423978
            trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            _zero(layer.bias)
        if ".mlp." in name and isinstance(layer, nn.Linear):
            normal_(layer.bias, std=1e-6)
    _draw_embeddings(module, lambda weight: normal_(weight, std=std) if weight.shape[1] > 1 else zeros_(weight))


def _xavier(weight: Tensor) -> None:
    rows, columns = weight.shape
    # Queries, keys and values are three layers there, one (3D, D) matrix here, whose fan-out would be too large.
    for part in weight.split(columns) if rows == 3 * columns else [weight]:
        xavier_uniform_(part)


def _draw_layers(module: nn.Module, draw: Callable[[Tensor], object], *kinds: type[nn.Linear | nn.Conv2d]) -> None:
    for layer in module.modules():
        if isinstance(layer, kinds):
            draw(layer.weight)
            _zero(layer.bias)


def _draw_embeddings(module: nn.Module, draw: Callable[[Tensor], object]) -> None:
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in EMBEDDINGS:
            draw(parameter)


def _rescale_residuals(module: nn.Module) -> None:
    """Divide what each block adds to its input by sqrt(2 l), l from 1 (P-BEiT section 2.5)."""
    stacks: list[Any] = [child for name, child in module.named_modules() if name.rpartition(".")[2] == "blocks"]
    for blocks in stacks:
        for layer, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * layer))
            block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        zeros_(bias)


STYLES: dict[str, Callable[[nn.Module, float], None]] = {
    "beit-pretrain": _beit_pretrain,
    "beit-finetune": _beit_finetune,
    "deit": _deit,
    "vit": _vit,
}
