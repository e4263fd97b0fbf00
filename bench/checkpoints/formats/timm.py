"""timm's files: Beit, VisionTransformer and VisionTransformerDistilled, whose names are ours and the authors'.

A folder holds `config.json` and `model.safetensors`; timm.create_model("local-dir:FOLDER") reads what is written here.
"""

from __future__ import annotations

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

PLAIN = {"beit": "beit_base_patch16_224", "vit": "vit_base_patch16_224", "deit": "deit_base_distilled_patch16_224"}
UNKNOWN = ("lm_head.", "backbone.mask_token")  # timm goes on from what was pretrained, it does not pretrain
GIVEN = {"mean": "mean", "std": "std", "crop_pct": "crop_ratio", "interpolation": "interpolation"}  # theirs: ours


def recognises(weights: RawCheckpoint) -> bool:
    """Whether the folder is one of timm's."""
    return "architecture" in weights.config


def read(weights: RawCheckpoint) -> ParsedCheckpoint:
    """A folder of timm in our words. BenchError for a Vision Transformer that is none of ours."""
    network = _network(weights)
    if not isinstance(network, Beit | VisionTransformer):
        return _convnet(weights, network)
    pool: Pool = "mean" if network.global_pool == "avg" else "token"
    if network.global_pool not in ("avg", "token") or (pool == "mean") is isinstance(network.fc_norm, nn.Identity):
        raise BenchError(f"{weights.name} pools by {network.global_pool!r}, with its norm elsewhere than our networks")
    block: Any = network.blocks[0]
    if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
        raise BenchError(f"{weights.name} has the activation {block.mlp.act}; our networks have the exact GELU")
    found = authors.read(weights, heads=block.attn.num_heads)
    settings = weights.config.get("pretrained_cfg", weights.config)
    model = found.model.model_copy(
        update={
            "norm_eps": block.norm1.eps,
            "image_size": network.patch_embed.img_size[0],
            "layer_scale": float(getattr(block, "init_values", 0) or found.model.layer_scale),
        }
    )
    labels = _labels(weights.config, model.classes)
    return found._replace(model=model, pool=pool, preprocessing=preprocessing(settings), labels=labels)


def _convnet(weights: RawCheckpoint, network: Any) -> ParsedCheckpoint:
    """A network that is used as it is, with its own classifier, such as a convolutional teacher."""
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
    """Names of the classes, in order; none when they are not there for all."""
    found = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names") or ()
    return tuple(map(str, found)) if not isinstance(found, dict) and len(found) == classes else ()


def _network(weights: RawCheckpoint) -> Any:
    """The network that a config names, without memory for its parameters."""
    name, arguments = str(weights.config["architecture"]), weights.config.get("model_args", {})
    classes = weights.config.get("num_classes", weights.config.get("pretrained_cfg", {}).get("num_classes", 1000))
    if not timm.is_model(name):
        raise BenchError(f"{weights.name}: this timm ({timm.__version__}) has no architecture {name!r}")
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, **({"num_classes": classes} | arguments))
    return network


def preprocessing(settings: dict[str, Any]) -> dict[str, Any]:
    """How timm's settings prepare a picture: mean, std, resolution, crop_ratio, interpolation."""
    found = {ours: settings[theirs] for theirs, ours in GIVEN.items() if settings.get(theirs)}
    return found | ({"resolution": settings["input_size"][-1]} if settings.get("input_size") else {})


def write(
    state: State, model: Model, pool: Pool, *, labels: tuple[str, ...], preprocessing: dict[str, Any]
) -> tuple[State, dict[str, Any]]:
    """The tensors and the config of a folder that timm loads. BenchError when none of its networks is ours."""
    if lacking := _lacking(state, model, pool):
        raise BenchError(f"timm has no such network with {lacking}; `--to authors` writes any network of ours")
    if model.trunk.startswith(CONVNET):
        theirs = {name.removeprefix("backbone."): value for name, value in state.items()}
        arguments: dict[str, Any] = dict(model.options)
    else:
        kept = {name: value for name, value in state.items() if not name.startswith(UNKNOWN)}
        theirs, strange = authors.NAMES.write(kept)
        assert not strange, strange
        arguments = _arguments(model, "token" if purpose_of(state) == "pretrain" else pool)
    return theirs, _config(model, arguments, labels, preprocessing)


def _config(
    model: Model, arguments: dict[str, Any], labels: tuple[str, ...], preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """What config.json says. What it does not say is as the architecture has it that lends its name."""
    own = model.trunk.removeprefix(CONVNET)
    settings = {theirs: preprocessing[ours] for theirs, ours in GIVEN.items() if ours in preprocessing}
    side, transformer = preprocessing.get("resolution", model.image_size), own in PLAIN
    if transformer:
        side = model.image_size
        settings |= {"fixed_input_size": True, "first_conv": "patch_embed.proj"}
        settings["classifier"] = ["head", "head_dist"] if model.distilled else "head"
    return {
        "architecture": PLAIN["deit" if model.distilled else own] if transformer else own,
        "num_classes": model.classes,
        **({"global_pool": arguments["global_pool"]} if transformer else {}),
        "model_args": arguments,
        **({"label_names": list(labels)} if labels else {}),
        "pretrained_cfg": {"num_classes": model.classes, "input_size": [3, side, side], **settings},
    }


def _lacking(state: State, model: Model, pool: Pool) -> str:
    """What our network has and timm's have not; '' when nothing."""
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
    """Arguments of the constructor, which are not those of the architecture that lends its name."""
    found = {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "init_values": model.layer_scale,  # 0: none; timm passes over an argument that is None
        "global_pool": _pooling(pool),
    }
    if model.trunk != "beit":
        return found
    return found | {
        "use_abs_pos_emb": model.position == "absolute",
        "use_rel_pos_bias": model.position == "relative",
        "use_shared_rel_pos_bias": model.position == "shared-relative",
    }
