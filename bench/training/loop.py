"""The one training loop: any objective, any number of processes, the same steps on the same images.

A stage's result is a function of its recipe and its seed. Images, views, dropout and the rest are seeded by the step
or the image they belong to; learning rate and weight decay are functions of the step; the loss is divided by the
number of items in the whole step, over all processes and accumulated micro-batches. So a stage may stop after any step
and resume, here or on another number of devices, with the same result: bit for bit on the same processes of a CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from bench.checkpoints.weights import Weights, save_weights
from bench.config.resolve import steps_of
from bench.config.schema import Recipe
from bench.config.stage import Stage
from bench.errors import BenchError
from bench.launch.distributed import share_buffers
from bench.launch.settings import Settings
from bench.launch.signals import Interrupted, Stop
from bench.methods.objective import Objective
from bench.pipeline.dataloader import Images, View, load_batches, loader, move_and_normalise
from bench.pipeline.sampler import Batches, is_paired
from bench.runs.reference_curves import Watch
from bench.runs.run import Run
from bench.training import checkpoint
from bench.training.checkpoint import Checkpoint
from bench.training.flops import flops_per_image, peak_flops
from bench.training.journal import Journal
from bench.training.monitor import Meter
from bench.training.optim import Rates
from bench.training.step import Update

log = logging.getLogger(__name__)

Score = Callable[[], dict[str, float]]  # scores the objective as it is now; the first metric is the headline
LOGS = 100  # a stage has about so many records of each value ...
LOG_STEPS = 50  # ... and a long one has a record every so many steps


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a stage learns from, and what it is scored on while it learns: split -> Score."""

    source: Images
    view: View
    evaluations: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Where and how a stage runs; none of it changes the result."""

    run: Run
    settings: Settings
    accelerator: Accelerator
    stop: Stop


class Best(NamedTuple):
    """The highest headline score on minival so far."""

    score: float
    step: int
    weights: Weights


class Trainer:
    """Trains one stage: the optimiser steps, and the logging, evaluation and checkpoints that are due between them."""

    def __init__(self, stage: Stage, objective: Objective, data: TrainingData, context: RunContext) -> None:
        assert stage.recipe is not None, "an evaluation is not trained"
        if stage.recipe.select == "best" and "minival" not in data.evaluations:
            raise BenchError("select = 'best' chooses by the split minival, which this stage does not have; use 'last'")
        self.stage, self.recipe, self.data = stage, stage.recipe, data
        self.run, self.settings = context.run, context.settings
        self.accelerator, self.stop = context.accelerator, context.stop
        self.objective = objective.to(self.accelerator.device)
        self.batches = _batches(stage, self.recipe, data, context)
        self.steps = steps_of(stage)
        self.log_every = min(LOG_STEPS, max(1, self.steps // LOGS))
        self.best: Best | None = None
        # Before Update, which may compile the network: the operations of a compiled one cannot be counted.
        self.meter = self._meter()
        schedule = {"steps": self.steps, "steps_per_epoch": self.batches.steps_per_epoch}
        self.update = Update(stage, self.objective, accelerator=self.accelerator, settings=self.settings, **schedule)
        self.journal = Journal(
            self.run,
            stage=stage.kind,
            images_per_step=self.recipe.batch_size,
            writes=self.accelerator.is_main_process,
            watch=Watch(stage),
            **schedule,
        )

    def train(self) -> dict[str, Any]:
        """Train to the end, from the start or the last checkpoint; write final/. Returns facts for results.json.

        Raises Interrupted, after a checkpoint, when asked to stop; FloatingPointError when a value is not finite.
        """
        done = start = self._resume()
        steps = loader(
            self.data.source,
            self.data.view,
            self.batches,
            seed=self.stage.seed,
            start=start,
            stop=self.steps,
            workers=self.settings.workers,
            pin=self.accelerator.device.type == "cuda",
        )
        self.objective.train()
        self.meter.start()
        for step in range(start, self.steps):
            with self.meter.waiting():
                micro_batches = next(steps)
            result = self.update(step, micro_batches)
            self.meter.add(result.names, result.sums, result.norm)
            done += 1
            self._after(done, result.rates)
        self.meter.clock.stop()
        assert done == self.steps, f"{self.steps} steps were planned, {done} were taken"
        self._write_final()
        return self._facts()

    def _after(self, done: int, rates: Rates) -> None:
        """Do what is due after `done` steps: records, evaluation, a checkpoint, stopping. rates: of the last step."""
        last, stopping = done == self.steps, self._must_stop(done)
        evaluating = last or self._is_due(done, self.recipe.eval_every_epochs)
        saving = last or stopping or self._is_due(done, self.recipe.checkpoint_every_epochs)
        if evaluating or saving or done % self.log_every == 0:
            # Read before a checkpoint, so that one whose loss was not finite is never saved.
            values = self.meter.read(done) | rates._asdict()
            self.journal.record(done, self.meter.clock.seconds, "train", values)
        self.journal.progress(done, self.meter)
        if evaluating or saving:
            with self.meter.clock.paused():
                if evaluating:
                    self._evaluate(done)
                if saving:
                    self._save(done)
        if stopping and not last:
            raise Interrupted(done)

    def _is_due(self, done: int, every_epochs: float) -> bool:
        """Whether step `done` completes another `every_epochs` epochs; 0 is never."""
        every = every_epochs * self.batches.steps_per_epoch
        return every > 0 and math.floor(done / every) > math.floor((done - 1) / every)

    def _must_stop(self, done: int) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        if self.accelerator.device.type != "cpu" and done % 10:
            return False  # on GPUs every tenth step only: the reduction makes the host wait for the device
        request = torch.tensor(float(self.stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(request, reduction="sum") > 0)

    def _evaluate(self, done: int) -> None:
        """Score the objective, and its EMA weights separately, on every split of the training data's evaluations."""
        if not self.data.evaluations:
            return
        share_buffers(self.accelerator, self.objective)
        self.objective.eval()
        for split, score in self.data.evaluations.items():
            metrics = score()
            if split == "minival":
                self._choose(done, next(iter(metrics.values())))
            if self.update.average:
                with self.update.average.applied():
                    metrics = metrics | {f"{name}_ema": value for name, value in score().items()}
            self.journal.record(done, self.meter.clock.seconds, split, metrics)
        self.objective.train()

    def _choose(self, done: int, score: float) -> None:
        """Keep the weights if they are the best so far and the recipe selects by score."""
        if self.recipe.select == "best" and (self.best is None or score > self.best.score):
            # A copy: on the CPU the state is the parameters themselves, and the next step changes them.
            weights = {name: value.cpu().clone() for name, value in self.objective.trainable_state().items()}
            self.best = Best(score, done, weights)

    def _save(self, done: int) -> None:
        share_buffers(self.accelerator, self.objective)
        if self.accelerator.is_main_process:
            weights, best = self.update.weights(), None
            if self.best:
                weights["best"], best = self.best.weights, {"score": self.best.score, "step": self.best.step}
            facts = {**self.meter.facts(), "scaler": self.update.scaler.state_dict(), "best": best}
            checkpoint.save(self._checkpoints, Checkpoint(done, weights, self.update.optimizer.state_dict(), facts))
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Resume from the last complete checkpoint. Returns the number of steps that are done, 0 without one."""
        last = checkpoint.newest(self._checkpoints)
        step = last.step if last else 0
        if len(set(gather_object([step]))) > 1:
            raise BenchError(
                f"the processes see different checkpoints in {self._checkpoints}; "
                "put --output-dir on storage that all processes share"
            )
        if self.accelerator.is_main_process:
            self.run.rewind(step)  # records of steps after the checkpoint are measured again
        if last:
            log.info("resuming after step %d of %d", step, self.steps)
            self.update.restore(last.weights, last.optimizer, last.facts["scaler"])
            self.meter.restore(last.facts)
            if best := last.facts["best"]:
                self.best = Best(best["score"], best["step"], last.weights["best"])
        return step

    def _write_final(self) -> None:
        """Write final/: the weights that the next stages start from, and the EMA weights."""
        if self.recipe.select == "best":
            assert self.best is not None, "minival is scored after the last step at the latest"
            self.objective.load_trainable_state(self.best.weights)
        if self.accelerator.is_main_process:
            for name, weights in self.update.weights().items():
                save_weights(self.run.path("final", f"{name}.safetensors"), weights)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        images, seconds = self.steps * self.recipe.batch_size, self.meter.clock.seconds
        return {
            "precision": self.recipe.precision,
            "steps": self.steps,
            "epochs": self.steps / self.batches.steps_per_epoch,
            "images": images,
            "seconds": seconds,
            "device_seconds": seconds * self.accelerator.num_processes,
            "flops": images * self.meter.flops_per_image,
            "parameters": sum(parameter.numel() for parameter in self.objective.parameters()),
            "trainable": sum(parameter.numel() for parameter in self.update.parameters),
            "images_per_second": images / seconds,
            "data_wait": self.meter.waited / seconds,
            "selected_step": self.best.step if self.best else self.steps,
        }

    @property
    def _checkpoints(self) -> Path:
        return self.run.path("checkpoints")

    def _meter(self) -> Meter:
        """A meter that knows the FLOPs of one image, counted on two of the stage's first images."""
        draws = self.batches.micro_batches(0)[0]
        pair = [draws[0], draws[len(draws) // 2]]  # they are mixed with each other, if images are mixed
        device, recipe = self.accelerator.device, self.recipe
        views = next(load_batches(self.data.source, self.data.view, [pair], seed=self.stage.seed))
        batch = move_and_normalise(views, device, self.stage.protocol)
        self.objective.train()
        return Meter(
            images_per_step=recipe.batch_size,
            processes=self.accelerator.num_processes,
            scaled=recipe.precision == "fp16",
            flops_per_image=flops_per_image(
                self.objective, batch, precision=recipe.precision, batch_size=recipe.batch_size
            ),
            peak=peak_flops(device, recipe.precision),
        )


def _batches(stage: Stage, recipe: Recipe, data: TrainingData, context: RunContext) -> Batches:
    """The global batches of a stage, as this process gets them.

    BenchError when the data are not those of the plan, or the batch does not divide among the processes.
    """
    planned, images = stage.data["train"].images, len(data.source)
    if images != planned:
        raise BenchError(f"the training split has {images} images, {planned} were planned; run the command again")
    return Batches(
        images,
        recipe.batch_size,
        seed=stage.seed,
        repeats=recipe.repeats,
        paired=is_paired(recipe),
        rank=context.accelerator.process_index,
        processes=context.accelerator.num_processes,
        micro=context.settings.micro_batch_size,
    )
