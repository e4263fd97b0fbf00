"""Read golden files, build our networks for them, and compare within tolerances derived from measured noise."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.config.schema import Model, Protocol, Recipe
from bench.config.stage import Stage
from bench.launch.distributed import connect
from bench.launch.settings import Settings
from bench.methods.objective import Objective
from bench.training.step import Update


class Limit(NamedTuple):
    """Tolerance for a value against the recorded one: ten times the noise of its kind, unless `why` says otherwise.

    noise: the largest in noise.json between thread counts, kinds of attention and precisions.
    """

    value: float
    noise: float
    relative: bool = False
    why: str = ""


LIMITS = {
    "outputs": Limit(2e-5, 2.3e-6),  # logits, features, targets, predictions
    "pyramid": Limit(6e-5, 6.6e-6),
    "loss": Limit(9e-7, 9.3e-8, relative=True),  # of one forward pass
    "gradients": Limit(9e-6, 9e-7, relative=True),  # to the largest entry of all
    "training loss": Limit(9e-6, 9.5e-7),
    "gradient norm": Limit(3e-6, 3.1e-7, relative=True),
    "weights": Limit(1e-5, 1.2e-6),
    "distillation loss": Limit(2e-6, 4.1e-7),
    "distillation gradients": Limit(2e-7, 2e-8),
    "words": Limit(5e-5, 8.9e-6),  # the tokenizer's logits and margins
    "windows": Limit(6e-6, 6.9e-7),
    "rescaled windows": Limit(2e-5, 6.9e-6),
    "rounded": Limit(4e-7, 6e-8, relative=True),  # to the largest: float64, but for our last step, which is float32
    "formulas": Limit(1e-9, 0.0, relative=True, why="double precision in another order; near 0 few digits are left"),
    "resized": Limit(2e-6, 0.0, why="no noise is recorded; float32 weights of 16 neighbours, of values up to 4"),
    "mixed": Limit(1e-6, 0.0, why="no noise is recorded; two roundings of float32, of values up to 4"),
}


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file. One without any, or with an empty array, would compare nothing and is an error."""
    tensors = load_file(path)
    assert tensors, f"{path} holds nothing"
    empty = [name for name, value in tensors.items() if not value.numel()]
    assert not empty, f"{path}: {empty[0]} is empty"
    return tensors


def noise(path: Path, name: str) -> float:
    """The noise that noise.json gives for an array of a file; 0 where it gives none."""
    root = next((folder for folder in path.parents if (folder / "noise.json").is_file()), None)
    entry = read(root / "noise.json").get(str(path.relative_to(root).with_suffix("")), {}) if root else {}
    differences = entry.get(name) or entry.get("largest over all arrays") or {}
    ways = (differences.get(way, 0.0) for way in ("two_threads", "fused_attention", "float64"))
    return max(way["max_abs_difference"] if isinstance(way, dict) else way for way in ways)


def near(value: Tensor, path: Path, name: str, kind: str, *, expected: Tensor | None = None) -> None:
    """Assert that `value` is array `name` of file `path`, within the limit of its kind.

    Where a folder notes more noise for the array, as larger networks have, ten times that.
    """
    expected = arrays(path)[name] if expected is None else expected
    allowed = max(LIMITS[kind].value, 10 * noise(path, name))
    value, expected = value.detach().double(), expected.double()
    assert value.shape == expected.shape, f"{path}: {name} is {tuple(expected.shape)}, ours is {tuple(value.shape)}"
    assert bool(value.isfinite().all())
    worst = float((value - expected).abs().max())
    assert worst <= allowed, f"{path}: {name} differs by {worst:.2g}, more than {allowed:.2g}"


def exactly(kind: str, expected: Any) -> Any:
    """The expected number, or list of them, with the tolerance for our formulas."""
    return pytest.approx(expected, rel=LIMITS[kind].value, abs=0.0)


def number(value: float, path: Path, name: str, kind: str, *, expected: Tensor | None = None) -> None:
    """Assert that `value` is the recorded number, within its kind's limit or ten times its folder's noise."""
    recorded = (arrays(path)[name] if expected is None else expected).item()
    allowed = LIMITS[kind].value * (abs(recorded) if LIMITS[kind].relative else 1.0)
    assert value == pytest.approx(recorded, rel=0, abs=max(allowed, 10 * noise(path, name))), f"{path}: {name}"


def rounded(value: Tensor, expected: Tensor, what: str) -> None:
    """Assert equality as float64 up to one rounding to float32, relative to the largest value."""
    worst = float((value.detach().double() - expected).abs().max() / expected.abs().max())
    assert worst <= LIMITS["rounded"].value, f"{what} differs by {worst:.2g} of the largest value"


def gradients(module: torch.nn.Module, path: Path, ours: Callable[[str], str]) -> None:
    """Assert that every trainable parameter has the recorded gradient, relative to the largest entry, and no other has.

    ours: recorded name -> our name.
    """
    recorded = {ours(name): value for name, value in arrays(path).items()}
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert grads.keys() == recorded.keys()
    largest = max(float(gradient.abs().max()) for gradient in recorded.values())
    allowed = max(LIMITS["gradients"].value * largest, 10 * noise(path, "any"))
    for name, gradient in recorded.items():
        worst = float((grads[name] - gradient).abs().max())
        assert worst <= allowed, f"{path}: gradient of {name} differs by {worst:.2g}, more than {allowed:.2g}"


def gradient_norms(module: torch.nn.Module, recorded: Mapping[str, float]) -> None:
    """Assert the norm of each parameter's gradient. recorded: by our names."""
    norms = {name: float(p.grad.norm()) for name, p in module.named_parameters() if p.grad is not None}
    assert norms.keys() == recorded.keys()
    limit = LIMITS["gradients"].value * max(recorded.values())
    for name, norm in recorded.items():
        assert norms[name] == pytest.approx(norm, rel=0, abs=limit), name


def without_indices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A recorded state without its index buffers, which our networks compute."""
    return {name: value for name, value in state.items() if not name.endswith("relative_position_index")}


def model_of(options: Mapping[str, Any], *, trunk: str = "beit", **more: Any) -> Model:
    """The Model of a recorded network, from the authors' constructor arguments."""
    shared, own = options.get("use_shared_rel_pos_bias"), options.get("use_rel_pos_bias")
    return Model(
        trunk=trunk,
        width=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        image_size=options["img_size"],
        patch_size=options["patch_size"],
        position="shared-relative" if shared else "relative" if own else "absolute",
        layer_scale=options.get("init_values") or 0.0,
        **more,
    )


def recipe_of(options: Mapping[str, Any], **more: Any) -> Recipe:
    """The Recipe of recorded training steps."""
    names = ("lr", "min_lr", "weight_decay", "weight_decay_end", "warmup_epochs", "epochs", "betas", "eps")
    values = {name: options[name] for name in names if name in options}
    return Recipe(**values, clip_grad=options["clip_grad"] or 0.0, precision="fp32", **more)


def training(objective: Objective, model: Model, recipe: Recipe, *, steps_per_epoch: int) -> Update:
    """The Update that takes the steps of our loop, on the CPU."""
    stage = Stage(kind="pretrain", method="vit", task="recorded", model=model, recipe=recipe, protocol=Protocol())
    steps = round(recipe.epochs * steps_per_epoch)
    settings = Settings(device="cpu", threads=1)
    schedule = {"steps": steps, "steps_per_epoch": steps_per_epoch}
    return Update(stage, objective.train(), accelerator=connect(settings), settings=settings, **schedule)


def check_groups(update: Update, recorded: Mapping[str, Any], ours: Callable[[str], str]) -> None:
    """Assert the optimiser's groups, their members and which are decayed. ours: recorded name -> our name."""
    groups = {group["name"]: group for group in update.optimizer.param_groups}
    assert groups.keys() == recorded.keys()
    for name, group in recorded.items():
        assert set(groups[name]["names"]) == {ours(member) for member in group["params"]}, name
        assert (groups[name]["weight_decay"] > 0) == (group["weight_decay"] > 0), name


def check_rates(rates: Any, recorded: Mapping[str, Tensor], step: int) -> None:
    """Assert learning rate and weight decay of one step."""
    assert rates.lr == exactly("formulas", recorded["lr"][step].item())
    assert rates.weight_decay == exactly("formulas", recorded["wd"][step].item())
