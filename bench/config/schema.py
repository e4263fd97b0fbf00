"""What people write, as frozen pydantic models: Method, Variant, Task, Study, Arm, Recipe, Model, Protocol.

A value that a person may write has one place and one type; an unknown key is an error that names the nearest match.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = bool | int | float | str
StageKind = Literal["tokenizer", "teacher", "supervised", "pretrain", "finetune", "probe", "evaluate"]
TRAINED: tuple[StageKind, ...] = ("tokenizer", "teacher", "supervised", "pretrain", "finetune", "probe")
Fidelity = Literal["exact", "close", "variant", "placeholder"]
Decoder = Literal["", "linear", "setr-pup", "upernet"]  # segmentation heads
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """A value object: immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Recipe(Frozen):
    """The numbers of one training stage. `batch_size` is global: over all processes and accumulation."""

    epochs: Positive = 100.0
    steps: Annotated[int, Field(ge=0)] = 0  # of the optimiser; wins over epochs when > 0
    batch_size: Count = 1024
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    lr_reference_batch: Annotated[int, Field(ge=0)] = 0  # lr is for this batch and scales linearly; 0: lr is absolute
    min_lr: NonNegative = 0.0
    warmup_lr: NonNegative = 0.0
    warmup_epochs: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # wins over warmup_epochs when > 0
    schedule: Literal["cosine", "cosine-per-epoch", "linear", "tri-phase", "constant"] = "cosine"
    schedule_power: Positive = 1.0  # linear only: of the share that is left
    cooldown_fraction: Fraction = 0.0  # tri-phase only: share of the steps in which lr falls, at the end
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
    pixels: Literal["task", "half"] = "task"  # standardised as the task says; half: by mean and deviation 0.5
    freeze: bool = False  # the backbone stays as it is, only the head learns; of fine-tuning
    head_init_scale: NonNegative = 1.0
    model_ema: Fraction = 0.0  # decay of averaged weights, stored and scored apart; 0: off
    select: Literal["last", "best"] = "last"  # best: by minival, never by the split that is reported
    start_from: str = ""  # weights from outside, in place of an earlier stage's: a path, a run, a hub id, timm:NAME
    start_partial: bool = False  # what they hold and this network does not take is left out, not refused
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"  # auto: decided when planned, by what the machine has
    eval_every_epochs: NonNegative = 1.0  # 0: only at the end
    checkpoint_every_epochs: NonNegative = 1.0


HUB = "hf:"  # of a data folder that is a data set of the Hugging Face hub: hf:OWNER/NAME[:CONFIGURATION][@REVISION]


class Model(Frozen):
    """The network of a stage, complete: `trunk` is beit, vit, or timm:NAME for a convolutional teacher."""

    trunk: str = "vit"
    size: str = "base"
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    mlp_ratio: Positive = 4.0  # width of the hidden layer of a block, in widths
    image_size: Count = 224
    patch_size: Count = 16
    position: Literal["absolute", "relative", "shared-relative"] = "absolute"
    layer_scale: NonNegative = 0.0  # initial value; 0: none
    norm_eps: Positive = 1e-6  # of every LayerNorm, as the authors have it; Hugging Face's configs say 1e-12
    init_std: Positive = 0.02  # of the starting weights, at the authors' widths
    distilled: bool = False  # a distillation token and its head
    classes: Annotated[int, Field(ge=0)] = 0
    decoder: Decoder = ""  # segmentation head
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
    ignore_label: Annotated[int, Field(ge=0, le=255)] = 255  # of label maps: pixels that count for nothing
    among: Literal["all", "split"] = "all"  # classes that may be answered: the model's, or only those of the split
    right: Literal["label", "label-set"] = "label"  # what is right: an image's label, or any of several
    whole: bool = False  # squeezed into a square; else the aspect stays, and label maps are seen through windows
    # Of label maps. What is seen at several sizes, or as a mirror image too, has its probabilities averaged.
    stride: Annotated[int, Field(ge=0)] = 0  # from window to window; 0: two thirds of one, 341 of 512
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)  # of `resolution`
    flip: bool = False  # and as mirror images

    @model_validator(mode="after")
    def _one_way(self) -> Protocol:
        if self.whole and (self.stride or self.scales != (1.0,)):
            raise ValueError("whole = true shows a picture once and at one size; leave out stride and scales")
        return self


class Arm(Frozen):
    """One line of a comparison, as a study writes it: method[:variant] x size x task x budget."""

    method: str
    task: str = ""
    size: str = ""
    budget: str = ""
    label: str = ""
    seeds: tuple[int, ...] | None = None
    intermediate: tuple[str, ...] | None = None  # tasks whose labels are learned before; None: as the task says
    set: dict[str, Any] = {}  # 'stage.key' -> value, for this arm alone
    published: str | dict[str, str] = ""  # the row of results/published.csv that it reproduces, by id; or task -> id


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
    claims: tuple[str, ...] = ()  # 'beit > deit on imagenet1k/top1 by 0.5', 'data2vec ~ beit within 0.2'
    levels: tuple[float, ...] = ()  # scores that convergence is measured to; (): shares of the best arm's
    recipe: dict[str, dict[str, Any]] = {}  # stage -> key -> value, every method
    methods: dict[str, dict[str, dict[str, Any]]] = {}  # method -> stage -> key -> value


class Overrides(Frozen):
    """Values that a task or a budget puts over the methods' recipes."""

    recipe: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, dict[str, Any]]] = {}


class Expected(Frozen):
    """What a split holds when it is complete, as published."""

    images: Count
    per_class: tuple[Count, Count] | None = None  # the fewest and the most images of a class
    names: str = ""  # the files' names before the suffix, numbered from 1: 'ILSVRC2012_val_{:08d}'


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
    decoder: Decoder = ""
    image_size: Count = 224
    patch_size: Count = 16
    splits: dict[Literal["pretrain", "train", "val", "minival"], str]
    expects: dict[str, Expected] = {}  # by split; one that differs is an error, or not reportable
    labels: str = ""  # '1%', '5 per class' (both: 'seed 1' behind it), 'list:PATH': the part of train learnt from
    evaluates: str = ""  # the task that models are trained on, where this one only scores them
    supervised_task: str = ""  # the task on which learning begins: without labels, or with all of them
    intermediate: tuple[str, ...] = ()  # tasks on whose labels what was learned is fine-tuned before
    toy: str = ""  # the task with embedded data that stands for this one at --scale toy
    source: str = ""  # of its recipes, which are then the published ones on this task and no departures
    protocol: Protocol = Protocol()
    budgets: dict[str, Overrides] = {}

    @model_validator(mode="after")
    def _seen_as_it_can_be(self) -> Task:
        seen = self.protocol
        if self.kind == "classification" and (seen.stride or seen.flip or seen.scales != (1.0,)):
            raise ValueError("protocol.stride, scales and flip are for label maps; this task has none")
        return self


class Variant(Frozen):
    """A named change to a method, as in a paper's ablation."""

    summary: str
    fidelity: Fidelity = "variant"
    source: str = ""
    set: dict[str, Any] = {}  # 'stage.key' -> value; 'stages' -> what it goes through instead of the method's


class Departure(Frozen):
    """Something that is not as the authors do it, in words, and the arms that it concerns."""

    text: str
    stage: StageKind | Literal[""] = ""  # those with such a stage; '': all
    size: str = ""  # those of this size
    when: dict[str, Scalar] = {}  # those whose stage has these values: 'options.tokenizer' -> 'trained'


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
    departures: tuple[Departure, ...] = ()
    model: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}  # stage -> the method's own numbers
    recipe: dict[str, dict[str, Any]] = {}  # stage -> the published recipe, without `source`
    sources: dict[str, dict[str, str]] = {}  # stage -> key (or 'default') -> where the number is from
    sizes: dict[str, dict[str, Any]] = {}  # size -> 'stage.key' -> value
    variants: dict[str, Variant] = {}
