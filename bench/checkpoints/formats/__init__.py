"""The three families of published weights: the authors' files, timm's, and the Hugging Face folders of transformers.

Each module reads what it recognises into a `ParsedCheckpoint`, under our names, and writes ours out.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from bench.config.schema import SIZES, Model
from bench.models.backbone import CONVNET

CLASSIFIERS = ("head.head.weight", "decoder.decode_head.conv_seg.weight")  # of a picture, of its pixels

State = dict[str, Tensor]
Family = Literal["authors", "timm", "transformers", "bench"]
Pool = Literal["mean", "token"]
Purpose = Literal["pretrain", "classify", "segment"]


class RawCheckpoint(NamedTuple):
    """Weights as they lie in their file, and what is written beside them."""

    name: str  # for messages
    state: State
    config: dict[str, Any] = {}  # noqa: RUF012 - config.json
    preprocessor: dict[str, Any] = {}  # noqa: RUF012 - preprocessor_config.json
    container: str = ""  # the key of the file that held the weights: model, module, state_dict
    facts: dict[str, Any] = {}  # noqa: RUF012 - further plain values of the file, such as the arguments of its training


class ParsedCheckpoint(NamedTuple):
    """A published network in our words."""

    model: Model
    state: State  # under our names
    unknown: tuple[str, ...] = ()  # tensors that have no name of ours, under theirs
    left: tuple[str, ...] = ()  # tensors known to be of no use here, under theirs
    pool: Pool = "token"
    preprocessing: dict[str, Any] = {}  # noqa: RUF012
    labels: tuple[str, ...] = ()

    @property
    def purpose(self) -> Purpose:
        """What the network was trained for, by its parts."""
        return "classify" if self.model.trunk.startswith(CONVNET) else purpose_of(self.state)


def purpose_of(state: State) -> Purpose:
    """What a network was trained for, by its parts. Without a head it is for going on from: pretrain."""
    if any(name.startswith("decoder.") for name in state):
        return "segment"
    return "classify" if any(name.startswith("head.head.") for name in state) else "pretrain"


def size_name(width: int, depth: int, heads: int) -> str:
    """The name of a size, such as base, or its numbers."""
    named = {numbers: name for name, numbers in SIZES.items()}
    return named.get((width, depth, heads), f"{width}x{depth}x{heads}")
