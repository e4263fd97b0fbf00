"""Weights of one backbone into another of a different grid, depth of position table or head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from bench.errors import BenchError, listed_up_to
from bench.models.backbone import SHARED_TABLE, TABLE, Backbone
from bench.models.pos_embed import resize_embedding, resize_table

LEFT_BEHIND = ("mask_token", "norm.weight", "norm.bias")  # of pretraining, when the new backbone has no use for it


class Transfer(NamedTuple):
    """What became of every tensor of an earlier stage's backbone, by name."""

    matched: tuple[str, ...]
    resized: tuple[str, ...]  # to another grid
    shared: tuple[str, ...]  # tables filled from the one that all blocks shared
    left: tuple[str, ...]  # of the earlier stage, not needed here


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of submodule `name` in an objective's state, under their names there."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def transfer(state: dict[str, Tensor], into: Backbone) -> Transfer:
    """Start `into` from the weights of an earlier stage's backbone, as the authors hand over.

    A relative bias shared by all blocks is cloned into each block that has its own; positions are resized to the new
    grid; the mask token stays behind, and so does the final norm where the new stage pools by mean: the norm of its
    head (fc_norm) begins anew, with the authors of BEiT, data2vec and MAE as well.
    Raises BenchError for tensors that have no place in `into`, that are missing, or of another shape.
    Source: BEiT and data2vec run_class_finetuning.py, MAE main_finetune.py.
    """
    wanted = into.state_dict()
    state, shared = _unshare(state, wanted)
    left = tuple(key for key in LEFT_BEHIND if key in state and key not in wanted)
    _refuse("the earlier stage has what this backbone does not take", state.keys() - wanted.keys() - set(left))
    _refuse("the earlier stage lacks what this backbone needs", wanted.keys() - state.keys())
    given = {key: _resize(key, value, into) for key, value in state.items() if key not in left}
    resized = tuple(key for key, value in given.items() if value.shape != state[key].shape)
    other = {key: (value.shape, wanted[key].shape) for key, value in given.items() if value.shape != wanted[key].shape}
    _refuse("shapes differ", (f"{key} {tuple(old)} -> {tuple(new)}" for key, (old, new) in other.items()))
    into.load_state_dict(given)
    matched = tuple(key for key in given if key not in resized and key not in shared)
    return Transfer(matched, resized, shared, left)


def _unshare(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give every block of `wanted` that has a table of its own the table that the blocks of `state` share."""
    tables = tuple(key for key in wanted if key.endswith(f"attn.{TABLE}"))
    if SHARED_TABLE not in state or not tables:
        return dict(state), ()
    rest = {key: value for key, value in state.items() if key != SHARED_TABLE}
    return rest | {key: state[SHARED_TABLE].clone() for key in tables}, tables


def _resize(key: str, value: Tensor, into: Backbone) -> Tensor:
    if key == "pos_embed":
        return resize_embedding(value, into.grid, prefix_tokens=into.prefix_tokens)
    return resize_table(value, into.grid) if key.endswith(TABLE) else value


def _refuse(what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{what}: {listed_up_to(names, 5)}; model.trunk, position, size and distilled must agree")
