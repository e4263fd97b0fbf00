"""Tokenizers as networks: the Tokenizer contract, our discrete VAE, and DALL-E's published encoder."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BenchError, unknown

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
