"""The training loop on a toy: what it computes, records, keeps, and refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from toys import IMAGES, Numbers, StopAt, Toy, flipped, stage, train_toy

from bench.checkpoints.weights import load_weights
from bench.errors import BenchError
from bench.launch.signals import Interrupted
from bench.pipeline.dataloader import loader
from bench.pipeline.sampler import Batches
from bench.pipeline.transforms import normalise
from bench.training import monitor
from bench.training.checkpoint import newest
from bench.training.monitor import Clock
from bench.training.schedule import learning_rate


def weights_of(run) -> dict[str, torch.Tensor]:
    return load_weights(run.path("final", "model.safetensors"))


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first: dict, second: dict) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6) for name in first)


def by_hand(planned, objective):
    """The same training, written down plainly: one batch, its mean loss, clip, AdamW."""
    recipe = planned.recipe
    batches = Batches(IMAGES, recipe.batch_size, seed=planned.seed)
    steps = batches.steps(recipe.epochs)
    matrices = [parameter for parameter in objective.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in objective.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    losses = []
    loaded = loader(Numbers(), flipped, batches, seed=planned.seed, start=0, stop=steps, workers=0)
    for step, (batch,) in enumerate(loaded):
        image = normalise(batch["image"], planned.protocol.mean, planned.protocol.std)
        sums = objective({**batch, "image": image})
        loss = sums["loss"] / sums["count"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps=steps, steps_per_epoch=batches.steps_per_epoch)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_does_what_a_plain_loop_does(tmp_path):
    planned = stage(clip_grad=0.5, warmup_epochs=1)
    plain = Toy()
    losses = by_hand(planned, plain)
    run, _ = train_toy(tmp_path, Toy(), planned)
    assert close(weights_of(run), plain.state_dict())
    recorded = [record.value for record in run.records() if record.metric == "loss"]
    assert recorded == pytest.approx(losses, rel=1e-5)


def test_the_loss_falls(tmp_path):
    run, _ = train_toy(tmp_path, Toy(), stage(epochs=40))
    losses = [record.value for record in run.records() if record.metric == "loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_does_not_change_the_result(tmp_path, micro):
    planned = stage(clip_grad=0.5)
    whole, _ = train_toy(tmp_path / "whole", Toy(), planned)
    parts, _ = train_toy(tmp_path / "parts", Toy(), planned, micro_batch_size=micro)
    assert close(weights_of(whole), weights_of(parts))
    assert not equal(weights_of(whole), Toy().state_dict())


def test_a_micro_batch_that_does_not_divide_is_refused_with_the_numbers_that_fit(tmp_path):
    with pytest.raises(BenchError, match="1, 2, 4, 8 would"):
        train_toy(tmp_path, Toy(), stage(), micro_batch_size=3)


def test_workers_do_not_change_the_result(tmp_path):
    alone, _ = train_toy(tmp_path / "alone", Toy(dropout=0.2), stage())
    helped, _ = train_toy(tmp_path / "helped", Toy(dropout=0.2), stage(), workers=2)
    assert equal(weights_of(alone), weights_of(helped))


def test_two_seeds_differ_and_one_repeats(tmp_path):
    first, again, other = (
        train_toy(tmp_path / name, Toy(dropout=0.2), stage().model_copy(update={"seed": seed}))[0]
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert equal(weights_of(first), weights_of(again))
    assert not equal(weights_of(first), weights_of(other))


@pytest.mark.parametrize("at", [1, 3, 7, 11])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_stage_goes_on_bit_for_bit(tmp_path, at, precision):
    planned = stage(precision=precision, model_ema=0.9, clip_grad=1.0, checkpoint_every_epochs=1)
    whole, facts = train_toy(tmp_path / "whole", Toy(dropout=0.2), planned)
    with pytest.raises(Interrupted, match=f"after step {at}"):
        train_toy(tmp_path / "parts", Toy(dropout=0.2), planned, stop=StopAt(at))
    parts, later = train_toy(tmp_path / "parts", Toy(dropout=0.2, seed=9), planned)
    assert equal(weights_of(whole), weights_of(parts))
    assert equal(
        load_weights(whole.path("final", "ema.safetensors")), load_weights(parts.path("final", "ema.safetensors"))
    )
    assert later["steps"] == facts["steps"]


def test_nothing_is_recorded_twice_after_a_stop(tmp_path):
    planned = stage(checkpoint_every_epochs=1)
    scores = {"val": lambda: {"top1": 50.0}}
    whole, _ = train_toy(tmp_path / "whole", Toy(), planned, evaluations=scores)
    with pytest.raises(Interrupted):
        train_toy(tmp_path / "parts", Toy(), planned, evaluations=scores, stop=StopAt(5))
    parts, _ = train_toy(tmp_path / "parts", Toy(), planned, evaluations=scores)
    measured = [
        [(r.step, r.split, r.metric, r.value) for r in run.records() if r.metric in ("loss", "lr", "top1", "red")]
        for run in (whole, parts)
    ]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 12 * 3 + 4


def test_records_say_where_they_were_measured(tmp_path):
    run, facts = train_toy(tmp_path, Toy(), stage())
    last = [record for record in run.records() if record.step == 12]
    assert {(record.epoch, record.images, record.split) for record in last} == {(4.0, 96, "train")}
    metrics = {record.metric: record.value for record in last}
    assert {
        "loss",
        "lr",
        "weight_decay",
        "grad_norm",
        "images_per_second",
        "data_wait",
        "flops",
        "mfu",
    } <= metrics.keys()
    assert 0 <= metrics["data_wait"] <= 1
    assert (facts["steps"], facts["images"]) == (12, 96)
    assert facts["trainable"] == 48 * 8 + 8 + 8 * 3 + 3


def test_operations_are_counted_forward_and_backward(tmp_path):
    _, facts = train_toy(tmp_path, Toy(), stage())
    forward = 2 * (48 * 8 + 8 * 3)
    backward = 2 * (48 * 8 + 2 * 8 * 3)  # the images need no gradient
    assert facts["flops"] / facts["images"] == forward + backward


def test_counting_operations_leaves_running_statistics_alone(tmp_path):
    planned, toy = stage(epochs=1), Toy(dropout=0.2)
    train_toy(tmp_path, toy, planned)
    assert toy.norm.num_batches_tracked == 3


def test_a_scalar_of_the_objective_is_averaged_over_the_items(tmp_path):
    run, _ = train_toy(tmp_path, Toy(), stage(batch_size=24, epochs=1))
    labels = torch.tensor([Numbers()[index]["label"] for index in range(IMAGES)])
    share = float((labels == 0).sum() / (labels + 1).sum())
    assert [record.value for record in run.records() if record.metric == "red"] == [pytest.approx(share)]


def test_progress_reaches_one(tmp_path):
    toy = Toy()
    train_toy(tmp_path, toy, stage())
    assert toy.progress == pytest.approx([step / 12 for step in range(1, 13)])


def test_averaged_weights_follow_the_formula(tmp_path):
    class Watched(Toy):
        def after_step(self, progress):
            seen.append({name: value.clone() for name, value in self.state_dict().items()})

    seen = []
    run, _ = train_toy(tmp_path, Watched(), stage(model_ema=0.8))
    expected = Toy().state_dict()
    for weights in seen:
        expected = {name: 0.8 * value + 0.2 * weights[name] for name, value in expected.items()}
    assert close(load_weights(run.path("final", "ema.safetensors")), expected)


def test_averaged_weights_are_scored_apart_and_put_back(tmp_path):
    toy = Toy()
    scores = {"val": lambda: {"bias": toy.head.bias.sum().item()}}
    run, _ = train_toy(tmp_path, toy, stage(model_ema=0.8), evaluations=scores)
    last = {record.metric: record.value for record in run.records() if record.split == "val" and record.step == 12}
    assert last["bias"] == pytest.approx(float(weights_of(run)["head.bias"].sum()))
    assert last["bias_ema"] == pytest.approx(
        float(load_weights(run.path("final", "ema.safetensors"))["head.bias"].sum())
    )
    assert last["bias"] != last["bias_ema"]


def test_it_is_scored_as_often_as_asked_and_at_the_end(tmp_path):
    def steps(name, **recipe):
        run, _ = train_toy(tmp_path / name, Toy(), stage(**recipe), evaluations={"val": lambda: {"top1": 1.0}})
        return [record.step for record in run.records() if record.metric == "top1"]

    assert steps("each", eval_every_epochs=1) == [3, 6, 9, 12]
    assert steps("half", eval_every_epochs=1.5) == [5, 9, 12]
    assert steps("end", eval_every_epochs=0) == [12]


def test_the_best_weights_are_those_of_the_best_minival_score(tmp_path):
    seen = []

    def score():
        seen.append({name: value.clone() for name, value in toy.state_dict().items()})
        return {"top1": [10.0, 40.0, 40.0, 20.0][len(seen) - 1]}

    toy, planned = Toy(), stage(select="best")
    run, facts = train_toy(tmp_path, toy, planned, evaluations={"minival": score})
    assert facts["selected_step"] == 6
    assert equal(weights_of(run), seen[1])


def test_the_best_so_far_survives_a_stop(tmp_path):
    scores = iter([10.0, 40.0, 30.0, 20.0])
    evaluations = {"minival": lambda: {"top1": next(scores)}}
    planned = stage(select="best")
    with pytest.raises(Interrupted):
        train_toy(tmp_path, Toy(), planned, evaluations=evaluations, stop=StopAt(7))
    _, facts = train_toy(tmp_path, Toy(), planned, evaluations=evaluations)
    assert facts["selected_step"] == 6


def test_choosing_the_best_needs_a_split_that_is_not_reported(tmp_path):
    with pytest.raises(BenchError, match="minival"):
        train_toy(tmp_path, Toy(), stage(select="best"), evaluations={"val": lambda: {"top1": 1.0}})


class Diverging(Toy):
    def forward(self, batch):
        sums = super().forward(batch)
        return sums | {"loss": sums["loss"] * (math.inf if len(self.progress) == 4 else 1.0)}


def test_a_loss_that_is_not_finite_stops_with_step_and_values_and_is_not_kept(tmp_path):
    planned = stage(checkpoint_every_epochs=1)
    with pytest.raises(FloatingPointError, match=r"step 5 is not finite: loss = inf, red = .*gradient norm"):
        train_toy(tmp_path, Diverging(), planned)
    assert newest(tmp_path / planned.folder / "checkpoints").step == 3


def test_data_that_changed_since_the_plan_are_refused(tmp_path):
    with pytest.raises(BenchError, match="has 30 images, 24 were planned"):
        train_toy(tmp_path, Toy(), stage(), source=Numbers(30))


def test_fewer_processes_than_asked_for_are_noticed(tmp_path):
    with pytest.raises(BenchError, match="2 processes were requested, but 1 started"):
        train_toy(tmp_path, Toy(), stage(), num_processes=2)


def test_the_clock_stands_still_during_evaluation_and_goes_on_after_a_stop(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now.seconds)
    clock = Clock(30.0)
    clock.start()
    now.seconds += 5
    with clock.paused():
        now.seconds += 1000
    now.seconds += 2
    assert clock.seconds == 37
    clock.stop()
    now.seconds += 1000
    assert clock.seconds == 37


def test_a_stage_that_has_taken_its_last_step_only_writes_its_end(tmp_path):
    planned = stage()
    run, first = train_toy(tmp_path, Toy(), planned)
    run.path("final", "model.safetensors").unlink()
    again, second = train_toy(tmp_path, Toy(seed=5), planned)
    assert second == {
        **first,
        "seconds": second["seconds"],
        **{k: second[k] for k in ("device_seconds", "images_per_second", "data_wait")},
    }
    assert equal(weights_of(again), newest(run.path("checkpoints")).weights["model"])


def test_a_gradient_that_overflows_in_fp16_only_skips_a_step(tmp_path):
    planned = stage(precision="fp16", batch_size=24, epochs=1)
    toy = Toy()
    with torch.no_grad():
        toy.head.weight.mul_(1000)  # times the scaler's first factor, 65,536, this is beyond fp16
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    run, _ = train_toy(tmp_path, toy, planned)
    assert equal(weights_of(run), before)
    assert newest(run.path("checkpoints")).facts["scaler"]["scale"] == 32768
