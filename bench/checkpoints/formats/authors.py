"""The authors' files: BEiT, data2vec, DeiT, MAE, and, since the tensor names agree, timm's files without a config.

A .pth file holds the weights under `model` (BEiT, data2vec, DeiT, MAE), `module` (DeepSpeed) or `state_dict`
(mmsegmentation). It does not say how many heads there are, nor at which resolution the network works: the first is the
authors' width of 64 a head unless a table of relative biases tells, the second follows from the positions.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from bench.checkpoints.formats import CLASSIFIERS, ParsedCheckpoint, Pool, RawCheckpoint, State, purpose_of, size_name
from bench.checkpoints.formats.key_mapping import Names, with_prefix
from bench.config.schema import SIZES, Model
from bench.errors import BenchError, parse
from bench.models.backbone import BIAS_TABLE
from bench.models.pos_embed import SPECIAL_ROWS, table_grid

TRUNK = ("cls_token", "dist_token", "mask_token", "pos_embed", "patch_embed", "rel_pos_bias", "blocks", "norm")
HEADS = (
    ("head.head", "head"),
    ("head.head_dist", "head_dist"),
    ("head.fc_norm", "fc_norm"),
    ("head.representation.0", "pre_logits.fc"),  # timm 0.3.2, on which DeiT and BEiT build
    ("lm_head", "lm_head"),
)
NAMES = Names((*with_prefix([(name, name) for name in TRUNK], "backbone", ""), *HEADS))
SEGMENTATION = Names(  # of mmsegmentation, with BEiT's pyramid in its backbone
    (
        ("decoder.fpn{}", "backbone.fpn{}"),
        ("decoder.decode_head", "decode_head"),
        ("decoder.auxiliary_head", "auxiliary_head"),
        ("decoder", "decoder"),  # a decoder of ours that they do not have
        ("backbone", "backbone"),
    )
)
BLOCK = re.compile(r"backbone\.blocks\.(\d+)")
INDEX = "relative_position_index"  # a buffer of the authors', computed from the grid
HEAD_WIDTH = 64  # of the authors, tiny to large
CONFIG = "config"  # the key under which a file of ours has its Model


def has_authors_names(weights: RawCheckpoint) -> bool:
    """Whether the tensors are named as the authors and timm name them."""
    return "patch_embed.proj.weight" in weights.state or "backbone.patch_embed.proj.weight" in weights.state


def is_authors_checkpoint(weights: RawCheckpoint) -> bool:
    """Whether a file without a config is the authors' rather than timm's: it has a container or index buffers."""
    return bool(weights.container) or any(name.endswith(INDEX) for name in weights.state)


def read(weights: RawCheckpoint, *, heads: int = 0) -> ParsedCheckpoint:
    """Parse a file of the authors. heads: number of attention heads, where the file does not tell."""
    left = tuple(name for name in weights.state if name.endswith(INDEX))
    if "decoder_embed.weight" in weights.state:  # of MAE, whose mask token is the decoder's
        left += tuple(name for name in weights.state if name.startswith("decoder_") or name == "mask_token")
    table = SEGMENTATION if "backbone.patch_embed.proj.weight" in weights.state else NAMES
    state, unknown = table.read({name: value for name, value in weights.state.items() if name not in left})
    model = infer_model(weights, state, heads=heads)
    return ParsedCheckpoint(model, state, unknown, left, pool_of(state))


def pool_of(state: State) -> Pool:
    """How the head pools: mean pooling has a norm of its own, fc_norm."""
    return "mean" if "head.fc_norm.weight" in state else "token"


def infer_model(weights: RawCheckpoint, state: State, *, heads: int = 0) -> Model:
    """The network of a state under our names, inferred from names and shapes, unless the file says it."""
    if isinstance(weights.facts.get(CONFIG), dict):
        return parse(Model, weights.facts[CONFIG], weights.name)
    try:
        width, patch = state["backbone.cls_token"].shape[-1], state["backbone.patch_embed.proj.weight"].shape[-1]
        hidden = len(state["backbone.blocks.0.mlp.fc1.weight"])
    except KeyError as error:
        raise BenchError(f"{weights.name} lacks {error}, which every transformer of ours has") from None
    depth = 1 + max(int(match[1]) for match in map(BLOCK.match, state) if match)
    heads = heads or _heads(weights, state, width)
    classifier = next((state[name] for name in CLASSIFIERS if name in state), None)
    values = {
        "trunk": "beit" if "backbone.blocks.0.attn.q_bias" in state else "vit",
        "size": size_name(width, depth, heads),
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "image_size": patch * _grid(weights.name, state),
        "patch_size": patch,
        "position": _position(state),
        "layer_scale": _layer_scale(weights, state, width),
        "distilled": "backbone.dist_token" in state,
        "classes": 0 if classifier is None else len(classifier),
        "decoder": "upernet" if CLASSIFIERS[1] in state else "",
    }
    return parse(Model, values, weights.name)


def _heads(weights: RawCheckpoint, state: State, width: int) -> int:
    """Attention heads: from a relative-bias table, a size of the papers, or the authors' width of a head."""
    table = _bias_table(state)
    if table is not None:
        return table.shape[1]
    heads_of_width = {size[0]: size[2] for size in SIZES.values()}
    if width not in heads_of_width and width % HEAD_WIDTH:
        raise BenchError(
            f"{weights.name}: the number of attention heads does not follow from {width} channels; give --heads "
            "(with --to, `bench import` writes a folder that records it, for start_from)"
        )
    return heads_of_width.get(width, width // HEAD_WIDTH)


def _bias_table(state: State) -> torch.Tensor | None:
    return next((value for name, value in state.items() if name.endswith(BIAS_TABLE)), None)


def _position(state: State) -> str:
    if "backbone.pos_embed" in state:
        return "absolute"
    return "shared-relative" if f"backbone.rel_pos_bias.{BIAS_TABLE}" in state else "relative"


def _grid(name: str, state: State) -> int:
    """Patches along one side, from the position embedding or the relative-bias table."""
    table, embedding = _bias_table(state), state.get("backbone.pos_embed")
    if embedding is not None:
        patches = embedding.shape[1] - (2 if "backbone.dist_token" in state else 1)
        side = math.isqrt(patches)
        if side**2 != patches:
            raise BenchError(f"{name}: {embedding.shape[1]} positions are not those of a square and its class token")
        return side
    if table is None:
        raise BenchError(f"{name} has neither position embeddings nor relative biases; our networks have one of them")
    if not is_square(table):
        raise BenchError(f"{name}: {len(table)} relative biases are not those of a square grid and a class token")
    return table_grid(table)


def is_square(table: torch.Tensor) -> bool:
    """Whether a relative-bias table is that of a square grid and a class token."""
    return (2 * table_grid(table) - 1) ** 2 + SPECIAL_ROWS == len(table)


def _layer_scale(weights: RawCheckpoint, state: State, width: int) -> float:
    """Initial value of LayerScale, by the training arguments in the file, else the authors' for the size; 0: none."""
    if not any(name.endswith((".gamma_1", ".ls1.gamma")) for name in state):
        return 0.0
    arguments = vars(weights.facts["args"]) if hasattr(weights.facts.get("args"), "__dict__") else {}
    value = arguments.get("layer_scale_init_value")
    return float(value) if value else (0.1 if width < SIZES["large"][0] else 1e-5)


def write(state: State, model: Model) -> dict[str, Any]:
    """The content of a .pth file: the tensors under the authors' names, and our Model beside them."""
    segments = purpose_of(state) == "segment"
    theirs, unknown = (SEGMENTATION if segments else NAMES).write(state)
    assert not unknown, unknown
    container = "state_dict" if segments else "model"
    return {container: theirs | indices(theirs, model.grid), CONFIG: model.model_dump(mode="json")}


def indices(theirs: State, grid: int) -> State:
    """The index buffers that the authors' networks have beside each relative-bias table."""
    from timm.models.beit import gen_relative_position_index

    tables = [name for name in theirs if name.endswith(BIAS_TABLE)]
    index = gen_relative_position_index((grid, grid)) if tables else torch.empty(0)
    return {name.replace(BIAS_TABLE, INDEX): index.clone() for name in tables}
