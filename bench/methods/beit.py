"""BEiT: predict the visual words of hidden patches (P-BEiT = arXiv 2106.08254). Numbers and sources: beit.toml.

Shapes: B images, N patches, D width, V words, M patches whose word or pixels are asked for, in the whole batch.

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
from bench.methods.masked_images import HidingView, Recover, masking
from bench.methods.objective import Batch, Objective, count
from bench.methods.token_cache import KeptWords, kept_words
from bench.methods.tokenizer import TrainTokenizer, told
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
    seen: View = two_views(stage.recipe, stage.model, stage.protocol)
    if stage.options["views"] == "fixed":
        seen = FixedView(seen, stage.seed)
    return HidingView(seen, masking(stage.model, stage.options))


@dataclass(frozen=True)
class FixedView:
    """Another view, seen alike in every epoch: crop, flip and colours belong to the image alone."""

    view: View
    seed: int

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        with forked(derive(self.seed, "fixed view", sample["index"])):
            return self.view(sample)


def objective(stage: Stage, parts: Parts) -> Objective:
    """A backbone with a mask token and starting weights, and what it is to recover: words, or else pixels."""
    options = stage.options
    if options["recover"] not in RECOVER:
        raise unknown("pretrain.options.recover", str(options["recover"]), RECOVER)
    if (options["masking"], options["recover"]) == ("none", "hidden"):
        raise BenchError(
            "pretrain.options.masking = 'none' hides nothing to recover; set pretrain.options.recover to 'all'"
        )
    backbone = build_backbone(stage.model, stage.recipe, hides=options["masking"] != "none")
    everything = options["recover"] == "all"
    if options["tokenizer"] == "none":
        return RecoverPixels(backbone, patch_size=stage.model.patch_size, everything=everything)
    found = tokenizer(stage, parts)
    return RecoverWords(backbone, found, everything=everything, kept=_kept(stage, found))


def _kept(stage: Stage, found: Tokenizer) -> KeptWords | None:
    """Where the words are kept, if images are always seen alike."""
    if stage.options["views"] != "fixed":
        return None
    recipe, model = stage.identity()["recipe"], stage.model
    seen = [recipe[name] for name in ("crop_scale", "crop_ratio", "flip", "color_jitter", "interpolation")]
    seen += [model.image_size, model.patch_size, stage.seed, found.precision, stage.protocol.decoder]
    return kept_words(found, stage.data["train"], seen, model.grid**2)


def tokenizer(stage: Stage, parts: Parts) -> Tokenizer:
    """The tokenizer that an earlier stage trained, or DALL-E's from a folder or the hub (options.tokenizer)."""
    name = str(stage.options["tokenizer"])
    if name == "trained":
        trained = parts["tokenizer"]
        assert isinstance(trained, TrainTokenizer), "the tokenizer stage trains a tokenizer"
        found: Tokenizer = trained.tokenizer
    else:
        found = DalleTokenizer.load(name)
    found.set_precision(str(stage.options["tokenizer_precision"]))
    if 2 * found.stride != stage.model.patch_size:
        raise BenchError(
            f"pretrain.options.tokenizer = {name!r}: its words are {found.stride} pixels of the half-size picture, for "
            f"patches of {2 * found.stride}, but model.patch_size is {stage.model.patch_size}"
        )
    return found


class RecoverWords(Recover):
    """Cross entropy with the tokenizer's words, over the patches asked for. Source: BEiT engine_for_pretraining.py."""

    frozen = ("tokenizer",)
    tokenizer: Tokenizer

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, *, everything: bool, kept: KeptWords | None = None
    ) -> None:
        super().__init__(backbone, tokenizer.words, everything=everything)
        self.kept = kept
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self._checked, self._seen = tokenizer.precision == "fp32", torch.empty(0)
        self.freeze()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        words, logits = self.words(batch)[self.asked(batch)], self.answers(batch)  # (M,), (M, V)
        loss = F.cross_entropy(logits, words, reduction="sum")
        return {"loss": loss, "count": count(words), "masked_accuracy": (logits.argmax(-1) == words).float().sum()}

    def words(self, batch: Batch) -> Tensor:
        """The tokenizer's words, (B, N)."""
        images = to_unit(batch["token_image"])
        if not self._checked:
            self._seen = images
        if self.kept:
            return self.kept(batch["index"], lambda: self.tokenizer.encode(images)).to(images.device)
        return self.tokenizer.encode(images)

    def after_step(self, progress: float) -> None:
        """After the first step: BenchError if the tokenizer's precision changed words."""
        if not self._checked:
            check_agreement(self.tokenizer, self._seen)
            self._checked, self._seen = True, torch.empty(0)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Also the words (B, g, g) and, if the tokenizer has a decoder, the picture drawn from them."""
        return super().pictures(batch) | told(self.tokenizer, batch["token_image"])


class RecoverPixels(Recover):
    """Squared error of the standardised pixels of the patches asked for (P-BEiT section 3.3, ablation)."""

    def __init__(self, backbone: Backbone, *, patch_size: int, everything: bool) -> None:
        super().__init__(backbone, 3 * patch_size**2, everything=everything)
        self.patch_size = patch_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, answers = self.pixels(batch["image"])[self.asked(batch)], self.answers(batch)
        return {"loss": (answers - pixels).square().mean(dim=-1).sum(), "count": count(pixels)}

    def pixels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) cut into patches: (B, N, 3 * patch_size**2)."""
        return F.unfold(images.float(), self.patch_size, stride=self.patch_size).mT
