"""Start a backbone from the weights of another, which may have another grid, position bias or head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from bench.errors import BenchError, listed_up_to
from bench.models.backbone import BIAS_TABLE, SHARED_BIAS_TABLE, Backbone
from bench.models.pos_embed import resize_embedding, resize_table

LEFT_BEHIND = ("mask_token", "norm.weight", "norm.bias")  # of pretraining, where the new backbone has none


class Transfer(NamedTuple):
    """What became of every tensor of an earlier stage's backbone, by name."""

    matched: tuple[str, ...]
    resized: tuple[str, ...]  # to another grid
    shared: tuple[str, ...]  # tables filled from the one that all blocks shared
    left: tuple[str, ...]  # of the earlier stage, not needed here


def submodule_state(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state of submodule `name` within an objective's state, without the prefix."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def transfer(state: dict[str, Tensor], into: Backbone) -> Transfer:
    """Start `into` from the backbone weights of an earlier stage, in place, as the authors do.

    A relative bias shared by all blocks is cloned into each block that has its own; positions are resized to the new
    grid; the mask token is dropped, and so is the final norm where the new stage pools by mean: the norm of its
    head (fc_norm) starts anew, with the authors of BEiT, data2vec and MAE as well.
    Raises BenchError for tensors that have no place in `into`, that are missing, or of another shape.
    Source: BEiT and data2vec run_class_finetuning.py, MAE main_finetune.py.
    """
    target = into.state_dict()
    state, shared = _unshare(state, target)
    left = tuple(key for key in LEFT_BEHIND if key in state and key not in target)
    _refuse("the earlier stage has what this backbone does not take", state.keys() - target.keys() - set(left))
    _refuse("the earlier stage lacks what this backbone needs", target.keys() - state.keys())
    fitted = {key: _resize(key, value, into) for key, value in state.items() if key not in left}
    resized = tuple(key for key, value in fitted.items() if value.shape != state[key].shape)
    other = [key for key, value in fitted.items() if value.shape != target[key].shape]
    _refuse("shapes differ", (f"{key} {tuple(fitted[key].shape)} -> {tuple(target[key].shape)}" for key in other))
    into.load_state_dict(fitted)
    matched = tuple(key for key in fitted if key not in resized and key not in shared)
    return Transfer(matched, resized, shared, left)


def _unshare(state: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Copy the bias table that the blocks of `state` share to every block of `target` that has its own.

    Returns the state and the names of the tables that were filled.
    """
    tables = tuple(key for key in target if key.endswith(f"attn.{BIAS_TABLE}"))
    if SHARED_BIAS_TABLE not in state or not tables:
        return dict(state), ()
    others = {key: value for key, value in state.items() if key != SHARED_BIAS_TABLE}
    return others | {key: state[SHARED_BIAS_TABLE].clone() for key in tables}, tables


def _resize(key: str, value: Tensor, into: Backbone) -> Tensor:
    if key == "pos_embed":
        return resize_embedding(value, into.grid, prefix_tokens=into.prefix_tokens)
    return resize_table(value, into.grid) if key.endswith(BIAS_TABLE) else value


def _refuse(what: str, keys: Iterable[str]) -> None:
    if names := sorted(keys):
        raise BenchError(f"{what}: {listed_up_to(names, 5)}; model.trunk, position, size and distilled must agree")
