"""Results of `bench evaluate`: a checkpoint's scores with 95 % intervals, and published numbers of such weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.config.schema import Protocol
from bench.config.stage import Plan, Stage
from bench.reporting import published
from bench.reporting.published import Published
from bench.runs.run import Run
from bench.runs.store import run_of
from bench.stats.bootstrap import Counts, bootstrap
from bench.stats.intervals import Interval, percentile_interval, wilson

FAMILIES = ("data2vec", "deit", "beit", "mae", "mocov3", "dino", "vit")  # as ids spell them; other ids contain "vit"
MOST_PUBLISHED = 8  # rows for each checkpoint


def summaries(plan: Plan, results: Path) -> list[dict[str, Any]]:
    """One for each evaluation of a plan, in its order; one that is not done has its state and no scores."""
    rows = published.read(published.locate(results))
    summaries = []
    for arm in plan.arms:
        (keys,) = arm.stages.values()  # the plan of an evaluation has one seed
        stage = plan.stages[keys["evaluate"]]
        run = run_of(results, stage)
        summaries.append(_summary(arm.label, stage, run, rows, arm.metric))
    return summaries


def _summary(source: str, stage: Stage, run: Run, rows: Sequence[Published], metric: str) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "checkpoint": source,
        "task": stage.task,
        "run": run.root.name,
        "state": run.status().state,
    }
    if summary["state"] != "done":
        return summary
    results = run.results()
    return summary | {
        "sha256": stage.start.digest if stage.start else None,
        "metric": metric,
        "metrics": results["metrics"],
        "intervals": {name: list(limits) for name, limits in _intervals(run, results).items()},
        "n": results["n"],
        "split": results["split"],
        "protocol": results["protocol"],
        "reportable": results["reportable"],
        "not_reportable_because": results.get("not_reportable_because", []),
        "published": [asdict(row) for row in related(rows, source, stage, metric)],
    }


def _intervals(run: Run, results: dict[str, Any]) -> dict[str, Interval]:
    """95 % interval of each headline score: Wilson's for accuracies, a bootstrap over images for mIoU."""
    metrics, images = results["metrics"], int(results["n"])
    if "mIoU" in metrics:
        rows = pd.read_parquet(run.path("predictions.parquet"), columns=["intersect", "union"])
        hits, totals = (np.stack(rows[name].to_list()).astype(np.float64)[None] for name in ("intersect", "union"))
        return {"mIoU": percentile_interval(bootstrap({"": Counts(hits, totals)})[""][0])}
    return {name: wilson(metrics[name], images) for name in ("top1", "top5") if name in metrics}


def related(rows: Sequence[Published], source: str, stage: Stage, metric: str) -> list[Published]:
    """Published numbers of weights like these, those of this very checkpoint first.

    They agree in method, size, resolution, task, and whether pretraining used more than ImageNet-1k; for DeiT also in
    whether there is a distillation token. What an id does not say cannot be matched, and the name of a file may
    mislead: rows are shown with their conditions, not compared.
    """
    exact = [row for row in rows if f"huggingface.co/{source.partition('@')[0]}," in row.source]
    method, large = _method(source, stage), bool(re.search(r"2[12]k", source))  # ids write ImageNet-21k either way
    alike = [
        row
        for row in rows
        if (row.method, row.size, row.resolution) == (method, stage.model.size, stage.model.image_size)
        and (row.task, row.metric) == (stage.task, metric)
        and bool(re.search(r"2[12]k", row.pretraining_data)) == large
        and (method != "deit" or stage.model.distilled == ("token" in row.variant and "no token" not in row.variant))
    ]
    return list(dict.fromkeys([*exact, *alike]))[:MOST_PUBLISHED]


def _method(source: str, stage: Stage) -> str:
    """The method of a run, or the one that an id names."""
    if stage.start is None:
        return stage.method
    words = re.sub(r"[^a-z0-9]", "", source.lower().rpartition("/")[2] or source.lower())
    return next((name for name in FAMILIES if name in words), "")


def text(summaries: Sequence[dict[str, Any]]) -> str:
    """Summaries for people, a paragraph for each."""
    return "\n\n".join("\n".join(_paragraph(summary)) for summary in summaries)


def _paragraph(summary: dict[str, Any]) -> list[str]:
    title = f"{summary['checkpoint']} on {summary['task']}"
    if summary["state"] != "done":
        return [f"{title}: {summary['state']}; the same command resumes it"]
    metrics = summary["metrics"]
    protocol = protocol_text(Protocol.model_validate(summary["protocol"]), segmentation="mIoU" in metrics)
    lines = [(name, _score(name, value, summary["intervals"])) for name, value in metrics.items() if name != "loss"]
    lines += [("images", f"{summary['n']:,} of {summary['split']}")]
    lines += [("not reportable", why) for why in summary["not_reportable_because"]]
    lines += [("protocol", protocol)]
    lines += [("published", _published(row)) for row in summary["published"]] or [("published", "nothing known")]
    lines += [("run", summary["run"])]
    heads = [name if name not in [before for before, _ in lines[:i]] else "" for i, (name, _) in enumerate(lines)]
    width = max(len(head) for head in heads)
    return [title, *(f"  {head:<{width}}  {line}" for head, (_, line) in zip(heads, lines, strict=True))]


def _score(name: str, value: float, intervals: dict[str, list[float]]) -> str:
    return f"{value:.2f} %" + ("  (95 %: {:.2f} to {:.2f})".format(*intervals[name]) if name in intervals else "")


def _published(row: dict[str, Any]) -> str:
    conditions = (row["method"], row["variant"], row["size"], row["pretraining_data"], row["protocol"])
    return f"{row['value']:g} %  {', '.join(filter(None, conditions))}; {row['source']} ({row['kind']})"


def protocol_text(protocol: Protocol, *, segmentation: bool) -> str:
    """An evaluation protocol in words."""
    mean, deviation = (" ".join(f"{value:g}" for value in channels) for channels in (protocol.mean, protocol.std))
    views = _segmentation_views(protocol) if segmentation else _classification_views(protocol)
    rules = ["only classes of the split count"] if protocol.among == "split" else []
    rules += ["any of an image's labels is right"] if protocol.right == "label-set" else []
    return ", ".join([*views, protocol.interpolation, f"mean {mean}", f"deviation {deviation}", *rules])


def _classification_views(protocol: Protocol) -> list[str]:
    resized = int(protocol.resolution / protocol.crop_ratio + 1e-6)  # as pipeline/transforms resizes
    if protocol.whole:
        return [f"both sides {resized}", *([f"centre crop {protocol.resolution}"] if protocol.crop_ratio < 1 else [])]
    return [f"short side {resized}", f"centre crop {protocol.resolution}"]


def _segmentation_views(protocol: Protocol) -> list[str]:
    side = protocol.resolution
    views = [f"both sides {side}"] if protocol.whole else [f"short side {side}", f"windows of {side}"]
    views += [] if protocol.whole else [f"every {protocol.stride or side * 2 // 3}"]
    views += [f"sizes {', '.join(f'{scale:g}' for scale in protocol.scales)}"] if len(protocol.scales) > 1 else []
    return [*views, *(["mirrored too"] if protocol.flip else [])]
