"""Stage: one unit of work, fully resolved, with a key that hashes all that determines its result. Data, Start, Plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from bench.config.schema import Fidelity, Frozen, Model, Protocol, Recipe, Scalar, StageKind, Study


def digest(value: Any, length: int = 24) -> str:
    """Hash of a JSON value that does not depend on key order or spacing: hexadecimal, `length` digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


COSMETIC = frozenset({"eval_every_epochs", "checkpoint_every_epochs"})  # values of a recipe that change no result
# Values of a recipe that say where weights are. The key has Start.digest instead, and start_partial only when set.
STARTING = {"start_from", "start_partial"}


class Data(Frozen):
    """One split as a stage uses it. `identity` says what it holds; `root` only where it is."""

    dataset: str
    split: str
    identity: str
    images: Annotated[int, Field(ge=0)]
    root: str | None = None
    options: dict[str, Scalar] = {}
    limit: float | None = None  # a count (> 1) or a fraction (<= 1) of the images; the result is not reportable
    manifest: str = ""  # root hash over path, size and content of its files; '' for generated data
    labels: str = ""  # the labelled part, as in Task; covered by `identity`
    incomplete: str = ""  # how it differs from the published split; the result is not reportable

    @property
    def shortfall(self) -> str:
        """Why a result on this split is not reportable; '' when it is."""
        limited = f"--limit left {self.images:,} images" if self.limit is not None else ""
        return "; ".join(text for text in (limited, self.incomplete) if text)


class Start(Frozen):
    """Pretrained weights that a stage starts from. `digest` says what they are, the rest only where they are."""

    id: str  # for people: a hub id, timm:NAME, or the name of a file or folder
    digest: str  # sha256, 64 hexadecimal digits
    root: str = ""
    revision: str = ""  # of a hub model

    @property
    def name(self) -> str:
        """The id and a short digest."""
        return f"{self.id} (sha256 {self.digest[:12]})"


class Stage(Frozen):
    """One unit of work, fully resolved. Its key names its folder: same key, same result."""

    kind: StageKind
    method: str
    variant: str = ""
    version: int = 1  # of the method; raised when a change of its code changes results
    task: str
    seed: int = 0
    model: Model
    recipe: Recipe | None = None  # None: nothing is trained (evaluate)
    options: dict[str, Scalar] = {}  # values that only this method has
    protocol: Protocol
    data: dict[str, Data] = {}  # by role: train, val, minival
    parents: dict[str, str] = {}  # by role: tokenizer, teacher, start; the keys of earlier stages
    start: Start | None = None  # what recipe.start_from names
    origins: dict[str, str] = {}  # where each value came from: 'recipe.lr' -> 'P-BEiT Table 12'
    departures: dict[str, tuple[Any, Any]] = {}  # 'recipe.lr' -> (published, here)

    def identity(self) -> dict[str, Any]:
        """All that determines the result, and nothing else."""
        body = self.model_dump(mode="json", exclude={"origins", "departures", "variant", "task", "start"})
        body["data"] = {role: _content(data) for role, data in body["data"].items()}
        if body["recipe"] is not None:
            partial = {"start_partial": True} if body["recipe"]["start_partial"] else {}
            body["recipe"] = {k: v for k, v in body["recipe"].items() if k not in COSMETIC | STARTING} | partial
        return body | ({"start": self.start.digest} if self.start else {})

    @cached_property
    def key(self) -> str:
        """Content address of the stage, 24 hexadecimal digits."""
        return digest(self.identity())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Stage:
        """A copy, as pydantic makes it, that computes its own key."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("key", None)  # pydantic copies cached properties, too, and `update` may change the key
        return copy

    @property
    def folder(self) -> str:
        """Name of the run folder: kind-key."""
        return f"{self.kind}-{self.key[:12]}"


def _content(data: dict[str, Any]) -> dict[str, Any]:
    """What a split holds, without the paths of its data and of a list of its labels."""
    # A complete split of generated data has neither a manifest nor anything that is incomplete: nothing to hash.
    left_out = {"root", "labels", *(name for name in ("manifest", "incomplete") if not data[name])}
    return {k: v for k, v in data.items() if k not in left_out}


class PlannedArm(Frozen):
    """An arm with the keys of its stages, by seed and role, in the order they run."""

    id: str
    label: str
    method: str
    variant: str
    size: str
    task: str
    budget: str
    metric: str
    fidelity: Fidelity
    departures: tuple[str, ...] = ()  # of the method's code from the reference, in words
    published: str = ""  # id of the published row beside it
    stages: dict[int, dict[str, str]]  # seed -> role (tokenizer, teacher, pretrain, ..., evaluate) -> key


class Plan(Frozen):
    """All stages of a study, fully resolved before anything runs. Stages stand after their parents."""

    study: Study
    arms: tuple[PlannedArm, ...]
    stages: dict[str, Stage]
