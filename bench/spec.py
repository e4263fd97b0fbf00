"""The words of the project as data: Method, Task, Study, Recipe, Stage, Plan; reading TOML; BenchError.

Everything here is plain, frozen and hashable to JSON; nothing here imports torch. A value that a person may
write has one place and one type, an unknown key is an error that names the nearest match.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Scalar = bool | int | float | str
StageKind = Literal["tokenizer", "teacher", "supervised", "pretrain", "finetune", "probe", "evaluate"]
TRAINED: tuple[StageKind, ...] = ("tokenizer", "teacher", "supervised", "pretrain", "finetune", "probe")
Fidelity = Literal["exact", "close", "variant", "placeholder"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class BenchError(Exception):
    """A mistake of the user's, or of the world's: shown without a traceback, exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean x?' when something like `word` is known, else ''."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""


def unknown(what: str, word: str, known: Iterable[str]) -> BenchError:
    """The error for a name that does not exist: what was asked, what there is, what is nearest."""
    names = sorted(known)
    return BenchError(f"no {what} {word!r}; there is {', '.join(names) or 'none'}.{nearest(word, names)}")


def digest(value: Any, length: int = 24) -> str:
    """Hash of a JSON value that does not depend on key order or spacing: hexadecimal, `length` digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


class Frozen(BaseModel):
    """A value object: immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Recipe(Frozen):
    """The numbers of one training stage. `batch_size` is global: over all processes and accumulation."""

    epochs: Positive = 100.0
    batch_size: Count = 1024
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    lr_reference_batch: Annotated[int, Field(ge=0)] = 0  # lr is for this batch and scales linearly; 0: lr is absolute
    min_lr: NonNegative = 0.0
    warmup_lr: NonNegative = 0.0
    warmup_epochs: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # wins over warmup_epochs when > 0
    schedule: Literal["cosine", "cosine-per-epoch", "linear", "constant"] = "cosine"
    weight_decay: NonNegative = 0.05
    weight_decay_end: NonNegative | None = None  # None: constant
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum: Fraction = 0.9  # sgd only
    clip_grad: NonNegative = 0.0  # global norm; 0: off
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    drop_path: Fraction = 0.0
    dropout: Fraction = 0.0
    attn_dropout: Fraction = 0.0
    label_smoothing: Fraction = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mix_prob: Fraction = 1.0
    mix_switch_prob: Fraction = 0.5
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    flip: Fraction = 0.5
    color_jitter: NonNegative = 0.0
    rand_augment: str = ""
    random_erasing: Fraction = 0.0
    repeats: Count = 1  # repeated augmentation: copies of an image in one pass
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    pool: Literal["mean", "token"] = "token"
    head_init_scale: NonNegative = 1.0
    model_ema: Fraction = 0.0  # decay of averaged weights, stored and scored apart; 0: off
    select: Literal["last", "best"] = "last"  # best: by minival, never by the split that is reported
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"  # auto: decided when planned, by what the machine has
    eval_every_epochs: NonNegative = 1.0  # 0: only at the end
    checkpoint_every_epochs: NonNegative = 1.0


COSMETIC = frozenset({"eval_every_epochs", "checkpoint_every_epochs"})  # do not change a stage's result


class Model(Frozen):
    """The network of a stage, complete: `trunk` is beit, vit, or timm:NAME for a convolutional teacher."""

    trunk: str = "vit"
    size: str = "base"
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    image_size: Count = 224
    patch_size: Count = 16
    position: Literal["absolute", "relative", "shared-relative"] = "absolute"
    layer_scale: NonNegative = 0.0  # initial value; 0: none
    init_std: Positive = 0.02  # of the starting weights, at the authors' widths
    distilled: bool = False  # a distillation token and its head
    classes: Annotated[int, Field(ge=0)] = 0
    decoder: Literal["", "linear", "setr-pup"] = ""  # segmentation head
    options: dict[str, Scalar] = {}  # further arguments of a timm model

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


SIZES: dict[str, tuple[int, int, int]] = {  # name: width, depth, heads
    "nano": (96, 4, 3),  # ours, for CPU-sized studies
    "tiny": (192, 12, 3),  # P-DeiT Table 1
    "small": (384, 12, 6),  # P-DeiT Table 1
    "base": (768, 12, 12),  # P-ViT Table 1
    "large": (1024, 24, 16),  # P-ViT Table 1
}


class Protocol(Frozen):
    """How a task is scored. All of it is hashed into every result."""

    resolution: Count = 224
    crop_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    decoder: Literal["pil"] = "pil"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    test_time_augmentation: Literal["none"] = "none"
    ignore_label: Annotated[int, Field(ge=0, le=255)] = 255  # of label maps: pixels that count for nothing


class Data(Frozen):
    """One split as a stage sees it. `identity` says what it holds; `root` only where it lies."""

    dataset: str
    split: str
    identity: str
    images: Annotated[int, Field(ge=0)]
    root: str | None = None
    options: dict[str, Scalar] = {}
    limit: float | None = None  # a count (> 1) or a share (<= 1) of the images; the result is not reportable


class Stage(Frozen):
    """One unit of work, fully decided. Its key names its folder: same key, same result."""

    kind: StageKind
    method: str
    variant: str = ""
    version: int = 1  # of the method; raised when its code changes its numbers
    task: str
    seed: int = 0
    model: Model
    recipe: Recipe | None = None  # None: nothing is trained (evaluate)
    options: dict[str, Scalar] = {}  # the method's own numbers
    protocol: Protocol
    data: dict[str, Data] = {}  # by role: train, val, minival
    parents: dict[str, str] = {}  # by role: tokenizer, teacher, start; the keys of earlier stages
    origins: dict[str, str] = {}  # where each value came from: 'recipe.lr' -> 'P-BEiT Table 12'
    departures: dict[str, tuple[Any, Any]] = {}  # 'recipe.lr' -> (published, here)

    def identity(self) -> dict[str, Any]:
        """All that determines the result, and nothing else."""
        body = self.model_dump(mode="json", exclude={"origins", "departures", "variant", "task"})
        body["data"] = {role: _held(data) for role, data in body["data"].items()}
        if body["recipe"] is not None:
            body["recipe"] = {k: v for k, v in body["recipe"].items() if k not in COSMETIC}
        return body

    @property
    def key(self) -> str:
        """Content address of the stage, 24 hexadecimal digits."""
        return digest(self.identity())

    @property
    def folder(self) -> str:
        """Name of the run folder: kind-key."""
        return f"{self.kind}-{self.key[:12]}"


def _held(data: dict[str, Any]) -> dict[str, Any]:
    """What a split holds, without where it lies."""
    return {k: v for k, v in data.items() if k != "root"}


class Arm(Frozen):
    """One line of a comparison, as a study writes it: method[:variant] x size x task x budget."""

    method: str
    task: str = ""
    size: str = ""
    budget: str = ""
    label: str = ""
    seeds: tuple[int, ...] | None = None
    set: dict[str, Any] = {}  # 'stage.key' -> value, for this arm alone


class Study(Frozen):
    """The arms to compare and the seeds."""

    name: str = ""
    title: str = ""
    question: str = ""
    tasks: tuple[str, ...] = ()
    size: str = "base"
    budget: str = ""
    seeds: tuple[int, ...] = (0,)
    arms: tuple[Arm, ...]
    recipe: dict[str, dict[str, Any]] = {}  # stage -> key -> value, every method
    methods: dict[str, dict[str, dict[str, Any]]] = {}  # method -> stage -> key -> value


class Overrides(Frozen):
    """Values that a task or a budget puts over the methods' recipes."""

    recipe: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, dict[str, Any]]] = {}


class Task(Overrides):
    """What is measured, on which data, by which protocol."""

    name: str = ""
    title: str = ""
    version: int = 1
    kind: Literal["classification", "segmentation"] = "classification"
    metric: Literal["top1", "mIoU"] = "top1"
    dataset: str
    options: dict[str, Scalar] = {}  # of the dataset
    classes: Annotated[int, Field(ge=0)] = 0  # 0: counted from the data
    decoder: Literal["", "linear", "setr-pup"] = ""
    image_size: Count = 224
    patch_size: Count = 16
    splits: dict[Literal["pretrain", "train", "val", "minival"], str]
    supervised_task: str = ""  # segmentation: the task whose labels supervised methods learn from first
    protocol: Protocol = Protocol()
    budgets: dict[str, Overrides] = {}


class Variant(Frozen):
    """A named change to a method, as in a paper's ablation."""

    summary: str
    fidelity: Fidelity = "variant"
    source: str = ""
    set: dict[str, Any] = {}  # 'stage.key' -> value; 'stages' -> what it goes through instead of the method's


class Method(Frozen):
    """How a backbone learns: its numbers (this, from methods/NAME.toml) and its code (methods/NAME.py)."""

    name: str = ""
    title: str
    paper: str
    code: str
    version: int = 1
    summary: str
    stages: tuple[StageKind, ...]  # in order, the last one is what a task evaluates
    fidelity: Fidelity
    departures: tuple[str, ...] = ()
    model: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}  # stage -> the method's own numbers
    recipe: dict[str, dict[str, Any]] = {}  # stage -> the published recipe, without `source`
    sources: dict[str, dict[str, str]] = {}  # stage -> key (or 'default') -> where the number is from
    sizes: dict[str, dict[str, Any]] = {}  # size -> 'stage.key' -> value
    variants: dict[str, Variant] = {}


class PlannedArm(Frozen):
    """An arm with its stages: by seed, the keys in the order they run."""

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
    stages: dict[int, dict[str, str]]  # seed -> role (tokenizer, teacher, pretrain, ..., evaluate) -> key


class Plan(Frozen):
    """Every stage of a study fully decided, before anything starts. Stages stand after their parents."""

    study: Study
    arms: tuple[PlannedArm, ...]
    stages: dict[str, Stage]


T = TypeVar("T", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary; BenchError names the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BenchError(f"{path}: {error}") from None


def parse(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """`values` as a `kind`; every mistake in them is named, with its value and the nearest known key."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_mistake(kind, item) for item in error.errors()]
        raise BenchError(f"{where}: " + "; ".join(lines)) from None


def _mistake(kind: type[BaseModel], item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(kind, item["loc"][:-1])
        return f"unknown key {place!r}.{nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _fields_at(kind: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """Field names of the model nested at `place`, as far as it can be followed."""
    for part in place:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        models = [a for a in inner if issubclass(a, BaseModel)]
        if models:
            kind = models[0]
    return list(kind.model_fields)
