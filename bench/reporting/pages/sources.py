"""Sections about sources: runs and data, published numbers, the claims of a study, and a guide to reading."""

from __future__ import annotations

from bench.reporting import published
from bench.reporting.analysis.claims import Evidence
from bench.reporting.analysis.findings import Findings
from bench.reporting.analysis.provenance import attempt_rows, data_rows, environment_line, other_rows, stage_rows
from bench.reporting.formatting import escaped, points, slug
from bench.reporting.pages import columns
from bench.reporting.pages.columns import LONGEST_TEXT, of_task
from bench.reporting.pages.document import Bullets, Paragraph, Section, Table, section, table, task_heading


def provenance(findings: Findings) -> Section:
    """Environments, data, and every run that was started."""
    sources = findings.provenance
    lines = tuple(environment_line(facts) for facts in sources.environments)
    computed = "Computed with:" if lines else "No environment was recorded."
    stages, attempts, others = stage_rows(sources), attempt_rows(sources), other_rows(sources)
    failed = sum(attempt["ended"] == "failed" for attempt in sources.attempts)
    return section(
        "Provenance",
        Paragraph(f"Study {escaped(findings.outcomes.plan.study.name)}. {computed}"),
        Bullets(lines, "environment") if lines else None,
        table("data", data_rows(sources), ("images",), caption="Data of all stages. A manifest is a hash over path, "
              "size and content of every file; data that are generated have none."),
        Paragraph(f"{len(stages)} stages were planned; {len(attempts)} times one was started, {failed} times it failed."
                  + (f" {len(others)} other runs of these methods on these tasks lie under the same results." if others
                     else "")),
        table("stages", stages, ("seed", "steps", "seconds", "environment", "starts"),
              folded=f"All {len(stages)} stages"),
        table("attempts", attempts, ("start",), folded=f"All {len(attempts)} starts"),
        table("others", others, ("seed",), folded=f"{len(others)} runs outside this study",
              caption="Same methods and tasks with other values: who looks at many and shows some should say so."),
    )  # fmt: skip


def published_numbers(findings: Findings) -> Section:
    """Published numbers with conditions and source, beside ours where an arm names the row that it reproduces."""
    parts = [
        section(task_heading(c), _verdicts(findings, c.task), *_quoted(findings, c.task)) for c in findings.comparisons
    ]
    return section("Published numbers", parts=parts)


def _verdicts(findings: Findings, task: str) -> Table | None:
    rows = [
        {
            "arm": columns.name(row["label"]),
            "measured %": columns.score(row["measured"]),
            "published %": columns.score(row["published"]),
            "difference": columns.difference(row["difference"]),
            "95 % interval": columns.between(row["low"], row["high"], columns.difference),
            "verdict": f"**{row['verdict']}**" if row["verdict"] == "reproduced" else escaped(str(row["verdict"])),
            "why": columns.text(row["why"]),
            "conditions": columns.text(row["conditions"]),
            "source": columns.text(row["source"]),
        }
        for row in of_task(findings.verdicts, task).to_dict("records")
    ]
    return table(f"verdicts-{slug(task)}", rows, ("measured %", "published %", "difference"),
                 caption="Measured minus published, in points.")  # fmt: skip


def _quoted(findings: Findings, task: str) -> list[Table | Paragraph | None]:
    rows = published.table_rows(findings.published[task])
    if not rows:
        return []
    return [
        table(f"published-{slug(task)}", rows, folded=f"{len(rows)} published rows"),
        Paragraph(
            "\u2020 Not measured here. Each number holds under its own conditions, which may differ from those above "
            "and from each other. 'quoted': from the paper; 'author-evaluated': by the authors outside it; "
            "'third-party': by others."
        ),
    ]


def claims(findings: Findings) -> Section:
    """What the study claimed beforehand, and whether its runs support it."""
    rows = [_claim(evidence) for evidence in findings.claims]
    failed = sum(not evidence.supported for evidence in findings.claims)
    count = Paragraph(f"{len(rows) - failed} of {len(rows)} claims are supported by these runs.", loud=failed > 0)
    return section("Claims", count if rows else None, table("claims", rows, ("difference",)))


def _claim(evidence: Evidence) -> dict[str, str]:
    return {
        "claim": escaped(evidence.text, LONGEST_TEXT),
        "supported": "**yes**" if evidence.supported else "no",
        "difference": columns.difference(evidence.difference),
        "95 % interval": columns.between(evidence.low, evidence.high, points),
        "p": columns.probability(evidence.p),
        "evidence": escaped(evidence.sentence, LONGEST_TEXT),
    }


def reading_guide() -> Section:
    """What the words of a report mean."""
    return section(
        "How to read this",
        Bullets(
            (
                "Intervals of top-1 are Wilson's for the number of images; those of mIoU and of all differences "
                "between the same trained models are bootstrapped over images. They say what other images would "
                "change. 'With training again' says what new seeds would change as well.",
                "'Pretraining epochs' are those in which the backbone itself learned before the last stage.",
                "Scores are of the last checkpoint unless a recipe says otherwise.",
                "A protocol is all that determines how a trained model is scored; rows with different ones are only "
                "subtracted where the study varies the difference on purpose.",
            )
        ),
    )
