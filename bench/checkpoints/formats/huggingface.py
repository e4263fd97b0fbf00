"""Hugging Face folders of transformers: ViT, DeiT, BEiT, Data2VecVision, and ViTMAE's encoder.

The tensor names are those that transformers writes to disk, the same in all its versions so far. transformers itself is
not needed: a folder is `config.json` and `model.safetensors`.

Of its architectures, BEiT is the most general: a ViT with mean pooling or LayerScale is written as one. It has no bias
on keys, which adds the same to all logits of a query and so changes nothing.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from bench.checkpoints.formats import (
    CLASSIFIERS,
    ParsedCheckpoint,
    Pool,
    Purpose,
    RawCheckpoint,
    State,
    purpose_of,
    size_name,
)
from bench.checkpoints.formats.key_mapping import Names, Pair, fuse_qkv, split_qkv, with_prefix
from bench.config.schema import Model
from bench.errors import BenchError, parse, unknown
from bench.models.upernet import pyramid_layers

log = logging.getLogger(__name__)

BLOCK: tuple[Pair, ...] = (
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.q", "attention.attention.query"),
    ("attn.k", "attention.attention.key"),
    ("attn.v", "attention.attention.value"),
    ("attn.proj", "attention.output.dense"),
    ("attn.relative_position_bias_table", "attention.attention.relative_position_bias.relative_position_bias_table"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("gamma_1", "lambda_1"),
    ("gamma_2", "lambda_2"),
    ("ls1.gamma", "lambda_1"),  # of a ViT
    ("ls2.gamma", "lambda_2"),
)
TRUNK: tuple[Pair, ...] = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("rel_pos_bias", "encoder.relative_position_bias"),
    *with_prefix(BLOCK, "blocks.{}", "encoder.layer.{}"),
    ("norm", "layernorm"),
)
POOLER: tuple[Pair, ...] = (("head.fc_norm", "pooler.layernorm"), ("head.representation.0", "pooler.dense"))
HEADS: tuple[Pair, ...] = (
    ("head.head", "classifier"),
    ("head.head_dist", "distillation_classifier"),
    ("lm_head", "lm_head"),
)
DECODER: tuple[Pair, ...] = (  # BEiT's, mmsegmentation's names but for the classifiers
    ("decoder.fpn{}", "fpn{}"),
    ("decoder.decode_head.conv_seg", "decode_head.classifier"),
    ("decoder.auxiliary_head.conv_seg", "auxiliary_head.classifier"),
    ("decoder.decode_head", "decode_head"),
    ("decoder.auxiliary_head", "auxiliary_head"),
)
CONVOLUTIONS: tuple[Pair, ...] = (  # Data2VecVision's
    ("decode_head.psp_modules.{}.1", "decode_head.psp_modules.blocks.{}.conv"),
    ("decode_head.bottleneck", "decode_head.psp_bottleneck"),
    ("decode_head.lateral_convs.{}", "decode_head.lateral_convs.{}"),
    ("decode_head.fpn_convs.{}", "decode_head.fpn_convs.{}"),
    ("decode_head.fpn_bottleneck", "decode_head.fpn_bottleneck"),
    ("auxiliary_head.convs.{}", "auxiliary_head.convs.{}"),
)
PARTS: tuple[Pair, ...] = (("conv", "convolution"), ("bn", "normalization"))  # of each
HEAD_NAMES = ("classifier.weight", "cls_classifier.weight", "decode_head.classifier.weight")
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
POSITIONS = {
    "absolute": "use_absolute_position_embeddings",
    "relative": "use_relative_position_bias",
    "shared-relative": "use_shared_relative_position_bias",
}
OTHERS = "`--to authors` writes any network of ours"
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}  # transformers' defaults
FIXED = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True}  # of all our networks


class Kind(NamedTuple):
    """One of transformers' architectures."""

    base: str  # name of the trunk inside a model with a head
    trunk: str
    name: str  # at the beginning of its classes


KINDS = {
    "vit": Kind("vit", "vit", "ViT"),
    "deit": Kind("deit", "vit", "DeiT"),
    "beit": Kind("beit", "beit", "Beit"),
    "data2vec-vision": Kind("data2vec_vision", "beit", "Data2VecVision"),
    "vit_mae": Kind("vit", "vit", "ViTMAE"),
}
# transformers has the network of trunk "beit" twice, each under the name of the method that trained the published one.
ARCHITECTURE_OF_METHOD = {"data2vec": "data2vec-vision"}


def is_transformers_checkpoint(weights: RawCheckpoint) -> bool:
    """Whether the folder is one of transformers', by its config.json."""
    return "model_type" in weights.config and "architecture" not in weights.config


def name_table(kind: Kind, *, base: str, masked: bool, distilled: bool) -> Names:
    """The names of an architecture. base: prefix of the trunk, '' for a trunk alone; masked: with an MIM head."""
    trunk = with_prefix(TRUNK, "backbone", base)
    top = [("backbone.norm", "layernorm")] if masked else []
    head = [("head.head", "cls_classifier")] if distilled else []
    pooler = [(ours, f"{base}.{theirs}".lstrip(".")) for ours, theirs in POOLER]
    return Names((*top, *head, *trunk, *HEADS, *pooler, *_decoder_names(kind)))


def _decoder_names(kind: Kind) -> tuple[Pair, ...]:
    """UPerNet's names. The two architectures are one network; older files of either have BEiT's names."""
    if kind.name == "Beit":
        return DECODER
    renamed = [pair for ours, theirs in CONVOLUTIONS for pair in with_prefix(PARTS, f"decoder.{ours}", theirs)]
    return (*renamed, *DECODER)


def read(weights: RawCheckpoint) -> ParsedCheckpoint:
    """Parse a folder of transformers. BenchError for an architecture or a configuration that we do not have."""
    config = weights.config
    kind = _architecture_of(weights)
    base = kind.base if any(name.startswith(f"{kind.base}.") for name in weights.state) else ""
    table = name_table(
        kind,
        base=base,
        masked=base != "" and "layernorm.weight" in weights.state,
        distilled="cls_classifier.weight" in weights.state,
    )
    left = tuple(name for name in weights.state if _is_unused(name, kind))
    state, unknown_names = table.read({name: value for name, value in weights.state.items() if name not in left})
    state = fuse_qkv(state, key_bias=kind.trunk == "vit")
    model = _model(weights.name, config, kind, state)
    pool: Pool = "mean" if kind.trunk == "beit" and config.get("use_mean_pooling", True) else "token"
    return ParsedCheckpoint(
        model,
        state,
        unknown=unknown_names,
        left=left,
        pool=pool,
        preprocessing=preprocessing(weights.preprocessor),
        labels=_labels(config, model),
    )


def _architecture_of(weights: RawCheckpoint) -> Kind:
    model_type = weights.config["model_type"]
    if model_type not in KINDS:
        raise unknown("architecture in transformers that bench reads", model_type, KINDS)
    return KINDS[model_type]


def _is_unused(name: str, kind: Kind) -> bool:
    """Whether it is an index buffer of an old file, or in the decoder of ViTMAE."""
    return name.endswith("relative_position_index") or (kind.name == "ViTMAE" and name.startswith("decoder."))


def _model(name: str, config: dict[str, Any], kind: Kind, state: State) -> Model:
    """The Model of a config. BenchError for what our networks cannot be."""
    values = {key: config.get(key, value) for key, value in FIXED.items()}
    wrong = [f"{key} = {values[key]!r} instead of {value!r}" for key, value in FIXED.items() if values[key] != value]
    width, depth, heads = (config.get(key, value) for key, value in BASE.items())
    if wrong:
        raise BenchError(f"{name}: config.json has {', '.join(wrong)}, which our networks cannot be")
    classifier = next((state[key] for key in CLASSIFIERS if key in state), None)
    segments = CLASSIFIERS[1] in state
    if segments:
        _check_pyramid(name, config, depth)
    values = {
        "trunk": kind.trunk,
        "size": size_name(width, depth, heads),
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": config.get("intermediate_size", 4 * width) / width,
        "image_size": _side(name, config.get("image_size", 224)),
        "patch_size": _side(name, config.get("patch_size", 16)),
        "position": _position(name, config) if kind.trunk == "beit" else "absolute",
        "layer_scale": config.get("layer_scale_init_value", 0.1) if kind.trunk == "beit" else 0.0,
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "distilled": kind.name == "DeiT",
        "classes": 0 if classifier is None else len(classifier),
        "decoder": "upernet" if segments else "",
    }
    return parse(Model, values, name)


def _side(name: str, size: Any) -> int:
    sides = {*size} if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise BenchError(f"{name}: config.json has a size of {size}; our images and patches are square")
    return int(sides.pop())


def _position(name: str, config: dict[str, Any]) -> str:
    positions = [position for position, flag in POSITIONS.items() if config.get(flag, False)]
    if len(positions) != 1:
        count, flags = len(positions) or "none", ", ".join(POSITIONS.values())
        raise BenchError(f"{name}: config.json has {count} of {flags}; our networks have one of them")
    return positions[0]


def _check_pyramid(name: str, config: dict[str, Any], depth: int) -> None:
    """Raise BenchError unless the pyramid reads the blocks that ours reads.

    transformers' feature k is the output of block k - 2 (from 0). A config that lists the authors' own numbers, as
    those of the published ADE20K models do, is taken at the authors' word, although transformers then reads others.
    """
    out_indices, ours = list(config.get("out_indices") or ()), list(pyramid_layers(depth))
    theirs = [number - 2 for number in out_indices]
    if theirs == ours:
        return
    if out_indices != ours:
        raise BenchError(
            f"{name}: its pyramid reads blocks {theirs} (from 0; out_indices = {out_indices}), "
            f"that of our UPerNet {ours}"
        )
    log.warning(
        "%s: out_indices = %s are taken as the authors' blocks (from 0), on which the published weights were trained; "
        "transformers reads %s with them, so its answers differ",
        name,
        out_indices,
        theirs,
    )


def _labels(config: dict[str, Any], model: Model) -> tuple[str, ...]:
    """Names of the classes, in order; () when they are only numbered."""
    by_number = {int(number): str(label) for number, label in config.get("id2label", {}).items()}
    if len(by_number) != model.classes or all(label.startswith("LABEL_") for label in by_number.values()):
        return ()
    return tuple(by_number[number] for number in sorted(by_number))


def preprocessing(settings: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing of a preprocessor_config.json: mean, std, resolution, crop_ratio, interpolation, whole.

    whole: both sides are resized to the same length, as they are unless the config names the shortest edge.
    """
    crops = bool(settings.get("do_center_crop", False))
    size, crop = _length(settings.get("size")), _length(settings.get("crop_size"))
    values = {
        "mean": settings.get("image_mean"),
        "std": settings.get("image_std"),
        "resolution": crop if crops and crop else size,
        "crop_ratio": crop / size if crops and crop and size else (1.0 if size else None),
        "interpolation": RESAMPLE.get(settings.get("resample", 0)),
        "whole": True if size and "shortest_edge" not in str(settings["size"]) else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _length(size: Any) -> int | None:
    """The side in {"height": 224, "width": 224}, {"shortest_edge": 256} or 224."""
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else None


def write(
    state: State, model: Model, pool: Pool, *, method: str, labels: tuple[str, ...]
) -> tuple[State, dict[str, Any]]:
    """The tensors and the config of a folder that transformers loads and that has the same outputs.

    method: that trained the network; of two equal architectures the one named after it is written.
    BenchError when none of its networks is ours, with what would work.
    """
    purpose, key = purpose_of(state), architecture(state, model, pool, method=method)
    kind, masked = KINDS[key], purpose == "pretrain" and key == "beit"
    table = name_table(
        kind,
        base=kind.base if masked or purpose != "pretrain" else "",
        masked=masked,
        distilled=model.distilled and purpose == "classify",
    )
    split = split_qkv(state)
    if kind.trunk == "beit":
        split = {name: value for name, value in split.items() if not name.endswith(".attn.k.bias")}
    if purpose == "pretrain" and not masked:
        split = {name: value for name, value in split.items() if not name.startswith("lm_head.")}
    theirs, unknown_names = table.write(split)
    if unknown_names:
        raise BenchError(f"transformers has no place for {', '.join(unknown_names[:5])}; {OTHERS}")
    architectures = [_class_name(kind, purpose, model, masked)]
    config = _config(model, kind) | _label_config(theirs, labels) | {"architectures": architectures}
    if kind.trunk == "beit":
        alone = purpose == "pretrain" and not masked  # the trunk's own norm is read
        config |= _beit_config(state, model, mean=not alone and (purpose != "classify" or pool == "mean"))
    if purpose == "segment":
        config["out_indices"] = [block + 2 for block in pyramid_layers(model.depth)]
    return theirs, {"model_type": key, **config}


def architecture(state: State, model: Model, pool: Pool, *, method: str) -> str:
    """The `model_type` in transformers of the network that computes what ours does. BenchError when there is none."""
    if any(name.startswith("head.representation.") for name in state):
        raise BenchError(
            "no network in transformers has a tanh layer before its classifier, as this ViT has "
            "(supervised.options.representation = false trains one without, so does vit:strong); " + OTHERS
        )
    if purpose_of(state) == "segment":
        return _segmentation_architecture(model)
    if model.trunk == "beit":
        return ARCHITECTURE_OF_METHOD.get(method, "beit")
    if "backbone.mask_token" in state or pool == "mean" or model.layer_scale:
        if model.distilled:
            raise BenchError(f"transformers' DeiT has neither mean pooling, LayerScale nor mask token; {OTHERS}")
        return "beit"
    return "deit" if model.distilled else "vit"


def _segmentation_architecture(model: Model) -> str:
    """Data2VecVision, which computes what BEiT does and whose pyramid may read the last block, as the authors' does."""
    wrong = {
        f"decoder {model.decoder!r}": model.decoder != "upernet",
        "a distillation token": model.distilled,
        f"patches of {model.patch_size} pixels instead of 16": model.patch_size != 16,
        f"{model.depth} blocks, too few for a pyramid of four": len(set(pyramid_layers(model.depth))) < 4,
    }
    if parts := [part for part, is_so in wrong.items() if is_so]:
        raise BenchError(f"transformers has no segmentation network with {' and '.join(parts)}; {OTHERS}")
    return "data2vec-vision"


def _class_name(kind: Kind, purpose: Purpose, model: Model, masked: bool) -> str:
    if purpose == "classify":
        return f"{kind.name}ForImageClassification" + ("WithTeacher" if model.distilled else "")
    if purpose == "segment":
        return f"{kind.name}ForSemanticSegmentation"
    return f"{kind.name}ForMaskedImageModeling" if masked else f"{kind.name}Model"


def _config(model: Model, kind: Kind) -> dict[str, Any]:
    """The part of config.json that all architectures have. Dropout is off: the network is trained already."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.mlp_ratio * model.width),
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        **{key: value for key, value in FIXED.items() if key != "qkv_bias" or kind.trunk == "vit"},
    }


def _beit_config(state: State, model: Model, *, mean: bool) -> dict[str, Any]:
    """The further part of the configs of BEiT and Data2VecVision."""
    lm_head = state.get("lm_head.weight")
    return {
        "use_mask_token": "backbone.mask_token" in state,
        **{flag: model.position == position for position, flag in POSITIONS.items()},
        "layer_scale_init_value": model.layer_scale,
        "use_mean_pooling": mean,
        "drop_path_rate": 0.0,
        **({} if lm_head is None else {"vocab_size": len(lm_head)}),
    }


def _label_config(theirs: State, labels: tuple[str, ...]) -> dict[str, Any]:
    """Names of the classes by number and the reverse; LABEL_0 and so on where they have none."""
    head = next((theirs[name] for name in HEAD_NAMES if name in theirs), None)
    if head is None:
        return {}
    names = labels if len(set(labels)) == len(head) else tuple(f"LABEL_{number}" for number in range(len(head)))
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
