"""report.md: what was found, as a page that GitHub renders."""

from __future__ import annotations

from collections.abc import Sequence

from bench.compare import published, tables
from bench.compare.differences import Comparison
from bench.compare.drawing import Drawn
from bench.compare.findings import Findings
from bench.compare.outcomes import Outcomes
from bench.compare.provenance import environment_line, stage_rows
from bench.compare.text import PLUS_MINUS, escaped, markdown_table, metric_name, slug

FIDELITY = {
    "exact": "as the authors' code does it, checked against its outputs",
    "close": "the authors' method with small, named departures in code",
    "variant": "a named change to the published method",
    "placeholder": "not the published method; do not cite",
}
LONGEST_TEXT = 400


def page(found: Findings, drawn: Sequence[Drawn]) -> str:
    """The whole report."""
    study = found.outcomes.plan.study
    parts = [
        f"# {escaped(study.title or study.name, LONGEST_TEXT)}",
        f"*{escaped(study.question, LONGEST_TEXT)}*" if study.question else "",
        _missing(found.outcomes),
        "## Answer",
        _answer(found),
        *[part for comparison in found.comparisons for part in _task(found, comparison, drawn)],
        *_pretraining(drawn),
        _notes(found),
        _fidelity(found.outcomes),
        _provenance(found),
        _reading(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _missing(outcomes: Outcomes) -> str:
    if not outcomes.missing:
        return ""
    lines = "\n".join(f"- {escaped(line, LONGEST_TEXT)}" for line in outcomes.missing)
    return f"## Incomplete\n\nNot everything that was planned could be used:\n\n{lines}"


def _answer(found: Findings) -> str:
    """The sentences about every task, then what they do not say."""
    paragraphs = [f"{sentences[0]}\n\n{_bullets(sentences[1:])}".strip() for sentences in found.answer.values()]
    return "\n\n".join([*paragraphs, "**What cannot be concluded.**", _bullets(found.limits)])


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _task(found: Findings, comparison: Comparison, drawn: Sequence[Drawn]) -> list[str]:
    """Everything about one task: scores, differences, convergence, published numbers, pictures."""
    task, table = comparison.task, found.table
    rows = tables.main_rows(table[table["task"] == task])
    shown = {figure.name.removesuffix(f"-{slug(task)}"): figure for figure in drawn if _about(figure, task)}
    parts = [
        f"## {escaped(task)}: {metric_name(comparison.metric)}",
        markdown_table(rows, numbers=list(rows[0])[1:7]),
        f"Score: mean {PLUS_MINUS} standard deviation over seeds (number of seeds). **Bold**: highest. "
        f"{tables.ALIKE}: cannot be told apart from the highest.",
        _figure(shown.get("scores")),
        *_extra(found, task),
        *_differences(comparison),
        *_section("### Convergence", [shown.get("convergence")]),
        *_published(found, task),
        *_section("### Pictures", [shown.get(name) for name in ("predictions", "attention", "segmentation")]),
    ]
    return parts


def _about(figure: Drawn, task: str) -> bool:
    kinds = ("scores", "convergence", "predictions", "attention", "segmentation")
    return figure.name in {f"{kind}-{slug(task)}" for kind in kinds}


def _figure(figure: Drawn | None) -> str:
    if figure is None:
        return ""
    file = f"figures/{figure.name}.{'png' if figure.pictures else 'svg'}"
    return f"![{figure.name}]({file})\n\n{figure.caption}"


def _section(heading: str, figures: Sequence[Drawn | None]) -> list[str]:
    there = [_figure(figure) for figure in figures if figure is not None]
    return [heading, *there] if there else []


def _extra(found: Findings, task: str) -> list[str]:
    rows = tables.extra_rows(found.extra, task)
    explained = "In percent; loss is the mean cross entropy. 'ema': averaged weights; other names: single heads."
    return ["### Other scores", markdown_table(rows, numbers=list(rows[0])[1:]), explained] if rows else []


def _differences(comparison: Comparison) -> list[str]:
    if not comparison.differences:
        return []
    explained = (
        f"Row minus column in points, mean over seeds, with the 95 % interval of a paired bootstrap over "
        f"{comparison.images} images. **Bold**: told apart; {tables.ALIKE}: not distinguishable. Two arms are told "
        "apart when both other images and training again would be unlikely to turn the difference round."
    )
    tests = markdown_table(tables.pair_rows(comparison))
    columns = (
        "Exact McNemar: for every seed, images that only the first / only the second model gets right. Retraining "
        "noise: differences of means up to this many points are expected from the seeds alone (Student's t, 5 %)."
    )
    details = f"<details><summary>Tests of every pair</summary>\n\n{tests}\n\n{columns}\n\n</details>"
    return ["### Differences", markdown_table(tables.matrix_rows(comparison)), explained, details]


def _published(found: Findings, task: str) -> list[str]:
    rows = found.published[task]
    if not rows:
        return []
    table = markdown_table(published.table_rows(rows))
    explained = (
        "\u2020 Not measured here. Each number holds under its own conditions, which may differ from those above and "
        "from each other. 'quoted': from the paper; 'author-evaluated': by the authors outside it; 'third-party': by "
        "others."
    )
    return [
        "### Published numbers",
        f"<details open><summary>{len(rows)} rows</summary>\n\n{table}\n\n</details>",
        explained,
    ]


def _pretraining(drawn: Sequence[Drawn]) -> list[str]:
    there = [figure for figure in drawn if figure.name.startswith(("pretrain", "tokenizer"))]
    return _section("## Before the labels", there)


def _notes(found: Findings) -> str:
    if not found.notes.texts:
        return ""
    lines = [f'{n}. <a id="note-{n}"></a>{text}' for n, text in enumerate(found.notes.texts, 1)]
    return "## Notes: departures from the published recipes (published, then here)\n\n" + "\n".join(lines)


def _fidelity(outcomes: Outcomes) -> str:
    """How close each method's code is to its paper."""
    seen = {(arm.method, arm.variant): arm for arm in outcomes.plan.arms}
    rows = [
        {
            "method": escaped(f"{method}:{variant}" if variant else method),
            "fidelity": arm.fidelity,
            "meaning": FIDELITY[arm.fidelity],
            "departures of the code": escaped("; ".join(arm.departures), LONGEST_TEXT) or "none",
        }
        for (method, variant), arm in seen.items()
    ]
    return "## Fidelity\n\n" + markdown_table(rows)


def _provenance(found: Findings) -> str:
    rows = stage_rows(found.provenance)
    lines = [f"{number}. {environment_line(facts)}" for number, facts in enumerate(found.provenance.environments, 1)]
    table = markdown_table(rows, numbers=("seed", "steps", "seconds", "environment"))
    return (
        f"## Provenance\n\nStudy {escaped(found.outcomes.plan.study.name)}. Computed with:\n\n"
        + ("\n".join(lines) or "No environment was recorded.")
        + f"\n\n<details><summary>All {len(rows)} stages</summary>\n\n{table}\n\n</details>"
    )


def _reading() -> str:
    return (
        "## How to read this\n\n"
        "- Intervals of top-1 are Wilson's for the number of images; those of mIoU and of all differences are "
        "bootstrapped over images. They say what other images would change, not what training again would.\n"
        "- 'Own' is the last training stage; 'with upstream' adds tokenizer, teacher and pretraining in full, also "
        "where several arms share them. Images count every time they are seen. Device-hours are training time "
        "without evaluation, times devices.\n"
        "- 'Pretraining epochs' are those in which the backbone itself learned before the last stage.\n"
        "- Scores are of the last checkpoint unless a recipe says otherwise."
    )
