"""Tokenizers: images as words of a codebook, one word for each patch of the backbone.

BEiT shows its tokenizer the picture at half the size, so a word covers patch_size / 2 pixels of that view.
Two kinds: DALL-E's published encoder, and a small discrete VAE of ours that a study trains for itself.
Shapes: B images of side s, g = s / stride words along a side, V words in the codebook.

Departs from the reference (DALL-E, arXiv 2102.12092): our VAE is smaller and learns the squared error instead of a
logit-Laplace likelihood; its temperature falls and its ramp rises over fractions of the training.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.objective import Batch, Objective, arrays, count
from bench.seeds import derive
from bench.spec import BenchError, Model, Scalar, Stage, unknown
from bench.transforms import View, to_unit, two_views

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = get_args(Precision)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
AGREEMENT = 0.999  # share of words that a reduced precision must leave as they are
EDGE = 0.1  # of [0, 1], in which DALL-E's likelihood has no pixels
DALLE = "facebook/flava-image-codebook"  # DALL-E's encoder on the Hugging Face hub
CONVERT = (
    "convert it once where you trust it, with OpenAI's package beside torch (pip install dall-e):\n"
    '  python -c "import torch; from safetensors.torch import save_file; '
    "e = torch.load('encoder.pkl', 'cpu', weights_only=False); "
    "save_file({k: v.float().contiguous() for k, v in e.state_dict().items()}, 'encoder.safetensors')\"\n"
    "and name encoder.safetensors instead"
)


class Tokenizer(nn.Module):
    """Turns images into words: the argmax over the codebook at every place."""

    words: int
    stride: int  # pixels along the side of a word
    precision: Precision = "fp32"

    def set_precision(self, precision: str) -> None:
        """Compute all but the last layer in this precision. BenchError for one that does not exist."""
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        self.precision = cast(Precision, precision)

    def features(self, images: Tensor) -> Tensor:
        """All of the encoder but its last layer."""
        raise NotImplementedError

    def scores(self, features: Tensor) -> Tensor:
        """The last layer: (B, V, g, g)."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """How well each word fits at each place, for images in [0, 1]: (B, V, g, g)."""
        return self.scores(self.features(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Words of images in [0, 1], row by row: (B, g * g) int64.

        The last layer always runs in fp32, like DALL-E's own, and fp32 is never TF32: words would change.
        """
        kind, dtype = images.device.type, DTYPES.get(self.precision)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
                features = self.features(images.float())
            with torch.autocast(kind, enabled=False):
                return self.scores(features.float()).argmax(dim=1).flatten(1)


def agreement(tokenizer: Tokenizer, images: Tensor) -> float:
    """The share of words of `images` that are the same as in fp32."""
    reduced, chosen = tokenizer.encode(images), tokenizer.precision
    try:
        tokenizer.precision = "fp32"
        return float((reduced == tokenizer.encode(images)).float().mean())
    finally:
        tokenizer.precision = chosen


def check_agreement(tokenizer: Tokenizer, images: Tensor) -> None:
    """BenchError when the tokenizer's precision changes more than one word in a thousand."""
    if tokenizer.precision == "fp32":
        return
    share = agreement(tokenizer, images)
    if share < AGREEMENT:
        raise BenchError(
            f"tokenizer_precision = {tokenizer.precision!r}: {share:.2%} of the words are those of fp32, "
            f"{AGREEMENT:.1%} must be; tokenizer_precision = 'fp32' always works"
        )


class DalleTokenizer(Tokenizer):
    """DALL-E's encoder: 8,192 words of 8 pixels. Source: openai/DALL-E; P-BEiT section 2.1.

    codebook: transformers' FlavaImageCodebook, which has the same weights under other names.
    """

    stride = 8
    blocks: Any

    def __init__(self, codebook: Any) -> None:
        super().__init__()
        self.blocks = codebook.blocks
        self.words: int = codebook.config.vocab_size

    @classmethod
    def load(cls, name: str) -> DalleTokenizer:
        """From a folder, a name on the hub, or OpenAI's encoder as safetensors.

        BenchError says what to fetch when it cannot be had, and how to convert OpenAI's pickle.
        """
        from transformers import FlavaImageCodebook

        if name.endswith(".pkl"):
            raise BenchError(f"tokenizer {name!r} is a pickle, which may run any code when it is read; {CONVERT}")
        if name.endswith(".safetensors"):
            return cls(_openai(Path(name)))

        advice = (
            f"Without a network: run `hf download {DALLE} --local-dir FOLDER` on a machine that has one, "
            "and name FOLDER instead"
        )
        if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            raise BenchError(f"tokenizer {name!r}: no such folder; 'trained' trains one, {DALLE!r} is DALL-E's")
        try:
            codebook, found = FlavaImageCodebook.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise BenchError(f"tokenizer {name!r}: {str(error).splitlines()[0]}. {advice}") from None
        if found["missing_keys"]:
            raise BenchError(f"tokenizer {name!r} is not DALL-E's encoder: it lacks {sorted(found['missing_keys'])[0]}")
        return cls(codebook)

    def features(self, images: Tensor) -> Tensor:
        return self.blocks.output.relu(self.blocks[:-1](to_likelihood(images)))

    def scores(self, features: Tensor) -> Tensor:
        return self.blocks.output.conv(features)


def _openai(path: Path) -> nn.Module:
    """transformers' codebook from the weights of OpenAI's encoder under its own names (golden g08)."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    if not path.is_file():
        raise BenchError(f"tokenizer {str(path)!r}: no such file")
    weights = load_file(path)
    blocks = {tuple(name.split(".")[1:3]) for name in weights if name.startswith("blocks.group_")}
    try:
        config = FlavaImageCodebookConfig(
            num_groups=len({group for group, _ in blocks}),
            num_blocks_per_group=len({block for _, block in blocks}),
            hidden_size=len(weights["blocks.input.w"]),
            vocab_size=len(weights["blocks.output.conv.w"]),
        )
        codebook = FlavaImageCodebook(config)
        codebook.load_state_dict({_flava_name(name): value for name, value in weights.items()})
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise BenchError(f"tokenizer {str(path)!r} is not DALL-E's encoder: {str(error).splitlines()[0]}") from None
    return codebook


def _flava_name(name: str) -> str:
    """blocks.group_1.block_1.res_path.conv_1.w -> blocks.group_1.group.block_1.res_path.path.conv_1.weight"""
    name = re.sub(r"^blocks\.(group_\d+)\.", r"blocks.\1.group.", name.replace("res_path.", "res_path.path."))
    return re.sub(r"\.b$", ".bias", re.sub(r"\.w$", ".weight", name))


def to_likelihood(images: Tensor) -> Tensor:
    """Pixels in [0, 1] moved into [0.1, 0.9], off the ends of DALL-E's likelihood. Source: dall_e/utils.py."""
    return (1 - 2 * EDGE) * images + EDGE


def from_likelihood(images: Tensor) -> Tensor:
    """The way back, for pictures that DALL-E's decoder draws."""
    return ((images - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


class Residual(nn.Module):
    """Adds what two convolutions make of their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.path(features)


class DiscreteVAE(Tokenizer):
    """A small convolutional autoencoder whose middle is a word per `stride` x `stride` pixels."""

    def __init__(self, words: int, stride: int, width: int = 128) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        if stride != 2**halvings or stride < 2:
            raise BenchError(f"a word of {stride} pixels: the tokenizer needs 2, 4, 8 or another power of two")
        self.words, self.stride = words, stride
        widths = [max(width >> (halvings - 1 - level), 16) for level in range(halvings)]  # the last is `width`
        self.encoder = nn.Sequential(*_halve([3, *widths]), Residual(width), Residual(width), nn.GroupNorm(1, width))
        self.to_words = nn.Conv2d(width, words, 1)
        self.codebook = nn.Conv2d(words, width, 1, bias=False)
        self.decoder = nn.Sequential(Residual(width), Residual(width), *_double([*reversed(widths), 3]))

    def features(self, images: Tensor) -> Tensor:
        return self.encoder(2 * images - 1)

    def scores(self, features: Tensor) -> Tensor:
        return self.to_words(features)

    def draw(self, choice: Tensor) -> Tensor:
        """The images (B, 3, s, s) that a choice of words (B, V, g, g), hard or soft, stands for; about [0, 1]."""
        return (self.decoder(self.codebook(choice)) + 1) / 2

    @torch.no_grad()
    def decode(self, words: Tensor) -> Tensor:
        """Images in [0, 1] that words (B, g * g) stand for."""
        side = round(words.shape[1] ** 0.5)
        choice = F.one_hot(words, self.words).float().mT.unflatten(2, (side, side))
        return self.draw(choice).float().clamp(0, 1)


def _halve(widths: list[int]) -> list[nn.Module]:
    """Convolutions that halve the side, a nonlinearity between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GELU()]
    return layers[:-1]


def _double(widths: list[int]) -> list[nn.Module]:
    """Transposed convolutions that double the side, each after a nonlinearity."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.GELU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return layers


class TrainTokenizer(Objective):
    """Learn words from which the pictures can be drawn again.

    While it learns, a place holds a mixture of words, a draw from the Gumbel-softmax distribution, which hardens as
    the temperature falls. Loss of an image: the mean squared error of its pixels, and `kl_weight` times the mean
    divergence of a place's choice from the uniform one, without which most words are soon never chosen.
    Source: DALL-E (arXiv 2102.12092) section 2.1 and appendix A.2.

    kl_ramp, cooling: shares of the training over which the weight rises from 0 and the temperature falls from 1.
    """

    progress: Tensor

    def __init__(
        self, tokenizer: DiscreteVAE, *, kl_weight: float, kl_ramp: float, temperature: float, cooling: float
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.kl_weight, self.kl_ramp = kl_weight, kl_ramp
        self.temperature, self.cooling = temperature, cooling
        self.register_buffer("progress", torch.zeros(()))  # on the device: reading it there would make the host wait

    def prepare(self, batch: Batch, *, seed: int, step: int, batch_size: int) -> Batch:
        """Draw each image's Gumbel noise from its place in the global batch, whichever process holds it."""
        batch = super().prepare(batch, seed=seed, step=step, batch_size=batch_size)
        images = batch["token_image"]
        shape = (self.tokenizer.words, *(side // self.tokenizer.stride for side in images.shape[2:]))
        noise = [gumbel(shape, derive(seed, "gumbel", step, position)) for position in batch["position"].tolist()]
        return batch | {"noise": torch.stack(noise).to(images.device, non_blocking=True)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = to_unit(batch["token_image"])
        logits = self.tokenizer.logits(images).float()
        heat = self.temperature ** (self.progress / self.cooling).clamp(max=1.0)
        choice = ((logits + batch["noise"]) / heat).softmax(dim=1)
        error = (self.tokenizer.draw(choice).float() - images).square().mean(dim=(1, 2, 3))  # (B,)
        divergence = divergence_from_uniform(logits)  # (B,)
        weight = self.kl_weight * (self.progress / self.kl_ramp).clamp(max=1.0)
        return {
            "loss": (error + weight * divergence).sum(),
            "count": count(images),
            "reconstruction_error": error.detach().sum(),
            "divergence": divergence.detach().sum(),
            "perplexity": perplexity(logits.detach()) * len(images),
        }

    def after_step(self, progress: float) -> None:
        self.progress.fill_(progress)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, its words (B, g, g), and the picture drawn again from them, uint8 (B, 3, s, s)."""
        return arrays({"image": batch["image"]}) | told(self.tokenizer, batch["token_image"])


def gumbel(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draws from the standard Gumbel distribution, the same for a seed on every machine."""
    draws = torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))
    return -draws.clamp_min(torch.finfo(draws.dtype).tiny).log()


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Divergence of the choice at each place (B, V, g, g) from the uniform one, in nats; mean over places: (B,)."""
    log_choice = logits.log_softmax(dim=1)
    return (log_choice.exp() * log_choice).sum(dim=1).mean(dim=(1, 2)) + math.log(logits.shape[1])


def perplexity(logits: Tensor) -> Tensor:
    """How many words are in use: e to the entropy of the words of a batch, from 1 (collapse) to V."""
    words = logits.argmax(dim=1).flatten()
    share = torch.bincount(words, minlength=logits.shape[1]) / len(words)
    return torch.special.entr(share).sum().exp()


def told(tokenizer: Tokenizer, token_images: Tensor) -> dict[str, np.ndarray]:
    """What a tokenizer makes of uint8 images: "words" (B, g, g) and, if it has a decoder, "reconstruction" (uint8)."""
    words = tokenizer.encode(to_unit(token_images))
    side = token_images.shape[-1] // tokenizer.stride
    found = {"words": words.unflatten(1, (side, side)).cpu().numpy()}
    if isinstance(tokenizer, DiscreteVAE):
        found["reconstruction"] = (255 * tokenizer.decode(words)).round().to(torch.uint8).cpu().numpy()
    return found


def build(model: Model, options: dict[str, Scalar]) -> DiscreteVAE:
    """The discrete VAE of a tokenizer stage, with one word for each patch of `model`."""
    if model.patch_size % 2:
        raise BenchError(f"patch_size = {model.patch_size}: words lie on the half-size picture, so it must be even")
    return DiscreteVAE(int(options["words"]), model.patch_size // 2, int(options["width"]))


def view(stage: Stage) -> View:
    """What a tokenizer learns from: the crops that pretraining will show it."""
    assert stage.recipe
    return two_views(stage.recipe, stage.model, stage.protocol)


def objective(stage: Stage) -> TrainTokenizer:
    """What a stage of kind 'tokenizer' trains, from starting weights."""
    options = stage.options
    for name in ("kl_ramp", "cooling", "temperature"):
        if not 0 < float(options[name]) <= 1:
            raise BenchError(f"tokenizer.options.{name} = {options[name]}: should be above 0 and at most 1")
    return TrainTokenizer(
        build(stage.model, options),
        kl_weight=float(options["kl_weight"]),
        kl_ramp=float(options["kl_ramp"]),
        temperature=float(options["temperature"]),
        cooling=float(options["cooling"]),
    )
