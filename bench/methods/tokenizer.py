"""Training the tokenizer of BEiT: a discrete VAE under a Gumbel-softmax relaxation."""

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
