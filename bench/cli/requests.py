"""From options as a person types them to the selections of the Python API."""

from __future__ import annotations

from typing import Any

from bench.cli.options import CheckpointOptions, StudyOptions
from bench.config.overrides import parse_set
from bench.errors import BenchError
from bench.planning.selection import CheckpointSelection, StudySelection, parse_data_dirs


def study_selection(options: StudyOptions) -> StudySelection:
    """What --method, --set, --seeds and their like select."""
    return StudySelection(
        study=options.study,
        methods=tuple(options.method),
        tasks=tuple(options.task),
        size=options.size,
        budget=options.budget,
        seeds=_parse_seeds(options.seeds),
        add_seeds=options.add_seeds,
        overrides=dict(parse_set(text) for text in options.set),
        precision=options.mixed_precision,
        scale=options.scale,
        unlabelled=options.unlabelled,
        labels=options.labels,
        name=options.name,
        **_data_fields(options),
    )


def checkpoint_selection(options: CheckpointOptions) -> CheckpointSelection:
    """Which checkpoints are to be scored, and how."""
    return CheckpointSelection(
        checkpoints=tuple(options.checkpoint),
        task=options.task,
        protocol=options.protocol,
        precision=options.mixed_precision,
        partial=options.partial,
        name=options.name,
        **_data_fields(options),
    )


def _data_fields(options: StudyOptions | CheckpointOptions) -> dict[str, Any]:
    return {
        "data_dirs": parse_data_dirs(options.data_dir),
        "limit": options.limit,
        "max_unreadable": options.max_unreadable,
        "allow_incomplete": options.allow_incomplete,
        "include": tuple(options.include),
    }


def _parse_seeds(text: str) -> tuple[int, ...]:
    """'0,1,2' -> (0, 1, 2)."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise BenchError(f"--seeds {text}: write different whole numbers from 0, like 0,1,2")
    return tuple(int(word) for word in words)
