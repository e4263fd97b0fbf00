"""Results of the four methods as others read them: the same logits, the same pixels, a card that says what it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from PIL import Image
from small import TRAINED, prepared, small_plan
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from typer.testing import CliRunner

from bench.checkpoints import exporter, locate
from bench.checkpoints.model_card import short_side
from bench.checkpoints.weights import save_weights
from bench.cli.app import app
from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Data, Stage
from bench.errors import BenchError
from bench.methods.segmentation import build_segmenter
from bench.models.upernet import upsample
from bench.pipeline.transforms import eval_view, normalise
from bench.runs.run import Run
from bench.training import build, worker

LAST = {"vit": "supervised", "deit": "supervised", "beit": "finetune", "data2vec": "finetune"}


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Iterator[Path]:
    """A folder of results: every method, trained for two steps and scored."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "scenes"))
        for method in TRAINED:
            pool = {"pool": "mean"} if method == "vit" else {}  # as in the demo; a tanh layer has no place elsewhere
            runs = prepared(folder, small_plan(folder, method, epochs=0.5, checkpoint_every_epochs=0, **pool))
            assert worker.main([str(run.root) for run in runs.values()]) == 0
        yield folder


def of(output: Path, method: str, kind: str = "") -> Run:
    runs = [Run(path.parent) for path in sorted((output / "runs").glob("*/stage.json"))]
    (run,) = [run for run in runs if (run.stage().method, run.stage().kind) == (method, kind or LAST[method])]
    return run


def pixels(model) -> torch.Tensor:
    return torch.randn(3, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", TRAINED)
def test_transformers_gives_our_logits(output, method, tmp_path):
    run = of(output, method)
    exporter.export(run, "hf", tmp_path / "m", output=output)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ours, images = build.load_trained(run).eval(), pixels(run.stage().model)
    with torch.no_grad():
        expected, logits = ours.predict({"image": images})["logits"], theirs(images).logits
    assert expected.std() > 1e-4
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", TRAINED)
def test_what_was_exported_for_timm_or_the_authors_comes_back_as_it_was(output, method, tmp_path):
    from bench.checkpoints import conversion

    run = of(output, method)
    images = pixels(run.stage().model)
    with torch.no_grad():
        wanted = build.load_trained(run).eval().predict({"image": images})["logits"]
        for to in ("timm", "authors"):
            exporter.export(run, to, tmp_path / to, output=output)
            back = conversion.build_objective(conversion.read(tmp_path / to))
            torch.testing.assert_close(back.predict({"image": images})["logits"], wanted, atol=1e-5, rtol=0)


def test_what_was_pretrained_is_exported_without_a_classifier(output, tmp_path):
    exporter.export(of(output, "data2vec", "pretrain"), "hf", tmp_path / "m", output=output)
    assert AutoModel.from_pretrained(tmp_path / "m").config.model_type == "data2vec-vision"
    assert "Not scored" in (tmp_path / "m" / "README.md").read_text()


def test_a_segmentation_is_exported_with_its_decoder_and_without_a_crop(tmp_path):
    shape: dict[str, Any] = {
        "width": 96,
        "depth": 4,
        "heads": 3,
        "image_size": 64,
        "patch_size": 16,
        "position": "relative",
    }
    model = Model(trunk="beit", size="", classes=5, layer_scale=0.1, decoder="upernet", **shape)
    network = build_segmenter(model, Recipe(), ignore_label=255)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    data = {"train": Data(dataset="demo", split="train", identity="x", images=64)}
    protocol = Protocol(resolution=64, flip=True)
    stage = Stage(kind="finetune", method="beit", task="t", model=model, recipe=Recipe(), protocol=protocol, data=data)
    run = Run.open(tmp_path / "runs", stage)
    save_weights(run.path("final", "model.safetensors"), network.trainable_state())
    run.finish({"steps": 1}, ["final/model.safetensors"])
    exporter.export(run, "hf", tmp_path / "m", output=tmp_path)
    theirs, images = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "m").eval(), pixels(model)
    with torch.no_grad():
        expected, logits = network.eval().predict({"image": images})["logits"], theirs(images).logits
    torch.testing.assert_close(upsample(logits, 64), expected, atol=1e-5, rtol=0)
    processor = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["do_center_crop"]) == ({"shortest_edge": 64}, False)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "windows of 64 pixels" in card
    assert "mirror image" in card


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


PROTOCOLS = (
    Protocol(resolution=224, crop_ratio=0.875),
    Protocol(resolution=64, crop_ratio=0.9, interpolation="lanczos", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Protocol(resolution=48, crop_ratio=1.0, interpolation="bilinear"),
    Protocol(resolution=56, whole=True),
)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: str(protocol.resolution))
@pytest.mark.parametrize(("width", "height"), [(500, 375), (224, 224), (160, 240)], ids=str)
def test_the_exported_preprocessing_is_that_of_the_evaluation(protocol, width, height, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(exporter.processor_config(protocol)))
    shown = picture(width, height)
    wanted = normalise(eval_view(protocol)({"image": shown, "label": 0})["image"], protocol.mean, protocol.std)
    for backend, levels in (("pil", 0.01), ("torchvision", 2.01)):
        processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        values = processor(shown, return_tensors="pt")["pixel_values"][0]
        ours, theirs = overlapping(wanted, values, protocol, width, height)
        assert (255 * min(protocol.std) * (ours - theirs)).abs().max() < levels


def overlapping(ours, theirs, protocol, width, height):
    """The part both show: cutting an odd margin in halves, torchvision rounds to even and transformers down."""
    short = short_side(protocol)
    sides = [short, short] if protocol.whole else [int(short * side / min(width, height)) for side in (height, width)]
    down, right = (round((side - protocol.resolution) / 2) - (side - protocol.resolution) // 2 for side in sides)
    size = protocol.resolution
    return ours[:, : size - down, : size - right], theirs[:, down:, right:]


def test_the_exported_processor_is_of_the_exported_protocol(output, tmp_path):
    exporter.export(of(output, "vit"), "hf", tmp_path / "m", output=output)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "m", backend="pil")
    protocol, shown = of(output, "vit").stage().protocol, picture(64, 56)
    wanted = normalise(eval_view(protocol)({"image": shown, "label": 0})["image"], protocol.mean, protocol.std)
    torch.testing.assert_close(processor(shown, return_tensors="pt")["pixel_values"][0], wanted, atol=1e-5, rtol=0)


def test_the_card_says_what_was_reached_and_where_it_comes_from(output, tmp_path):
    run, scored = of(output, "beit"), of(output, "beit", "evaluate")
    exporter.export(scored, "hf", tmp_path / "m", output=output)
    text = (tmp_path / "m" / "README.md").read_text()
    front = metadata_load(tmp_path / "m" / "README.md")
    assert front is not None
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(scored.results()["metrics"]["top1"], abs=1e-3)
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("demo", "val")
    stage = run.stage()
    for fact in (
        stage.key,
        scored.stage().key,
        of(output, "beit", "tokenizer").root.name,
        stage.data["train"].identity,
    ):
        assert fact in text
    assert "| recipe.epochs | 100 | 0.5 |" in text
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert list(config["id2label"].values()) == list("0123456789")


def test_what_the_target_does_not_have_leaves_an_earlier_export_as_it_was(output, tmp_path, monkeypatch):
    run, folder = of(output, "vit"), tmp_path / "m"
    exporter.export(run, "hf", folder, output=output)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(BenchError, match="no place"):
        patch.setattr(exporter.conversion, "write", lambda *_, **__: (_ for _ in ()).throw(BenchError("no place")))
        exporter.export(run, "timm", folder, output=output)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_export_replaces_only_an_export(output, tmp_path):
    run, folder = of(output, "vit"), tmp_path / "m"
    exporter.export(run, "hf", folder, output=output)
    exporter.export(run, "authors", folder, output=output)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "checkpoint.pth", "export.json"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BenchError, match=r"holds notes\.txt, which no export wrote"):
        exporter.export(run, "hf", folder, output=output)
    assert (folder / "notes.txt").read_text() == "mine"


def test_pushing_needs_a_token_before_anything_is_written(output, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(BenchError, match="no token for the Hugging Face hub; run `hf auth login`"):
        exporter.export(of(output, "vit"), "hf", tmp_path / "m", output=output, push="me/model")
    assert not (tmp_path / "m").exists()
    with pytest.raises(BenchError, match="write USER/NAME"):
        exporter.export(of(output, "vit"), "hf", tmp_path / "m", output=output, push="model")


def test_a_push_sends_the_exported_files_and_nothing_else(output, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, name, **options):
            sent["made"] = (name, options)
            return f"https://huggingface.co/{name}"

        def upload_folder(self, **options):
            sent["files"] = set(options["allow_patterns"])

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    done = exporter.export(of(output, "vit"), "hf", tmp_path / "m", output=output, push="me/model")
    assert done.url == "https://huggingface.co/me/model"
    assert sent["token"] == "secret"
    assert sent["made"] == ("me/model", {"private": True, "exist_ok": True})
    assert sent["files"] == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert "secret" not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "m").iterdir())


def test_the_command_exports_by_the_beginning_of_a_key(output, tmp_path):
    key = of(output, "vit").stage().key
    for name in (key[:6], key):
        done = CliRunner().invoke(app, ["export", name, str(tmp_path / name), "-o", str(output), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["run"] == of(output, "vit").root.name
    wrong = CliRunner().invoke(app, ["export", "nix", str(tmp_path / "n"), "-o", str(output)])
    assert wrong.exit_code == 2
    assert "no run 'nix'" in wrong.output


def test_what_is_not_finished_is_not_exported(output, tmp_path):
    run = of(output, "vit")
    unfinished = Run.open(tmp_path, run.stage().model_copy(update={"seed": 9}))
    with pytest.raises(BenchError, match="is not finished: it is pending"):
        exporter.export(locate.find(str(unfinished.root), tmp_path), "hf", tmp_path / "m", output=output)
