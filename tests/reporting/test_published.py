"""The table of published numbers, and what its reader refuses."""

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.reporting import published

GOOD = 'beit-base,beit,,base,224,ImageNet-1k,800,imagenet1k,fine-tuned,top1,83.2,"arXiv 2106.08254, Table 1",quoted,no'


def table(path: Path, row: str) -> Path:
    path.write_text(",".join(published.COLUMNS) + "\n" + row + "\n")
    return path


def test_every_row_of_the_project_is_valid_and_stands_once() -> None:
    rows = published.read(published.default_path())
    assert len(rows) == len(set(rows)) > 150
    assert {"vit", "deit", "beit", "data2vec"} <= {row.method for row in rows}
    assert {"imagenet1k", "cifar100", "ade20k"} <= {row.task for row in rows}


@pytest.mark.parametrize(
    ("method", "size", "task", "protocol", "value"),
    [("beit", "base", "imagenet1k", "fine-tuned", 83.2), ("data2vec", "base", "imagenet1k", "fine-tuned", 84.2),
     ("beit", "base", "ade20k", "SETR-PUP, single scale", 45.6), ("beit", "base", "cifar100", "fine-tuned", 90.1),
     ("deit", "base", "imagenet1k", "trained from scratch, 300 epochs", 81.8)],
)  # fmt: skip
def test_headline_numbers_of_the_papers_are_there(
    method: str, size: str, task: str, protocol: str, value: float
) -> None:
    rows = published.read(published.default_path())
    assert any((r.method, r.size, r.task, r.protocol, r.value) == (method, size, task, protocol, value) for r in rows)


def test_a_good_row_is_read(tmp_path: Path) -> None:
    (row,) = published.read(table(tmp_path / "p.csv", GOOD))
    assert (row.value, row.resolution, row.verified) == (83.2, 224, False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (GOOD.replace('"arXiv 2106.08254, Table 1"', ""), "names no paper or file"),
        (GOOD.replace('"arXiv 2106.08254, Table 1"', "memory"), "names no paper or file"),
        (GOOD.replace("quoted", "quotd"), "Did you mean quoted?"),
        (GOOD.replace("beit,,", "biet,,"), "Did you mean beit?"),
        (GOOD.replace("83.2", "0.832e5"), "not a percentage"),
        (GOOD.replace("83.2", "many"), "not a number"),
        (GOOD.replace(",no", ",maybe"), "verified"),
        (GOOD + ",more", "columns"),
        (GOOD.replace("beit-base", "BEiT base"), "small letters"),
        (GOOD + "\n" + GOOD, "stands above already"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(BenchError, match=r"line [23]") as caught:
        published.read(table(tmp_path / "p.csv", wrong))
    assert message in str(caught.value)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("method,value\nbeit,83.2\n")
    with pytest.raises(BenchError, match="columns must be"):
        published.read(tmp_path / "p.csv")


def test_a_task_shows_its_methods_and_the_context_only() -> None:
    rows = published.for_task(published.read(published.default_path()), "imagenet1k", "top1", {"beit"})
    assert {row.method for row in rows} == {"beit", "mae", "dino", "mocov3"}
    assert published.for_task(rows, "demo", "top1", {"beit"}) == []


def test_a_link_to_no_row_offers_the_nearest(tmp_path: Path) -> None:
    rows = published.read(table(tmp_path / "p.csv", GOOD))
    assert published.by_id(rows, "beit-base", "arm beit").value == 83.2
    with pytest.raises(BenchError, match=r"arm beit: .*Did you mean beit-base"):
        published.by_id(rows, "beit-bse", "arm beit")
