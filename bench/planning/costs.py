"""Costs of a stage before it runs, in closed form: parameters, FLOPs, memory, disk.

Letters: D width, T tokens. FLOPs count 2 per multiply-add of matrix products and convolutions, as torch's flop counter
does; a training step is 3 forward passes: 1 forward, 2 backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from bench.config.resolve import steps_of
from bench.config.schema import Model
from bench.config.stage import Stage

Layer = tuple[int, int, int, int, bool]  # channels in, channels out, kernel size, output size, bias (else a norm)
CONVNET = "timm:"  # prefix of the trunk of a convolutional teacher
SETR_CHANNELS, AUXILIARY_CHANNELS = 256, 256
DALLE_WORDS = 8192  # P-DALL-E section 2.1
BACKWARD = 2  # cost of a backward pass, in forward passes
ADAM_BYTES = 16  # per trained parameter: weight, gradient, two moments, in fp32
EVALUATION_BATCH = 64  # images
PREDICTION_BYTES = 4e3  # that an evaluation stores per image
PROCESS_BYTES = 700e6  # torch and its libraries, before any tensor


class Cost(NamedTuple):
    """The costs of one stage."""

    steps: int
    images: int  # processed over all epochs
    parameters: int
    flops: float
    memory: float  # bytes on the device, for the whole batch in one process
    disk: float  # bytes of the run folder, checkpoints included


class Network(NamedTuple):
    """The size of a network."""

    parameters: int
    flops: float  # of the forward pass of one image


def cost(stage: Stage, stages: Mapping[str, Stage]) -> Cost:
    """The cost of a stage of a plan; `stages` holds its parents."""
    if stage.recipe is None:
        images = stage.data["val"].images
        net = network(stages[stage.parents["model"]] if stage.parents else stage, stages)
        memory = _memory(stage, net, EVALUATION_BATCH, trains=False)
        return Cost(0, images, net.parameters, images * net.flops, memory, PREDICTION_BYTES * images)
    steps = steps_of(stage)
    images = steps * stage.recipe.batch_size
    net = network(stage, stages)
    flops = images * ((1 + BACKWARD) * net.flops + helper_flops(stage, stages))
    memory = _memory(stage, net, stage.recipe.batch_size, trains=True)
    ema = 1 if stage.recipe.model_ema or _has_ema_teacher(stage) else 0
    # In fp32: two checkpoints of weights, two moments and the EMA; the final weights and the EMA.
    disk = 4.0 * net.parameters * (2 * (3 + ema) + 1 + ema)
    return Cost(steps, images, net.parameters, flops, memory, disk)


def helper_flops(stage: Stage, stages: Mapping[str, Stage]) -> float:
    """FLOPs per image of the networks that only run forward: teacher, tokenizer, EMA teacher."""
    helpers = [stages[stage.parents[role]] for role in ("teacher", "tokenizer") if role in stage.parents]
    total = sum(_inference_network(helper, stages).flops for helper in helpers) + _pretrained_helper_flops(stage)
    return total + (trunk(stage.model).flops if _has_ema_teacher(stage) else 0.0)


def _pretrained_helper_flops(stage: Stage) -> float:
    """FLOPs per image of a tokenizer or teacher that is downloaded, not trained."""
    name = str(stage.options.get("tokenizer", "none"))
    if stage.kind == "pretrain" and name not in ("none", "trained"):
        return dalle(stage.model.grid).flops
    name = str(stage.options.get("teacher", "stage"))
    if stage.kind == "supervised" and name != "stage" and stage.options.get("distillation") != "none":
        return _convnet(name, stage.model.classes, stage.model.image_size).flops
    return 0.0


def dalle(grid: int) -> Network:
    """DALL-E's encoder for grid x grid visual tokens: four groups of two blocks, each group wider and at half the side.

    Source: openai/DALL-E, encoder.py (group_count 4, n_hid 256, n_blk_per_group 2).
    """
    width, side = 256, 8 * grid
    layers: list[Layer] = [(3, width, 7, side, True)]
    for group in range(4):
        out, before = width << group, width << max(group - 1, 0)
        for block, into in enumerate((before, out)):
            inner, at = out // 4, side >> group
            layers += [(into, inner, 3, at, True), *[(inner, inner, 3, at, True)] * 2, (inner, out, 1, at, True)]
            layers += [(into, out, 1, at, True)] if block == 0 and into != out else []
    return _convolutional([*layers, (8 * width, DALLE_WORDS, 1, grid, True)])


def network(stage: Stage, stages: Mapping[str, Stage]) -> Network:
    """The network that a stage trains, with its head; `stages` holds its parents."""
    model = stage.model
    if model.trunk.startswith(CONVNET):
        return _convnet(model.trunk.removeprefix(CONVNET), model.classes, model.image_size)
    if stage.kind == "tokenizer":
        return _tokenizer(model, int(stage.options["words"]), int(stage.options["width"]), whole=True)
    body, head = trunk(model), _head(stage, stages)
    return Network(body.parameters + head.parameters, body.flops + head.flops)


def trunk(model: Model) -> Network:
    """The backbone without head and final norm. Source: P-ViT section 3.1; BEiT modeling_pretrain.py."""
    width, patches = model.width, model.grid**2
    tokens = patches + (2 if model.distilled else 1)
    table = ((2 * model.grid - 1) ** 2 + 3) * model.heads  # relative positions; 3 more for the class token
    qkv_bias = (2 if model.trunk == "beit" else 3) * width  # BEiT's keys have none
    wide = round(model.mlp_ratio * width)
    block = 4 * width**2 + 2 * wide * width  # qkv, projection, two layers of the MLP
    block += qkv_bias + 2 * width + wide + 4 * width  # their biases; two norms
    block += 2 * width if model.layer_scale else 0
    block += table if model.position == "relative" else 0
    parameters = model.depth * block + 3 * model.patch_size**2 * width + width  # and the patch projection
    parameters += (2 if model.distilled else 1) * width  # class and distillation token
    parameters += tokens * width if model.position == "absolute" else 0
    parameters += table if model.position == "shared-relative" else 0
    flops = model.depth * tokens * width * (8 * width + 4 * wide + 4 * tokens)
    flops += 6 * patches * model.patch_size**2 * width
    return Network(parameters, float(flops))


def _head(stage: Stage, stages: Mapping[str, Stage]) -> Network:
    """The head of a stage: norm and linear layers, or a segmentation decoder."""
    model, width = stage.model, stage.model.width
    norm = 2 * width
    if stage.kind == "pretrain":
        out = _outputs_per_patch(stage, stages)
        all_patches = stage.options.get("recover") == "all"
        hidden = model.grid**2 * (1.0 if all_patches else float(stage.options.get("hidden_fraction", 0.5)))
        return Network(width + norm + (width + 1) * out, 2 * hidden * width * out)  # with the mask token
    if model.decoder:
        return _convolutional(_upernet(model)) if model.decoder == "upernet" else _from_last_block(model)
    heads = 2 if model.distilled else 1
    before = width if stage.options.get("representation") else 0  # a hidden layer before the classifier
    parameters = norm + (width + 1) * before + heads * (width + 1) * model.classes
    return Network(parameters, 2.0 * width * (before + heads * model.classes))


def _from_last_block(model: Model) -> Network:
    """A decoder of the last block alone: norm, SETR-PUP's convolutions with a norm each, a linear layer per pixel."""
    width, side, channels = model.width, model.grid, model.width
    layers: list[Layer] = []
    if model.decoder == "setr-pup":
        for step in range((model.patch_size - 1).bit_length()):
            layers.append((channels, SETR_CHANNELS, 3, model.grid << step, False))
            channels, side = SETR_CHANNELS, model.grid << step + 1
    decoder = _convolutional([*layers, (channels, model.classes, 1, side, True)])
    return decoder._replace(parameters=decoder.parameters + 2 * width)


def _upernet(model: Model) -> list[Layer]:
    """The layers of models/upernet.py with its auxiliary head."""
    width, sides = model.width, [model.image_size // stride for stride in (4, 8, 16, 32)]
    pooled: list[Layer] = [(width, width, 1, side, False) for side in (1, 2, 3, 6)]
    joins: list[Layer] = [(5 * width, width, 3, sides[3], False), (4 * width, width, 3, sides[0], False)]
    levels: list[Layer] = [(width, width, kernel, side, False) for kernel in (1, 3) for side in sides[:3]]
    heads: list[Layer] = [(width, model.classes, 1, sides[0], True), (width, AUXILIARY_CHANNELS, 3, sides[2], False)]
    heads.append((AUXILIARY_CHANNELS, model.classes, 1, sides[2], True))
    doublings = [model.grid << step for finest in sides[:2] for step in range((finest // model.grid).bit_length() - 1)]
    # A transposed convolution of kernel 2 and stride 2 costs as much as a convolution of its input size.
    raised: list[Layer] = [(width, width, 2, side, True) for side in doublings]
    between = sum(max(0, (finest // model.grid).bit_length() - 2) for finest in sides[:2])
    norms: list[Layer] = [(0, width, 1, 0, False)] * between
    return [*pooled, *joins, *levels, *heads, *raised, *norms]


def _convolutional(layers: list[Layer]) -> Network:
    """A network of convolutions, each followed by a bias or a norm."""
    parameters = sum(a * b * k * k + (b if bias else 2 * b) for a, b, k, _, bias in layers)
    return Network(parameters, float(sum(2 * a * b * k * k * side**2 for a, b, k, side, _ in layers)))


def _outputs_per_patch(stage: Stage, stages: Mapping[str, Stage]) -> int:
    """The outputs of a pretraining head per patch: a logit per visual token, the pixels, or features."""
    if "tokenizer" in stage.parents:
        return int(stages[stage.parents["tokenizer"]].options["words"])
    kind = stage.options.get("tokenizer")
    if kind == "none":
        return 3 * stage.model.patch_size**2
    return DALLE_WORDS if kind else stage.model.width


def _inference_network(stage: Stage, stages: Mapping[str, Stage]) -> Network:
    """The part of a helper network that runs in training: of a tokenizer, only the encoder."""
    if stage.kind == "tokenizer":
        return _tokenizer(stage.model, int(stage.options["words"]), int(stage.options["width"]), whole=False)
    return network(stage, stages)


def _tokenizer(model: Model, words: int, width: int, whole: bool) -> Network:
    """The discrete VAE; whole: with codebook and decoder. Layers are (channels in, out, kernel size, output size)."""
    halvings = (model.patch_size // 2).bit_length() - 1
    widths = [3, *(max(width >> (halvings - 1 - level), 16) for level in range(halvings))]
    sides = [model.grid * 2 ** (halvings - 1 - level) for level in range(halvings)]
    halve = [(a, b, 4, side) for a, b, side in zip(widths, widths[1:], sides, strict=False)]
    mix = [(width, width, 3, model.grid), (width, width, 1, model.grid)] * 2
    layers = [*halve, *mix, (width, words, 1, model.grid)]
    parameters = sum(a * b * k * k + b for a, b, k, _ in layers) + 2 * width
    flops = sum(2 * a * b * k * k * side**2 for a, b, k, side in layers)
    if whole:  # the codebook has no bias; the decoder mirrors the encoder
        double = [(b, a, 4, side) for a, b, _, side in halve]
        parameters += words * width + sum(a * b * k * k + b for a, b, k, _ in [*mix, *double])
        flops += 2 * words * width * model.grid**2
        flops += sum(2 * a * b * k * k * side**2 for a, b, k, side in [*mix, *double])
    return Network(parameters, float(flops))


@lru_cache(maxsize=8)
def _convnet(name: str, classes: int, image_size: int) -> Network:
    """A timm model, counted on the meta device: without allocating weights."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, num_classes=classes)
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    return Network(sum(p.numel() for p in model.parameters()), float(counter.get_total_flops()))


def _has_ema_teacher(stage: Stage) -> bool:
    """Whether the targets come from an EMA of the student (data2vec), which runs forward on every image."""
    return "decay" in stage.options


def _memory(stage: Stage, net: Network, images: int, trains: bool) -> float:
    """Bytes on the device. Activations of a block: 34 T D + 5 heads T^2 in 16 bit (Korthikanti et al., 2205.05198)."""
    model = stage.model
    if model.trunk.startswith(CONVNET) or stage.kind == "tokenizer":
        return PROCESS_BYTES + ADAM_BYTES * net.parameters + images * 40 * model.image_size**2 * 4.0
    tokens = model.grid**2 + 1
    words = 2 if stage.recipe is not None and stage.recipe.precision == "fp32" else 1  # of 16 bit per number
    block = words * (34 * tokens * model.width + 5 * model.heads * tokens**2)
    activations = images * block * (model.depth if trains else 1)  # without a backward pass, one block at a time
    return PROCESS_BYTES + (ADAM_BYTES if trains else 4) * net.parameters + activations
