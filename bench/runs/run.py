"""Run folders: a stage on disk. The truth is these files; whatever else exists may be deleted.

<results>/runs/<kind>-<key12>/     one stage: stage.json, status.json, records.jsonl, results.json, final/, ...
<results>/studies/<study>/plan.json    what a study asked for
<results>/reports/<study>/         what `bench compare` wrote
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import bench
from bench.config.stage import Stage
from bench.errors import BenchError, parse
from bench.files import append_lines, fingerprint, read_json, write_atomic, write_json
from bench.runs.lease import Lease, hold, holder

FORMAT = 2  # of a run folder; raised when an older bench could not read it
State = Literal["pending", "running", "interrupted", "failed", "done"]


class Record(NamedTuple):
    """One measured number. `epoch`, `images` and `seconds` count this stage's training up to `step`."""

    step: int
    epoch: float
    images: int
    seconds: float
    split: str
    metric: str
    value: float


class Status(NamedTuple):
    """How far a stage is. `outputs` of a finished one: path -> {"size", "blake2b"}."""

    state: State = "pending"
    error: str = ""
    step: int = 0
    steps: int = 0
    time: float = 0.0
    outputs: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never written to


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one stage."""

    root: Path

    @classmethod
    def open(cls, runs_root: Path, stage: Stage) -> Run:
        """The folder of `stage`, made when it is missing; BenchError when another stage or version lies there."""
        run = cls(Path(runs_root) / stage.folder)
        if run.path("stage.json").exists():
            found = run.stage()
            if found.key != stage.key:
                raise BenchError(f"{run.root} holds another stage ({found.key}, not {stage.key}); move it away")
            if found == stage or run.status().state == "done":
                return run
        body = {"format": FORMAT, "bench": bench.__version__, "key": stage.key, "stage": stage.model_dump(mode="json")}
        write_json(run.path("stage.json"), body)
        return run

    @property
    def output(self) -> Path:
        """The output folder that this run lies in: <output>/runs/<kind>-<key12>."""
        return self.root.parent.parent

    def path(self, *parts: str) -> Path:
        """A file of this run."""
        return self.root.joinpath(*parts)

    def stage(self) -> Stage:
        """What this folder computes; BenchError when it is damaged or from another version."""
        body = read_json(self.path("stage.json"))
        made_by = body.get("format") if isinstance(body, dict) else None
        if made_by != FORMAT:
            raise BenchError(
                f"{self.root} was written by another version of bench (format {made_by}, this one reads {FORMAT}); "
                "use that version, or another --output-dir"
            )
        try:
            stage = parse(Stage, body["stage"], str(self.path("stage.json")))
        except BenchError as error:
            raise BenchError(
                f"{error}; {self.root} was written by bench {body.get('bench')}, this is {bench.__version__}: "
                "use that version, or another --output-dir"
            ) from None
        if stage.key != body["key"]:
            raise BenchError(
                f"{self.root} was written by bench {body.get('bench')} and its key {body['key']} is {stage.key} here: "
                "the two count different things as part of a stage; use that version, or another --output-dir"
            )
        return stage

    def status(self) -> Status:
        """How far it is. A stage that claims to run, but whose process is gone, is interrupted."""
        status = self.written_status()
        if status.state == "running" and holder(self.path("lease.json")) is None:
            return status._replace(state="interrupted")
        return status

    def written_status(self) -> Status:
        """What the last process that worked here wrote about itself."""
        if not self.path("status.json").exists():
            return Status()
        found = read_json(self.path("status.json"))
        return Status(**{name: found[name] for name in Status._fields if name in found})

    def set_status(self, state: State, *, error: str = "", step: int = 0, steps: int = 0) -> None:
        """Say how far the stage is. A stage becomes done only through `finish`."""
        assert state != "done", "finish() writes results and outputs first"
        self._write_status(Status(state, error, step, steps, time.time()))

    def _write_status(self, status: Status) -> None:
        write_json(self.path("status.json"), status._asdict())

    def finish(self, results: dict[str, Any], outputs: Iterable[str]) -> None:
        """Store the results, then declare the stage done with the size and hash of every output file."""
        held = {}
        write_json(self.path("results.json"), results)
        for name in (*outputs, "results.json"):
            held[name] = {"size": self.path(name).stat().st_size, "blake2b": fingerprint(self.path(name))}
        steps = int(results.get("steps", 0))
        self._write_status(Status("done", "", steps, steps, time.time(), held))

    def is_done(self) -> bool:
        """Whether the stage is finished and all it made is still there, by size."""
        status = self.status()
        return status.state == "done" and all(
            self.path(name).is_file() and self.path(name).stat().st_size == fact["size"]
            for name, fact in status.outputs.items()
        )

    def check(self) -> None:
        """BenchError naming the first output that is missing or not what was written (compares hashes)."""
        status = self.status()
        if status.state != "done":
            raise BenchError(f"{self.root} is not finished: it is {status.state}")
        for name, fact in status.outputs.items():
            if not self.path(name).is_file():
                raise BenchError(f"{self.path(name)} is missing; delete {self.root} to compute it again")
            if fingerprint(self.path(name)) != fact["blake2b"]:
                raise BenchError(f"{self.path(name)} is damaged; delete {self.root} to compute it again")

    def results(self) -> dict[str, Any]:
        """What a finished stage found."""
        return read_json(self.path("results.json"))

    def append(self, records: Iterable[Record]) -> None:
        """Add measured numbers, durably. A number that is not finite is stored as null."""
        append_lines(self.path("records.jsonl"), (_line(record) for record in records))

    def records(self) -> list[Record]:
        """All measured numbers. A last line cut short by a crash is left out; damage elsewhere is a BenchError."""
        path = self.path("records.jsonl")
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        last = max((number for number, line in enumerate(lines) if line), default=0)
        found = []
        for number, line in enumerate(lines[: last + 1]):
            try:
                found.append(_record(line))
            except (ValueError, TypeError):
                if number != last:
                    shown = line[:80].decode(errors="replace")
                    raise BenchError(
                        f"{path}, line {number + 1} is damaged: {shown!r}; delete {self.root} to compute it again"
                    ) from None
        return found

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`: a resumed stage measures it again."""
        kept = [_line(record) for record in self.records() if record.step <= step]
        write_atomic(self.path("records.jsonl"), "".join(f"{line}\n" for line in kept))

    def restart(self) -> None:
        """Forget all that was computed here; what was tried, and the logs, stay."""
        for name in ("status.json", "records.jsonl", "progress.json", "results.json"):
            self.path(name).unlink(missing_ok=True)
        for name in ("checkpoints", "final"):
            shutil.rmtree(self.path(name), ignore_errors=True)

    def log_attempt(self, event: str, **facts: Any) -> None:
        """Remember that a process started or ended work here: one line of attempts.jsonl."""
        append_lines(self.path("attempts.jsonl"), [json.dumps({"time": time.time(), "event": event, **facts})])

    def attempts(self) -> list[dict[str, Any]]:
        """The processes that worked here, oldest first."""
        path = self.path("attempts.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []

    def progress(self) -> dict[str, Any] | None:
        """Where the worker is at this moment, or None before it said so."""
        path = self.path("progress.json")
        return read_json(path) if path.exists() else None

    def lease(self) -> AbstractContextManager[Lease]:
        """Work here alone; Busy when another process does."""
        return hold(self.path("lease.json"))

    def holder(self) -> dict[str, Any] | None:
        """The process that works here now: {host, pid, ...}, or None."""
        return holder(self.path("lease.json"))


def _line(record: Record) -> str:
    body = record._asdict()
    body["value"] = body["value"] if math.isfinite(body["value"]) else None
    return json.dumps(body)


def _record(line: bytes) -> Record:
    body = json.loads(line)
    if set(body) != set(Record._fields):
        raise ValueError("not a record")
    return Record(**{**body, "value": math.nan if body["value"] is None else float(body["value"])})
