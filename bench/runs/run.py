"""Run folders: a stage on disk. These files are the source of truth; all else can be derived.

<results>/runs/<kind>-<key12>/     stage.json, status.json, records.jsonl, results.json, final/, ... (others: store.py)
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.config.stage import Stage
from bench.errors import BenchError, parse
from bench.files import append_lines, fingerprint, read_json, write_atomic, write_json
from bench.runs.lease import Lease, hold, holder
from bench.version import __version__

FORMAT = 2  # of a run folder; raised when an older bench could not read it
State = Literal["pending", "running", "interrupted", "failed", "done"]


@dataclass(frozen=True, slots=True)
class Record:
    """One measured value. `epoch`, `images` and `seconds` count this stage's training up to `step`."""

    step: int
    epoch: float
    images: int
    seconds: float
    split: str
    metric: str
    value: float


FIELDS = tuple(field.name for field in fields(Record))  # the keys of a line of records.jsonl


class Status(NamedTuple):
    """The state of a run, as status.json has it."""

    state: State = "pending"
    error: str = ""
    step: int = 0
    steps: int = 0
    time: float = 0.0
    outputs: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never written to. Path -> {"size", "blake2b"}, once done


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one stage."""

    root: Path

    @classmethod
    def open(cls, runs_root: Path, stage: Stage) -> Run:
        """The folder of `stage`, created when missing; BenchError when it holds another stage or version."""
        run = cls(Path(runs_root) / stage.folder)
        if run.path("stage.json").exists():
            stored = run.stage()
            if stored.key != stage.key:
                raise BenchError(f"{run.root} holds another stage ({stored.key}, not {stage.key}); move it away")
            if stored == stage or run.status().state == "done":
                return run
        # Same key but other values that change no result, like where data are: what is to run counts.
        body = {"format": FORMAT, "bench": __version__, "key": stage.key, "stage": stage.model_dump(mode="json")}
        write_json(run.path("stage.json"), body)
        return run

    @property
    def output(self) -> Path:
        """The output folder that holds this run."""
        return self.root.parent.parent

    def path(self, *parts: str) -> Path:
        """A file of this run."""
        return self.root.joinpath(*parts)

    def stage(self) -> Stage:
        """The stage of this folder; BenchError when it is damaged or was written by another version."""
        body = read_json(self.path("stage.json"))
        written = body.get("format") if isinstance(body, dict) else None
        if written != FORMAT:
            raise BenchError(
                f"{self.root} was written by another version of bench (format {written}, this one reads {FORMAT}); "
                "use that version, or another --output-dir"
            )
        try:
            stage = parse(Stage, body["stage"], str(self.path("stage.json")))
        except BenchError as error:
            raise BenchError(
                f"{error}; {self.root} was written by bench {body.get('bench')}, this is {__version__}: "
                "use that version, or another --output-dir"
            ) from None
        if stage.key != body["key"]:
            raise BenchError(
                f"{self.root} was written by bench {body.get('bench')} and its key {body['key']} is {stage.key} here: "
                "the two count different things as part of a stage; use that version, or another --output-dir"
            )
        return stage

    def status(self) -> Status:
        """The state of the run. One that says it is running, but that no process holds, is interrupted."""
        status = self.written_status()
        if status.state == "running" and holder(self.path("lease.json")) is None:
            return status._replace(state="interrupted")
        return status

    def written_status(self) -> Status:
        """The state that the last process wrote."""
        if not self.path("status.json").exists():
            return Status()
        values = read_json(self.path("status.json"))
        return Status(**{name: values[name] for name in Status._fields if name in values})

    def set_status(self, state: State, *, error: str = "", step: int = 0, steps: int = 0) -> None:
        """Write the state of the run. A run becomes done only through `finish`."""
        assert state != "done", "finish() writes results and outputs first"
        self._write_status(Status(state, error, step, steps, time.time()))

    def _write_status(self, status: Status) -> None:
        write_json(self.path("status.json"), status._asdict())

    def finish(self, results: dict[str, Any], outputs: Iterable[str]) -> None:
        """Store the results, then mark the run as done with the size and hash of every output file."""
        write_json(self.path("results.json"), results)
        files = {
            name: {"size": self.path(name).stat().st_size, "blake2b": fingerprint(self.path(name))}
            for name in (*outputs, "results.json")
        }
        steps = int(results.get("steps", 0))
        self._write_status(Status("done", "", steps, steps, time.time(), files))

    def is_done(self) -> bool:
        """Whether the run is done and all its outputs are there, by size (`check` compares hashes)."""
        status = self.status()
        return status.state == "done" and all(
            self.path(name).is_file() and self.path(name).stat().st_size == file["size"]
            for name, file in status.outputs.items()
        )

    def check(self) -> None:
        """Raise BenchError for the first output that is missing or whose hash differs."""
        status = self.status()
        if status.state != "done":
            raise BenchError(f"{self.root} is not finished: it is {status.state}")
        for name, file in status.outputs.items():
            if not self.path(name).is_file():
                raise BenchError(f"{self.path(name)} is missing; delete {self.root} to compute it again")
            if fingerprint(self.path(name)) != file["blake2b"]:
                raise BenchError(f"{self.path(name)} is damaged; delete {self.root} to compute it again")

    def results(self) -> dict[str, Any]:
        """The results of a finished run."""
        return read_json(self.path("results.json"))

    def append(self, records: Iterable[Record]) -> None:
        """Append records, durably. A value that is not finite is stored as null, as JSON has no NaN."""
        append_lines(self.path("records.jsonl"), (_line(record) for record in records))

    def records(self) -> list[Record]:
        """All records. A last line cut short by a crash is left out; damage elsewhere is a BenchError."""
        path = self.path("records.jsonl")
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        last = max((number for number, line in enumerate(lines) if line), default=0)
        records = []
        for number, line in enumerate(lines[: last + 1]):
            try:
                records.append(_record(line))
            except (ValueError, TypeError):
                if number != last:
                    start = line[:80].decode(errors="replace")
                    raise BenchError(
                        f"{path}, line {number + 1} is damaged: {start!r}; delete {self.root} to compute it again"
                    ) from None
        return records

    def rewind(self, step: int) -> None:
        """Drop the records after `step`: a resumed stage measures them again."""
        lines = [_line(record) for record in self.records() if record.step <= step]
        write_atomic(self.path("records.jsonl"), "".join(f"{line}\n" for line in lines))

    def restart(self) -> None:
        """Delete all that was computed here, but not the attempts and the logs."""
        for name in ("status.json", "records.jsonl", "progress.json", "results.json"):
            self.path(name).unlink(missing_ok=True)
        for name in ("checkpoints", "final"):
            shutil.rmtree(self.path(name), ignore_errors=True)

    def log_attempt(self, event: str, **facts: Any) -> None:
        """Log that a process started or ended work here: one line of attempts.jsonl."""
        append_lines(self.path("attempts.jsonl"), [json.dumps({"time": time.time(), "event": event, **facts})])

    def attempts(self) -> list[dict[str, Any]]:
        """The lines of attempts.jsonl, oldest first."""
        path = self.path("attempts.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []

    def progress(self) -> dict[str, Any] | None:
        """The progress that the worker last wrote, or None."""
        path = self.path("progress.json")
        return read_json(path) if path.exists() else None

    def lease(self) -> AbstractContextManager[Lease]:
        """Take the lease of this run; Busy when another process holds it."""
        return hold(self.path("lease.json"))

    def holder(self) -> dict[str, Any] | None:
        """The live process that holds the lease: {host, pid, ...}, or None."""
        return holder(self.path("lease.json"))


def _line(record: Record) -> str:
    body = asdict(record)
    body["value"] = body["value"] if math.isfinite(body["value"]) else None
    return json.dumps(body)


def _record(line: bytes) -> Record:
    body = json.loads(line)
    if set(body) != set(FIELDS):
        raise ValueError("not a record")
    return Record(**{**body, "value": math.nan if body["value"] is None else float(body["value"])})
