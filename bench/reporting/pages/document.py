"""The document model of a report: sections of paragraphs, lists, tables and figures.

Every text in it is marked text (`reporting/markup`); Markdown, HTML, LaTeX and JSON are all written from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.reporting.analysis.comparisons import Comparison
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formatting import escaped, metric_name

Figures = Mapping[str, DrawnFigure]  # by name


class Paragraph(NamedTuple):
    """One or several sentences. `loud`: a warning that a reader must not miss."""

    text: str
    loud: bool = False


class Bullets(NamedTuple):
    """A list. With an `anchor` its items are numbered, and the n-th is the link target '#anchor-n'."""

    items: tuple[str, ...]
    anchor: str = ""


class Table(NamedTuple):
    """Rows of cells under `columns`; those in `numbers` are aligned to the right.

    folded: the label of a table that is shown only after a click; '': always shown. key: its name in report.json and
    table.tex.
    """

    key: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    folded: str = ""
    caption: str = ""


class Figure(NamedTuple):
    """A figure with its files."""

    drawn: DrawnFigure


Block = Paragraph | Bullets | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, the blocks under it, and subsections."""

    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple[Section, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether it has no blocks, and no subsection has any."""
        return not self.blocks and all(part.empty for part in self.parts)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def blocks(self) -> Iterator[Block]:
        """Every block in reading order."""
        for section in self.sections:
            yield from _blocks(section)

    def tables(self) -> list[Table]:
        """Every table in reading order."""
        return [block for block in self.blocks() if isinstance(block, Table)]


def _blocks(section: Section) -> Iterator[Block]:
    yield from section.blocks
    for part in section.parts:
        yield from _blocks(part)


def section(title: str, *blocks: Block | None, parts: Sequence[Section] = ()) -> Section:
    """A section; blocks that are None and parts that are empty are left out."""
    return Section(
        title,
        tuple(block for block in blocks if block is not None),
        tuple(part for part in parts if not part.empty),
    )


def table(
    key: str, rows: Sequence[Mapping[str, str]], numbers: Sequence[str] = (), *, folded: str = "", caption: str = ""
) -> Table | None:
    """A table of rows with the same keys; None when there are no rows."""
    if not rows:
        return None
    columns = tuple(rows[0])
    cells = tuple(tuple(row[column] for column in columns) for row in rows)
    return Table(key, columns, cells, frozenset(numbers), folded, caption)


def figure(figures: Figures, name: str) -> Figure | None:
    """The figure of this name; None when it was not drawn."""
    return Figure(figures[name]) if name in figures else None


def task_heading(comparison: Comparison) -> str:
    """'demo: top-1', the title of a task's part of a section."""
    return f"{escaped(comparison.task)}: {metric_name(comparison.metric)}"
