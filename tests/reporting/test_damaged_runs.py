"""One damaged run does not end the report of all others: it is named, with what helps."""

from pathlib import Path

from compare_tree import build

from bench.reporting.analysis.curves import convergence, pretraining
from bench.reporting.analysis.outcomes import Outcomes


def read(folder: Path, *damaged: tuple[str, str]) -> Outcomes:
    """The outcomes after the second line of some records has been overwritten: (arm, role)."""
    tree = build(folder / "results", seeds=(0,), tasks=("demo",))
    for arm, role in damaged:
        path = tree.run(arm, 0, role).path("records.jsonl")
        lines = path.read_text().splitlines()
        lines[1] = lines[1][:20].ljust(len(lines[1]), "#")  # of the same length: the size tells nothing
        path.write_text("\n".join(lines) + "\n")
    return Outcomes(tree.plan, tree.results)


def test_records_that_cannot_be_read_are_named_and_their_curve_left_out(tmp_path: Path) -> None:
    outcomes = read(tmp_path, ("data2vec-demo", "finetune"), ("beit-demo", "pretrain"))
    damaged = {run.name: run.error for run in outcomes.stages.values() if run.state == "damaged"}
    assert set(damaged) == {"data2vec finetune (seed 0)", "beit pretrain (seed 0)"}
    assert all("line 2 is damaged" in error and "to compute it again" in error for error in damaged.values())
    curves = convergence(outcomes)
    assert set(curves["arm"]) == {"vit-demo", "deit-demo", "beit-demo"}
    assert "beit pretrain" not in set(pretraining(outcomes)["stage"])


def test_sound_records_are_all_read(tmp_path: Path) -> None:
    outcomes = read(tmp_path)
    assert {run.state for run in outcomes.stages.values()} == {"done"}
    assert set(convergence(outcomes)["arm"]) == {"vit-demo", "deit-demo", "beit-demo", "data2vec-demo"}
