"""BEiT: predict the visual tokens of hidden patches (P-BEiT = arXiv 2106.08254). Numbers and sources: beit.toml.

Shapes: B images, N patches, D width, V visual tokens in the codebook, M target patches in the whole batch.

Departs from the reference: nothing in the objective, which golden g01 checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config.stage import Stage
from bench.errors import BenchError, unknown
from bench.methods import Parts, View
from bench.methods.masked_images import HidingView, Recover, masking, patchify
from bench.methods.objective import Batch, Objective, count
from bench.methods.token_cache import TokenCache, build_token_cache
from bench.methods.tokenizer import TrainTokenizer, tokenizer_arrays
from bench.models.backbone import Backbone
from bench.models.backbone import build as build_backbone
from bench.models.dvae import DalleTokenizer, Tokenizer, check_agreement
from bench.pipeline.transforms import to_unit, two_views
from bench.seeding import derive, forked

RECOVER = ("hidden", "all")
VIEWS = ("random", "fixed")


def view(stage: Stage) -> View:
    """Two sizes of one crop, for the student and for the tokenizer, and which patches are hidden."""
    assert stage.recipe
    if stage.options["views"] not in VIEWS:
        raise unknown("pretrain.options.views", str(stage.options["views"]), VIEWS)
    pair: View = two_views(stage.recipe, stage.model, stage.protocol)
    if stage.options["views"] == "fixed":
        pair = FixedView(pair, stage.seed)
    return HidingView(pair, masking(stage.model, stage.options))  # outside: hidden patches are drawn in every epoch


@dataclass(frozen=True)
class FixedView:
    """Wraps a view so that crop, flip and colours are the same in every epoch: its draws depend on the image alone."""

    view: View
    seed: int

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        with forked(derive(self.seed, "fixed view", sample["index"])):
            return self.view(sample)


def objective(stage: Stage, parts: Parts) -> Objective:
    """A backbone with a mask token and starting weights, to predict visual tokens, or pixels without a tokenizer."""
    options = stage.options
    if options["recover"] not in RECOVER:
        raise unknown("pretrain.options.recover", str(options["recover"]), RECOVER)
    if (options["masking"], options["recover"]) == ("none", "hidden"):
        raise BenchError(
            "pretrain.options.masking = 'none' hides nothing to recover; set pretrain.options.recover to 'all'"
        )
    backbone = build_backbone(stage.model, stage.recipe, mask_token=options["masking"] != "none")
    predict_all = options["recover"] == "all"
    if options["tokenizer"] == "none":
        return RecoverPixels(backbone, patch_size=stage.model.patch_size, predict_all=predict_all)
    tokenizer = load_tokenizer(stage, parts)
    cache = _token_cache(stage, tokenizer)
    return RecoverVisualTokens(backbone, tokenizer, predict_all=predict_all, cache=cache)


def _token_cache(stage: Stage, tokenizer: Tokenizer) -> TokenCache | None:
    """The cache of visual tokens, if the views of an image are the same in every epoch."""
    if stage.options["views"] != "fixed":
        return None
    recipe, model = stage.identity()["recipe"], stage.model
    views = [recipe[name] for name in ("crop_scale", "crop_ratio", "flip", "color_jitter", "interpolation")]
    views += [model.image_size, model.patch_size, stage.seed, tokenizer.precision, stage.protocol.decoder]
    return build_token_cache(tokenizer, stage.data["train"], views, model.grid**2)


def load_tokenizer(stage: Stage, parts: Parts) -> Tokenizer:
    """The tokenizer that an earlier stage trained, or DALL-E's from a folder or the hub (options.tokenizer)."""
    name = str(stage.options["tokenizer"])
    if name == "trained":
        trained = parts["tokenizer"]
        assert isinstance(trained, TrainTokenizer), "the tokenizer stage trains a tokenizer"
        tokenizer: Tokenizer = trained.tokenizer
    else:
        tokenizer = DalleTokenizer.load(name)
    tokenizer.set_precision(str(stage.options["tokenizer_precision"]))
    stride = tokenizer.stride
    if 2 * stride != stage.model.patch_size:
        raise BenchError(
            f"pretrain.options.tokenizer = {name!r}: it has a visual token per {stride} pixels of the half-size image, "
            f"for patches of {2 * stride}, but model.patch_size is {stage.model.patch_size}"
        )
    return tokenizer


class RecoverVisualTokens(Recover):
    """Cross entropy with the visual tokens of the target patches. Source: BEiT engine_for_pretraining.py."""

    frozen = ("tokenizer",)
    tokenizer: Tokenizer

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, *, predict_all: bool, cache: TokenCache | None = None
    ) -> None:
        super().__init__(backbone, tokenizer.vocab_size, predict_all=predict_all)
        self.cache = cache
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self._checked, self._images = tokenizer.precision == "fp32", torch.empty(0)
        self.freeze()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        targets = self.visual_tokens(batch)[self.target_patches(batch)]  # (M,)
        logits = self.predictions(batch)  # (M, V)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return {"loss": loss, "count": count(targets), "masked_accuracy": (logits.argmax(-1) == targets).float().sum()}

    def visual_tokens(self, batch: Batch) -> Tensor:
        """The tokenizer's visual tokens, (B, N)."""
        images = to_unit(batch["token_image"])
        if not self._checked:
            self._images = images
        if self.cache:
            return self.cache(batch["index"], lambda: self.tokenizer.encode(images)).to(images.device)
        return self.tokenizer.encode(images)

    def after_step(self, progress: float) -> None:
        """After the first step: BenchError if the tokenizer's precision changed visual tokens."""
        if not self._checked:
            check_agreement(self.tokenizer, self._images)
            self._checked, self._images = True, torch.empty(0)  # the images need not stay in memory

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Also "words", the visual tokens (B, g, g), and their reconstruction, if the tokenizer has a decoder."""
        return super().pictures(batch) | tokenizer_arrays(self.tokenizer, batch["token_image"])


class RecoverPixels(Recover):
    """Squared error of the normalised pixels of the target patches (P-BEiT section 3.3, ablation)."""

    def __init__(self, backbone: Backbone, *, patch_size: int, predict_all: bool) -> None:
        super().__init__(backbone, 3 * patch_size**2, predict_all=predict_all)
        self.patch_size = patch_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels = patchify(batch["image"], self.patch_size)[self.target_patches(batch)]  # (M, 3 * patch_size**2)
        return {"loss": (self.predictions(batch) - pixels).square().mean(dim=-1).sum(), "count": count(pixels)}
