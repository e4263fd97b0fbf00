"""What the options ask for: a study to be planned, a way of running it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from bench.cli.options import Selection, Weights
from bench.config.overrides import from_environment, parse_set
from bench.config.precedence import UserOverrides
from bench.config.registry import places, read_study, study_files, task_files
from bench.config.schema import HUB, TRAINED, Arm, Study
from bench.config.stage import Plan
from bench.errors import BenchError, unknown
from bench.planning.evaluations import Asked
from bench.planning.request import Request
from bench.planning.toy import toy
from bench.runs.store import read_plan, studies

PRECISIONS = {"no": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "auto": "auto"}  # accelerate's, and ours


def request(selection: Selection, output: Path = Path("results")) -> Request:
    """What a selection asks to be planned. BenchError for options that contradict or miss one another.

    output: where a run is looked for that start_from names.
    """
    where = places(selection.include)
    if selection.unlabelled and not Path(selection.unlabelled).is_dir():
        raise BenchError(f"--unlabelled {selection.unlabelled}: no such folder")
    asked = Request(
        study=_study(selection, where),
        places=where,
        overrides=_user_overrides(selection),
        roots=roots(selection.data_dir, task_files(where)),
        unlabelled=selection.unlabelled,
        max_unreadable=selection.max_unreadable,
        limit=selection.limit,
        output=output,
        labels=selection.labels,
        allow_incomplete=selection.allow_incomplete,
    )
    if selection.scale not in ("", "toy"):
        raise BenchError(f"--scale {selection.scale}: there is toy; without it every study runs as it is written")
    asked = toy(asked) if selection.scale else asked
    return asked._replace(study=_more_seeds(asked.study, selection.add_seeds, output)) if selection.add_seeds else asked


def _more_seeds(study: Study, number: int, output: Path) -> Study:
    """A study with more seeds than it was last run with under `output`, or than it is written with."""
    if study.name in studies(output):
        before = read_plan(output, study.name).study
        if _but_seeds(before) == _but_seeds(study):
            study = before

    def more(seeds: tuple[int, ...]) -> tuple[int, ...]:
        return (*seeds, *range(max(seeds) + 1, max(seeds) + 1 + number))

    arms = [arm.model_copy(update={"seeds": more(arm.seeds)}) if arm.seeds else arm for arm in study.arms]
    return study.model_copy(update={"seeds": more(study.seeds), "arms": tuple(arms)})


def _but_seeds(study: Study) -> Study:
    arms = tuple(arm.model_copy(update={"seeds": None}) for arm in study.arms)
    return study.model_copy(update={"seeds": (), "arms": arms})


def weighed(weights: Weights, output: Path) -> Asked:
    """Which evaluations of weights are asked for. BenchError for a protocol or precision that there is not."""
    if weights.protocol not in ("task", "card"):
        raise unknown("protocol", weights.protocol, ["task", "card"])
    precision = PRECISIONS.get(weights.mixed_precision, "auto")
    if precision == "auto":
        raise BenchError(f"--mixed-precision {weights.mixed_precision}: write no, bf16 or fp16")
    where = places(weights.include)
    return Asked(
        sources=tuple(weights.checkpoint),
        task=weights.task,
        places=where,
        protocol="card" if weights.protocol == "card" else "task",
        precision=precision,
        partial=weights.partial,
        roots=roots(weights.data_dir, task_files(where)),
        limit=weights.limit,
        max_unreadable=weights.max_unreadable,
        allow_incomplete=weights.allow_incomplete,
        output=output,
        name=weights.name,
    )


def check_starts(plan: Plan, output: Path) -> None:
    """BenchError when weights from outside do not fit the stage that starts from them. Loads torch if there are any."""
    if any(stage.start for stage in plan.stages.values()):
        from bench.checkpoints.warm_start import check_starts as check

        check(plan.stages.values(), output)


def _study(selection: Selection, where: tuple[Path, ...]) -> Study:
    """The study that is named, or one made of --method and --task; --size, --budget and --seeds change either."""
    if selection.study and (selection.method or selection.task):
        raise BenchError("give a study, or --method and --task; not both")
    if selection.study:
        study = read_study(selection.study, where)
    elif selection.method:
        if not selection.task:
            raise BenchError("--method needs --task, like --task demo; `bench list tasks` shows them")
        arms = tuple(Arm(method=method) for method in selection.method)
        study = Study(name=_own_name(selection), tasks=tuple(selection.task), arms=arms)
    else:
        known = ", ".join(sorted(study_files(where))) or "none"
        raise BenchError(f"what is to be compared? Name a study ({known}), or give --method and --task")
    return _changed(study, selection)


def _changed(study: Study, selection: Selection) -> Study:
    """A study with what the flags say of all its arms."""
    changes = {"size": selection.size, "budget": selection.budget, "seeds": _seeds(selection.seeds)}
    changes = {key: value for key, value in changes.items() if value}
    own = {key: Arm.model_fields[key].default for key in changes}  # an arm's own value gives way
    arms = tuple(arm.model_copy(update=own) for arm in study.arms)
    return study.model_copy(update={**changes, "name": selection.name or study.name, "arms": arms})


def _own_name(selection: Selection) -> str:
    words = [*selection.method, *selection.task, selection.size or "base"]
    return "-".join(word.replace(":", ".") for word in words)


def _seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise BenchError(f"--seeds {text}: write different whole numbers from 0, like 0,1,2")
    return tuple(int(word) for word in words)


def roots(texts: list[str], known: Collection[str]) -> dict[str, str]:
    """--data-dir PATH for every task, or TASK=PATH for one; else what BENCH_DATA_DIR says."""
    found: dict[str, str] = {}
    for text in texts or filter(None, [os.environ.get("BENCH_DATA_DIR")]):
        task, equals, path = text.partition("=")
        named = bool(equals) and os.sep not in task  # a path may hold an equals sign, a task's name no separator
        if named and task not in known:
            raise BenchError(f"--data-dir {text}: {unknown('task', task, known)}")
        place = path if named else text
        found[task if named else ""] = place if place.startswith(HUB) else str(Path(place).expanduser().absolute())
    return found


def _user_overrides(selection: Selection) -> UserOverrides:
    options = {}
    if selection.mixed_precision:
        if selection.mixed_precision not in PRECISIONS:
            raise BenchError(f"--mixed-precision {selection.mixed_precision}: write no, bf16, fp16 or auto")
        options = {f"{stage}.precision": PRECISIONS[selection.mixed_precision] for stage in TRAINED}
    return UserOverrides(from_environment(os.environ), options, dict(parse_set(text) for text in selection.set))
