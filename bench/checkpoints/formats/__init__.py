"""Checkpoint formats: the authors' files, timm's, and the Hugging Face folders of transformers.

Each module says whether a `RawCheckpoint` is of its format, reads it into a `ParsedCheckpoint`, under our tensor names,
and writes our networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from bench.config.schema import SIZES, Model
from bench.models.backbone import CONVNET

CLASSIFIERS = ("head.head.weight", "decoder.decode_head.conv_seg.weight")  # of an image, of its pixels

State = dict[str, Tensor]
Family = Literal["authors", "timm", "transformers", "bench"]
Pool = Literal["mean", "token"]
Purpose = Literal["pretrain", "classify", "segment"]


@dataclass(frozen=True, slots=True)
class RawCheckpoint:
    """The tensors of a file under the names in the file, and the JSON files beside it."""

    name: str  # for messages
    state: State
    config: dict[str, Any] = field(default_factory=dict)  # config.json
    preprocessor: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    container: str = ""  # the key in the file under which the weights are: model, module, state_dict
    facts: dict[str, Any] = field(default_factory=dict)  # other values in the file, such as the training arguments


@dataclass(frozen=True, slots=True)
class ParsedCheckpoint:
    """A published network as a `Model` of ours and tensors under our names, before the two are compared."""

    model: Model
    state: State  # under our names
    unknown: tuple[str, ...] = ()  # tensors that have no name of ours, under theirs
    left: tuple[str, ...] = ()  # tensors known to be of no use here, under theirs
    pool: Pool = "token"
    preprocessing: dict[str, Any] = field(
        default_factory=dict
    )  # mean, std, resolution, crop_ratio, interpolation, whole
    labels: tuple[str, ...] = ()

    @property
    def purpose(self) -> Purpose:
        """What the network was trained for, judged by its parts."""
        return "classify" if self.model.trunk.startswith(CONVNET) else purpose_of(self.state)


def purpose_of(state: State) -> Purpose:
    """What a network was trained for, judged by its parts. Without a classifier or decoder: pretrain."""
    if any(name.startswith("decoder.") for name in state):
        return "segment"
    return "classify" if any(name.startswith("head.head.") for name in state) else "pretrain"


def size_name(width: int, depth: int, heads: int) -> str:
    """The name of a size, such as base, or its numbers."""
    names = {numbers: name for name, numbers in SIZES.items()}
    return names.get((width, depth, heads), f"{width}x{depth}x{heads}")
