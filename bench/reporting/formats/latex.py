r"""table.tex: the tables of scores, differences and costs, for a paper that loads booktabs."""

from __future__ import annotations

from bench.reporting.markup import tex
from bench.reporting.pages.document import Document, Table

PRINTED = ("scores", "differences", "cost")  # tables whose keys begin so: what a paper prints
HEAD = r"""% Needs \usepackage{booktabs} and T1 fonts; \resizebox{\linewidth}{!}{...} helps where a table is wide.
% Names in scripts that pdfLaTeX cannot set are given by their code points there; XeLaTeX and LuaLaTeX print them.
\providecommand{\other}[2]{\ifdefined\XeTeXversion #1\else\ifdefined\luatexversion #1\else [#2]\fi\fi}
"""


def latex(document: Document) -> str:
    """The tables, one environment each."""
    printed = [table for table in document.tables() if table.key.split("-")[0] in PRINTED]
    return "\n".join([HEAD, *(_table(table) for table in printed)])


def _table(table: Table) -> str:
    letters = "".join("r" if column in table.numbers else "l" for column in table.columns)
    rows = [_row(table.columns), r"\midrule", *(_row(row) for row in table.rows)]
    head = [r"\begin{table}", r"\centering", rf"\caption{{{tex(table.caption)}}}", rf"\label{{tab:{table.key}}}"]
    body = [rf"\begin{{tabular}}{{{letters}}}", r"\toprule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*head, *body, r"\end{table}", ""])


def _row(cells: tuple[str, ...]) -> str:
    return " & ".join(tex(cell) for cell in cells) + r" \\"
