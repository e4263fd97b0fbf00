"""What a launched process runs: the stages whose run folders it is given, one after another.

Its exit code is a bench.errors.ExitCode: OK, FAILED, BUSY (another process works on the stage), or INTERRUPTED (stopped
when asked to, with a checkpoint).
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
from bench.evaluation.loop import EvalSplit, evaluate, score_function
from bench.evaluation.partial_results import PartialResults
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
from bench.training.loop import RunContext, Trainer, TrainingData

log = logging.getLogger("bench.training.worker")

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
NEIGHBOURS = "neighbours.parquet"  # nearest-neighbour predictions of a probe, image by image
IMAGES_AT_ONCE = 64  # in an evaluation, where the launcher sets no limit
MAPS_AT_ONCE = 16  # images with label maps take longer, and partial results are stored after each batch
Verdict = Literal["go", "done", "busy"]


def main(folders: Sequence[str]) -> int:
    """Work on run folders in order; stop at the first that does not end well. Returns an ExitCode."""
    logging.basicConfig(level=logging.INFO if _is_first() else logging.WARNING, format=LOG_FORMAT)
    with stop_on_signals() as stop:
        for number, folder in enumerate(folders):
            # All processes have to agree: one that went on to the next stage would wait for the others for ever.
            if number and any(gather_object([stop.asked])):
                return ExitCode.INTERRUPTED
            code = work(Run(Path(folder)), stop)
            if code != ExitCode.OK:
                return code
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return ExitCode.OK


def _is_first() -> bool:
    """Whether this is the first process of the launch, which logs and checks files for all of them."""
    return os.environ.get("RANK", "0") == "0"


def work(run: Run, stop: Stop) -> int:
    """Train or evaluate one stage while holding its lease; record in its folder how it ended. Returns an ExitCode."""
    try:
        settings = read_settings(run)
        context = RunContext(run, settings, connect(settings), stop)
    except Exception as error:
        _record_failure(run, error)
        return ExitCode.FAILED
    with _lease(run, context.accelerator) as verdict:
        if verdict != "go":
            return ExitCode.OK if verdict == "done" else ExitCode.BUSY
        # The end is recorded inside the lease: once it is released, another process may write into this folder.
        try:
            _begin(run, context.accelerator)
            stage = run.stage()
            results, outputs = (_evaluate if stage.kind == "evaluate" else _train)(stage, context)
            _finish(context, {**results, "data": _data_facts(stage)}, outputs)
            return ExitCode.OK
        except Interrupted as interruption:
            _record_interruption(run, context.accelerator, interruption)
            return ExitCode.INTERRUPTED
        except Exception as error:
            _record_failure(run, error)
            return ExitCode.FAILED


@contextmanager
def _lease(run: Run, accelerator: Accelerator) -> Iterator[Verdict]:
    """Whether this launch may work here. The first process holds the lease, and decides for all."""
    with ExitStack() as stack:
        verdict: list[Verdict] = ["go"]
        if accelerator.is_main_process:
            try:
                stack.enter_context(run.lease())
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


def _finish(context: RunContext, results: dict[str, Any], outputs: list[str]) -> None:
    """Store the results, declare the stage done, and remove what was only there to resume it."""
    if context.accelerator.is_main_process:
        context.run.finish(results, outputs)
        context.run.log_attempt("done", exit_code=ExitCode.OK)
        checkpoint.clear(context.run.path("checkpoints"))
    context.accelerator.wait_for_everyone()


def _record_interruption(run: Run, accelerator: Accelerator, interruption: Interrupted) -> None:
    log.info("%s", interruption)
    if accelerator.is_main_process:
        run.set_status("interrupted", step=interruption.step, steps=_length(run.stage()))
        run.log_attempt("interrupted", exit_code=ExitCode.INTERRUPTED, step=interruption.step)


def _record_failure(run: Run, error: Exception) -> None:
    """Store why the stage failed, unless another process of this launch did: the others only lost contact with it."""
    expected = isinstance(error, BenchError | FloatingPointError)  # said in one line; anything else is a bug of ours
    log.error("%s", error, exc_info=None if expected else error)
    if run.written_status().state != "failed":
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        run.set_status("failed", error=message)
        run.log_attempt("failed", exit_code=ExitCode.FAILED, error=message)


def _data_facts(stage: Stage) -> dict[str, Any]:
    """The splits a stage used, by role, with the root hash of their files."""
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
    """Why a score is not reportable: images missing from the data of this stage or of any stage before it."""
    texts = [f"{data.dataset}/{data.split}: {data.shortfall}" for data in run.stage().data.values() if data.shortfall]
    parents = read_settings(run).parents.values() if run.path("launch.json").exists() else ()
    for folder in parents:
        texts += _shortfalls(Run(Path(folder)))
    return list(dict.fromkeys(texts))  # each once, in order


def _train(stage: Stage, context: RunContext) -> tuple[dict[str, Any], list[str]]:
    """Train a stage; returns its results and the files it made."""
    run, settings, accelerator = context.run, context.settings, context.accelerator
    objective = build.objective(stage, run).to(accelerator.device)
    splits = {role: eval_split(stage, role, settings) for role in _scored_roles(stage)}
    evaluations = {role: score_function(objective, split, accelerator) for role, split in splits.items()}
    data = TrainingData(open_split(stage.data["train"], settings), build.view(stage), evaluations)
    results = Trainer(stage, objective, data, context).train()
    outputs = [f"final/{path.name}" for path in sorted(run.path("final").glob("*.safetensors"))]
    if stage.kind == "probe":
        train_split = eval_split(stage, "train", settings)
        neighbours = nearest_neighbours(objective, train_split, splits["val"], accelerator)
        results["metrics"] = {"knn_top1": neighbours.top1}
    if accelerator.is_main_process:
        if stage.kind == "probe":
            neighbours.write(run.path(NEIGHBOURS), splits["val"].source)
            outputs.append(NEIGHBOURS)
        images = splits.get("val", data)  # a pretraining has no val split: its own views are shown
        write_pictures(run.path("pictures.npz"), objective, stage, images.source, images.view, results["precision"])
    outputs += [build.START_REPORT] if stage.start else []
    return results, [*outputs, "pictures.npz", "records.jsonl"]


def _evaluate(stage: Stage, context: RunContext) -> tuple[dict[str, Any], list[str]]:
    """Score what an earlier stage learned, and its EMA weights separately, or pretrained weights.

    Returns results and the files made.
    """
    run, accelerator = context.run, context.accelerator
    objective = build.load_for_scoring(stage, run).to(accelerator.device)
    parent = None if stage.start else Run(Path(context.settings.parents[stage.parents["model"]]))
    precision = _precision(parent) if parent else str(stage.options["precision"])
    split = eval_split(stage, "val", context.settings, precision=precision)
    partial = PartialResults(run.path("checkpoints", "model"))
    scores, ema = evaluate(objective, split, accelerator, logits=True, partial=partial, stop=context.stop), None
    if accelerator.is_main_process:
        write_pictures(run.path("pictures.npz"), objective, stage, split.source, split.view, split.precision)
    metrics = dict(scores.metrics)
    if parent and parent.path("final", "ema.safetensors").exists():
        objective.load_trainable_state(weights.load_weights(parent.path("final", "ema.safetensors")))
        partial = PartialResults(run.path("checkpoints", "ema"))
        ema = evaluate(objective, split, accelerator, partial=partial, stop=context.stop)
        metrics |= {f"{name}_ema": value for name, value in ema.metrics.items()}
    if accelerator.is_main_process:
        write_predictions(run.path("predictions.parquet"), scores, split.source, ema)
    shortfalls = _shortfalls(run)
    results = {
        "metrics": metrics,
        "n": len(split.source),
        "split": stage.data["val"].split,
        "reportable": not shortfalls,
        "not_reportable_because": shortfalls,
        "protocol": stage.protocol.model_dump(mode="json"),
        "per_class": per_class(split, scores),
    }
    return results, ["predictions.parquet", "pictures.npz"]


def _precision(run: Run) -> str:
    """The precision a stage was trained in; its weights are scored in the same."""
    recipe = run.stage().recipe
    assert recipe is not None, "only what was trained is scored"
    return recipe.precision


def _scored_roles(stage: Stage) -> list[str]:
    """The splits a stage is scored on while it trains; minival only where the weights are selected by it."""
    roles = ["val"]
    if stage.recipe is not None and stage.recipe.select == "best":
        roles.append("minival")
    return [role for role in roles if role in stage.data]


def eval_split(stage: Stage, role: str, settings: Settings, *, precision: str | None = None) -> EvalSplit:
    """One of a stage's splits, to be scored by its protocol. precision: by default the recipe's."""
    classes = stage.model.classes
    source = open_split(stage.data[role], settings)
    scorer: Scorer = Segmentation(classes, stage.protocol.ignore_label)
    if not stage.model.decoder:
        scorer = classifier(classes, stage.protocol, source)
    return EvalSplit(
        source=source,
        view=build.scoring_view(stage),
        scorer=scorer,
        protocol=stage.protocol,
        window=stage.model.image_size if stage.model.decoder else stage.protocol.resolution,
        precision=precision or (stage.recipe.precision if stage.recipe else "fp32"),
        batch_size=settings.micro_batch_size or (MAPS_AT_ONCE if stage.model.decoder else IMAGES_AT_ONCE),
        workers=settings.workers,
    )


def open_split(data: Data, settings: Settings) -> Source:
    """The images of a split; BenchError when they are not those the stage was planned with."""
    options: dict[str, Any] = dict(data.options)
    if settings.max_unreadable:
        options["max_unreadable"] = settings.max_unreadable
    root = data.root or settings.roots.get(data.dataset)
    source = open_source(SplitRequest(data.dataset, data.split, root, options, data.limit, data.labels))
    # One process checks the files for all: the others read the same ones.
    if source.identity() != data.identity or (_is_first() and root_of(source) != data.manifest):
        raise BenchError(f"{data.dataset}/{data.split} has changed since the stage was planned; run the command again")
    return source


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
