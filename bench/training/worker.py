"""What a launched process runs: the stages whose run folders it is given, one after another.

Exit codes: 0 done, 1 a stage failed, 3 another process works on it, 75 stopped with a checkpoint when asked to.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from bench.checkpoints import weights
from bench.config.resolve import steps_of
from bench.config.stage import Data, Stage
from bench.data.source import Source
from bench.data.splits import SplitRequest, open_source, root_of
from bench.environment import environment
from bench.errors import BenchError, ExitCode
from bench.evaluation.knn import nearest_neighbours
from bench.evaluation.loop import EvalSplit, evaluate, scored
from bench.evaluation.partial_results import Partial
from bench.evaluation.predictions import per_class, write_predictions
from bench.evaluation.sample_arrays import write_pictures
from bench.evaluation.scorers import Scorer, Segmentation, classifier
from bench.files import write_json
from bench.launch.distributed import connect
from bench.launch.settings import Settings, read_settings
from bench.launch.signals import Interrupted, Stop, stop_on_signals
from bench.runs.lease import Busy
from bench.runs.run import Run
from bench.training import build, checkpoint
from bench.training.loop import RunContext, TrainingData, train

log = logging.getLogger("bench.training.worker")

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
NEIGHBOURS = "neighbours.parquet"  # what a probe's images were voted to be, image by image
SCORED_AT_ONCE = 64  # images, where the launcher sets no limit
MAPS_AT_ONCE = 16  # with label maps, which take longer: after so many the rows are kept
Verdict = Literal["go", "done", "busy"]


def main(folders: Sequence[str]) -> int:
    """Work on run folders in order, until one is not finished."""
    logging.basicConfig(level=logging.INFO if _is_first() else logging.WARNING, format=LOG_FORMAT)
    with stop_on_signals() as stop:
        for number, folder in enumerate(folders):
            if number and any(gather_object([stop.asked])):
                return ExitCode.INTERRUPTED
            code = work(Run(Path(folder)), stop)
            if code != ExitCode.OK:
                return code
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return ExitCode.OK


def _is_first() -> bool:
    """Whether this process speaks for all: the others would say the same, and read the same files."""
    return os.environ.get("RANK", "0") == "0"


def work(run: Run, stop: Stop) -> int:
    """Train or score one stage, hold its lease meanwhile, and say in its folder what became of it."""
    try:
        settings = read_settings(run)
        context = RunContext(run, settings, connect(settings), stop)
    except Exception as error:
        _fail(run, error)
        return ExitCode.FAILED
    with _lease(run, context.accelerator) as verdict:
        if verdict != "go":
            return ExitCode.OK if verdict == "done" else ExitCode.BUSY
        return _attempt(context)


def _attempt(context: RunContext) -> int:
    """Do the work of a stage, and say how it ended while its lease is still held."""
    run, accelerator = context.run, context.accelerator
    try:
        _begin(run, accelerator)
        _carry_out(context)
        return ExitCode.OK
    except Interrupted as stopped:
        _interrupt(run, accelerator, stopped)
        return ExitCode.INTERRUPTED
    except Exception as error:
        _fail(run, error)
        return ExitCode.FAILED


@contextmanager
def _lease(run: Run, accelerator: Accelerator) -> Iterator[Verdict]:
    """Whether this launch may work here. The first process holds the lease, and decides for all."""
    with ExitStack() as held:
        verdict: list[Verdict] = ["go"]
        if accelerator.is_main_process:
            try:
                held.enter_context(run.lease())
                verdict = ["done" if run.is_done() else "go"]
            except Busy as error:
                log.info("%s", error)
                verdict = ["busy"]
        broadcast_object_list(verdict)
        yield verdict[0]


def _begin(run: Run, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        stage = run.stage()
        run.set_status("running", steps=_length(stage))
        run.log_attempt("started", processes=accelerator.num_processes, device=str(accelerator.device))
        write_json(run.path("environment.json"), environment())
    accelerator.wait_for_everyone()


def _length(stage: Stage) -> int:
    """Steps of a training, images of an evaluation."""
    return steps_of(stage) if stage.recipe else stage.data["val"].images


def _interrupt(run: Run, accelerator: Accelerator, stopped: Interrupted) -> None:
    log.info("%s", stopped)
    if accelerator.is_main_process:
        run.set_status("interrupted", step=stopped.step, steps=_length(run.stage()))
        run.log_attempt("interrupted", exit_code=ExitCode.INTERRUPTED, step=stopped.step)


def _fail(run: Run, error: Exception) -> None:
    """The first process to fail says why; the others only lost it."""
    expected = isinstance(error, BenchError | FloatingPointError)
    log.error("%s", error, exc_info=None if expected else error)
    if run.written_status().state != "failed":
        told = str(error) if expected else f"{type(error).__name__}: {error}"
        run.set_status("failed", error=told)
        run.log_attempt("failed", exit_code=ExitCode.FAILED, error=told)


def _carry_out(context: RunContext) -> None:
    run, stage = context.run, context.run.stage()
    results, outputs = (_score if stage.kind == "evaluate" else _learn)(stage, context)
    if context.accelerator.is_main_process:
        run.finish({**results, "data": _quoted(stage)}, outputs)
        run.log_attempt("done", exit_code=ExitCode.OK)
        checkpoint.clear(run.path("checkpoints"))
    context.accelerator.wait_for_everyone()


def _quoted(stage: Stage) -> dict[str, Any]:
    """The splits a stage has seen, by role, with the root hash of their files."""
    return {
        role: {
            "dataset": data.dataset,
            "split": data.split,
            "images": data.images,
            "manifest": data.manifest or "generated",
            "identity": data.identity,
            **({"labels": data.labels} if data.labels else {}),
            **({"shortfall": data.shortfall} if data.shortfall else {}),
        }
        for role, data in stage.data.items()
    }


def _shortfalls(run: Run) -> list[str]:
    """Why a score is not reportable: what was left out of the data of any stage that led to it."""
    told = [f"{data.dataset}/{data.split}: {data.shortfall}" for data in run.stage().data.values() if data.shortfall]
    before = read_settings(run).parents.values() if run.path("launch.json").exists() else ()
    for folder in before:
        told += _shortfalls(Run(Path(folder)))
    return list(dict.fromkeys(told))


def _learn(stage: Stage, context: RunContext) -> tuple[dict[str, Any], list[str]]:
    """Train a stage; returns its results and the files it made."""
    run, settings, accelerator, _ = context
    objective = build.objective(stage, run).to(accelerator.device)
    splits = {role: scored_split(stage, role, settings) for role in _scored_roles(stage)}
    evaluations = {role: scored(objective, one, accelerator) for role, one in splits.items()}
    material = TrainingData(source(stage.data["train"], settings), build.view(stage), evaluations)
    shown = (splits["val"].source, splits["val"].view) if "val" in splits else material[:2]
    results = train(stage, objective, material, context)
    outputs = [f"final/{path.name}" for path in sorted(run.path("final").glob("*.safetensors"))]
    if stage.kind == "probe":
        known = scored_split(stage, "train", settings)
        answers = nearest_neighbours(objective, known, splits["val"], accelerator)
        results["metrics"] = {"knn_top1": answers.top1}
    if accelerator.is_main_process:
        if stage.kind == "probe":
            answers.write(run.path(NEIGHBOURS), splits["val"].source)
            outputs.append(NEIGHBOURS)
        write_pictures(run.path("pictures.npz"), objective, stage, *shown, results["precision"])
    outputs += [build.ADOPTED] if stage.start else []
    return results, [*outputs, "pictures.npz", "records.jsonl"]


def _score(stage: Stage, context: RunContext) -> tuple[dict[str, Any], list[str]]:
    """Score what an earlier stage learned, and its averaged weights apart, or weights from outside.

    Returns results and the files made.
    """
    run, settings, accelerator, _ = context
    objective = build.scored(stage, run).to(accelerator.device)
    parent = None if stage.start else Run(Path(settings.parents[stage.parents["model"]]))
    asked = scored_split(
        stage, "val", settings, precision=_precision(parent) if parent else str(stage.options["precision"])
    )
    kept = Partial(run.path("checkpoints", "model"))
    found, averaged = evaluate(objective, asked, accelerator, logits=True, partial=kept, stop=context.stop), None
    if accelerator.is_main_process:
        write_pictures(run.path("pictures.npz"), objective, stage, asked.source, asked.view, asked.precision)
    metrics = dict(found.metrics)
    if parent and parent.path("final", "ema.safetensors").exists():
        objective.load_trainable_state(weights.load_weights(parent.path("final", "ema.safetensors")))
        kept = Partial(run.path("checkpoints", "ema"))
        averaged = evaluate(objective, asked, accelerator, partial=kept, stop=context.stop)
        metrics |= {f"{name}_ema": value for name, value in averaged.metrics.items()}
    if accelerator.is_main_process:
        write_predictions(run.path("predictions.parquet"), found, asked.source, averaged)
    data, shortfalls = stage.data["val"], _shortfalls(run)
    results = {
        "metrics": metrics,
        "n": len(asked.source),
        "split": data.split,
        "reportable": not shortfalls,
        "not_reportable_because": shortfalls,
        "protocol": stage.protocol.model_dump(mode="json"),
        "per_class": per_class(asked, found),
    }
    return results, ["predictions.parquet", "pictures.npz"]


def _precision(run: Run) -> str:
    """The precision a stage was trained in, in which it is scored, too."""
    recipe = run.stage().recipe
    assert recipe is not None, "only what was trained is scored"
    return recipe.precision


def _scored_roles(stage: Stage) -> list[str]:
    """The splits a stage is scored on while it learns; minival only where something is chosen by it."""
    wanted = ["val"]
    if stage.recipe is not None and stage.recipe.select == "best":
        wanted.append("minival")
    return [role for role in wanted if role in stage.data]


def scored_split(stage: Stage, role: str, settings: Settings, *, precision: str | None = None) -> EvalSplit:
    """One of a stage's splits, to be scored by its protocol."""
    classes = stage.model.classes
    seen = source(stage.data[role], settings)
    scorer: Scorer = Segmentation(classes, stage.protocol.ignore_label)
    if not stage.model.decoder:
        scorer = classifier(classes, stage.protocol, seen)
    return EvalSplit(
        source=seen,
        view=build.scoring_view(stage),
        scorer=scorer,
        protocol=stage.protocol,
        window=stage.model.image_size if stage.model.decoder else stage.protocol.resolution,
        precision=precision or (stage.recipe.precision if stage.recipe else "fp32"),
        batch_size=settings.micro_batch_size or (MAPS_AT_ONCE if stage.model.decoder else SCORED_AT_ONCE),
        workers=settings.workers,
    )


def source(data: Data, settings: Settings) -> Source:
    """A split, opened; BenchError when it does not hold what it held when the stage was planned."""
    options: dict[str, Any] = dict(data.options)
    if settings.max_unreadable:
        options["max_unreadable"] = settings.max_unreadable
    root = data.root or settings.roots.get(data.dataset)
    found = open_source(SplitRequest(data.dataset, data.split, root, options, data.limit, data.labels))
    if found.identity() != data.identity or (_is_first() and root_of(found) != data.manifest):
        raise BenchError(f"{data.dataset}/{data.split} has changed since the stage was planned; run the command again")
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
