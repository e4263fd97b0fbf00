"""A report says what its runs say: no more, no less, and the same bytes each time."""

import csv
import io
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from compare_tree import Tree, build

from bench.config.stage import Plan
from bench.errors import BenchError
from bench.reporting import Report, compare
from bench.reporting.analysis.departures import differing_values
from bench.reporting.analysis.findings import analyse
from bench.reporting.figures.image_grids import _choose_images, _flipped
from bench.reporting.follow import changes
from bench.reporting.formats.json_csv import model_index
from bench.reporting.formats.markdown import markdown
from bench.reporting.pages.page import document
from bench.runs.run import Run


def text_of(tree: Tree) -> str:
    """report.md of a tree, without its figures."""
    return markdown(document(analyse(tree.plan, tree.results), []))


def body_of(report: Report) -> dict:
    return json.loads((report.folder / "report.json").read_text())


def limited(tree: Tree, method: str) -> Plan:
    """The plan of a tree as if one method had been scored on a part of the images."""
    stages = dict(tree.plan.stages)
    for key, stage in stages.items():
        if stage.method == method:
            part = stage.data["val"].model_copy(update={"limit": 20.0, "images": 20})
            stages[key] = stage.model_copy(update={"data": {"val": part}})
    return tree.plan.model_copy(update={"stages": stages})


def test_the_same_runs_give_the_same_bytes(tree: Tree, report: Report, tmp_path: Path) -> None:
    again = compare(tree.plan, tree.results, tmp_path / "elsewhere")
    assert [path.name for path in again.files] == [path.name for path in report.files]
    for first, second in zip(report.files, again.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_a_finished_study_is_complete(report: Report) -> None:
    assert report.complete
    assert report.missing == ()
    assert "Incomplete" not in (report.folder / "report.md").read_text()


def test_scores_are_those_of_the_stored_predictions(tree: Tree, report: Report) -> None:
    row = next(row for row in body_of(report)["arms"] if row["arm"] == "beit-demo")
    by_seed = [
        100 * pd.read_parquet(tree.run("beit-demo", seed, "evaluate").path("predictions.parquet"))["correct"].mean()
        for seed in (0, 1)
    ]
    assert row["score"] == pytest.approx(np.mean(by_seed))
    assert row["sd"] == pytest.approx(np.std(by_seed, ddof=1), abs=1e-6)
    assert report.rows["demo"][2]["top-1 % \u2191"].startswith(f"{np.mean(by_seed):.2f} \u00b1 ")


def test_the_frames_of_a_report_hold_the_numbers_of_report_json(report: Report) -> None:
    body = body_of(report)
    assert report.scores["score"].tolist() == pytest.approx([row["score"] for row in body["arms"]], abs=1e-6)
    pairs = report.differences.to_dict("records")
    assert [(row["task"], row["first"], row["second"]) for row in pairs] == [
        (row["task"], row["first"], row["second"]) for row in body["differences"]
    ]
    for row, written in zip(pairs, body["differences"], strict=True):
        assert [row["difference"], row["low"], row["high"]] == pytest.approx(
            [written["value"], *written["interval"]], abs=1e-6
        )
    assert report.convergence.groupby(["task", "arm", "level"]).size().max() == 1
    assert report.convergence["level"].tolist() == [row["level"] for row in body["levels"]]


def test_costs_add_up_all_stages_that_came_before(report: Report) -> None:
    rows = {row["arm"]: row for row in body_of(report)["arms"]}
    assert rows["vit-demo"]["images_own"] == rows["vit-demo"]["images_all"] == 30_000
    assert rows["deit-demo"]["images_all"] == 30_000 + 10_000  # the teacher's
    assert rows["beit-demo"]["images_all"] == 20_000 + 40 * 8000 + 8 * 8000  # pretraining and tokenizer
    assert rows["deit-demo-seg"]["images_all"] == 20_000 + 30_000 + 10_000  # labels first, then maps
    assert rows["beit-demo"]["device_hours_own"] == pytest.approx((10 + 11) / 2 / 3600, abs=1e-6)
    assert [rows[f"{m}-demo"]["pretraining_epochs"] for m in ("vit", "beit")] == [0, 40]


def test_convergence_counts_images_and_seconds_from_the_first_upstream_stage(report: Report) -> None:
    curve = pd.DataFrame(body_of(report)["convergence"]).query("arm == 'beit-demo' and seed == 0")
    assert curve["epoch"].tolist() == list(range(1, 21))
    assert curve["images"].iloc[0] == 40 * 8000 + 8 * 8000 + 1000
    assert curve["seconds"].iloc[-1] == pytest.approx(160 + 32 + 10)


def test_the_answer_names_the_best_arm_and_its_ties(report: Report) -> None:
    best = max(body_of(report)["arms"][:4], key=lambda row: row["score"])["label"]
    assert report.answer[0].startswith(f"On demo (top-1, 400 images) {best} is highest")
    assert report.answer[1] == "data2vec cannot be told apart from beit."


def test_every_departure_is_a_note_and_shared_ones_stand_once(report: Report) -> None:
    text = (report.folder / "report.md").read_text()
    for number in {int(n) for n in re.findall(r"\(#note-(\d+)\)", text)}:
        assert text.count(f'<a id="note-{number}">') == 1
    assert text.count("beit, pretrain for demo") == 1
    assert "epochs 800 \u2192 40" in text


def test_every_figure_is_shown_and_none_is_empty(report: Report) -> None:
    text = (report.folder / "report.md").read_text()
    shown = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    assert {path.rsplit(".", 1)[0] for path in shown} == {
        f"figures/{path.stem}" for path in report.files if path.parent.name == "figures"
    }
    for path in report.files:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path)[..., :3].std() > 0.02, path.name
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_report_json_is_what_its_schema_says(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((resources.files("bench.reporting") / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(body_of(report), schema, cls=jsonschema.Draft202012Validator)


def test_report_json_has_every_part_that_its_schema_asks_for(report: Report) -> None:
    schema = json.loads((resources.files("bench.reporting") / "report.schema.json").read_text())
    assert set(schema["required"]) == set(body_of(report))


def test_the_page_and_report_json_say_the_same(report: Report) -> None:
    blocks = [block for part in body_of(report)["sections"][1]["sections"] for block in part["blocks"]]
    (scores,) = (block for block in blocks if block.get("table") == "scores-demo")
    shown = dict(zip(scores["columns"], scores["rows"][2], strict=True))
    assert shown == report.rows["demo"][2]
    assert all(cell in (report.folder / "report.html").read_text() for cell in scores["rows"][2])


def test_the_hub_reads_the_model_index(report: Report) -> None:
    hub = pytest.importorskip("huggingface_hub.repocard_data")
    index = json.loads((report.folder / "model-index.json").read_text())["model-index"]
    name, results = hub.model_index_to_eval_results([next(e for e in index if e["name"] == "beit")])
    assert name == "beit"
    row = next(row for row in body_of(report)["arms"] if row["arm"] == "beit-demo")
    assert [(result.dataset_name, result.metric_type) for result in results] == [
        ("demo", "accuracy"), ("demo-seg", "mean_iou"),
    ]  # fmt: skip
    assert results[0].metric_value == pytest.approx(row["score"])


def test_rows_that_are_not_reportable_are_not_offered_to_the_hub(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    index = json.loads(model_index(analyse(limited(tree, "vit"), tree.results)))["model-index"]
    names = [entry["name"] for entry in index]
    assert names == ["deit", "beit", "data2vec"]


def test_the_latex_tables_are_whole(report: Report) -> None:
    text = (report.folder / "table.tex").read_text()
    for body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        rows = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert len(rows) == 5
        assert {row.count(" & ") for row in rows} == {len(body[0]) - 1}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 6


def test_every_start_is_counted_and_failed_ones_say_why(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    run = tree.run("vit-demo", 0, "supervised")
    run.log_attempt("started", processes=1, device="cpu")
    run.log_attempt("failed", exit_code=1, error="loss is nan at step 7")
    run.log_attempt("started", processes=2, device="cpu")
    run.log_attempt("done", exit_code=0)
    attempts = analyse(tree.plan, tree.results).provenance.attempts
    assert [(attempt["start"], attempt["ended"], attempt["error"]) for attempt in attempts] == [
        (1, "failed", "loss is nan at step 7"), (2, "done", ""),
    ]  # fmt: skip
    assert "2 times one was started, 1 times it failed" in text_of(tree)


def test_runs_beside_the_study_are_told(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    stage = tree.run("vit-demo", 0, "supervised").stage()
    other = Run.open(results / "runs", stage.model_copy(update={"seed": 7}))
    others = analyse(tree.plan, tree.results).provenance.others
    assert [(row["folder"], row["seed"], row["state"]) for row in others] == [(other.root.name, 7, "pending")]


def test_data_stand_once_with_all_that_used_them(report: Report) -> None:
    rows = body_of(report)["provenance"]["data"]
    assert [(row["dataset"], row["images"], row["shortfall"]) for row in rows] == [("demo", 400, "")]
    assert "supervised val" in rows[0]["roles"]


def test_values_that_differ_between_arms_are_shown_and_equal_ones_are_not(tree: Tree) -> None:
    rows = {row["value"]: row for row in differing_values(analyse(tree.plan, tree.results).outcomes, "demo")}
    assert rows["last stage: epochs"]["vit"] == "30"
    assert rows["last stage: epochs"]["beit"] == "20"
    assert "last stage: width" not in rows


def test_a_watched_report_is_written_again_when_a_stage_comes_further(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    run, waits = tree.run("vit-demo", 0, "supervised"), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            run.set_status("failed", error="stopped")

    changed = changes(tree.plan, tree.results, 3.0, wait)
    next(changed)
    next(changed)
    assert waits == [3.0, 3.0]


def test_files_hold_no_dates_and_no_names_of_machines(tree: Tree, report: Report) -> None:
    for path in report.files:
        content = path.read_bytes()
        for private in (b"2026-01-01", b"somewhere", str(tree.results).encode(), b"bench run demo"):
            assert private not in content, (path.name, private)


def test_figures_of_an_earlier_report_are_removed_and_other_files_kept(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "out" / "figures").mkdir(parents=True)
    for name in ("old.svg", "old.png", "mine.txt"):
        (tmp_path / "out" / "figures" / name).write_text("")
    compare(tree.plan, tmp_path / "nothing", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "figures").iterdir()] == ["mine.txt"]


def test_the_report_of_the_demo_is_small(report: Report) -> None:
    assert sum(path.stat().st_size for path in report.files) < 4_000_000


def test_table_csv_has_a_row_for_every_arm_and_task(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO((report.folder / "table.csv").read_text())))
    assert [row["arm"] for row in rows if row["kind"] == "measured"] == [
        f"{method}-{task}" for task in ("demo", "demo-seg") for method in ("vit", "deit", "beit", "data2vec")
    ]


def test_hostile_names_render_harmlessly(results: Path, tmp_path: Path) -> None:
    labels = {"vit": "<script>x</script>|$a_b$", "deit": "two\nlines `c`", "beit": "b" * 300, "data2vec": "=1+1"}
    tree = build(results, labels=labels, tasks=("demo",))
    report = compare(tree.plan, tree.results, tmp_path / "out")
    text = (report.folder / "report.md").read_text()
    assert "<script" not in text
    assert "b" * 100 not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1, table
    for path in report.files:
        if path.suffix == ".svg":
            assert not [element for element in ElementTree.parse(path).iter() if element.tag.endswith("script")]
    rows = csv.DictReader(io.StringIO((report.folder / "table.csv").read_text()))
    assert [row["label"] for row in rows][:4] == [labels["vit"], labels["deit"], labels["beit"], "'=1+1"]


def test_a_missing_stage_is_named_and_its_seed_left_out(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    run = tree.run("beit-demo", 1, "evaluate")
    run.path("stage.json").unlink()
    findings = analyse(tree.plan, tree.results)
    assert findings.outcomes.missing == (f"beit evaluate (seed 1) is pending [{run.root.name}]",)
    assert "(1 of 2)" in text_of(tree)


def test_a_failed_stage_is_named_with_its_error_and_other_arms_go_on(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    for seed in (0, 1):
        tree.run("vit-demo", seed, "supervised").set_status("failed", error="loss is nan at step 7\nlong traceback")
        tree.run("vit-demo", seed, "evaluate").set_status("pending")
    text = text_of(tree)
    assert "vit supervised (seed 0) is failed: loss is nan at step 7" in text
    assert "long traceback" not in text
    assert "no result (0 of 2)" in text
    assert "**data2vec** is highest" in text


def test_a_study_that_never_ran_gives_a_report_that_says_so(results: Path, tmp_path: Path) -> None:
    planned = build(results, tasks=("demo",)).plan
    report = compare(planned, tmp_path / "nothing", tmp_path / "out")
    assert not report.complete
    assert len(report.missing) == len(planned.stages)
    assert report.answer == ("On demo no arm has a score yet.",)
    assert not (tmp_path / "nothing").exists()


def test_a_truncated_file_is_named(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    path = tree.run("vit-demo", 0, "evaluate").path("predictions.parquet")
    path.write_bytes(path.read_bytes()[:100])
    (problem,) = analyse(tree.plan, tree.results).outcomes.missing
    assert problem.startswith("vit evaluate (seed 0) is damaged")


def test_a_score_that_its_predictions_contradict_is_left_out(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    run = tree.run("vit-demo", 0, "evaluate")
    stored = run.results()
    stored["metrics"]["top1"] += 1
    run.finish(stored, ["predictions.parquet", "pictures.npz"])
    (problem,) = analyse(tree.plan, tree.results).outcomes.missing
    assert "its predictions give" in problem


def test_a_run_scored_on_other_images_is_left_out(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    run = tree.run("deit-demo", 0, "evaluate")
    frame = pd.read_parquet(run.path("predictions.parquet"))
    frame.assign(id="other-" + frame["id"]).to_parquet(run.path("predictions.parquet"))
    run.finish(run.results(), ["predictions.parquet", "pictures.npz"])
    (problem,) = analyse(tree.plan, tree.results).outcomes.missing
    assert "400 others, 400 lacking" in problem


def test_damaged_pictures_cost_a_figure_and_not_the_report(results: Path, tmp_path: Path) -> None:
    tree = build(results, tasks=("demo",))
    run = tree.run("beit-demo", 0, "pretrain")
    size = run.path("pictures.npz").stat().st_size
    run.path("pictures.npz").write_bytes(b"PK\x03\x04" + bytes(size - 4))
    report = compare(tree.plan, tree.results, tmp_path / "out")
    assert [problem for problem in report.missing if "pictures.npz" in problem] == list(report.missing)
    assert len(report.missing) == 1
    assert "pictures.npz cannot be read" in (report.folder / "report.md").read_text()


def test_one_seed_says_that_nothing_is_known_about_retraining(results: Path) -> None:
    text = text_of(build(results, seeds=(0,), tasks=("demo",)))
    assert "every arm was trained once" in text
    assert "retraining was not repeated" in text


def test_limited_data_is_marked_as_not_reportable(results: Path) -> None:
    tree = build(results, tasks=("demo",))
    text = markdown(document(analyse(limited(tree, "vit"), tree.results), []))
    assert "Not reportable: vit (demo/val: --limit left 20 images" in text
    assert re.search(r"\| not comparable: [^|]*not reportable: demo/val: --limit left 20 images \|", text)


def test_published_numbers_stand_in_their_own_rows_with_their_source(results: Path) -> None:
    text = text_of(build(results, tasks=("imagenet1k",)))
    rows = [line for line in text.splitlines() if line.startswith("| *beit* \u2020 ")]
    assert any("*83.2*" in row and "arXiv 2106.08254, Table 1" in row for row in rows)
    assert "### Published numbers" not in text_of(build(results / "demo", tasks=("demo",)))


def test_an_output_folder_that_cannot_be_written_is_an_error(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write"):
        compare(tree.plan, tree.results, tmp_path / "file")


def test_comparing_never_imports_torch() -> None:
    code = "import sys, bench.reporting; sys.exit(bool({'torch', 'timm', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_show_images_on_which_the_arms_disagree() -> None:
    labels = np.zeros(20, int)
    alike = {"images": np.zeros((20, 3, 4, 4), np.uint8), "labels": labels, "predictions": labels}
    other = {**alike, "predictions": np.where(np.isin(np.arange(20), [7, 9, 15, 17]), 1, 0)}
    assert _choose_images([("a", alike), ("b", other)]).tolist() == [0, 1, 2, 7, 9, 15]
    assert _choose_images([("a", alike)]).tolist() == [0, 1, 2, 3, 4, 5]
    assert _choose_images([]).tolist() == [0, 1, 2, 3, 4, 5]


def test_flips_show_what_one_arm_gets_right_and_the_other_wrong() -> None:
    images, labels = np.zeros((4, 3, 4, 4), np.uint8), np.array([0, 1, 2, 3])
    right = {"images": images, "labels": labels, "predictions": np.array([0, 1, 9, 3])}
    wrong = {"images": images, "labels": labels, "predictions": np.array([0, 5, 2, 6])}
    assert [cell.title for cell in _flipped(right, wrong)] == ["5, is 1", "6, is 3"]
    assert [cell.title for cell in _flipped(wrong, right)] == ["9, is 2"]
