"""`bench evaluate`: weights from outside are scored as an ordinary stage, by a task's protocol or their own card."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from foreign import network
from PIL import Image
from small import CLASSIFY, SEGMENT, prepared, small_plan
from toys import StopAt
from typer.testing import CliRunner

from bench.checkpoints import conversion
from bench.cli.app import app
from bench.config.schema import Model
from bench.config.stage import Plan
from bench.data.splits import SplitRequest, open_source
from bench.errors import BenchError, ExitCode
from bench.launch import local
from bench.launch.settings import Resources
from bench.launch.signals import Stop
from bench.planning.evaluations import EvaluationRequest, plan_evaluations
from bench.reporting import checkpoint_scores
from bench.runs.run import Run
from bench.training import worker

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Three tasks on 64 scenes of demo: digits, the same seen at 32 pixels, and what covers each pixel."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "small.toml").write_text(CLASSIFY)
    (folder / "small-32.toml").write_text(CLASSIFY.replace("= 48", "= 32"))
    (folder / "small-seg.toml").write_text(SEGMENT)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder as the hub has it: a random Data2VecVision classifier and its preprocessing, both sides to 48 pixels."""
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    folder = tmp_path_factory.mktemp("hub") / "data2vec-vision-nano"
    torch.manual_seed(0)
    config = Data2VecVisionConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=48, patch_size=8,
        num_labels=10, use_mean_pooling=True, use_relative_position_bias=True, layer_scale_init_value=0.1,
    )  # fmt: skip
    network = Data2VecVisionForImageClassification(config)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    network.save_pretrained(folder)
    settings = {"do_resize": True, "size": {"height": 48, "width": 48}, "resample": 2, "do_center_crop": False}
    settings |= {
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "image_processor_type": "BeitImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def asked(tasks: Path, output: Path, *sources: object, task: str = "small", **changes) -> EvaluationRequest:
    return EvaluationRequest(sources=tuple(map(str, sources)), task=task, places=(tasks,), output=output, **changes)


def carried_out(plan: Plan, output: Path, stop: Stop | None = None, code: int = 0) -> Run:
    """The last stage of a plan, worked on in this process."""
    runs = {key: Run.open(output / "runs", stage) for key, stage in plan.stages.items()}
    stage = list(plan.stages.values())[-1]
    local._prepare(stage, runs[stage.key], runs, local.Slot((), 1), Resources(devices="cpu", micro_batch_size=16))
    assert worker.work(runs[stage.key], stop or Stop()) == code
    return runs[stage.key]


def test_by_its_card_a_checkpoint_answers_as_it_does_in_transformers(tasks, checkpoint, tmp_path):
    from transformers import AutoModelForImageClassification

    run = carried_out(plan_evaluations(asked(tasks, tmp_path, checkpoint, protocol="card")), tmp_path)
    frame = pd.read_parquet(run.path("predictions.parquet"))
    theirs = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    source = open_source(SplitRequest("demo", "val", options={"images": 64}))
    for index in (0, 17, 63):
        image = source[index]["image"].resize((48, 48), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy((np.array(image) / 255 - MEAN) / STD).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            logits = theirs(pixels).logits[0].numpy()
        np.testing.assert_allclose(frame["logits"][index].astype(np.float32), logits, rtol=2e-3, atol=2e-3)
    assert run.stage().protocol.mean == tuple(MEAN)
    assert run.stage().protocol.whole


@pytest.mark.parametrize("protocol", ["task", "card"])
def test_a_segmentation_network_is_scored_through_windows_or_squeezed(tasks, tmp_path, protocol):
    shape = Model(trunk="beit", position="relative", image_size=48, patch_size=16, width=32, depth=4, heads=4)
    model = shape.model_copy(update={"classes": 11, "decoder": "upernet"})
    conversion.write(network(model, purpose="segment"), model, "token", "hf", tmp_path / "net")
    settings = {"size": {"height": 48, "width": 48}, "image_mean": MEAN, "image_std": STD, "resample": 2}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(settings))
    plan = plan_evaluations(asked(tasks, tmp_path, tmp_path / "net", task="small-seg", protocol=protocol))
    run = carried_out(plan, tmp_path)
    assert run.stage().protocol.whole == (protocol == "card")
    frame = pd.read_parquet(run.path("predictions.parquet"))
    assert np.stack(frame["labelled"].to_list()).sum() == 64 * 48 * 48
    (summary,) = checkpoint_scores.summaries(plan, tmp_path)
    low, high = summary["intervals"]["mIoU"]
    assert low <= summary["metrics"]["mIoU"] <= high


def test_the_same_weights_are_scored_once_wherever_they_lie(tasks, checkpoint, tmp_path):
    plan = plan_evaluations(asked(tasks, tmp_path, checkpoint))
    (stage,) = plan.stages.values()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in checkpoint.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert [*plan_evaluations(asked(tasks, tmp_path, moved)).stages] == [stage.key]
    assert stage.protocol.mean == (0.485, 0.456, 0.406)  # the task's
    others = [asked(tasks, tmp_path, checkpoint, **change) for change in ({"protocol": "card"}, {"precision": "bf16"})]
    assert len({stage.key, *(key for other in others for key in plan_evaluations(other).stages)}) == 3
    with pytest.raises(BenchError, match="holds the same weights as"):
        plan_evaluations(asked(tasks, tmp_path, checkpoint, moved))


def test_a_run_of_ours_is_scored_as_the_study_does_it(tasks, tmp_path):
    plan = small_plan(tmp_path, "vit", epochs=1)
    runs = prepared(tmp_path, plan)
    assert worker.work(runs["supervised"], Stop()) == 0
    evaluation = plan_evaluations(asked(tmp_path / "tasks", tmp_path, runs["supervised"].root.name))
    assert evaluation.stages == plan.stages | evaluation.stages
    assert [*evaluation.stages] == [*plan.stages]
    with pytest.raises(BenchError, match="has no card"):
        plan_evaluations(asked(tasks, tmp_path, runs["supervised"].root, protocol="card"))


def test_an_evaluation_that_was_stopped_goes_on(tasks, checkpoint, tmp_path):
    plan = plan_evaluations(asked(tasks, tmp_path, checkpoint))
    run = carried_out(plan, tmp_path, StopAt(3), code=ExitCode.INTERRUPTED)
    status = run.status()
    assert (status.state, status.step, status.steps) == ("interrupted", 48, 64)
    files = sorted(path.name for path in run.path("checkpoints", "model").iterdir())
    assert files == ["rows-000000000.npz", "rows-000000016.npz", "rows-000000032.npz"]
    carried_out(plan, tmp_path)
    assert run.is_done()
    assert not run.path("checkpoints").exists()
    frame = pd.read_parquet(run.path("predictions.parquet"))
    assert frame["index"].tolist() == list(range(64))
    text = checkpoint_scores.text(checkpoint_scores.summaries(plan, tmp_path))
    assert f"top1       {100 * frame['correct'].mean():.2f} %  (95 %:" in text
    assert "64 of val" in text


def test_weights_that_have_changed_since_are_not_scored(tasks, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    own = tmp_path / "own"
    own.mkdir()
    for file in checkpoint.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    plan = plan_evaluations(asked(tasks, tmp_path, own))
    save_file(
        {name: value + 1 for name, value in load_file(own / "model.safetensors").items()}, own / "model.safetensors"
    )
    run = carried_out(plan, tmp_path, code=ExitCode.FAILED)
    assert "holds other weights" in run.status().error


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("small-32", r"takes images of 48 pixels, the protocol has 32; task small does"),
        ("small-seg", r"was trained to classify, task small-seg is segmentation"),
        ("smal", r"no task 'smal'.*Did you mean small\?"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(tasks, checkpoint, tmp_path, task, message):
    with pytest.raises(BenchError, match=message):
        plan_evaluations(asked(tasks, tmp_path, checkpoint, task=task))


def test_a_checkpoint_for_another_number_of_classes_is_refused(tasks, checkpoint, tmp_path):
    (tmp_path / "seven.toml").write_text(CLASSIFY.replace("classes = 10", "classes = 7"))
    with pytest.raises(BenchError, match="has 10 classes, task seven has 7"):
        plan_evaluations(asked(tmp_path, tmp_path, checkpoint, task="seven"))


def test_what_learned_without_labels_is_not_scored(tasks, tmp_path):
    from transformers import BeitConfig, BeitForMaskedImageModeling

    config = BeitConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, image_size=48, patch_size=8,
        vocab_size=16, use_mask_token=True, use_shared_relative_position_bias=True,
    )  # fmt: skip
    BeitForMaskedImageModeling(config).save_pretrained(tmp_path / "beit-pt")
    with pytest.raises(BenchError, match=r"pretrained without labels, .* fine-tune it first"):
        plan_evaluations(asked(tasks, tmp_path, tmp_path / "beit-pt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--task", "demo"], "no weights 'nothing' here"),
        (
            ["x", "--task", "demo", "--protocol", "cards"],
            "no protocol 'cards'; available: card, task.",
        ),
        (["x", "--task", "demo", "--mixed-precision", "fp8"], "--mixed-precision fp8: write no, bf16 or fp16"),
        (["x", "--task", "demo", "--data-dir", "demmo=here"], "no task 'demmo'"),
    ],
)
def test_the_command_says_what_would_work(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
