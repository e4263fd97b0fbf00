"""The model card of an exported network: what it is, its scores and their protocol, and its provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import methods
from bench.config.schema import Method, Protocol
from bench.config.stage import Stage
from bench.environment import PACKAGES
from bench.errors import BenchError

METRICS = {"top1": ("accuracy", "top-1 accuracy"), "mIoU": ("mean_iou", "mean IoU")}  # on the hub, and for people
TASKS = {"classify": "image-classification", "segment": "image-segmentation", "pretrain": "image-feature-extraction"}
LIBRARIES = {"hf": "transformers", "timm": "timm", "authors": "pytorch"}
LOADED = {
    "classify": ("AutoModelForImageClassification", "logits"),
    "segment": ("AutoModelForSemanticSegmentation", "logits"),
    "pretrain": ("AutoModel", "last_hidden_state"),
}
NOT_PILLOW = (
    "The processor resizes with torchvision unless `backend='pil'` is given, and then is off by a grey level here and "
    "there; where an odd number of pixels is cut off around the centre, transformers may cut one pixel beside "
    "torchvision, which scored this model."
)


class ScoredRun(NamedTuple):
    """A finished evaluation of the network: its stage and its results.json."""

    stage: Stage
    results: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that a card is written from."""

    name: str
    to: str
    purpose: str
    chain: Sequence[Stage]  # the stages that the network builds on, its own last
    folders: Sequence[str]  # names of their run folders
    trained: Mapping[str, Any]  # results of the last stage
    environment: Mapping[str, Any]
    scored: Sequence[ScoredRun]
    classes: int

    @property
    def stage(self) -> Stage:
        """The stage that trained the network."""
        return self.chain[-1]


def write_card(facts: CardFacts) -> str:
    """The text of README.md: YAML for the hub, then Markdown."""
    parts = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {facts.name}",
        _summary(facts),
        _usage(facts),
        "## Results",
        _results(facts),
        "## Protocol",
        _protocol(facts),
        "## Provenance",
        _provenance(facts),
        "## Recipe",
        *(_recipe(stage) for stage in facts.chain),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardFacts) -> str:
    """The YAML that the hub reads: library, task, metrics and model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=TASKS[facts.purpose],
            dataset_type=run.stage.data["val"].dataset,
            dataset_name=run.stage.task,
            dataset_split=run.stage.data["val"].split,
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=round(float(value), 4),
        )
        for run in facts.scored
        for name, value in run.results["metrics"].items()
        if name in METRICS
    ]
    data = ModelCardData(
        library_name=LIBRARIES[facts.to],
        pipeline_tag=TASKS[facts.purpose],
        tags=["vision", facts.stage.method, "bench"],
        metrics=sorted({result.metric_type for result in results}) or None,
        base_model=_base_model(facts.chain),
        model_name=facts.name,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _base_model(chain: Iterable[Stage]) -> str | None:
    """The hub model that training started from, if any."""
    return next(
        (stage.start.id for stage in chain if stage.start and stage.start.revision and "/" in stage.start.id), None
    )


def _summary(facts: CardFacts) -> str:
    stage, method = facts.stage, _method(facts.stage)
    title = method.title if method else stage.method
    model = stage.model
    lines = [
        f"{title}{f', variant {stage.variant}' if stage.variant else ''}: a Vision Transformer ({model.trunk}, "
        f"{model.size or 'own size'}: width {model.width}, depth {model.depth}, {model.heads} heads, patches of "
        f"{model.patch_size} pixels, {model.image_size} x {model.image_size} pixels, {model.position} positions"
        f"{', LayerScale' if model.layer_scale else ''}{', distillation token' if model.distilled else ''}"
        f"{f', decoder {model.decoder}' if model.decoder else ''}), trained with `bench` "
        f"({stage.kind}, task {stage.task})."
    ]
    if method:
        lines.append(f"Method: {method.paper}; reference code: {method.code}.")
    if stage.model.distilled and facts.purpose == "classify":
        lines.append("Its answer is the mean of the two heads' logits, as in the DeiT paper.")
    return "\n".join(lines)


def _method(stage: Stage) -> Method | None:
    try:
        return methods.read(stage.method)
    except BenchError:
        return None  # of a package that is not installed here


def _usage(facts: CardFacts) -> str:
    if facts.to == "timm":
        call = f"timm.create_model('local-dir:{facts.name}', pretrained=True)"
        return f"```python\nimport timm\n\nmodel = {call}.eval()\n```"
    if facts.to == "authors":
        return "```python\nimport torch\n\nstate = torch.load('checkpoint.pth', weights_only=True)['model']\n```"
    loader, answer = LOADED[facts.purpose]
    return (
        "```python\nfrom transformers import AutoImageProcessor, " + loader + "\n\n"
        f"processor = AutoImageProcessor.from_pretrained('{facts.name}', backend='pil')\n"
        f"model = {loader}.from_pretrained('{facts.name}')\n"
        f"answer = model(**processor(picture, return_tensors='pt')).{answer}\n```\n\n" + NOT_PILLOW
    )


def _results(facts: CardFacts) -> str:
    if not facts.scored:
        return "Not scored: no finished evaluation of this run was found beside it."
    rows = [
        [run.stage.task, f"{data.dataset}/{data.split}", name, f"{float(value):.2f}", str(run.results.get("n", "?")),
         "yes" if run.results.get("reportable") else "**no**", f"`{run.stage.key}`"]
        for run in facts.scored
        for data in [run.stage.data["val"]]
        for name, value in run.results["metrics"].items()
        if isinstance(value, int | float)
    ]  # fmt: skip
    table = _table(["task", "split", "metric", "value", "images", "reportable", "run key"], rows)
    reasons = [text for run in facts.scored for text in run.results.get("not_reportable_because", [])]
    return "\n\n".join([table, *(f"Not reportable: {text}." for text in dict.fromkeys(reasons))])


def _protocol(facts: CardFacts) -> str:
    """The preprocessing for scoring, and for segmentation the sliding windows, scales and flips."""
    protocol, window = facts.stage.protocol, facts.stage.model.image_size
    segmentation = facts.purpose == "segment"
    side = protocol.resolution if segmentation else short_side(protocol)
    resize = f"Resized to {side} x {side} pixels" if protocol.whole else f"Short side resized to {side} pixels"
    crop = "" if segmentation else f", centre crop of {protocol.resolution} x {protocol.resolution} pixels"
    values = f"minus {_values(protocol.mean)}, divided by {_values(protocol.std)}"
    text = f"{resize}{crop}; {protocol.interpolation} by Pillow; pixels in [0, 1], {values}."
    if not segmentation:
        return text
    stride = protocol.stride or "two thirds of a window"
    windows = "" if protocol.whole else f" Sliding windows of {window} pixels, {stride} apart."
    sizes = f" At {_values(protocol.scales)} times that size." if protocol.scales != (1.0,) else ""
    flips = " Also on the mirror image." if protocol.flip else ""
    return f"{text}{windows}{sizes}{flips}"


def short_side(protocol: Protocol) -> int:
    """Pixels of the short side before the centre crop, as in `transforms.eval_view`."""
    return math.floor(protocol.resolution / protocol.crop_ratio + 1e-6)


def _provenance(facts: CardFacts) -> str:
    lines = [
        f"- {stage.kind}: `{folder}`, key `{stage.key}`, seed {stage.seed}{_start(stage)}"
        for stage, folder in zip(facts.chain, facts.folders, strict=True)
    ]
    git, packages = facts.environment.get("git") or {}, facts.environment.get("packages") or {}
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    lines.append(f"- code: bench {facts.environment.get('bench', '?')}, commit {git.get('commit') or 'unknown'}{dirty}")
    lines.append("- " + ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages))
    lines += [f"- data, {stage.kind}: {text}" for stage in facts.chain for text in _data(stage)]
    if facts.trained.get("images") is not None:
        lines.append(
            f"- {facts.stage.kind}: {facts.trained.get('steps', '?')} steps, {facts.trained['images']:,} images, "
            f"{float(facts.trained.get('device_seconds', 0)):.0f} device-seconds, {facts.trained.get('precision', '?')}"
        )
    return "\n".join(line for line in lines if line != "- ")


def _start(stage: Stage) -> str:
    return f", starts from {stage.start.name}, whose training is not counted here" if stage.start else ""


def _data(stage: Stage) -> list[str]:
    return [
        f"{role} {data.dataset}/{data.split}, {data.images:,} images, "
        + (f"manifest {data.manifest}" if data.manifest else f"identity {data.identity}")
        + (f", {data.shortfall}" if data.shortfall else "")
        for role, data in stage.data.items()
    ]


def _recipe(stage: Stage) -> str:
    """The numbers of a stage, those that depart from the published ones first."""
    assert stage.recipe is not None
    changed = [[place, _values(old), _values(new)] for place, (old, new) in sorted(stage.departures.items())]
    table = _table(["value", "published", "here"], changed) if changed else "As published."
    recipe = stage.recipe.model_dump(mode="json", exclude={"start_from"})
    numbers = ", ".join(f"{name} {_values(value)}" for name, value in {**recipe, **stage.options}.items())
    return f"### {stage.kind}\n\nDepartures from the published recipe:\n\n{table}\n\nAll numbers: {numbers}"


def _values(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_values(part) for part in value) + ")"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "none" if value in ("", None) else str(value)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
