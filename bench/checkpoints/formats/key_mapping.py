"""Map tensor names between our networks and others: tables for both directions, and fused queries, keys and values.

Ours are the names of an objective: backbone.blocks.0.attn.qkv.weight, head.head.bias, lm_head.weight, decoder....
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from bench.checkpoints.formats import State

Pair = tuple[str, str]  # ours, theirs
QKV = ("q", "k", "v")


class Names:
    """A table of pairs (ours, theirs); the first that matches is used.

    A name is that of a tensor, or of a module and then of all tensors in it; {} stands for a number.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        pairs = tuple(pairs)
        self._ours = [(_pattern(theirs), ours) for ours, theirs in pairs]
        self._theirs = [(_pattern(ours), theirs) for ours, theirs in pairs]

    def ours(self, theirs: str) -> str | None:
        """Our name of a tensor, None when it has none."""
        return _look_up(theirs, self._ours)

    def theirs(self, ours: str) -> str | None:
        """Their name of a tensor, None when it has none."""
        return _look_up(ours, self._theirs)

    def read(self, state: State) -> tuple[State, tuple[str, ...]]:
        """Rename from theirs to ours: the tensors, and the names that the table does not have."""
        return _rename(state, {name: self.ours(name) for name in state})

    def write(self, state: State) -> tuple[State, tuple[str, ...]]:
        """Rename from ours to theirs: the tensors, and the names that the table does not have."""
        return _rename(state, {name: self.theirs(name) for name in state})


def with_prefix(pairs: Iterable[Pair], ours: str, theirs: str) -> tuple[Pair, ...]:
    """The pairs inside module `ours` of ours and `theirs` of theirs, which may be '', the top level."""
    return tuple((f"{ours}.{own}", f"{theirs}.{other}".lstrip(".")) for own, other in pairs)


def _rename(state: State, new_names: dict[str, str | None]) -> tuple[State, tuple[str, ...]]:
    """Tensors under their new names, and the old names of those without one.

    Of two tensors with the same new name the first gets it.
    """
    first = {new: old for old, new in reversed(new_names.items()) if new is not None}
    renamed = {new: state[old] for old, new in new_names.items() if new is not None and first[new] == old}
    return renamed, tuple(old for old, new in new_names.items() if new is None or first[new] != old)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"(\..+)?")


def _look_up(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in table:
        if match := pattern.fullmatch(name):
            *numbers, rest = match.groups()
            return other.format(*numbers) + (rest or "")
    return None


def split_qkv(state: State) -> State:
    """Split fused attention tensors: attn.qkv.weight into attn.q.weight and so on; attn.q_bias becomes attn.q.bias."""
    split: State = {}
    for name, value in state.items():
        head, _, tail = name.rpartition(".attn.")
        if tail.startswith("qkv."):
            split |= {f"{head}.attn.{part}.{tail[4:]}": cut for part, cut in zip(QKV, value.chunk(3), strict=True)}
        elif tail in ("q_bias", "v_bias"):
            split[f"{head}.attn.{tail[0]}.bias"] = value
        else:
            split[name] = value
    return split


def fuse_qkv(state: State, *, key_bias: bool) -> State:
    """Undo `split_qkv`. key_bias: biases become one tensor, as in ViT; else q_bias and v_bias, as in BEiT."""
    fused = dict(state)
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        head = name.removesuffix("q.weight")
        fused = _fuse(fused, head, "weight")
        if key_bias:
            fused = _fuse(fused, head, "bias")
        else:
            biases = {f"{head}{part}.bias": f"{head}{part}_bias" for part in ("q", "v")}
            fused = {biases.get(key, key): value for key, value in fused.items()}
    return fused


def _fuse(state: State, head: str, kind: str) -> State:
    """Join three tensors into one, if all are there."""
    names = [f"{head}{part}.{kind}" for part in QKV]
    if not all(name in state for name in names):
        return state
    others = {key: value for key, value in state.items() if key not in names}
    return others | {f"{head}qkv.{kind}": torch.cat([state[name] for name in names])}
