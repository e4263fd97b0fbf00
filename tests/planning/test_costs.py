"""Costs in closed form are those of the networks."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from bench.config.registry import places, read_study
from bench.config.schema import Arm, Model, Protocol, Recipe, Study
from bench.config.stage import Plan, Stage
from bench.methods.objective import Objective
from bench.methods.segmentation import build_segmenter
from bench.models import backbone as backbones
from bench.models import dvae
from bench.planning import costs, forecast
from bench.planning.planner import make_plan
from bench.planning.request import Request
from bench.runs.run import Run
from bench.training import build

SMALL = {"width": 96, "depth": 3, "heads": 3, "image_size": 48, "patch_size": 8}


def counted(module: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, float]:
    """Parameters, and operations of a forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*inputs)
    return sum(parameter.numel() for parameter in module.parameters()), float(counter.get_total_flops())


@pytest.mark.parametrize(
    "model",
    [
        Model(trunk="vit", **SMALL),
        Model(trunk="vit", distilled=True, **SMALL),
        Model(trunk="beit", **SMALL),
        Model(trunk="beit", position="relative", layer_scale=0.1, **SMALL),
        Model(trunk="vit", mlp_ratio=2.5, **SMALL),
        Model(trunk="beit", position="shared-relative", layer_scale=1e-4, **SMALL),
    ],
    ids=lambda model: f"{model.trunk}-{model.position}{'-distilled' if model.distilled else ''}",
)
def test_a_trunk_costs_what_the_formula_says(model: Model) -> None:
    backbone = backbones.build(model, Recipe(), norm=False)
    for block in backbone.blocks:
        block.attn.fused_attn = False  # the flop counter does not see into the fused one on a CPU
    assert counted(backbone, torch.zeros(1, 3, 48, 48)) == costs.trunk(model)


def test_a_tokenizer_costs_what_the_formula_says() -> None:
    network = dvae.DiscreteVAE(vocab_size=64, stride=4, width=48)
    model = Model(trunk="beit", **SMALL)
    whole, encoder = costs._tokenizer(model, 64, 48, whole=True), costs._tokenizer(model, 64, 48, whole=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == whole.parameters
    with FlopCounterMode(display=False) as counter:
        tokens = network.encode(torch.zeros(1, 3, 24, 24))
    assert counter.get_total_flops() == encoder.flops
    with FlopCounterMode(display=False) as counter:
        network.decode(tokens)
    assert encoder.flops + counter.get_total_flops() == whole.flops


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("decoder", ["linear", "setr-pup", "upernet"])
def test_a_segmentation_network_costs_what_the_formula_says(decoder: str, patch_size: int) -> None:
    shape = {**SMALL, "image_size": 64, "patch_size": patch_size, "classes": 5, "decoder": decoder}
    model = Model(trunk="vit", **shape)
    network = build_segmenter(model, Recipe(), ignore_label=255).train()
    for block in network.backbone.blocks:
        block.attn.fused_attn = False
    stage = Stage(kind="finetune", method="vit", task="t", model=model, protocol=Protocol())
    expected = costs.network(stage, {})
    assert sum(parameter.numel() for parameter in network.parameters()) == expected.parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.predict({"image": torch.zeros(2, 3, 64, 64)})
    assert counter.get_total_flops() == 2 * expected.flops


def plan_of(*methods: str) -> Plan:
    arms = tuple(Arm(method=method) for method in methods)
    return make_plan(Request(Study(name="c", tasks=("demo",), size="nano", arms=arms), places()))


def built(stage: Stage, plan: Plan) -> Objective:
    parts = {role: built(plan.stages[key], plan) for role, key in stage.parents.items() if role != "start"}
    return build._initialise(stage, parts)  # type: ignore[arg-type]


def test_dalles_encoder_costs_what_the_formula_says() -> None:
    with torch.device("meta"), torch.no_grad():
        codebook = FlavaImageCodebook(FlavaImageCodebookConfig())
        with FlopCounterMode(display=False) as counter:
            codebook(torch.empty(1, 3, 64, 64, device="meta"))
    assert costs.dalle(8) == (sum(p.numel() for p in codebook.parameters()), counter.get_total_flops())


def test_every_stage_of_the_demo_trains_as_many_parameters_as_planned() -> None:
    plan = make_plan(Request(read_study("demo", places()), places()))
    stages = [stage for stage in plan.stages.values() if stage.recipe and stage.seed == 0]
    for stage in stages:
        trained = sum(value.numel() for value in built(stage, plan).parameters() if value.requires_grad)
        assert costs.cost(stage, plan.stages).parameters == trained, (stage.kind, stage.method, stage.task)


def test_networks_that_are_only_asked_are_counted() -> None:
    plan = plan_of("vit", "deit", "beit", "data2vec")
    helped = {
        (stage.method, stage.kind): costs.helper_flops(stage, plan.stages)
        for stage in plan.stages.values()
        if stage.kind in ("supervised", "pretrain")
    }
    assert helped["vit", "supervised"] == 0
    assert helped["deit", "supervised"] > 0
    assert helped["beit", "pretrain"] > 0
    (pretrain,) = [s for s in plan.stages.values() if (s.method, s.kind) == ("data2vec", "pretrain")]
    assert helped["data2vec", "pretrain"] == costs.trunk(pretrain.model).flops


def test_a_forecast_goes_by_the_speed_of_earlier_runs(tmp_path: Path) -> None:
    plan = plan_of("vit")
    before = forecast.forecast(plan, tmp_path, forecast.speeds(tmp_path))
    assert [f.seconds for f in before] == [None, None]
    assert [f.state for f in before] == ["pending", "pending"]
    other = make_plan(
        Request(Study(name="o", tasks=("demo",), size="nano", seeds=(5,), arms=plan.study.arms), places())
    )
    trained = next(stage for stage in other.stages.values() if stage.kind == "supervised")
    Run.open(tmp_path / "runs", trained).finish({"images_per_second": 400.0, "flops": 1e12, "seconds": 10.0}, [])
    after = forecast.forecast(plan, tmp_path, forecast.speeds(tmp_path))
    assert after[0].seconds == after[0].cost.images / 400.0
    assert after[1].seconds == pytest.approx(after[1].cost.flops / 1e11)
