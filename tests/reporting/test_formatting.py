"""Numbers as they are shown, and names that try to break a page."""

import re

import pytest

from bench.reporting.formatting import amount, escaped, markdown_table, p_value, points, shortened, slug
from bench.reporting.markup import Span, plain, spans, tex

HOSTILE = [
    "a|b",
    "a_b_c",
    "<script>alert(1)</script>",
    "two\nlines",
    "x" * 500,
    "`code`",
    "[link](http://x)",
    "\x00\x1b[31m",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_one_harmless_cell(name: str) -> None:
    table = markdown_table([{"arm": escaped(name), "score": "1"}])
    last = table.splitlines()[-1]
    assert len(table.splitlines()) == 3
    assert last.replace("\\|", "").count("|") == 3
    assert "<" not in last
    assert len(last) < 200


@pytest.mark.parametrize("name", ["vit", "a|b", "a_b*c", "<b>", "[x] \\ `y`", "100 % & more"])
def test_plain_undoes_escaping(name: str) -> None:
    assert plain(escaped(name)) == name


def test_plain_keeps_the_number_of_a_note() -> None:
    assert plain("**71.20** [2](#note-2), [3](#note-3)") == "71.20 2, 3"


def test_names_cut_short_stay_apart() -> None:
    assert shortened("x" * 100 + "1") != shortened("x" * 100 + "2")


def test_file_names_of_different_tasks_differ() -> None:
    assert slug("demo-seg") == "demo-seg"
    assert len({slug("Demo"), slug("demo"), slug("../demo"), slug("de mo")}) == 4
    assert "/" not in slug("../../etc")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00451, "0.00451"), (12.345, "12.3"), (999.6, "1 k"), (480_000, "480 k"), (1_234_567, "1.23 M"),
     (3.84e8, "384 M"), (float("nan"), "\u2013"), (100, "100"), (9.999, "10")],
)  # fmt: skip
def test_amounts_have_three_digits(value: float, shown: str) -> None:
    assert amount(value) == shown


def test_differences_carry_their_sign_unless_they_round_to_zero() -> None:
    assert (points(2.104), points(-2.104), points(-0.001)) == ("+2.10", "\u22122.10", "0.00")


def test_small_p_values_are_not_shown_as_zero() -> None:
    assert (p_value(0.0312), p_value(0.0002)) == ("p = 0.031", "p < 0.001")


def test_marked_text_is_read_as_it_was_written() -> None:
    pieces = spans(f"**71.20** {escaped('a*b')} [2](#note-2), `x-1`")
    assert pieces == (
        Span("71.20", bold=True), Span(" a*b "), Span("2", target="note-2"), Span(", "), Span("x-1", code=True),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["%5 & $x$ #1 _ {y} ~^ \\cmd", "<script>|", "[a]*", "two\nlines", "a--b `c"])
def test_no_character_of_a_name_is_a_command_of_latex(name: str) -> None:
    commands = re.sub(r"\\(?:[{}$&#_%]|text\w+\{\})|\{[\[\]*]\}|-\{\}-", "", tex(escaped(name)))
    assert not set(commands) & set("\\%&$#_{}~^<>|[]*`\n")
    assert "--" not in commands


def test_latex_gets_code_points_for_scripts_that_it_may_lack() -> None:
    assert tex("\u65b9 \u00e9") == "\\other{\u65b9}{U+65B9} \u00e9"
    assert tex("1 \u00b1 2 **a** b") == "1 \\ensuremath{\\pm} 2 \\textbf{a} b"
