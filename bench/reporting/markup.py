r"""Marked text: the subset of Markdown in which every name, cell and sentence of a report is written, and its parser.

`**bold**`, `*slanted*`, `` `code` ``, `[words](#target)`, backslash escapes and HTML entities: what `escaped` and the
sentences of a report produce. Anything else in a text is read as plain characters.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

MARK = re.compile(
    r"\\(?P<literal>[\\`*_{}\[\]#!|~$@])|(?P<entity>&(?:#\d+|[a-z]+);)|(?P<bold>\*\*)|(?P<slanted>\*)"
    r"|`(?P<code>[^`]*)`|\[(?P<words>(?:[^\]\\]|\\.)*)\]\(\#(?P<target>[\w-]+)\)"
)
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
    "*": "{*}",
    "\u00b1": r"\ensuremath{\pm}", "\u2212": r"\ensuremath{-}", "\u2248": r"\ensuremath{\approx}", "\u2013": "--",
    "\u2191": r"\ensuremath{\uparrow}", "\u2193": r"\ensuremath{\downarrow}", "\u2192": r"\ensuremath{\rightarrow}",
    "\u2020": r"\dag{}", "\u00d7": r"\ensuremath{\times}", "\u2026": r"\dots{}",
}  # fmt: skip


class Span(NamedTuple):
    """Characters in one style. `target`: the id in the page that they link to."""

    text: str
    bold: bool = False
    slanted: bool = False
    code: bool = False
    target: str = ""


@lru_cache(maxsize=1 << 16)  # the cells of a report repeat, and each is read several times
def spans(marked: str) -> tuple[Span, ...]:
    """The text in pieces of one style, without markup."""
    pieces: list[Span] = []
    bold = slanted = False
    at = 0
    for mark in MARK.finditer(marked):
        _add(pieces, Span(marked[at : mark.start()], bold, slanted))
        at = mark.end()
        if mark["bold"]:
            bold = not bold
        elif mark["slanted"]:
            slanted = not slanted
        elif mark["target"]:
            _add(pieces, Span(plain(mark["words"]), bold, slanted, target=mark["target"]))
        else:
            _add(pieces, _literal(mark, bold, slanted))
    _add(pieces, Span(marked[at:], bold, slanted))
    return tuple(pieces)


def _literal(mark: re.Match[str], bold: bool, slanted: bool) -> Span:
    if mark["code"] is not None:
        return Span(mark["code"], bold, slanted, code=True)
    return Span(mark["literal"] or html.unescape(mark["entity"]), bold, slanted)


def _add(pieces: list[Span], span: Span) -> None:
    """Append, joined with the last piece if it has the same style."""
    if pieces and pieces[-1]._replace(text="") == span._replace(text="") and not span.target:
        pieces[-1] = span._replace(text=pieces[-1].text + span.text)
    elif span.text:
        pieces.append(span)


def plain(marked: str) -> str:
    """The text without markup, for terminals and programs."""
    return "".join(span.text for span in spans(marked))


def tex(marked: str) -> str:
    """The text as LaTeX; no character of it is read as a command."""
    return "".join(_styled(span) for span in spans(marked))


def _styled(span: Span) -> str:
    text = tex_characters(span.text)
    text = rf"\texttt{{{text}}}" if span.code else text
    text = rf"\textit{{{text}}}" if span.slanted else text
    return rf"\textbf{{{text}}}" if span.bold else text


def tex_characters(text: str) -> str:
    r"""Characters for LaTeX. Scripts that pdfLaTeX lacks go through \other{characters}{code points}."""
    pieces = re.split(r"([^\x00-\x7f]+)", re.sub(r"\s+", " ", text))  # every second piece is not ASCII
    return "".join(_not_ascii(piece) if place % 2 else _ascii(piece) for place, piece in enumerate(pieces))


def _ascii(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text if c.isprintable()).replace("--", "-{}-")  # no dash ligature


def _not_ascii(text: str) -> str:
    """Signs by their commands, accented Latin as it is, the rest through a macro that every engine can read."""
    parts = []
    for printable, run in _runs(text):
        if printable:
            parts += [TEX.get(c, c) for c in run]
        else:
            parts.append(rf"\other{{{run}}}{{{' '.join(f'U+{ord(c):04X}' for c in run)}}}")
    return "".join(parts)


def _runs(text: str) -> list[tuple[bool, str]]:
    """The text in runs of characters, and whether pdfLaTeX can set them."""
    runs: list[tuple[bool, str]] = []
    for c in text:
        printable = c in TEX or (ord(c) < 0x180 and unicodedata.category(c).startswith("L"))  # Latin up to Extended-A
        if runs and runs[-1][0] == printable:
            runs[-1] = (printable, runs[-1][1] + c)
        else:
            runs.append((printable, c))
    return runs
