"""report.md: the report as Markdown that GitHub renders. Marked text is Markdown already."""

from __future__ import annotations

from bench.reporting.formatting import markdown_table
from bench.reporting.pages.document import Block, Bullets, Document, Figure, Paragraph, Section, Table


def markdown(document: Document) -> str:
    """The whole report."""
    parts = [f"# {document.title}", f"*{document.subtitle}*" if document.subtitle else ""]
    for section in document.sections:
        parts += _section(section, 2)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, level: int) -> list[str]:
    parts = [f"{'#' * level} {section.title}", *(_block(block) for block in section.blocks)]
    return parts + [text for part in section.parts for text in _section(part, level + 1)]


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"> {block.text}" if block.loud else block.text
    if isinstance(block, Bullets):
        return _bullets(block)
    if isinstance(block, Table):
        return _table(block)
    return _figure(block)


def _bullets(block: Bullets) -> str:
    if not block.anchor:
        return "\n".join(f"- {item}" for item in block.items)
    return "\n".join(f'{n}. <a id="{block.anchor}-{n}"></a>{item}' for n, item in enumerate(block.items, 1))


def _table(block: Table) -> str:
    rows = [dict(zip(block.columns, row, strict=True)) for row in block.rows]
    text = "\n\n".join(part for part in (markdown_table(rows, numbers=tuple(block.numbers)), block.caption) if part)
    return f"<details><summary>{block.folded}</summary>\n\n{text}\n\n</details>" if block.folded else text


def _figure(block: Figure) -> str:
    drawn = block.drawn
    return f"![{drawn.name}](figures/{drawn.name}.{'png' if drawn.pictures else 'svg'})\n\n{drawn.caption}"
