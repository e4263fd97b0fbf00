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

from bench import building, checkpoint
from bench.datasets import Source, open_source
from bench.devices import connect
from bench.evaluate import Split, evaluate, per_class, scored, write_predictions
from bench.neighbours import nearest_neighbours
from bench.pictures import write_pictures
from bench.scoring import Classification, Scorer, Segmentation
from bench.settings import Settings, read_settings
from bench.settled import steps_of
from bench.spec import BenchError, Data, Stage
from bench.stopping import Interrupted, Stop, stop_on_signals
from bench.store import Busy, Run, environment, write_json
from bench.train import Context, Material, train

log = logging.getLogger("bench.worker")

DONE, FAILED, BUSY, INTERRUPTED = 0, 1, 3, 75
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
SCORED_AT_ONCE = 64  # images, where the launcher sets no limit
Verdict = Literal["go", "done", "busy"]


def main(folders: Sequence[str]) -> int:
    """Work on run folders in order, until one is not finished."""
    first = os.environ.get("RANK", "0") == "0"  # the others would say the same
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format=LOG_FORMAT)
    with stop_on_signals() as stop:
        for number, folder in enumerate(folders):
            if number and any(gather_object([stop.asked])):
                return INTERRUPTED
            code = work(Run(Path(folder)), stop)
            if code != DONE:
                return code
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return DONE


def work(run: Run, stop: Stop) -> int:
    """Train or score one stage, hold its lease meanwhile, and say in its folder what became of it."""
    try:
        settings = read_settings(run)
        context = Context(run, settings, connect(settings), stop)
    except Exception as error:
        _fail(run, error)
        return FAILED
    with _lease(run, context.accelerator) as verdict:
        if verdict != "go":
            return DONE if verdict == "done" else BUSY
        return _attempt(context)


def _attempt(context: Context) -> int:
    """Do the work of a stage, and say how it ended while its lease is still held."""
    run, accelerator = context.run, context.accelerator
    try:
        _begin(run, accelerator)
        _carry_out(context)
        return DONE
    except Interrupted as stopped:
        _interrupt(run, accelerator, stopped)
        return INTERRUPTED
    except Exception as error:
        _fail(run, error)
        return FAILED


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
        run.set_status("running", steps=steps_of(stage) if stage.recipe else 0)
        run.log_attempt("started", processes=accelerator.num_processes, device=str(accelerator.device))
        write_json(run.path("environment.json"), environment())
    accelerator.wait_for_everyone()


def _interrupt(run: Run, accelerator: Accelerator, stopped: Interrupted) -> None:
    log.info("%s", stopped)
    if accelerator.is_main_process:
        run.set_status("interrupted", step=stopped.step, steps=steps_of(run.stage()))
        run.log_attempt("interrupted", exit_code=INTERRUPTED, step=stopped.step)


def _fail(run: Run, error: Exception) -> None:
    """The first process to fail says why; the others only lost it."""
    expected = isinstance(error, BenchError | FloatingPointError)
    log.error("%s", error, exc_info=None if expected else error)
    if run.written_status().state != "failed":
        told = str(error) if expected else f"{type(error).__name__}: {error}"
        run.set_status("failed", error=told)
        run.log_attempt("failed", exit_code=FAILED, error=told)


def _carry_out(context: Context) -> None:
    run, stage = context.run, context.run.stage()
    results, outputs = (_score if stage.kind == "evaluate" else _learn)(stage, context)
    if context.accelerator.is_main_process:
        run.finish(results, outputs)
        run.log_attempt("done", exit_code=DONE)
        checkpoint.clear(run.path("checkpoints"))
    context.accelerator.wait_for_everyone()


def _learn(stage: Stage, context: Context) -> tuple[dict[str, Any], list[str]]:
    """Train a stage; returns its results and the files it made."""
    run, settings, accelerator, _ = context
    objective = building.objective(stage, run).to(accelerator.device)
    splits = {role: split(stage, role, settings) for role in _scored_roles(stage)}
    evaluations = {role: scored(objective, one, accelerator) for role, one in splits.items()}
    material = Material(source(stage.data["train"], settings), building.view(stage), evaluations)
    shown = (splits["val"].source, splits["val"].view) if "val" in splits else material[:2]
    results = train(stage, objective, material, context)
    outputs = [f"final/{path.name}" for path in sorted(run.path("final").glob("*.safetensors"))]
    if stage.kind == "probe":
        known = split(stage, "train", settings)
        results["metrics"] = {"knn_top1": nearest_neighbours(objective, known, splits["val"], accelerator)}
    if accelerator.is_main_process:
        write_pictures(run.path("pictures.npz"), objective, stage, *shown, results["precision"])
    return results, [*outputs, "pictures.npz", "records.jsonl"]


def _score(stage: Stage, context: Context) -> tuple[dict[str, Any], list[str]]:
    """Score what an earlier stage learned, and its averaged weights apart; returns results and files made."""
    run, settings, accelerator, _ = context
    parent = Run(Path(settings.parents[stage.parents["model"]]))
    objective = building.trained(parent).to(accelerator.device)
    asked = split(stage, "val", settings, precision=_precision(parent))
    found, averaged = evaluate(objective, asked, accelerator, logits=True), None
    if accelerator.is_main_process:
        write_pictures(run.path("pictures.npz"), objective, stage, asked.source, asked.view, asked.precision)
    metrics = dict(found.metrics)
    if parent.path("final", "ema.safetensors").exists():
        objective.load_trainable_state(checkpoint.load_weights(parent.path("final", "ema.safetensors")))
        averaged = evaluate(objective, asked, accelerator)
        metrics |= {f"{name}_ema": value for name, value in averaged.metrics.items()}
    if accelerator.is_main_process:
        write_predictions(run.path("predictions.parquet"), found, asked.source, averaged)
    data = stage.data["val"]
    results = {
        "metrics": metrics,
        "n": len(asked.source),
        "split": data.split,
        "reportable": data.limit is None,
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


def split(stage: Stage, role: str, settings: Settings, *, precision: str | None = None) -> Split:
    """One of a stage's splits, to be scored by its protocol."""
    classes = stage.model.classes
    scorer: Scorer = Classification(classes)
    if stage.model.decoder:
        scorer = Segmentation(classes, stage.protocol.ignore_label)
    return Split(
        source=source(stage.data[role], settings),
        view=building.scoring_view(stage),
        scorer=scorer,
        protocol=stage.protocol,
        window=stage.model.image_size if stage.model.decoder else stage.protocol.resolution,
        precision=precision or (stage.recipe.precision if stage.recipe else "fp32"),
        batch_size=settings.micro_batch_size or SCORED_AT_ONCE,
        workers=settings.workers,
    )


def source(data: Data, settings: Settings) -> Source:
    """A split, opened; BenchError when it does not hold what it held when the stage was planned."""
    options: dict[str, Any] = dict(data.options)
    if settings.max_unreadable:
        options["max_unreadable"] = settings.max_unreadable
    root = data.root or settings.roots.get(data.dataset)
    found = open_source(data.dataset, data.split, root=root, options=options, limit=data.limit)
    if found.identity() != data.identity:
        raise BenchError(f"{data.dataset}/{data.split} has changed since the stage was planned; run the command again")
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
