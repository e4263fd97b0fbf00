"""The one training loop: any objective, any number of processes, the same steps on the same images.

A stage's result is a function of its recipe and its seed. Images, views, dropout and the rest are seeded by the step
or the image they belong to; learning rate and weight decay are functions of the step; the loss is divided by the
number of items in the whole step, over all processes and accumulated parts. So a stage may stop after any step and
go on, here or on another number of devices, and comes out the same: bit for bit on the same processes of a CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
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
from bench.pipeline.dataloader import Batch, Images, View, load_batches, loader, move_and_normalise
from bench.pipeline.sampler import Batches, is_paired
from bench.runs.reference_curves import Watch
from bench.runs.run import Run
from bench.training import checkpoint
from bench.training.checkpoint import Checkpoint
from bench.training.flops import flops_per_image, peak_flops
from bench.training.journal import Journal
from bench.training.monitor import Meter
from bench.training.step import Update

log = logging.getLogger(__name__)

Score = Callable[[], dict[str, float]]  # scores the objective as it is now; the first metric is the headline
LOGS = 100  # a stage is recorded about so often ...
LOG_STEPS = 50  # ... and every so many steps in a long one


class TrainingData(NamedTuple):
    """What a stage learns from, and what it is scored on while it learns: split -> Score."""

    source: Images
    view: View
    evaluations: Mapping[str, Score] = {}


class RunContext(NamedTuple):
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


def train(stage: Stage, objective: Objective, material: TrainingData, context: RunContext) -> dict[str, Any]:
    """Train a stage, from its start or its last checkpoint to its end; write final/. Returns facts for results.json.

    Raises Interrupted, after a checkpoint, when asked to stop; FloatingPointError when a value is not finite.
    """
    return Trainer(stage, objective, material, context).train()


class Trainer:
    """A stage under way: the steps, and what is due between them."""

    def __init__(self, stage: Stage, objective: Objective, material: TrainingData, context: RunContext) -> None:
        assert stage.recipe is not None, "an evaluation is not trained"
        self.stage, self.recipe, self.material = stage, stage.recipe, material
        self.run, self.settings, self.accelerator, self.stop = context
        self.objective = objective.to(self.accelerator.device)
        self.batches = _batches(stage, self.recipe, material, context)
        self.steps = steps_of(stage)
        self.log_every = min(LOG_STEPS, max(1, self.steps // LOGS))
        whole = {"steps": self.steps, "steps_per_epoch": self.batches.steps_per_epoch}
        self.update = Update(stage, self.objective, accelerator=self.accelerator, **whole)
        self.meter = self._meter()
        self.update.wrap(self.settings)  # after the meter has counted: a compiled network cannot be
        self.journal = Journal(
            self.run,
            stage=stage.kind,
            images_per_step=self.recipe.batch_size,
            writes=self.accelerator.is_main_process,
            **whole,
        )
        self.journal.watch = Watch(stage)
        self.best: Best | None = None
        if self.recipe.select == "best" and "minival" not in material.evaluations:
            raise BenchError("select = 'best' chooses by the split minival, which this stage has not; use 'last'")

    def train(self) -> dict[str, Any]:
        """Take all the steps that are left."""
        done = start = self._resume()
        steps = loader(
            self.material.source,
            self.material.view,
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
            self._step(step, micro_batches)
            done += 1
            self._after(done)
        self.meter.clock.stop()
        assert done == self.steps, f"{self.steps} steps were planned, {done} were taken"
        self._write_final()
        return self._facts()

    def _step(self, step: int, micro_batches: list[Batch]) -> None:
        names, sums, norm, self.rates = self.update(step, micro_batches)
        self.meter.add(names, sums, norm)

    def _after(self, done: int) -> None:
        """What is due after `done` steps: records, evaluation, a checkpoint, stopping."""
        last, stopping = done == self.steps, self._must_stop(done)
        evaluating = last or self._is_due(done, self.recipe.eval_every_epochs)
        saving = last or stopping or self._is_due(done, self.recipe.checkpoint_every_epochs)
        if evaluating or saving or done % self.log_every == 0:
            values = self.meter.read(done) | self.rates._asdict()
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
        """Whether any process was asked to stop. A GPU is asked less often, because the host has to wait for it."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        if self.accelerator.device.type != "cpu" and done % 10:
            return False
        asked = torch.tensor(float(self.stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def _evaluate(self, done: int) -> None:
        """Score the objective, and its averaged weights, on every split that it is to be scored on."""
        if not self.material.evaluations:
            return
        share_buffers(self.accelerator, self.objective)
        self.objective.eval()
        for split, score in self.material.evaluations.items():
            found = score()
            if split == "minival":
                self._choose(done, next(iter(found.values())))
            if self.update.average:
                with self.update.average.applied():
                    found = found | {f"{name}_ema": value for name, value in score().items()}
            self.journal.record(done, self.meter.clock.seconds, split, found)
        self.objective.train()

    def _choose(self, done: int, score: float) -> None:
        """Keep the weights if they are the best so far and the recipe selects by score."""
        if self.recipe.select == "best" and (self.best is None or score > self.best.score):
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
        """Go on from the last whole checkpoint. Returns the number of steps that are done, 0 without one."""
        found = checkpoint.newest(self._checkpoints)
        step = found.step if found else 0
        if len(set(gather_object([step]))) > 1:
            raise BenchError(f"the processes see different checkpoints in {self._checkpoints}; is it a shared folder?")
        if self.accelerator.is_main_process:
            self.run.rewind(step)
        if found:
            log.info("going on after step %d of %d", step, self.steps)
            self.update.restore(found.weights, found.optimizer, found.facts["scaler"])
            self.meter.restore(found.facts)
            if best := found.facts["best"]:
                self.best = Best(best["score"], best["step"], found.weights["best"])
        return step

    def _write_final(self) -> None:
        """final/: the weights that the next stages start from, and the averaged ones."""
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
        """A meter that knows what one image costs, counted on two of the stage's first images."""
        draws = self.batches.micro_batches(0)[0]
        pair = [draws[0], draws[len(draws) // 2]]  # they are mixed with each other, if images are mixed
        batch = next(load_batches(self.material.source, self.material.view, [pair], seed=self.stage.seed))
        device, recipe = self.accelerator.device, self.recipe
        meter = Meter(
            images_per_step=recipe.batch_size,
            processes=self.accelerator.num_processes,
            scaled=self.update.scaler.is_enabled(),
        )
        batch = move_and_normalise(batch, device, self.stage.protocol)
        self.objective.train()
        meter.flops_per_image = flops_per_image(
            self.objective, batch, precision=recipe.precision, batch_size=recipe.batch_size
        )
        meter.peak = peak_flops(device, recipe.precision)
        return meter


def _batches(stage: Stage, recipe: Recipe, material: TrainingData, context: RunContext) -> Batches:
    """BenchError when the data are not those of the plan, or the batch does not divide among the processes."""
    planned, found = stage.data["train"].images, len(material.source)
    if found != planned:
        raise BenchError(f"the training split has {found} images, {planned} were planned; run the command again")
    return Batches(
        found,
        recipe.batch_size,
        seed=stage.seed,
        repeats=recipe.repeats,
        paired=is_paired(recipe),
        rank=context.accelerator.process_index,
        processes=context.accelerator.num_processes,
        micro=context.settings.micro_batch_size,
    )
