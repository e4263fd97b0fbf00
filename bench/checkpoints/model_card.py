"""The model card of an exported network: what it is, what it reached by which protocol, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


class Scored(NamedTuple):
    """An evaluation of the network: its stage, and what it found."""

    stage: Stage
    results: Mapping[str, Any]


class Facts(NamedTuple):
    """All that a card tells. `chain`: the stages that led to the network, itself last; `names` of its run folders."""

    name: str
    to: str
    purpose: str
    chain: Sequence[Stage]
    folders: Sequence[str]
    trained: Mapping[str, Any]  # results of the last stage
    environment: Mapping[str, Any]
    scored: Sequence[Scored]
    classes: int

    @property
    def stage(self) -> Stage:
        """The stage that learned the network."""
        return self.chain[-1]


def card(facts: Facts) -> str:
    """README.md: YAML for the hub, then the text."""
    parts = [
        f"---\n{_front(facts)}\n---",
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


def _front(facts: Facts) -> str:
    """What the hub reads: library, task, metrics and model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type=TASKS[facts.purpose],
            dataset_type=one.stage.data["val"].dataset,
            dataset_name=one.stage.task,
            dataset_split=one.stage.data["val"].split,
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=round(float(value), 4),
        )
        for one in facts.scored
        for name, value in one.results["metrics"].items()
        if name in METRICS
    ]
    data = ModelCardData(
        library_name=LIBRARIES[facts.to],
        pipeline_tag=TASKS[facts.purpose],
        tags=["vision", facts.stage.method, *(["bench"])],
        metrics=sorted({result.metric_type for result in found}) or None,
        base_model=_base(facts.chain),
        model_name=facts.name,
        eval_results=found or None,
    )
    return str(data.to_yaml()).strip()


def _base(chain: Iterable[Stage]) -> str | None:
    """The hub model that the network goes back to, if any."""
    return next(
        (stage.start.id for stage in chain if stage.start and stage.start.revision and "/" in stage.start.id), None
    )


def _summary(facts: Facts) -> str:
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
        return None  # of a package that is not installed here; the run says the rest


def _usage(facts: Facts) -> str:
    if facts.to == "timm":
        made = f"timm.create_model('local-dir:{facts.name}', pretrained=True)"
        return f"```python\nimport timm\n\nmodel = {made}.eval()\n```"
    if facts.to == "authors":
        return "```python\nimport torch\n\nstate = torch.load('checkpoint.pth', weights_only=True)['model']\n```"
    loader, answer = LOADED[facts.purpose]
    return (
        "```python\nfrom transformers import AutoImageProcessor, " + loader + "\n\n"
        f"processor = AutoImageProcessor.from_pretrained('{facts.name}', backend='pil')\n"
        f"model = {loader}.from_pretrained('{facts.name}')\n"
        f"answer = model(**processor(picture, return_tensors='pt')).{answer}\n```\n\n" + NOT_PILLOW
    )


def _results(facts: Facts) -> str:
    if not facts.scored:
        return "Not scored: no finished evaluation of this run was found beside it."
    rows = [
        [one.stage.task, f"{data.dataset}/{data.split}", name, f"{float(value):.2f}", str(one.results.get("n", "?")),
         "yes" if one.results.get("reportable") else "**no**", f"`{one.stage.key}`"]
        for one in facts.scored
        for data in [one.stage.data["val"]]
        for name, value in one.results["metrics"].items()
        if isinstance(value, int | float)
    ]  # fmt: skip
    table = _table(["task", "split", "metric", "value", "images", "reportable", "run key"], rows)
    why = [text for one in facts.scored for text in one.results.get("not_reportable_because", [])]
    return "\n\n".join([table, *(f"Not reportable: {text}." for text in dict.fromkeys(why))])


def _protocol(facts: Facts) -> str:
    """How pictures are prepared for scoring, and how maps are seen."""
    protocol, window = facts.stage.protocol, facts.stage.model.image_size
    maps = facts.purpose == "segment"
    side = protocol.resolution if maps else short_side(protocol)
    told = f"Squeezed to {side} x {side} pixels" if protocol.whole else f"Short side to {side} pixels"
    cut = "" if maps else f", the {protocol.resolution} x {protocol.resolution} pixels in the centre"
    values = f"minus {_values(protocol.mean)}, divided by {_values(protocol.std)}"
    text = f"{told}{cut}; {protocol.interpolation} by Pillow; pixels in [0, 1], {values}."
    if not maps:
        return text
    seen = (
        "" if protocol.whole else f" Seen through windows of {window} pixels, {protocol.stride or 'two thirds'} apart."
    )
    sizes = f" At {_values(protocol.scales)} times that size." if protocol.scales != (1.0,) else ""
    mirrored = " Also as a mirror image." if protocol.flip else ""
    return f"{text}{seen}{sizes}{mirrored}"


def short_side(protocol: Protocol) -> int:
    """Pixels of the short side before the centre is cut out, as in `transforms.eval_view`."""
    return math.floor(protocol.resolution / protocol.crop_ratio + 1e-6)


def _provenance(facts: Facts) -> str:
    lines = [
        f"- {stage.kind}: `{folder}`, key `{stage.key}`, seed {stage.seed}{_begun(stage)}"
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


def _begun(stage: Stage) -> str:
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
