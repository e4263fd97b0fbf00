"""A report for programs: report.json with all its numbers, table.csv, and model-index.json for Hugging Face."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from bench.config.stage import PlannedArm
from bench.reporting.analysis.comparisons import Comparison, Difference
from bench.reporting.analysis.findings import Findings
from bench.reporting.formatting import metric_name, shortened
from bench.reporting.markup import plain
from bench.reporting.pages.document import Bullets, Document, Figure, Paragraph, Section, Table
from bench.version import __version__

FORMAT = 2  # of report.json; raised when a reader of the previous format would misread the new one
DIGITS = 6  # decimals in files: more than any score needs, fewer than those in which machines differ
FRAMES = ("stability", "variance", "detectable", "calibration", "classes", "agreement", "fingerprints", "verdicts",
          "levels", "area", "crossings", "matched", "pareto", "reference_curves")  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula
TASKS = {"top1": ("image-classification", "Image Classification"), "mIoU": ("image-segmentation", "Image Segmentation")}


def report_json(findings: Findings, document: Document) -> str:
    """Everything that a report says: the numbers behind it, and its sections as plain text."""
    study = findings.outcomes.plan.study
    body = {
        "format": FORMAT,
        "bench": __version__,
        "study": {"name": study.name, "title": study.title, "question": study.question},
        "complete": not findings.outcomes.missing,
        "missing": findings.outcomes.missing,
        "answer": {task: [plain(sentence) for sentence in sentences] for task, sentences in findings.answer.items()},
        "limits": [plain(sentence) for sentence in findings.limits],
        "arms": [{**row, "by_seed": _by_seed(findings, row["arm"])} for row in findings.table.to_dict("records")],
        "scores": findings.extra.to_dict("records"),
        "differences": _differences(findings.comparisons),
        "measures": _differences(findings.measures),
        "claims": [asdict(evidence) for evidence in findings.claims],
        "deviations": list(findings.deviations),
        "flips": [flip._asdict() for flip in findings.flips],
        "departures": [plain(text) for text in findings.notes.texts],
        "published": [asdict(row) for rows in findings.published.values() for row in rows],
        "convergence": findings.convergence.to_dict("list"),
        **{name: getattr(findings, name).to_dict("records") for name in FRAMES},
        "provenance": findings.provenance._asdict(),
        "sections": [_section(section) for section in document.sections],
    }
    return _lines(values(body))


def _lines(body: Mapping[str, Any]) -> str:
    """JSON with a line for every part and for every row of a part: ten times as fast to write as indented JSON."""
    parts = [
        f"{json.dumps(name)}: {_rows(part) if isinstance(part, list) else _line(part)}" for name, part in body.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rows(part: list[Any]) -> str:
    return "[\n " + ",\n ".join(_line(row) for row in part) + "\n]" if part else "[]"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _by_seed(findings: Findings, arm: str) -> dict[str, dict[str, float]]:
    return {str(outcome.seed): outcome.metrics for outcome in findings.outcomes.arms[arm].seeds}


def _differences(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    return [
        {"task": comparison.task, "metric": comparison.measure or comparison.metric, **_difference(difference)}
        for comparison in comparisons
        for difference in comparison.differences
    ]


def _difference(difference: Difference) -> dict[str, Any]:
    mcnemar = {str(seed): test._asdict() for seed, test in difference.by_seed.items()}
    return {**asdict(difference), "by_seed": mcnemar, "told_apart": difference.told_apart}


def _section(section: Section) -> dict[str, Any]:
    """A section without markup; tables by their key."""
    blocks: list[dict[str, Any]] = []
    for block in section.blocks:
        if isinstance(block, Paragraph):
            blocks.append({"paragraph": plain(block.text)})
        elif isinstance(block, Bullets):
            blocks.append({"list": [plain(item) for item in block.items]})
        elif isinstance(block, Figure):
            blocks.append({"figure": f"figures/{block.drawn.name}.png", "caption": plain(block.drawn.caption)})
        else:
            blocks.append(_table(block))
    return {"title": plain(section.title), "blocks": blocks, "sections": [_section(part) for part in section.parts]}


def _table(block: Table) -> dict[str, Any]:
    rows = [[plain(cell) for cell in row] for row in block.rows]
    columns = [plain(column) for column in block.columns]
    return {"table": block.key, "columns": columns, "rows": rows, "caption": plain(block.caption)}


def values(value: Any) -> Any:
    """JSON values only: numbers are rounded, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [values(item) for item in value]
    if isinstance(value, np.generic):
        return values(value.item())
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def table_csv(findings: Findings) -> str:
    """Measured rows, then published ones; the column `kind` distinguishes them."""
    measured = findings.table.assign(kind="measured")
    published = pd.DataFrame(
        [{**asdict(row), "score": row.value} for rows in findings.published.values() for row in rows]
    ).drop(columns="value", errors="ignore")
    frame = pd.concat([measured, published], ignore_index=True) if len(published) else measured
    columns = ["kind", *(column for column in frame.columns if column != "kind")]
    return frame[columns].map(_cell).to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    """A value for a spreadsheet: numbers rounded, and a text that looks like a formula made harmless."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def model_index(findings: Findings) -> str:
    """The reportable measured rows as metadata of model cards on the hub; JSON is valid YAML."""
    by_id = {arm.id: arm for arm in findings.outcomes.plan.arms}
    models: dict[str, list[dict[str, Any]]] = {}
    for row in findings.table.to_dict("records"):
        if row["reportable"] and not row["apart"] and not math.isnan(row["score"]):
            models.setdefault(_model(by_id[row["arm"]]), []).append(_result(findings, by_id[row["arm"]], row))
    entries = [{"name": name, "results": results} for name, results in models.items()]
    return json.dumps({"model-index": values(entries)}, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _model(arm: PlannedArm) -> str:
    """The name of an arm's model, the same on every task: its label where it has one."""
    name = arm.label or "-".join(part for part in (arm.method, arm.variant, arm.size, arm.budget) if part)
    return shortened(name)


def _result(findings: Findings, arm: PlannedArm, row: Mapping[Any, Any]) -> dict[str, Any]:
    kind, title = TASKS[arm.metric]
    scored = findings.outcomes.stages[arm.stages[min(arm.stages)]["evaluate"]].stage.data.get("val")
    dataset = {"name": shortened(arm.task), "type": scored.dataset if scored else arm.task,
               "split": scored.split if scored else "val"}  # fmt: skip
    conditions = f"mean over {row['seeds']} seeds; {row['design']}; interval over {row['images_scored']} images"
    return {
        "task": {"type": kind, "name": title},
        "dataset": dataset,
        "metrics": [
            {"type": "accuracy" if arm.metric == "top1" else "mean_iou", "name": metric_name(arm.metric),
             "value": row["score"], "verified": False,
             "args": {name: row[name] for name in ("low", "high", "sd", "seeds")} | {"about": conditions}}
        ],
    }  # fmt: skip
