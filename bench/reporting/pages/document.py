"""A report before it is laid out: sections of paragraphs, lists, tables and figures.

Every text in it is marked text (`marked`), written once; Markdown, HTML, LaTeX and JSON are made from this alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.reporting.figures.style import Drawn


class Paragraph(NamedTuple):
    """A sentence or several. `loud`: a reader must not miss it."""

    text: str
    loud: bool = False


class Bullets(NamedTuple):
    """A list. `anchor`: its items are numbered, and the n-th is the target '#anchor-n'."""

    items: tuple[str, ...]
    anchor: str = ""


class Table(NamedTuple):
    """Rows of equal length under `columns`; those in `numbers` are set to the right.

    folded: what stands on a table that is shown only when asked for. key: its name in report.json and table.tex.
    """

    key: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    folded: str = ""
    caption: str = ""


class Figure(NamedTuple):
    """A figure with its files."""

    drawn: Drawn


Block = Paragraph | Bullets | Table | Figure


class Section(NamedTuple):
    """A heading, what stands under it, and smaller sections."""

    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple[Section, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not self.blocks and all(part.empty for part in self.parts)


class Document(NamedTuple):
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def blocks(self) -> Iterator[Block]:
        """Every block in reading order."""
        for section in self.sections:
            yield from _within(section)

    def tables(self) -> list[Table]:
        """Every table in reading order."""
        return [block for block in self.blocks() if isinstance(block, Table)]


def _within(section: Section) -> Iterator[Block]:
    yield from section.blocks
    for part in section.parts:
        yield from _within(part)


def section(title: str, *blocks: Block | None, parts: Sequence[Section] = ()) -> Section:
    """A section without what is None and without empty parts."""
    kept = tuple(block for block in blocks if block is not None)
    return Section(title, kept, tuple(part for part in parts if not part.empty))


def table(
    key: str, rows: Sequence[Mapping[str, str]], numbers: Sequence[str] = (), *, folded: str = "", caption: str = ""
) -> Table | None:
    """Rows with the same keys as a table; None when there are no rows."""
    if not rows:
        return None
    columns = tuple(rows[0])
    cells = tuple(tuple(row[column] for column in columns) for row in rows)
    return Table(key, columns, cells, frozenset(numbers), folded, caption)
