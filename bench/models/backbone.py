"""Backbones: timm's Beit and VisionTransformer, with mask tokens, returning all tokens of any block.

Shapes: B images, P prefix tokens (class, distillation), N = grid * grid patches, D width, H heads.
Parameter names are timm's, which are the authors': blocks.0.attn.qkv.weight, rel_pos_bias.*, mask_token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import LayerNorm
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.config.schema import Model, Recipe
from bench.errors import BenchError, nearest, unknown
from bench.models.drop_path import replace_drop_paths

CONVNET = "timm:"  # prefix of Model.trunk
BIAS_TABLE = "relative_position_bias_table"
SHARED_BIAS_TABLE = f"rel_pos_bias.{BIAS_TABLE}"


class Features(NamedTuple):
    """Outputs of a backbone for a batch of images."""

    tokens: Tensor  # (B, P + N, D), the output of the last block, before any norm
    layers: tuple[Tensor, ...] = ()  # the same after each block in `layers` of the call, in that order


class Backbone(nn.Module):
    """A Vision Transformer that returns tokens and can replace hidden patches by a mask token. Made by `build`.

    backbone(images) -> Features. images: (B, 3, H, W), normalised, H = W = the model's image_size.
    The tokens are P prefix tokens (the class token, then the distillation token if there is one) and N patch tokens,
    row by row. No norm is applied to them: a head that reads normalised tokens calls `backbone.norm(tokens)`.

    width (D), depth (number of blocks), grid (patches along one side, N = grid**2), prefix_tokens (P: 1 or 2):
        sizes, to build a head with.
    norm: the final LayerNorm, or the identity where the head has a norm of its own.
    mask_token: (1, 1, D), only on a backbone that was built with one.
    init_std: standard deviation for starting weights that a method draws (see `initialise`).
    gradient_checkpointing: recompute each block in the backward pass, which saves memory and costs time.

    It draws random numbers only in training mode: dropout and stochastic depth, as the recipe says.
    """

    init_std: float
    mask_token: nn.Parameter
    dist_token: nn.Parameter
    norm: nn.Module
    rel_pos_bias: nn.Module | None

    def __init__(self, trunk: Beit | VisionTransformer, *, mask_token: bool, norm: bool) -> None:
        super().__init__()
        self.cls_token = trunk.cls_token
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros_like(trunk.cls_token))
        if isinstance(trunk, VisionTransformerDistilled):
            self.dist_token = trunk.dist_token
        self.pos_embed = trunk.pos_embed  # (1, P + N, D) or None
        self.patch_embed = trunk.patch_embed
        self.pos_drop = trunk.pos_drop
        self.rel_pos_bias = getattr(trunk, "rel_pos_bias", None)  # one table for all blocks, or None
        self.blocks = nn.ModuleList(trunk.blocks)
        self.norm = trunk.norm if norm else nn.Identity()
        self.width: int = trunk.embed_dim
        self.depth = len(self.blocks)
        self.grid: int = trunk.patch_embed.grid_size[0]
        self.prefix_tokens: int = trunk.num_prefix_tokens
        self.gradient_checkpointing = False

    def embed(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Tokens (B, P + N, D) of images (B, 3, H, W), before the first block.

        hidden: (B, N) bool; patch embeddings where it is True are replaced by the mask token, which needs a backbone
        with one. The position embedding is added afterwards, so a hidden patch keeps its position.
        Source: BEiT modeling_pretrain.py.
        """
        patches = self.patch_embed(images)  # (B, N, D)
        if hidden is not None:
            mask_token = self.mask_token.to(patches.dtype)  # which is half precision under autocast
            patches = torch.where(hidden.unsqueeze(-1), mask_token, patches)
        prefix = [self.cls_token, *([self.dist_token] if self.prefix_tokens == 2 else [])]
        tokens = torch.cat([*(token.expand(len(patches), -1, -1) for token in prefix), patches], dim=1)
        return self.pos_drop(tokens if self.pos_embed is None else tokens + self.pos_embed)

    def forward(self, images: Tensor, hidden: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Tokens (B, P + N, D) after the last block, and after each block in `layers` (numbered from 0).

        hidden: as in `embed`.
        """
        tokens, bias = self.embed(images, hidden), self._shared_bias()
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()  # an evaluation has no backward pass
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            tokens = run(tokens, **bias)
            if number in layers:
                outputs[number] = tokens
        return Features(tokens, tuple(outputs[number] for number in layers))

    def patches(self, tokens: Tensor) -> Tensor:
        """The patch tokens (B, N, D) of tokens (B, P + N, D)."""
        return tokens[:, self.prefix_tokens :]

    @torch.no_grad()
    def attention_map(self, images: Tensor) -> Tensor:
        """Attention of the class token to each patch in the last block: (B, H, N). No gradients."""
        tokens, bias = self.embed(images), self._shared_bias()
        for block in self.blocks[:-1]:
            tokens = block(tokens, **bias)
        weights = _attention_weights(self.blocks[-1], tokens, **bias)
        return weights[:, :, 0, self.prefix_tokens :]

    def _shared_bias(self) -> dict[str, Tensor]:
        """Keyword argument of every block: the relative position bias that they share. {} when there is none."""
        return {} if self.rel_pos_bias is None else {"shared_rel_pos_bias": self.rel_pos_bias()}


def _attention_weights(block: Any, tokens: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    """Attention weights (B, H, P + N, P + N) of one of timm's blocks, which does not return them itself."""
    images, count, width = tokens.shape
    attention = block.attn
    queries_keys = attention.qkv(block.norm1(tokens))[..., : 2 * width]
    if getattr(attention, "q_bias", None) is not None:
        queries_keys = queries_keys + torch.cat([attention.q_bias, attention.k_bias])
    queries, keys = queries_keys.reshape(images, count, 2, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = queries * attention.scale @ keys.transpose(-2, -1)
    if getattr(attention, BIAS_TABLE, None) is not None:
        logits = logits + attention._get_rel_pos_bias()
    if shared_rel_pos_bias is not None:
        logits = logits + shared_rel_pos_bias
    return logits.softmax(dim=-1)


def build(model: Model, recipe: Recipe | None = None, *, mask_token: bool = False, norm: bool = True) -> Backbone:
    """Build the backbone of a stage, with timm's starting weights; `initialise` draws the authors'.

    recipe: dropout, attn_dropout and drop_path; without one they are off.
    mask_token: with a mask token, for pretraining. norm: with the final LayerNorm; without it where nothing would
    read it: before mean pooling and before a segmentation decoder, which have norms of their own.
    BenchError for a model that cannot be built.
    """
    recipe = recipe or Recipe()
    shape = {"img_size": model.image_size, "patch_size": model.patch_size, "num_classes": 0}
    size = {"embed_dim": model.width, "depth": model.depth, "num_heads": model.heads}
    drop = {"pos_drop_rate": recipe.dropout, "proj_drop_rate": recipe.dropout, "attn_drop_rate": recipe.attn_dropout}
    common = {**shape, **size, **drop, "drop_path_rate": recipe.drop_path, "init_values": model.layer_scale or None}
    layers: dict[str, Any] = {"mlp_ratio": model.mlp_ratio, "norm_layer": partial(LayerNorm, eps=model.norm_eps)}
    _check(model)
    trunk = (_build_beit if model.trunk == "beit" else _build_vit)(model, common | layers)
    backbone = Backbone(replace_drop_paths(trunk), mask_token=mask_token, norm=norm)
    backbone.init_std = model.init_std
    return backbone


def _build_beit(model: Model, common: dict[str, Any]) -> Beit:
    return Beit(
        **common,
        global_pool="token",
        use_abs_pos_emb=model.position == "absolute",
        use_rel_pos_bias=model.position == "relative",
        use_shared_rel_pos_bias=model.position == "shared-relative",
    )


def _build_vit(model: Model, common: dict[str, Any]) -> VisionTransformer:
    return (VisionTransformerDistilled if model.distilled else VisionTransformer)(**common, global_pool="token")


def _check(model: Model) -> None:
    """Raise BenchError for a model that cannot be built."""
    if model.trunk not in ("beit", "vit"):
        raise unknown("trunk", model.trunk, ["beit", "vit"])
    if model.width % model.heads:
        raise BenchError(f"width {model.width} does not divide into {model.heads} heads")
    if model.image_size % model.patch_size:
        raise BenchError(f"image_size {model.image_size} does not divide into patches of {model.patch_size} pixels")
    if model.trunk == "beit" and model.distilled:
        raise BenchError("trunk 'beit' has no distillation token; use trunk 'vit', or distilled = false")
    if model.trunk == "vit" and model.position != "absolute":
        raise BenchError(f"trunk 'vit' has no {model.position} positions; use trunk 'beit', or position = 'absolute'")


def convnet(model: Model, recipe: Recipe | None = None, *, pretrained: bool = False) -> nn.Module:
    """Build the timm network that `trunk` = timm:NAME names, with its own classifier: images -> logits (B, C).

    pretrained: with timm's published weights, and then with the classes they were trained on.
    BenchError when timm has no model of that name.
    """
    name = model.trunk.removeprefix(CONVNET)
    if not timm.is_model(name):
        raise BenchError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
    options = dict(model.options)
    if recipe is not None and recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    if recipe is not None and recipe.dropout:
        options["drop_rate"] = recipe.dropout
    if not pretrained:
        options["num_classes"] = model.classes
    return replace_drop_paths(timm.create_model(name, pretrained=pretrained, **options))
