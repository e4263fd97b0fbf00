"""timm's files: Beit, VisionTransformer and VisionTransformerDistilled, whose tensor names are the authors'.

A folder holds `config.json` and `model.safetensors`; timm.create_model("local-dir:FOLDER") reads what is written here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bench.checkpoints.formats import ParsedCheckpoint, Pool, RawCheckpoint, State, authors, purpose_of
from bench.config.schema import Model
from bench.errors import BenchError, parse
from bench.models.backbone import CONVNET

BORROWED = {"beit": "beit_base_patch16_224", "vit": "vit_base_patch16_224", "deit": "deit_base_distilled_patch16_224"}
PRETRAINING = ("lm_head.", "backbone.mask_token")  # which timm's networks do not have
SETTINGS = {"mean": "mean", "std": "std", "crop_pct": "crop_ratio", "interpolation": "interpolation"}  # theirs: ours


def is_timm_checkpoint(weights: RawCheckpoint) -> bool:
    """Whether the folder is one of timm's, by its config.json."""
    return "architecture" in weights.config


def read(weights: RawCheckpoint) -> ParsedCheckpoint:
    """Parse a folder of timm. BenchError for a Vision Transformer that our networks cannot be."""
    network = _build_network(weights)
    if not isinstance(network, Beit | VisionTransformer):
        return _read_convnet(weights, network)
    pool: Pool = "mean" if network.global_pool == "avg" else "token"
    if network.global_pool not in ("avg", "token") or (pool == "mean") is isinstance(network.fc_norm, nn.Identity):
        raise BenchError(f"{weights.name} pools by {network.global_pool!r}, with its norm elsewhere than our networks")
    block: Any = network.blocks[0]
    if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
        raise BenchError(f"{weights.name} has the activation {block.mlp.act}; our networks have the exact GELU")
    parsed = authors.read(weights, heads=block.attn.num_heads)
    settings = weights.config.get("pretrained_cfg", weights.config)
    model = parsed.model.model_copy(
        update={
            "norm_eps": block.norm1.eps,
            "image_size": network.patch_embed.img_size[0],
            "layer_scale": float(getattr(block, "init_values", 0) or parsed.model.layer_scale),
        }
    )
    labels = _labels(weights.config, model.classes)
    return replace(parsed, model=model, pool=pool, preprocessing=preprocessing(settings), labels=labels)


def _read_convnet(weights: RawCheckpoint, network: Any) -> ParsedCheckpoint:
    """Parse a network that is used as it is, with its own classifier, such as a convolutional teacher."""
    settings = weights.config.get("pretrained_cfg", weights.config)
    values = {
        "trunk": f"{CONVNET}{weights.config['architecture']}",
        "classes": network.num_classes,
        "image_size": settings.get("input_size", (3, 224, 224))[-1],
        "options": weights.config.get("model_args", {}),
    }
    model = parse(Model, values, weights.name)
    state = {f"backbone.{name}": value for name, value in weights.state.items()}
    labels = _labels(weights.config, model.classes)
    return ParsedCheckpoint(model, state, preprocessing=preprocessing(settings), labels=labels)


def _labels(config: dict[str, Any], classes: int) -> tuple[str, ...]:
    """Names of the classes, in order; () unless there is one for each."""
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names") or ()
    return tuple(map(str, names)) if not isinstance(names, dict) and len(names) == classes else ()


def _build_network(weights: RawCheckpoint) -> Any:
    """Build the network that a config names, on the meta device."""
    name, arguments = str(weights.config["architecture"]), weights.config.get("model_args", {})
    classes = weights.config.get("num_classes", weights.config.get("pretrained_cfg", {}).get("num_classes", 1000))
    if not timm.is_model(name):
        raise BenchError(f"{weights.name}: this timm ({timm.__version__}) has no architecture {name!r}")
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, **({"num_classes": classes} | arguments))
    return network


def preprocessing(settings: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing of a pretrained_cfg: mean, std, resolution, crop_ratio, interpolation."""
    values = {ours: settings[theirs] for theirs, ours in SETTINGS.items() if settings.get(theirs)}
    return values | ({"resolution": settings["input_size"][-1]} if settings.get("input_size") else {})


def write(
    state: State, model: Model, pool: Pool, *, labels: tuple[str, ...], preprocessing: dict[str, Any]
) -> tuple[State, dict[str, Any]]:
    """The tensors and the config of a folder that timm loads. BenchError when none of its networks is ours."""
    if part := _unsupported(state, model, pool):
        raise BenchError(f"timm has no such network with {part}; `--to authors` writes any network of ours")
    if model.trunk.startswith(CONVNET):
        theirs = {name.removeprefix("backbone."): value for name, value in state.items()}
        arguments: dict[str, Any] = dict(model.options)
    else:
        network = {name: value for name, value in state.items() if not name.startswith(PRETRAINING)}
        theirs, unknown = authors.NAMES.write(network)
        assert not unknown, unknown
        arguments = _arguments(model, "token" if purpose_of(state) == "pretrain" else pool)
    return theirs, _config(model, arguments, labels, preprocessing)


def _config(
    model: Model, arguments: dict[str, Any], labels: tuple[str, ...], preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """config.json. What it does not set has the value of the architecture whose name is borrowed."""
    name = model.trunk.removeprefix(CONVNET)
    settings = {theirs: preprocessing[ours] for theirs, ours in SETTINGS.items() if ours in preprocessing}
    side, transformer = preprocessing.get("resolution", model.image_size), name in BORROWED
    if transformer:
        side = model.image_size
        settings |= {"fixed_input_size": True, "first_conv": "patch_embed.proj"}
        settings["classifier"] = ["head", "head_dist"] if model.distilled else "head"
    return {
        "architecture": BORROWED["deit" if model.distilled else name] if transformer else name,
        "num_classes": model.classes,
        **({"global_pool": arguments["global_pool"]} if transformer else {}),
        "model_args": arguments,
        **({"label_names": list(labels)} if labels else {}),
        "pretrained_cfg": {"num_classes": model.classes, "input_size": [3, side, side], **settings},
    }


def _unsupported(state: State, model: Model, pool: Pool) -> str:
    """A part of our network that timm's networks do not have; '' when there is none."""
    if any(name.startswith("head.representation.") for name in state):
        return "a tanh layer before its classifier (supervised.options.representation = false trains one without)"
    if purpose_of(state) == "segment":
        return "a segmentation decoder"
    if model.distilled and pool == "mean":
        return "a distillation token and mean pooling"
    return f"norm_eps = {model.norm_eps:g} that its config could say" if model.norm_eps != 1e-6 else ""


def _pooling(pool: Pool) -> str:
    return "avg" if pool == "mean" else "token"


def _arguments(model: Model, pool: Pool) -> dict[str, Any]:
    """Arguments of the constructor that differ from those of the architecture whose name is borrowed."""
    arguments = {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "init_values": model.layer_scale,  # 0 for none, since timm ignores an argument of None
        "global_pool": _pooling(pool),
    }
    if model.trunk != "beit":
        return arguments
    return arguments | {
        "use_abs_pos_emb": model.position == "absolute",
        "use_rel_pos_bias": model.position == "relative",
        "use_shared_rel_pos_bias": model.position == "shared-relative",
    }
