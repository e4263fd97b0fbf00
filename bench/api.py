"""The Python API, `import bench`: plan, run, evaluate, compare, load_model, load_transform, records.

    plan   = bench.plan("demo")
    result = bench.run(plan)
    report = bench.compare("demo")
    model  = bench.load_model("finetune-342f")

The command line calls the same functions. Nothing heavy is imported before a function needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from bench.config.stage import Plan
from bench.errors import BenchError, nearest, parse, unknown
from bench.launch.scheduler import PlanOutcome, Watcher

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image
    from torch import Tensor

    from bench.methods.objective import Objective
    from bench.planning.forecast import Speeds
    from bench.planning.planner import PlanWithHistory
    from bench.planning.selection import CheckpointSelection, StudySelection
    from bench.reporting.report import Report
    from bench.runs.run import Run

RESULTS = Path("results")
RECORD_COLUMNS = ("arm", "seed", "stage", "run")  # before those of bench.runs.run.Record
SCORE_COLUMNS = ("checkpoint", "task", "metric", "value", "low", "high", "images", "split", "reportable", "run")


class DataKeywords(TypedDict, total=False):
    """Which data are used, and where they are."""

    data_dir: str | Path | Mapping[str, str]  # a folder, hf:OWNER/NAME, or task -> one of these; else BENCH_DATA_DIR
    limit: float  # images per split, or a share up to 1; the result is not reportable
    max_unreadable: int  # unreadable images that may be left out
    allow_incomplete: bool  # use a split that lacks images; the result is not reportable
    include: Sequence[str | Path]  # folders with more tasks and studies


class StudyKeywords(DataKeywords, total=False):
    """What is compared. Each of these changes all arms of a named study."""

    methods: str | Sequence[str]  # METHOD[:VARIANT], instead of a study
    tasks: str | Sequence[str]  # of these methods
    size: str  # nano, tiny, small, base or large
    budget: str  # one of the task's, or 'published'
    seeds: Sequence[int]
    add_seeds: int  # so many more than in the last run of this study
    overrides: Mapping[str, Any]  # 'finetune.lr' -> value; stronger than any file
    precision: str  # of all training stages: no (fp32), bf16, fp16 or auto
    scale: str  # 'toy': a few steps of every arm on embedded images
    unlabelled: str | Path  # a folder of images for pretraining
    labels: str  # the part of the labels to train on: '1%', '5 per class', 'list:PATH'
    name: str  # of the comparison


class ResourceKeywords(TypedDict, total=False):
    """What the stages may use. None of this changes a result."""

    devices: str  # auto, cpu, or GPUs by number: '0,1'
    num_processes: int  # that share the batch of each stage
    micro_batch_size: int | None  # most images a process holds at once
    workers: int  # loader processes for each process
    compile: bool
    gradient_checkpointing: bool


def plan(study: str | Path = "", *, output: str | Path = RESULTS, **keywords: Unpack[StudyKeywords]) -> Plan:
    """Resolve every stage of a study, or of methods on tasks. Runs nothing.

        bench.plan("demo", seeds=[0, 1, 2])
        bench.plan(methods=["vit", "beit"], tasks=["imagenet1k"], size="base", data_dir="/data/imagenet")

    study: a shipped study's name, or the path of a TOML file. output: where earlier runs are. Keywords: methods, tasks,
    size, budget, seeds, add_seeds, overrides, precision, scale, unlabelled, labels, name, and data_dir, limit,
    max_unreadable, allow_incomplete, include: see `StudyKeywords` and `DataKeywords`.

    Published data sets that no data_dir points at are planned as complete; `run` then refuses the plan. BenchError
    names a value that is unknown or contradicts another.
    """
    from bench.planning.selection import StudySelection

    selection = StudySelection(study=str(study), **_selected(keywords))
    return resolve(selection, Path(output)).plan


def resolve(selection: StudySelection, output: Path, *, data_required: bool = False) -> PlanWithHistory:
    """The plan of a selection, with every assignment to each of its values: what `bench plan --explain` shows.

    data_required: BenchError when the data of a published task are not there, instead of planning them as complete.
    """
    from bench.planning.planner import plan_with_history
    from bench.planning.request import ASSUME_PUBLISHED, DataProbe
    from bench.planning.selection import study_request

    request = study_request(selection, output)
    planned = plan_with_history(request, DataProbe() if data_required else ASSUME_PUBLISHED)
    check_plan(planned.plan, output)
    return planned


def check_plan(plan: Plan, output: Path) -> None:
    """Raise BenchError for pretrained weights that do not fit their stage, and for claims that name no arm."""
    if any(stage.start for stage in plan.stages.values()):
        from bench.checkpoints.warm_start import check_starts

        check_starts(plan.stages.values(), output)
    if plan.study.claims:
        from bench.reporting.analysis.claims import check

        check(plan)


def run(
    plan: Plan | str,
    *,
    output: str | Path = RESULTS,
    max_unreadable: int = 0,
    restart_failed: bool = False,
    watcher: Watcher | None = None,
    **resources: Unpack[ResourceKeywords],
) -> PlanOutcome:
    """Run every stage of a plan that is not done yet, each in processes of its own through `accelerate launch`.

    plan: a Plan, or a study's name. max_unreadable: as it was planned. restart_failed: failed stages start anew.
    watcher: told how it goes. resources: devices, num_processes, micro_batch_size, workers, compile,
    gradient_checkpointing, see `ResourceKeywords`.

    Returns the result of each stage by key ('done', 'failed', 'blocked', 'interrupted'), with reasons; a failure is not
    raised, see `PlanOutcome.exit_code`. Calling it again resumes. Ctrl-C stops at a step, with a checkpoint.
    """
    from bench.launch.scheduler import run_plan
    from bench.launch.settings import Resources

    resolved = plan_of(plan, output) if isinstance(plan, str) else plan
    _refuse_absent_data(resolved)
    allowed = parse(Resources, {**resources, "max_unreadable": max_unreadable}, "resources")
    return run_plan(resolved, Path(output), allowed, watcher or Watcher(), restart_failed=restart_failed)


def probe_speeds(
    selection: StudySelection, *, output: str | Path = RESULTS, **resources: Unpack[ResourceKeywords]
) -> Speeds:
    """Images per second of every stage of a selection, measured in a few steps each. resources: as `run` takes them."""
    from bench.planning import forecast
    from bench.planning.selection import study_request

    request = study_request(selection, Path(output))
    unreadable = selection.max_unreadable
    return forecast.probe(
        request, lambda plan, folder: run(plan, output=folder, max_unreadable=unreadable, **resources)
    )


def plan_of(study: str, output: str | Path) -> Plan:
    """The plan of a study by name, with its data on disk."""
    from bench.planning.selection import StudySelection

    return resolve(StudySelection(study=study), Path(output), data_required=True).plan


def _refuse_absent_data(plan: Plan) -> None:
    from bench.data.splits import NOT_SEEN

    for stage in plan.stages.values():
        for data in stage.data.values():
            if data.identity == NOT_SEEN:
                raise BenchError(f"{data.dataset}/{data.split} was planned without its data; plan with data_dir=PATH")


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    task: str,
    *,
    protocol: str = "task",
    precision: str = "no",
    partial: bool = False,
    name: str = "",
    output: str | Path = RESULTS,
    resources: ResourceKeywords | None = None,
    **data: Unpack[DataKeywords],
) -> pd.DataFrame:
    """Score checkpoints on a task: published weights or runs of your own.

    checkpoints: files, folders, runs, hub ids, timm:NAME. protocol: the task's, or 'card': the preprocessing that was
    shipped with the weights. precision: no (fp32), bf16, fp16. partial: leave out unexpected tensors. name: of this
    comparison. resources: the keywords of `run` as a dictionary. data: data_dir, limit, max_unreadable,
    allow_incomplete, include, see `DataKeywords`.

    Returns a row per checkpoint and metric: checkpoint, task, metric, value (percent; loss in nats), low and high (95 %
    over images, NaN where none is known), images, split, reportable, run. BenchError when an evaluation failed.
    """
    from bench.planning.selection import CheckpointSelection

    sources = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    how = {"protocol": protocol, "precision": precision, "partial": partial, "name": name, **_selected(data)}
    planned = plan_evaluations(
        CheckpointSelection(checkpoints=tuple(map(str, sources)), task=task, **how), Path(output)
    )
    outcome = run(planned, output=output, max_unreadable=data.get("max_unreadable", 0), **(resources or {}))
    if outcome.exit_code:
        raise BenchError("; ".join(outcome.reasons.values()) or "the evaluation was interrupted")
    return _score_frame(planned, Path(output))


def plan_evaluations(selection: CheckpointSelection, output: Path) -> Plan:
    """One evaluation for each of the selected checkpoints."""
    from bench.planning import evaluations
    from bench.planning.selection import checkpoint_request

    return evaluations.plan_evaluations(checkpoint_request(selection, output))


def _score_frame(plan: Plan, output: Path) -> pd.DataFrame:
    import pandas as pd

    from bench.reporting.checkpoint_scores import summaries

    rows = []
    for facts in summaries(plan, output):
        for metric, value in facts["metrics"].items():
            low, high = facts["intervals"].get(metric, (float("nan"), float("nan")))
            place = (facts["n"], facts["split"], facts["reportable"], facts["run"])
            rows.append((facts["checkpoint"], facts["task"], metric, value, low, high, *place))
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def compare(study: str | Path | Plan, *, output: str | Path = RESULTS, allow: Sequence[str] = ()) -> Report:
    """Write the report of a study that was run into <output>/reports/<study>/ and return it.

    study: its name, the path of its file (whose claims are then checked), or its plan. allow: protocol keys in which
    arms may differ and still be compared, with a footnote. Missing stages are named; the report is then not `complete`.
    """
    from bench.reporting import compare as write_report

    planned = study if isinstance(study, Plan) else stored_plan(study, output)
    folder = Path(output) / "reports" / planned.study.name
    return write_report(planned, Path(output), folder, _strings(allow))


def stored_plan(study: str | Path, output: str | Path = RESULTS) -> Plan:
    """The plan that was last run of a study, by name or by the path of its file, with the claims the file makes now."""
    from bench.config.registry import read_study_file
    from bench.runs.store import read_plan

    path = Path(study)
    planned = read_plan(Path(output), path.stem if path.suffix == ".toml" else str(study))
    if path.suffix != ".toml" or not path.exists():
        return planned
    claims = read_study_file(path).claims
    return planned.model_copy(update={"study": planned.study.model_copy(update={"claims": claims})})


def load_model(source: str | Path, *, output: str | Path = RESULTS, device: str = "cpu") -> Objective:
    """A trained network as an nn.Module, in evaluation mode: `model.predict({"image": images})["logits"]`.

    source: a run (its folder, or the beginning of its name or key; an evaluation stands for what it scored), or a
    checkpoint as `bench import` reads it: a file, a folder, a hub id, timm:NAME. images (B, 3, H, W) are normalised
    floats, as `load_transform(source)` makes them. BenchError when nothing is found or a tensor does not fit.
    """
    from bench.checkpoints import conversion
    from bench.checkpoints.locate import locate
    from bench.training import build

    located = locate(str(source), Path(output))
    if located.is_run:
        model = build.load_trained(_trained_run(located.path))
    else:
        model = conversion.build_objective(conversion.read(str(source) if located.revision else located.path))
    return model.to(device).eval()


def load_transform(source: str | Path, *, output: str | Path = RESULTS) -> Callable[[Image.Image], Tensor]:
    """The evaluation preprocessing of a trained network: from a PIL image to normalised floats (3, H, W).

    source: as `load_model` takes it. A run has its task's protocol, a checkpoint what its files say; BenchError when
    they say nothing.
    """
    from bench.checkpoints import conversion
    from bench.checkpoints.locate import locate
    from bench.config.schema import Protocol
    from bench.pipeline.transforms import eval_view, normalise

    located = locate(str(source), Path(output))
    if located.is_run:
        protocol = _trained_run(located.path).stage().protocol
    else:
        checkpoint = conversion.read(str(source) if located.revision else located.path)
        if not checkpoint.preprocessing:
            raise BenchError(f"{source} does not state its preprocessing; use bench.pipeline.transforms.eval_view")
        values = {"resolution": checkpoint.model.image_size} | checkpoint.preprocessing
        protocol = parse(Protocol, values, f"the preprocessing of {source}")
    view = eval_view(protocol)

    def transform(image: Image.Image) -> Tensor:
        pixels = view({"image": image.convert("RGB"), "label": 0})["image"]  # a view carries the label along
        return normalise(pixels[None], protocol.mean, protocol.std)[0]

    return transform


def _trained_run(folder: Path) -> Run:
    """The run that trained a network: this one, or the one that an evaluation scored."""
    from bench.launch.settings import read_settings
    from bench.runs.run import Run

    run = Run(folder)
    stage = run.stage()
    if stage.kind != "evaluate":
        return run
    if "model" not in stage.parents:
        raise BenchError(f"{folder} scored {stage.variant}, which was not trained here; load that instead")
    return Run(Path(read_settings(run).parents[stage.parents["model"]]))


def records(
    study: str | Path | Plan, *, output: str | Path = RESULTS, metric: str = "", split: str = ""
) -> pd.DataFrame:
    """All records of the runs of a study, a row per measured number, in the order of the plan.

    Columns: arm (label), seed, stage (its role), run (folder); step, epoch, images and seconds of that stage's
    training; split, metric, value. metric, split: only these. A stage that several arms share has rows for each arm.
    """
    import pandas as pd

    from bench.runs.run import FIELDS
    from bench.runs.store import run_of

    planned = study if isinstance(study, Plan) else stored_plan(study, output)
    rows: list[tuple[Any, ...]] = []
    for arm in planned.arms:
        for seed, roles in arm.stages.items():
            for role, key in roles.items():
                run = run_of(Path(output), planned.stages[key])
                rows += [(arm.label, seed, role, run.root.name, *astuple(record)) for record in run.records()]
    frame = pd.DataFrame(rows, columns=[*RECORD_COLUMNS, *FIELDS])
    for column, value in (("metric", metric), ("split", split)):
        if value and value not in set(frame[column]):
            raise unknown(column, value, frame[column].unique())
        frame = frame[frame[column] == value] if value else frame
    return frame.reset_index(drop=True)


def _strings(values: str | Iterable[str]) -> tuple[str, ...]:
    """A tuple of strings; one string is one value, not its letters."""
    return (values,) if isinstance(values, str) else tuple(values)


def _selected(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `plan` and `evaluate` as the fields of a selection: one value or several become a tuple."""
    for name in keywords.keys() - StudyKeywords.__annotations__.keys():
        raise TypeError(f"there is no keyword {name!r}.{nearest(name, StudyKeywords.__annotations__)}")
    fields = dict(keywords)
    if "data_dir" in fields:
        data_dir = fields.pop("data_dir")
        fields["data_dirs"] = data_dir if isinstance(data_dir, Mapping) else {"": str(data_dir)}
    convert: dict[str, Callable[[Any], Any]] = {
        "methods": _strings,
        "tasks": _strings,
        "seeds": tuple,
        "unlabelled": str,
        "include": lambda folders: tuple(map(Path, folders)),
    }
    return fields | {name: convert[name](fields[name]) for name in convert.keys() & fields.keys()}
