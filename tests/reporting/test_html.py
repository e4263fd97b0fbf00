"""The page of a report: one file, harmless whatever things are called, and working in a real browser."""

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from compare_tree import build

from bench.reporting import Report, compare
from bench.reporting.figures.style import DrawnFigure
from bench.reporting.formats.html import sort_value, webpage
from bench.reporting.pages.document import Document, Figure, Paragraph, Section, Table, section, table

HOSTILE = {
    "vit": "<script>document.title='taken'</script>",
    "deit": 'a|b_c*d "e" \' & %5 $x^2$ \\cmd{x} #1 ~y',
    "beit": "two\nlines " + "b" * 300,
    "data2vec": "\u65b9\u6cd5 \u0645\u0642\u0627\u0631\u0646\u0629 --> ]]> {{ 7*7 }}",
}
CHROMIUM = os.environ.get("BENCH_CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path and none in BENCH_CHROMIUM")


class Elements(HTMLParser):
    """Tags with their attributes, and whether every one that is opened is closed in order."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def html_of(report: Report) -> str:
    return (report.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a study whose arms have the worst names."""
    folder = tmp_path_factory.mktemp("hostile")
    tree = build(folder / "results", labels=HOSTILE, seeds=(0,), tasks=("demo",))
    return compare(tree.plan, tree.results, folder / "out")


def in_chromium(page: Path, *options: str) -> str:
    """What Chromium prints for a page that it opened without a window, a profile or a network."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
               "--host-resolver-rules=MAP * ~NOTFOUND", *options, page.as_uri()]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def page_with(*blocks: Paragraph | Table | Figure | None) -> str:
    return webpage(Document("Title", "", (section("One", *blocks),)))


def test_the_page_loads_nothing_from_anywhere(report: Report) -> None:
    for tag, attributes in Elements(html_of(report)).tags:
        assert not (attributes.get("src") or "data:").removeprefix("data:image/png;base64,").startswith("http"), tag
        assert (attributes.get("href") or "#").startswith("#")
        assert tag not in ("link", "iframe", "object", "base", "form")


def test_the_page_is_small_and_its_elements_are_closed(report: Report) -> None:
    text = html_of(report)
    assert len(text.encode()) < 3_000_000
    assert Elements(text).open == []


def test_every_section_stands_in_its_order(report: Report) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", html_of(report))
    assert titles == ["Answer", "Scores", "Differences", "Convergence", "Cost", "What differs between the arms",
                      "Pictures", "Errors by class", "Provenance", "How to read this"]  # fmt: skip


def test_every_link_within_the_page_has_its_target(report: Report) -> None:
    tags = Elements(html_of(report)).tags
    targets = {attributes["id"] for _, attributes in tags if attributes.get("id")}
    links = {(attributes.get("href") or "#")[1:] for tag, attributes in tags if tag == "a"}
    assert links and links <= targets


def test_marks_of_charts_tell_their_numbers(report: Report) -> None:
    titles = re.findall(r"<title>([^<]*)</title>", html_of(report))
    assert any(re.fullmatch(r"beit: \d+\.\d\d, 95 % interval \d+\.\d\d to \d+\.\d\d", title) for title in titles)
    assert any(re.match(r"vit: [\d.]+ \([\d.]+ to [\d.]+\) at 30 k images seen", title) for title in titles)


def test_hostile_names_are_shown_and_never_read_as_markup(hostile: Report) -> None:
    elements = Elements(html_of(hostile))
    assert [tag for tag, _ in elements.tags].count("script") == 1
    words = "".join(elements.words)
    for name in ("vit", "deit", "data2vec"):
        assert HOSTILE[name] in words, name
    assert "b" * 100 not in words


def test_hostile_names_do_not_break_the_files_beside_the_page(hostile: Report) -> None:
    text = {path.name: path.read_text(encoding="utf-8") for path in hostile.files if path.parent == hostile.folder}
    assert "<script" not in text["report.md"] + text["table.tex"]
    (scores,) = re.findall(r"\\label\{tab:scores-demo\}\n(.*?)\\bottomrule", text["table.tex"], flags=re.DOTALL)
    rows = [line for line in scores.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert [arm["label"] for arm in json.loads(text["report.json"])["arms"]] == list(HOSTILE.values())
    assert len(json.loads(text["model-index.json"])["model-index"]) == 4


def test_only_the_script_of_the_page_may_run(report: Report) -> None:
    text = html_of(report)
    policy = next(a["content"] or "" for tag, a in Elements(text).tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy.split("script-src ")[1])


def test_pictures_that_do_not_fit_are_named_instead() -> None:
    drawn = [DrawnFigure(f"picture-{n}", "", b"", bytes(60_000), pictures=True) for n in range(3)]
    text = webpage(Document("Title", "", (Section("One", tuple(map(Figure, drawn))),)), most_bytes=190_000)
    assert len(text.encode()) < 190_000
    assert text.count("data:image/png;base64," + base64.b64encode(bytes(30)).decode()) == 2
    assert "figures/picture-2.png" in text


@pytest.mark.parametrize(
    ("cell", "value"),
    [("**71.20 \u00b1 0.31** (2)", 71.2), ("1.23 M", 1_230_000), ("\u22122.10 [\u22123.00, \u22121.00]", -2.1),
     ("12,000", 12_000), ("vit", None), ("\u2013", None), ("", None), ("5 Ms", 5)],
)  # fmt: skip
def test_cells_sort_by_the_number_with_which_they_begin(cell: str, value: float | None) -> None:
    assert sort_value(cell) == value


@in_browser
def test_the_page_works_in_chromium(hostile: Report, tmp_path: Path) -> None:
    """Opened, sorted by a click: no name runs as a script, and the page's own script does."""
    shown = in_chromium(hostile.folder / "report.html", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title and title[1] == "Four methods on digits"
    assert "data-told=" in shown  # the script took the charts' titles over


@in_browser
def test_a_click_on_a_heading_sorts_the_table(tmp_path: Path) -> None:
    rows = [{"arm": name, "score": score} for name, score in (("b", "9.5"), ("a", "10.5"), ("c", "\u2013"))]
    text = page_with(table("scores", rows, ("score",)))
    clicks = "document.querySelectorAll('thead button')[1].click();"
    ours = re.search(r"script-src '[^']*'", text)
    assert ours
    clicked = text.replace(ours[0], "script-src 'unsafe-inline'").replace(
        "</body>", f"<script>{clicks}</script></body>"
    )
    (tmp_path / "page.html").write_text(clicked, encoding="utf-8")
    shown = in_chromium(tmp_path / "page.html", "--dump-dom")
    order = re.findall(r'<th scope="row"[^>]*>(.)</th>', shown)
    assert 'aria-sort="descending"' in shown
    assert order == ["a", "b", "c"]


@in_browser
def test_the_page_prints(report: Report, tmp_path: Path) -> None:
    in_chromium(report.folder / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
