"""The Python API, `import bench`: plan, run, evaluate, compare, load_model, load_transform, records.

    plan   = bench.plan("demo")
    result = bench.run(plan)
    report = bench.compare("demo")
    model  = bench.load_model("finetune-342f")

The command line calls the same functions. Nothing heavy is imported before a function needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.stage import Plan
from bench.errors import BenchError, unknown
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


def plan(
    study: str | Path = "",
    *,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    size: str = "",
    budget: str = "",
    seeds: Sequence[int] = (),
    add_seeds: int = 0,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "",
    scale: str = "",
    data_dir: str | Path | Mapping[str, str] = "",
    unlabelled: str | Path = "",
    labels: str = "",
    limit: float | None = None,
    max_unreadable: int = 0,
    allow_incomplete: bool = False,
    include: Sequence[str | Path] = (),
    name: str = "",
    output: str | Path = RESULTS,
) -> Plan:
    """Resolve every stage of a study, or of `methods` on `tasks`. Runs nothing.

    study: a shipped study's name, or the path of a TOML file. methods: METHOD[:VARIANT]. size: nano, tiny, small, base
    or large. budget: one of the task's, or 'published'. add_seeds: so many more than in the last run of this study.
    overrides: 'finetune.lr' -> value, stronger than any file. precision: of all training stages (no, bf16, fp16,
    auto). scale: 'toy' for a few steps on embedded images. data_dir: a folder, or task -> folder; else BENCH_DATA_DIR.
    labels: the part of the labels to train on, like '1%'. limit: images per split, or a share up to 1. output: where
    earlier runs lie.

    Published data sets that no `data_dir` points at are planned as complete; `run` then refuses the plan. BenchError
    names a value that is unknown or contradicts another.
    """
    from bench.planning.selection import StudySelection

    selection = StudySelection(
        study=str(study),
        methods=_strings(methods),
        tasks=_strings(tasks),
        size=size,
        budget=budget,
        seeds=tuple(seeds),
        add_seeds=add_seeds,
        overrides=overrides or {},
        precision=precision,
        scale=scale,
        data_dirs=_data_dirs(data_dir),
        unlabelled=str(unlabelled),
        labels=labels,
        limit=limit,
        max_unreadable=max_unreadable,
        allow_incomplete=allow_incomplete,
        include=tuple(map(Path, include)),
        name=name,
    )
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
    """BenchError for pretrained weights that do not fit their stage, and for claims that name no arm."""
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
    devices: str = "auto",
    num_processes: int = 1,
    micro_batch_size: int | None = None,
    workers: int = 0,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    max_unreadable: int = 0,
    restart_failed: bool = False,
    watcher: Watcher | None = None,
) -> PlanOutcome:
    """Run every stage of a plan that is not done yet, each in a process of its own through `accelerate launch`.

    plan: a Plan, or a study's name. devices: auto, cpu, or GPUs by number ('0,1'). num_processes: that share each
    stage's batch. micro_batch_size: most images a process holds at once. workers: loader processes for each process.
    restart_failed: failed stages start anew. watcher: told how it goes. None of this changes a result.

    Returns the result of each stage by key ('done', 'failed', 'blocked', 'interrupted'), with reasons; a failure is not
    raised, see `PlanOutcome.exit_code`. Calling it again resumes. Ctrl-C stops at a step, with a checkpoint.
    """
    from bench.launch.scheduler import run_plan
    from bench.launch.settings import Resources

    resolved = plan_of(plan, output) if isinstance(plan, str) else plan
    _refuse_absent_data(resolved)
    resources = Resources(
        num_processes=num_processes,
        devices=devices,
        micro_batch_size=micro_batch_size,
        workers=workers,
        compile=compile,
        gradient_checkpointing=gradient_checkpointing,
        max_unreadable=max_unreadable,
    )
    return run_plan(resolved, Path(output), resources, watcher or Watcher(), restart_failed=restart_failed)


def probe_speeds(selection: StudySelection, *, output: str | Path = RESULTS, **resources: Any) -> Speeds:
    """Images per second of every stage of a selection, measured in a few steps each. resources: as `run` takes them."""
    from bench.planning import forecast
    from bench.planning.selection import study_request

    request = study_request(selection, Path(output))
    resources["max_unreadable"] = selection.max_unreadable
    return forecast.probe(request, lambda plan, folder: run(plan, output=folder, **resources))


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
    data_dir: str | Path | Mapping[str, str] = "",
    limit: float | None = None,
    max_unreadable: int = 0,
    allow_incomplete: bool = False,
    include: Sequence[str | Path] = (),
    name: str = "",
    output: str | Path = RESULTS,
    **resources: Any,
) -> pd.DataFrame:
    """Score pretrained or own weights on a task.

    checkpoints: files, folders, runs, hub ids, timm:NAME. protocol: the task's, or 'card': the preprocessing that was
    shipped with the weights. precision: no (fp32), bf16, fp16. partial: leave out unexpected tensors. resources: as
    `run` takes them (devices, num_processes, micro_batch_size, workers).

    Returns a row per checkpoint and metric: checkpoint, task, metric, value (percent; loss in nats), low and high (95 %
    over images, NaN where none is known), images, split, reportable, run. BenchError when an evaluation failed.
    """
    from bench.planning.selection import CheckpointSelection

    sources = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    selection = CheckpointSelection(
        checkpoints=tuple(map(str, sources)),
        task=task,
        protocol=protocol,
        precision=precision,
        partial=partial,
        data_dirs=_data_dirs(data_dir),
        limit=limit,
        max_unreadable=max_unreadable,
        allow_incomplete=allow_incomplete,
        include=tuple(map(Path, include)),
        name=name,
    )
    planned = plan_evaluations(selection, Path(output))
    outcome = run(planned, output=output, max_unreadable=max_unreadable, **resources)
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
    from bench.config.registry import study_from
    from bench.runs.store import read_plan

    path = Path(study)
    planned = read_plan(Path(output), path.stem if path.suffix == ".toml" else str(study))
    if path.suffix != ".toml" or not path.exists():
        return planned
    claims = study_from(path).claims
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
        model = build.trained(_trained_run(located.path))
    else:
        model = conversion.objective(conversion.read(str(source) if located.revision else located.path))
    return model.to(device).eval()


def load_transform(source: str | Path, *, output: str | Path = RESULTS) -> Callable[[Image.Image], Tensor]:
    """The evaluation preprocessing of a trained network: from a PIL image to normalised floats (3, H, W).

    source: as `load_model` takes it. A run has its task's protocol, a checkpoint what its files say; BenchError when
    they say nothing.
    """
    from bench.checkpoints import conversion
    from bench.checkpoints.locate import locate
    from bench.config.schema import Protocol
    from bench.errors import parse
    from bench.pipeline.transforms import eval_view, normalise

    located = locate(str(source), Path(output))
    if located.is_run:
        protocol = _trained_run(located.path).stage().protocol
    else:
        checkpoint = conversion.read(str(source) if located.revision else located.path)
        if not checkpoint.preprocessing:
            raise BenchError(f"{source} says nothing of its preprocessing; use bench.pipeline.transforms.eval_view")
        values = {"resolution": checkpoint.model.image_size} | checkpoint.preprocessing
        protocol = parse(Protocol, values, f"the preprocessing of {source}")
    view = eval_view(protocol)

    def transform(image: Image.Image) -> Tensor:
        pixels = view({"image": image.convert("RGB"), "label": 0})["image"]  # a view carries the label along
        return normalise(pixels[None], protocol.mean, protocol.std)[0]

    return transform


def _trained_run(folder: Path) -> Run:
    """The run of a training; an evaluation leads to what it scored."""
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

    from bench.runs.run import Record
    from bench.runs.store import run_of

    planned = study if isinstance(study, Plan) else stored_plan(study, output)
    rows: list[tuple[Any, ...]] = []
    for arm in planned.arms:
        for seed, roles in arm.stages.items():
            for role, key in roles.items():
                run = run_of(Path(output), planned.stages[key])
                rows += [(arm.label, seed, role, run.root.name, *record) for record in run.records()]
    frame = pd.DataFrame(rows, columns=[*RECORD_COLUMNS, *Record._fields])
    for column, value in (("metric", metric), ("split", split)):
        if value and value not in set(frame[column]):
            raise unknown(column, value, frame[column].unique())
        frame = frame[frame[column] == value] if value else frame
    return frame.reset_index(drop=True)


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    """A tuple of strings; one string is one value, not its letters."""
    return (values,) if isinstance(values, str) else tuple(values)


def _data_dirs(data_dir: str | Path | Mapping[str, str]) -> dict[str, str]:
    if isinstance(data_dir, Mapping):
        return {task: str(folder) for task, folder in data_dir.items()}
    return {"": str(data_dir)} if data_dir != "" else {}
