"""Train the tokenizer of BEiT: a discrete VAE with a Gumbel-softmax relaxation.

Shapes: B images, V visual tokens in the codebook, g x g places of an image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bench.config.schema import Model, Scalar
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.methods.objective import Batch, Objective, arrays, count
from bench.models.dvae import DiscreteVAE, Tokenizer
from bench.pipeline.transforms import View, to_unit, two_views
from bench.seeding import derive


class TrainTokenizer(Objective):
    """Learn a codebook of visual tokens from which images can be reconstructed.

    In training, a place holds a mixture of visual tokens, a draw from the Gumbel-softmax distribution, which hardens
    as the temperature falls. Loss of an image: the mean squared error of its pixels, plus `kl_weight` times the mean
    KL divergence of a place's distribution from the uniform one, without which most visual tokens soon go unused.
    Source: DALL-E (arXiv 2102.12092) section 2.1 and appendix A.2.

    kl_ramp, cooling: shares of the training over which the weight rises from 0 and the temperature falls from 1 to
    `temperature`.
    """

    progress: Tensor

    def __init__(
        self, tokenizer: DiscreteVAE, *, kl_weight: float, kl_ramp: float, temperature: float, cooling: float
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.kl_weight, self.kl_ramp = kl_weight, kl_ramp
        self.temperature, self.cooling = temperature, cooling
        self.register_buffer("progress", torch.zeros(()))  # on the device: `forward` need not wait

    def prepare(self, batch: Batch, *, seed: int, step: int, batch_size: int) -> Batch:
        """Draw each image's Gumbel noise, by its position in the global batch."""
        batch = super().prepare(batch, seed=seed, step=step, batch_size=batch_size)
        images = batch["token_image"]
        shape = (self.tokenizer.vocab_size, *(side // self.tokenizer.stride for side in images.shape[2:]))
        noise = [gumbel_noise(shape, derive(seed, "gumbel", step, position)) for position in batch["position"].tolist()]
        return batch | {"noise": torch.stack(noise).to(images.device, non_blocking=True)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = to_unit(batch["token_image"])
        logits = self.tokenizer.logits(images).float()
        temperature = self.temperature ** (self.progress / self.cooling).clamp(max=1.0)
        choice = ((logits + batch["noise"]) / temperature).softmax(dim=1)
        error = (self.tokenizer.reconstruct(choice).float() - images).square().mean(dim=(1, 2, 3))  # (B,)
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
        """Image, "words" (its visual tokens, (B, g, g)) and "reconstruction", uint8 (B, 3, s, s)."""
        return arrays({"image": batch["image"]}) | tokenizer_arrays(self.tokenizer, batch["token_image"])


def gumbel_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draws from the standard Gumbel distribution, on the CPU: the same for a seed on every machine."""
    draws = torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))
    return -draws.clamp_min(torch.finfo(draws.dtype).tiny).log()  # clamped: log(0) would be infinite


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """KL divergence of (B, V, g, g) logits' distributions from the uniform one, in nats, mean over places: (B,)."""
    log_choice = logits.log_softmax(dim=1)
    return (log_choice.exp() * log_choice).sum(dim=1).mean(dim=(1, 2)) + math.log(logits.shape[1])


def perplexity(logits: Tensor) -> Tensor:
    """Perplexity of the visual tokens of a batch: e to the entropy of their shares, from 1 (collapse) to V."""
    tokens = logits.argmax(dim=1).flatten()
    share = torch.bincount(tokens, minlength=logits.shape[1]) / len(tokens)
    return torch.special.entr(share).sum().exp()


def tokenizer_arrays(tokenizer: Tokenizer, token_images: Tensor) -> dict[str, np.ndarray]:
    """Of uint8 images: "words", the visual tokens (B, g, g), and "reconstruction" (uint8) if there is a decoder."""
    tokens = tokenizer.encode(to_unit(token_images))
    side = token_images.shape[-1] // tokenizer.stride
    arrays = {"words": tokens.unflatten(1, (side, side)).cpu().numpy()}
    if isinstance(tokenizer, DiscreteVAE):
        arrays["reconstruction"] = (255 * tokenizer.decode(tokens)).round().to(torch.uint8).cpu().numpy()
    return arrays


def build(model: Model, options: dict[str, Scalar]) -> DiscreteVAE:
    """Build the discrete VAE of a tokenizer stage, with one visual token for each patch of `model`."""
    if model.patch_size % 2:
        raise BenchError(
            f"patch_size = {model.patch_size}: the tokenizer sees the image at half size, so it must be even"
        )
    return DiscreteVAE(int(options["words"]), model.patch_size // 2, int(options["width"]))


def view(stage: Stage) -> View:
    """The view of a tokenizer stage: the crops that pretraining will show the tokenizer."""
    assert stage.recipe
    return two_views(stage.recipe, stage.model, stage.protocol)


def objective(stage: Stage) -> TrainTokenizer:
    """The objective of a tokenizer stage, with starting weights."""
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
