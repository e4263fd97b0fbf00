"""What our tensors are called elsewhere: tables that are read in both directions, and fused queries, keys and values.

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
    """A table of pairs (ours, theirs), the first match counting.

    A name is that of a tensor, or of a module and then of all in it; {} stands for a number.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        pairs = tuple(pairs)
        self._ours = [(_pattern(theirs), ours) for ours, theirs in pairs]
        self._theirs = [(_pattern(ours), theirs) for ours, theirs in pairs]

    def ours(self, theirs: str) -> str | None:
        """Our name of a tensor, None when it has none."""
        return _renamed(theirs, self._ours)

    def theirs(self, ours: str) -> str | None:
        """Their name of a tensor, None when it has none."""
        return _renamed(ours, self._theirs)

    def read(self, state: State) -> tuple[State, tuple[str, ...]]:
        """The tensors under our names, and the names that the table does not have."""
        named = {name: self.ours(name) for name in state}
        return _split_off(state, named)

    def write(self, state: State) -> tuple[State, tuple[str, ...]]:
        """The tensors under their names, and the names that the table does not have."""
        named = {name: self.theirs(name) for name in state}
        return _split_off(state, named)


def below(pairs: Iterable[Pair], ours: str, theirs: str) -> tuple[Pair, ...]:
    """Pairs inside a module of ours and one of theirs; theirs may be the top level, ''."""
    return tuple((f"{ours}.{own}", f"{theirs}.{other}".lstrip(".")) for own, other in pairs)


def _split_off(state: State, named: dict[str, str | None]) -> tuple[State, tuple[str, ...]]:
    """Known tensors under their new names, and the old names of the others; of two with one name the first is known."""
    first = {new: name for name, new in reversed(named.items()) if new is not None}
    known = {new: state[name] for name, new in named.items() if new is not None and first[new] == name}
    return known, tuple(name for name, new in named.items() if new is None or first[new] != name)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"(\..+)?")


def _renamed(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in table:
        if found := pattern.fullmatch(name):
            *numbers, rest = found.groups()
            return other.format(*numbers) + (rest or "")
    return None


def split_qkv(state: State) -> State:
    """Attention's fused tensors as three: attn.qkv.weight as attn.q.weight and so on, attn.q_bias as attn.q.bias."""
    found: State = {}
    for name, value in state.items():
        head, _, tail = name.rpartition(".attn.")
        if tail.startswith("qkv."):
            found |= {f"{head}.attn.{part}.{tail[4:]}": cut for part, cut in zip(QKV, value.chunk(3), strict=True)}
        elif tail in ("q_bias", "v_bias"):
            found[f"{head}.attn.{tail[0]}.bias"] = value
        else:
            found[name] = value
    return found


def fuse_qkv(state: State, *, key_bias: bool) -> State:
    """Undo `split_qkv`. key_bias: biases are one tensor, as in ViT; else those of queries and values are two (BEiT)."""
    found = dict(state)
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        head = name.removesuffix("q.weight")
        found = _fused(found, head, "weight")
        if key_bias:
            found = _fused(found, head, "bias")
        else:
            alone = {f"{head}{part}.bias": f"{head}{part}_bias" for part in ("q", "v")}
            found = {alone.get(key, key): value for key, value in found.items()}
    return found


def _fused(state: State, head: str, kind: str) -> State:
    """Three tensors as one, if all are there."""
    names = [f"{head}{part}.{kind}" for part in QKV]
    if not all(name in state for name in names):
        return state
    rest = {key: value for key, value in state.items() if key not in names}
    return rest | {f"{head}qkv.{kind}": torch.cat([state[name] for name in names])}
