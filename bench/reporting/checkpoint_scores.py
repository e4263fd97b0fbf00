"""What evaluations of single checkpoints say: scores, how sure they are, and what was published about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

FAMILIES = ("data2vec", "deit", "beit", "mae", "mocov3", "dino", "vit")  # as ids spell them, the longer ones first
SHOWN = 8  # published rows at most


def summaries(plan: Plan, results: Path) -> list[dict[str, Any]]:
    """One for each evaluation of a plan, in its order; those that are not done say only how far they are."""
    rows = published.read(published.locate(results))
    found = []
    for arm in plan.arms:
        (keys,) = arm.stages.values()
        stage = plan.stages[keys["evaluate"]]
        run = run_of(results, stage)
        found.append(_summary(arm.label, stage, run, rows, arm.metric))
    return found


def _summary(source: str, stage: Stage, run: Run, rows: Sequence[Published], metric: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "checkpoint": source,
        "task": stage.task,
        "run": run.root.name,
        "state": run.status().state,
    }
    if facts["state"] != "done":
        return facts
    results = run.results()
    related = about(rows, source, stage, metric)
    return facts | {
        "sha256": stage.start.digest if stage.start else None,
        "metric": metric,
        "metrics": results["metrics"],
        "intervals": {name: list(limits) for name, limits in _intervals(run, results).items()},
        "n": results["n"],
        "split": results["split"],
        "protocol": results["protocol"],
        "reportable": results["reportable"],
        "not_reportable_because": results.get("not_reportable_because", []),
        "published": [row._asdict() for row in related],
    }


def _intervals(run: Run, results: dict[str, Any]) -> dict[str, Interval]:
    """95 % of each headline score: Wilson's for accuracies, a bootstrap over images for mIoU."""
    metrics, images = results["metrics"], int(results["n"])
    if "mIoU" in metrics:
        rows = pd.read_parquet(run.path("predictions.parquet"), columns=["intersect", "union"])
        hits, totals = (np.stack(rows[name].to_list()).astype(np.float64)[None] for name in ("intersect", "union"))
        return {"mIoU": percentile_interval(bootstrap({"": Counts(hits, totals)})[""][0])}
    return {name: wilson(metrics[name], images) for name in ("top1", "top5") if name in metrics}


def about(rows: Sequence[Published], source: str, stage: Stage, metric: str) -> list[Published]:
    """What was published about weights like these, first what speaks of this very checkpoint.

    Alike are method, size, resolution, task, and whether more than ImageNet-1k was seen; for DeiT also whether there is
    a distillation token. What an id does not say cannot be matched, and a file's name may mislead: rows are shown with
    their conditions, not compared.
    """
    exact = [row for row in rows if f"huggingface.co/{source.partition('@')[0]}," in row.source]
    method, large = _method(source, stage), bool(re.search(r"2[12]k", source))
    alike = [
        row
        for row in rows
        if (row.method, row.size, row.resolution) == (method, stage.model.size, stage.model.image_size)
        and (row.task, row.metric) == (stage.task, metric)
        and bool(re.search(r"2[12]k", row.pretraining_data)) == large
        and (method != "deit" or stage.model.distilled == ("token" in row.variant and "no token" not in row.variant))
    ]
    return list(dict.fromkeys([*exact, *alike]))[:SHOWN]


def _method(source: str, stage: Stage) -> str:
    """The method of a run, or the one that an id names."""
    if stage.start is None:
        return stage.method
    words = re.sub(r"[^a-z0-9]", "", source.lower().rpartition("/")[2] or source.lower())
    return next((name for name in FAMILIES if name in words), "")


def text(found: Sequence[dict[str, Any]]) -> str:
    """For people: a paragraph for each evaluation."""
    return "\n\n".join("\n".join(_paragraph(one)) for one in found)


def _paragraph(one: dict[str, Any]) -> list[str]:
    title = f"{one['checkpoint']} on {one['task']}"
    if one["state"] != "done":
        return [f"{title}: {one['state']}; the same command goes on with it"]
    facts = [(name, _score(name, value, one["intervals"])) for name, value in one["metrics"].items() if name != "loss"]
    facts += [("images", f"{one['n']:,} of {one['split']}")]
    facts += [("not reportable", why) for why in one["not_reportable_because"]]
    facts += [("protocol", described(Protocol.model_validate(one["protocol"]), maps="mIoU" in one["metrics"]))]
    facts += [("published", _quoted(row)) for row in one["published"]] or [("published", "nothing known")]
    facts += [("run", one["run"])]
    heads = [name if name not in [before for before, _ in facts[:i]] else "" for i, (name, _) in enumerate(facts)]
    width = max(len(head) for head in heads)
    return [title, *(f"  {head:<{width}}  {told}" for head, (_, told) in zip(heads, facts, strict=True))]


def _score(name: str, value: float, intervals: dict[str, list[float]]) -> str:
    return f"{value:.2f} %" + ("  (95 %: {:.2f} to {:.2f})".format(*intervals[name]) if name in intervals else "")


def _quoted(row: dict[str, Any]) -> str:
    words = (row["method"], row["variant"], row["size"], row["pretraining_data"], row["protocol"])
    return f"{row['value']:g} %  {', '.join(word for word in words if word)}; {row['source']} ({row['kind']})"


def described(protocol: Protocol, *, maps: bool) -> str:
    """A protocol in words. maps: of a task with label maps."""
    mean, deviation = (" ".join(f"{value:g}" for value in three) for three in (protocol.mean, protocol.std))
    shown = _maps_shown(protocol) if maps else _images_shown(protocol)
    rules = ["only classes of the split count"] if protocol.among == "split" else []
    rules += ["any of an image's labels is right"] if protocol.right == "label-set" else []
    return ", ".join([*shown, protocol.interpolation, f"mean {mean}", f"deviation {deviation}", *rules])


def _images_shown(protocol: Protocol) -> list[str]:
    before = int(protocol.resolution / protocol.crop_ratio + 1e-6)
    if protocol.whole:
        return [f"both sides {before}", *([f"centre crop {protocol.resolution}"] if protocol.crop_ratio < 1 else [])]
    return [f"short side {before}", f"centre crop {protocol.resolution}"]


def _maps_shown(protocol: Protocol) -> list[str]:
    side = protocol.resolution
    way = [f"both sides {side}"] if protocol.whole else [f"short side {side}", f"windows of {side}"]
    way += [] if protocol.whole else [f"every {protocol.stride or side * 2 // 3}"]
    way += [f"sizes {', '.join(f'{scale:g}' for scale in protocol.scales)}"] if len(protocol.scales) > 1 else []
    return [*way, *(["mirrored too"] if protocol.flip else [])]
