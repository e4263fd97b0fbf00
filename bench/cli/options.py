"""The options that several commands share. Imports nothing that takes time: --help reads this."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Argument, Option

if TYPE_CHECKING:
    from bench.launch.settings import Resources

SET_HELP = "Override a value, like finetune.lr=2e-3, beit.pretrain.lr=1e-3, model.layer_scale=0.1. Repeatable."

Words = list[str]
Methods = Annotated[
    Words, Option("--method", "-m", help="METHOD[:VARIANT] to compare, instead of a study. Repeatable.")
]
Tasks = Annotated[Words, Option("--task", "-t", help="Task on which to compare the methods. Repeatable.")]
Sets = Annotated[Words, Option("--set", help=SET_HELP)]
DataDirs = Annotated[
    Words, Option(help="Data folder: PATH, TASK=PATH or hf:OWNER/NAME; default BENCH_DATA_DIR. Repeatable.")
]
Include = Annotated[list[Path], Option(help="A folder with more tasks and studies. Repeatable.")]
OutputDir = Annotated[Path, Option("--output-dir", "-o", envvar="BENCH_OUTPUT_DIR", help="Folder of the results.")]
Json = Annotated[bool, Option("--json", help="Machine-readable output on stdout; the rest goes to stderr.")]


@dataclass
class StudyOptions:
    """What is compared, on which data, by which numbers."""

    study: Annotated[str, Argument(help="A study's name, or the path of its file.")] = ""
    method: Methods = field(default_factory=list)
    task: Tasks = field(default_factory=list)
    size: Annotated[str, Option(help="nano, tiny, small, base or large.")] = ""
    scale: Annotated[str, Option(help="toy: every arm on embedded images, a few steps each.")] = ""
    budget: Annotated[str, Option(help="A budget of the task, or published: the papers' numbers.")] = ""
    seeds: Annotated[str, Option(help="Seeds, like 0,1,2.")] = ""
    add_seeds: Annotated[int, Option(min=0, help="Number of seeds to add to the last run of this study.")] = 0
    set: Sets = field(default_factory=list)
    mixed_precision: Annotated[
        str, Option(help="For all stages: no, bf16, fp16, or auto (the fastest on this machine).")
    ] = ""
    data_dir: DataDirs = field(default_factory=list)
    unlabelled: Annotated[str, Option(help="A folder of images for pretraining without labels.")] = ""
    max_unreadable: Annotated[int, Option(min=0, help="Maximum unreadable images to leave out.")] = 0
    limit: Annotated[
        float | None, Option(help="Use only so many images per split, or a share up to 1; not reportable.")
    ] = None
    labels: Annotated[str, Option(help="Labels to learn from: 1%, '10% seed 1', '5 per class', list:PATH.")] = ""
    allow_incomplete: Annotated[
        bool, Option("--allow-incomplete", help="Accept a split with missing images; not reportable.")
    ] = False
    include: Include = field(default_factory=list)
    name: Annotated[str, Option(help="Name of the comparison, for bench compare.")] = ""


@dataclass
class CheckpointOptions:
    """Which checkpoints are evaluated, and by which protocol."""

    checkpoint: Annotated[Words, Argument(metavar="CHECKPOINT...", help="Files, folders, runs, hub ids, timm:NAME.")]
    task: Annotated[str, Option("--task", "-t", help="The task; `bench list tasks` shows them.")]
    protocol: Annotated[
        str, Option(help="task: the task's; card: with the preprocessing on the weights' model card.")
    ] = "task"
    mixed_precision: Annotated[str, Option(help="no, bf16 or fp16.")] = "no"
    partial: Annotated[bool, Option("--partial", help="Ignore unexpected tensors.")] = False
    data_dir: DataDirs = field(default_factory=list)
    limit: Annotated[float | None, Option(help="Use only so many images, or a share up to 1; not reportable.")] = None
    max_unreadable: Annotated[int, Option(min=0, help="Maximum unreadable images to leave out.")] = 0
    allow_incomplete: Annotated[
        bool, Option("--allow-incomplete", help="Accept a split with missing images; not reportable.")
    ] = False
    include: Include = field(default_factory=list)
    name: Annotated[str, Option(help="Name of the evaluation, for bench compare.")] = ""


@dataclass
class MachineOptions:
    """What stages run on; none of this changes a result."""

    output_dir: OutputDir = Path("results")
    num_processes: Annotated[int, Option(min=1, help="Processes per stage, which share its batch.")] = 1
    devices: Annotated[str, Option(help="auto, cpu, or GPU numbers, like 0,1.")] = "auto"
    micro_batch_size: Annotated[int | None, Option(min=1, help="Maximum images in one forward pass of a process.")] = (
        None
    )
    workers: Annotated[int, Option(min=0, help="Data loader workers per process.")] = 0
    compile: Annotated[bool, Option("--compile", help="Compile the networks with torch.compile.")] = False
    gradient_checkpointing: Annotated[
        bool,
        Option("--gradient-checkpointing", help="Recompute activations in the backward pass: less memory, more time."),
    ] = False

    def resources(self, max_unreadable: int = 0) -> Resources:
        """These options as the launcher takes them. max_unreadable is an option of the data."""
        from bench.launch.settings import Resources

        values = {name: value for name, value in vars(self).items() if name in Resources.model_fields}
        return Resources(**values, max_unreadable=max_unreadable)

    def values(self) -> dict[str, Any]:
        """These options as keywords of `bench.run`."""
        return {"output" if name == "output_dir" else name: value for name, value in vars(self).items()}


def takes(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first parameters are dataclasses, filled from options with the names of their fields."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        shared = [parameter for group in groups for parameter in _parameters(group)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            filled = [group(**{f.name: values.pop(f.name) for f in fields(group)}) for group in groups]
            command(*filled, **values)

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=_default(f), annotation=hints[f.name]) for f in fields(group)]


def _default(field: Field[Any]) -> Any:
    """A field's default; without one the command must be given it."""
    if field.default is MISSING and field.default_factory is MISSING:
        return inspect.Parameter.empty
    return field.default if field.default_factory is MISSING else field.default_factory()
