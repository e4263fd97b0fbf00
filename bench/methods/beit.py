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
from torch import Tensor, nn

from bench.backbones import Backbone
from bench.backbones import build as build_backbone
from bench.initialisation import initialise
from bench.kept_words import KeptWords, kept_words
from bench.masking import Masking
from bench.masking import build as build_masking
from bench.methods import Parts, View
from bench.objective import Batch, Objective, arrays, count
from bench.seeds import derive, forked
from bench.spec import BenchError, Model, Scalar, Stage, unknown
from bench.tokenizers import DalleTokenizer, Tokenizer, TrainTokenizer, check_agreement, told
from bench.transforms import to_unit, two_views

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


def masking(model: Model, options: dict[str, Scalar]) -> Masking:
    """The masking that a pretraining stage's options describe; data2vec's is the same with other numbers."""
    return build_masking(
        str(options["masking"]),
        model.grid,
        hidden_fraction=float(options["hidden_fraction"]),
        block_min_fraction=float(options["block_min_fraction"]),
        block_max_fraction=float(options["block_max_fraction"]),
    )


@dataclass(frozen=True)
class FixedView:
    """Another view, seen alike in every epoch: crop, flip and colours belong to the image alone."""

    view: View
    seed: int

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        with forked(derive(self.seed, "fixed view", sample["index"])):
            return self.view(sample)


@dataclass(frozen=True)
class HidingView:
    """Adds "hidden" (N,) to another view, row by row."""

    view: View
    masking: Masking

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self.view(sample) | {"hidden": torch.from_numpy(self.masking().ravel())}


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


class Recover(Objective):
    """Hide patches from the backbone and ask what was there; everything: ask for every patch, hidden or not."""

    backbone: Backbone

    def __init__(self, backbone: Backbone, answers: int, *, everything: bool) -> None:
        super().__init__()
        self.backbone, self.everything = backbone, everything
        self.hides = hasattr(backbone, "mask_token")
        self.lm_head = nn.Linear(backbone.width, answers)
        initialise(self, "beit-pretrain", backbone.init_std)

    def asked(self, batch: Batch) -> Tensor:
        """True at patches that are asked for, (B, N)."""
        return torch.ones_like(batch["hidden"]) if self.everything else batch["hidden"]

    def answers(self, batch: Batch) -> Tensor:
        """What the head says at the patches asked for, image by image, row by row: (M, V) or (M, pixels)."""
        hidden = batch["hidden"] if self.hides else None
        tokens = self.backbone(batch["image"], hidden).tokens
        return self.lm_head(self.backbone.norm(self.backbone.patches(tokens)[self.asked(batch)])).float()

    def pictures(self, batch: Batch) -> dict[str, np.ndarray]:
        """Image, and its hidden patches (B, g, g)."""
        grid = (self.backbone.grid, self.backbone.grid)
        return arrays({"image": batch["image"]}) | {"hidden": batch["hidden"].unflatten(1, grid).cpu().numpy()}


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
