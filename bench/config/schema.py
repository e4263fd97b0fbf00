"""Schema of TOML files, as frozen pydantic models: Method, Variant, Task, Study, Arm, Recipe, Model, Protocol.

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
    schedule_power: Positive = 1.0  # linear only: exponent of the remaining fraction of steps
    cooldown_fraction: Fraction = 0.0  # tri-phase only: fraction of the steps, at the end, in which lr falls
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
    repeats: Count = 1  # repeated augmentation: views of an image in one epoch
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    pool: Literal["mean", "token"] = "token"
    pixels: Literal["task", "half"] = "task"  # normalised as the task says; half: by mean and deviation 0.5
    freeze: bool = False  # fine-tuning only: train the head on a frozen backbone
    head_init_scale: NonNegative = 1.0
    model_ema: Fraction = 0.0  # decay of the EMA of the weights, which is saved and evaluated as well; 0: off
    select: Literal["last", "best"] = "last"  # best: on minival, never on the reported split
    start_from: str = ""  # pretrained weights, in place of an earlier stage: a path, a run, a hub id, timm:NAME
    start_partial: bool = False  # ignore weights that this network has no place for, instead of refusing them
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"  # auto: bf16 or fp32, by the machine that plans
    eval_every_epochs: NonNegative = 1.0  # 0: only at the end
    checkpoint_every_epochs: NonNegative = 1.0


HUB = "hf:"  # prefix of a data folder that is a Hugging Face dataset: hf:OWNER/NAME[:CONFIGURATION][@REVISION]


class Model(Frozen):
    """The network of a stage, complete: `trunk` is beit, vit, or timm:NAME for a convolutional teacher."""

    trunk: str = "vit"
    size: str = "base"
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    mlp_ratio: Positive = 4.0  # hidden width of the MLP, in widths
    image_size: Count = 224
    patch_size: Count = 16
    position: Literal["absolute", "relative", "shared-relative"] = "absolute"
    layer_scale: NonNegative = 0.0  # initial value; 0: none
    norm_eps: Positive = 1e-6  # of every LayerNorm; the authors' value, where Hugging Face's configs say 1e-12
    init_std: Positive = 0.02  # deviation of initial weights, at the authors' widths
    distilled: bool = False  # a distillation token and its head
    classes: Annotated[int, Field(ge=0)] = 0
    decoder: Decoder = ""  # segmentation head
    options: dict[str, Scalar] = {}  # further keyword arguments of a timm model

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
    ignore_label: Annotated[int, Field(ge=0, le=255)] = 255  # segmentation: pixels with this label are not scored
    among: Literal["all", "split"] = "all"  # allowed predictions: all classes of the model, or those of the split
    right: Literal["label", "label-set"] = "label"  # a prediction is correct if it is the label, or one of several
    whole: bool = False  # resize to a square; else keep the aspect ratio, and segment in sliding windows
    # Segmentation only; probabilities are averaged over windows, scales and flips.
    stride: Annotated[int, Field(ge=0)] = 0  # of the sliding window, in pixels; 0: two thirds of it, 341 of 512
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)  # of `resolution`
    flip: bool = False  # also score the mirror image

    @model_validator(mode="after")
    def _check_whole(self) -> Protocol:
        if self.whole and (self.stride or self.scales != (1.0,)):
            raise ValueError("whole = true shows an image once and at one size; leave out stride and scales")
        return self


class Arm(Frozen):
    """One line of a comparison, as a study writes it: method[:variant] x size x task x budget."""

    method: str
    task: str = ""
    size: str = ""
    budget: str = ""
    label: str = ""
    seeds: tuple[int, ...] | None = None
    intermediate: tuple[str, ...] | None = None  # tasks to fine-tune on first; None: as the task says
    set: dict[str, Any] = {}  # 'stage.key' -> value, for this arm alone
    published: str | dict[str, str] = ""  # id of the row of results/published.csv that it reproduces; or task -> id


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
    levels: tuple[float, ...] = ()  # scores to reach, for convergence; (): fractions of the best arm's score
    recipe: dict[str, dict[str, Any]] = {}  # stage -> key -> value, every method
    methods: dict[str, dict[str, dict[str, Any]]] = {}  # method -> stage -> key -> value


class Overrides(Frozen):
    """Overrides of the methods' recipes, by a task or a budget."""

    recipe: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, dict[str, Any]]] = {}


class Expected(Frozen):
    """What a complete split holds, as published."""

    images: Count
    per_class: tuple[Count, Count] | None = None  # the fewest and the most images of a class
    names: str = ""  # format of the file names without suffix, numbered from 1: 'ILSVRC2012_val_{:08d}'


class Task(Overrides):
    """What is measured, on which data, by which evaluation protocol."""

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
    expects: dict[str, Expected] = {}  # by split; a split that differs is refused, or not reportable
    labels: str = ""  # the labelled part of train: '1%', '5 per class' (either may end in 'seed 1'), 'list:PATH'
    evaluates: str = ""  # the task that models are trained on, where this one only evaluates them
    supervised_task: str = ""  # the task to pretrain on, self-supervised or supervised
    intermediate: tuple[str, ...] = ()  # tasks to fine-tune on before this one
    toy: str = ""  # the task with embedded data that replaces this one at --scale toy
    source: str = ""  # of its recipes, which then count as published on this task, not as departures
    protocol: Protocol = Protocol()
    budgets: dict[str, Overrides] = {}

    @model_validator(mode="after")
    def _check_protocol(self) -> Task:
        protocol = self.protocol
        if self.kind == "classification" and (protocol.stride or protocol.flip or protocol.scales != (1.0,)):
            raise ValueError("protocol.stride, scales and flip are for segmentation; this task is classification")
        return self


class Variant(Frozen):
    """A named change to a method, as in a paper's ablation."""

    summary: str
    fidelity: Fidelity = "variant"
    source: str = ""
    set: dict[str, Any] = {}  # 'stage.key' -> value; 'stages' -> its stages, instead of the method's


class Departure(Frozen):
    """A difference to the authors' code, in words, and the arms that it applies to."""

    text: str
    stage: StageKind | Literal[""] = ""  # arms with this stage; '': all
    size: str = ""  # arms of this size
    when: dict[str, Scalar] = {}  # arms whose stage has these values: 'options.tokenizer' -> 'trained'


class Method(Frozen):
    """How a backbone learns: its values, here (methods/NAME.toml), and its code (methods/NAME.py)."""

    name: str = ""
    title: str
    paper: str
    code: str
    version: int = 1
    summary: str
    stages: tuple[StageKind, ...]  # in order; the last one is evaluated
    fidelity: Fidelity
    departures: tuple[Departure, ...] = ()
    model: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}  # stage -> values that only this method has
    recipe: dict[str, dict[str, Any]] = {}  # stage -> the published recipe, without `source`
    sources: dict[str, dict[str, str]] = {}  # stage -> key (or 'default') -> where the value is from
    sizes: dict[str, dict[str, Any]] = {}  # size -> 'stage.key' -> value
    variants: dict[str, Variant] = {}
