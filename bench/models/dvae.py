"""Image tokenizers as networks: the Tokenizer contract, our discrete VAE, and DALL-E's published encoder.

Shapes: B images, V visual tokens in the codebook, g x g places of an image, row by row.
"""

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
AGREEMENT = 0.999  # share of visual tokens that a reduced precision must leave as they are
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
    """Turns images into visual tokens: the argmax over the codebook at every place."""

    vocab_size: int
    stride: int  # pixels along the side of a place
    precision: Precision = "fp32"

    def set_precision(self, precision: str) -> None:
        """Compute all but the last layer in this precision. BenchError for an unknown one."""
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        self.precision = cast(Precision, precision)

    def features(self, images: Tensor) -> Tensor:
        """Output of the encoder without its last layer, for images in [0, 1]: (B, D, g, g)."""
        raise NotImplementedError

    def scores(self, features: Tensor) -> Tensor:
        """Logits (B, V, g, g) of `features`: the last layer."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Logits over the codebook at each place, for images in [0, 1]: (B, V, g, g)."""
        return self.scores(self.features(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Visual tokens of images in [0, 1], row by row: (B, g * g) int64."""
        # The last layer always runs in fp32, like DALL-E's own, and fp32 is never TF32: visual tokens would change.
        kind, dtype = images.device.type, DTYPES.get(self.precision)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
                features = self.features(images.float())
            with torch.autocast(kind, enabled=False):
                return self.scores(features.float()).argmax(dim=1).flatten(1)


def agreement(tokenizer: Tokenizer, images: Tensor) -> float:
    """The share of visual tokens of `images` that are the same as in fp32."""
    reduced, precision = tokenizer.encode(images), tokenizer.precision
    try:
        tokenizer.precision = "fp32"
        return float((reduced == tokenizer.encode(images)).float().mean())
    finally:
        tokenizer.precision = precision


def check_agreement(tokenizer: Tokenizer, images: Tensor) -> None:
    """Raise BenchError when the tokenizer's precision changes more than one visual token in a thousand."""
    if tokenizer.precision == "fp32":
        return
    share = agreement(tokenizer, images)
    if share < AGREEMENT:
        raise BenchError(
            f"tokenizer_precision = {tokenizer.precision!r}: {share:.2%} of the visual tokens are those of fp32, "
            f"{AGREEMENT:.1%} must be; tokenizer_precision = 'fp32' always works"
        )


class DalleTokenizer(Tokenizer):
    """DALL-E's encoder: a codebook of 8,192, a visual token per 8 x 8 pixels. openai/DALL-E; P-BEiT section 2.1.

    codebook: transformers' FlavaImageCodebook, which has the same weights under other names.
    """

    stride = 8
    blocks: Any

    def __init__(self, codebook: Any) -> None:
        super().__init__()
        self.blocks = codebook.blocks
        self.vocab_size: int = codebook.config.vocab_size

    @classmethod
    def load(cls, name: str) -> DalleTokenizer:
        """Load the encoder from a folder, a hub id, or OpenAI's weights as safetensors.

        BenchError says what to download when it cannot be loaded, and how to convert OpenAI's pickle.
        """
        from transformers import FlavaImageCodebook

        if name.endswith(".pkl"):
            raise BenchError(f"tokenizer {name!r} is a pickle, which may run any code when it is read; {CONVERT}")
        if name.endswith(".safetensors"):
            return cls(_load_openai(Path(name)))

        advice = (
            f"Without a network: run `hf download {DALLE} --local-dir FOLDER` on a machine that has one, "
            "and name FOLDER instead"
        )
        if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            raise BenchError(f"tokenizer {name!r}: no such folder; 'trained' trains one, {DALLE!r} is DALL-E's")
        try:
            codebook, info = FlavaImageCodebook.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise BenchError(f"tokenizer {name!r}: {str(error).splitlines()[0]}. {advice}") from None
        if info["missing_keys"]:
            raise BenchError(f"tokenizer {name!r} is not DALL-E's encoder: it lacks {sorted(info['missing_keys'])[0]}")
        return cls(codebook)

    def features(self, images: Tensor) -> Tensor:
        return self.blocks.output.relu(self.blocks[:-1](to_likelihood(images)))

    def scores(self, features: Tensor) -> Tensor:
        return self.blocks.output.conv(features)


def _load_openai(path: Path) -> nn.Module:
    """Load the weights of OpenAI's encoder, under OpenAI's names, into transformers' codebook (golden g08)."""
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
    """Map pixels in [0, 1] into [0.1, 0.9], off the ends of DALL-E's likelihood. Source: dall_e/utils.py."""
    return (1 - 2 * EDGE) * images + EDGE


def from_likelihood(images: Tensor) -> Tensor:
    """Undo `to_likelihood`, for images that DALL-E's decoder reconstructs."""
    return ((images - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


class Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.path(features)


class DiscreteVAE(Tokenizer):
    """A small convolutional autoencoder with one visual token per `stride` x `stride` pixels.

    stride: a power of two. width: channels of the encoder's output and of the codebook.
    """

    def __init__(self, vocab_size: int, stride: int, width: int = 128) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        if stride != 2**halvings or stride < 2:
            raise BenchError(f"a visual token per {stride} pixels: the tokenizer needs 2, 4, 8 or another power of two")
        self.vocab_size, self.stride = vocab_size, stride
        widths = [max(width >> (halvings - 1 - level), 16) for level in range(halvings)]  # the last is `width`
        self.encoder = nn.Sequential(
            *_downsampling([3, *widths]), Residual(width), Residual(width), nn.GroupNorm(1, width)
        )
        self.to_words = nn.Conv2d(width, vocab_size, 1)  # the name is in the checkpoints of finished runs
        self.codebook = nn.Conv2d(vocab_size, width, 1, bias=False)
        self.decoder = nn.Sequential(Residual(width), Residual(width), *_upsampling([*reversed(widths), 3]))

    def features(self, images: Tensor) -> Tensor:
        return self.encoder(2 * images - 1)

    def scores(self, features: Tensor) -> Tensor:
        return self.to_words(features)

    def reconstruct(self, choice: Tensor) -> Tensor:
        """Images (B, 3, s, s), about in [0, 1], of one-hot or soft choices of visual tokens (B, V, g, g)."""
        return (self.decoder(self.codebook(choice)) + 1) / 2

    @torch.no_grad()
    def decode(self, visual_tokens: Tensor) -> Tensor:
        """Images (B, 3, s, s) in [0, 1] of visual tokens (B, g * g)."""
        side = round(visual_tokens.shape[1] ** 0.5)
        choice = F.one_hot(visual_tokens, self.vocab_size).float().mT.unflatten(2, (side, side))
        return self.reconstruct(choice).float().clamp(0, 1)


def _downsampling(widths: list[int]) -> list[nn.Module]:
    """Convolutions that halve the side, with a GELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GELU()]
    return layers[:-1]


def _upsampling(widths: list[int]) -> list[nn.Module]:
    """Transposed convolutions that double the side, each after a GELU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.GELU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return layers
