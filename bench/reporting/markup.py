r"""Marked text: the little Markdown in which every name, cell and sentence of a report is written once, and read again.

`**bold**`, `*slanted*`, `` `code` ``, `[words](#target)`, backslashes before signs, and HTML entities: what `escaped`
and the sentences of a report make, and nothing else. Whatever else a text holds is read as plain characters.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

MARK = re.compile(
    r"\\(?P<kept>[\\`*_{}\[\]#!|~$@])|(?P<entity>&(?:#\d+|[a-z]+);)|(?P<bold>\*\*)|(?P<slanted>\*)"
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
    """Characters in one style. `target`: the place in the page that they point to."""

    text: str
    bold: bool = False
    slanted: bool = False
    code: bool = False
    target: str = ""


@lru_cache(maxsize=1 << 16)  # the cells of a report repeat, and each is read several times
def spans(marked: str) -> tuple[Span, ...]:
    """The text in pieces of one style; no piece holds markup any more."""
    found: list[Span] = []
    bold = slanted = False
    at = 0
    for mark in MARK.finditer(marked):
        _add(found, Span(marked[at : mark.start()], bold, slanted))
        at = mark.end()
        if mark["bold"]:
            bold = not bold
        elif mark["slanted"]:
            slanted = not slanted
        elif mark["target"]:
            _add(found, Span(plain(mark["words"]), bold, slanted, target=mark["target"]))
        else:
            _add(found, _literal(mark, bold, slanted))
    _add(found, Span(marked[at:], bold, slanted))
    return tuple(found)


def _literal(mark: re.Match[str], bold: bool, slanted: bool) -> Span:
    if mark["code"] is not None:
        return Span(mark["code"], bold, slanted, code=True)
    return Span(mark["kept"] or html.unescape(mark["entity"]), bold, slanted)


def _add(found: list[Span], span: Span) -> None:
    """Append, joined with the last one if in the same style."""
    if found and found[-1]._replace(text="") == span._replace(text="") and not span.target:
        found[-1] = span._replace(text=found[-1].text + span.text)
    elif span.text:
        found.append(span)


def plain(marked: str) -> str:
    """The characters alone: for terminals and programs."""
    return "".join(span.text for span in spans(marked))


def tex(marked: str) -> str:
    """The text for LaTeX; no character of it is read as a command."""
    return "".join(_styled(span) for span in spans(marked))


def _styled(span: Span) -> str:
    text = tex_characters(span.text)
    text = rf"\texttt{{{text}}}" if span.code else text
    text = rf"\textit{{{text}}}" if span.slanted else text
    return rf"\textbf{{{text}}}" if span.bold else text


def tex_characters(text: str) -> str:
    r"""Characters for LaTeX. Scripts that pdfLaTeX lacks go through \other{characters}{code points}."""
    pieces = re.split(r"([^\x00-\x7f]+)", re.sub(r"\s+", " ", text))
    return "".join(_foreign(piece) if place % 2 else _ascii(piece) for place, piece in enumerate(pieces))


def _ascii(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text if c.isprintable()).replace("--", "-{}-")


def _foreign(text: str) -> str:
    """Signs by their commands, accented Latin as it is, the rest through a macro that any engine can read."""
    done = []
    for known, run in _runs(text):
        if known:
            done += [TEX.get(c, c) for c in run]
        else:
            done.append(rf"\other{{{run}}}{{{' '.join(f'U+{ord(c):04X}' for c in run)}}}")
    return "".join(done)


def _runs(text: str) -> list[tuple[bool, str]]:
    found: list[tuple[bool, str]] = []
    for c in text:
        known = c in TEX or (ord(c) < 0x180 and unicodedata.category(c).startswith("L"))
        if found and found[-1][0] == known:
            found[-1] = (known, found[-1][1] + c)
        else:
            found.append((known, c))
    return found
