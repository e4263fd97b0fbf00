"""Leases: one process at a time works on a run folder, and a dead process does not block it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.files import discard, unwritable, write_json

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat, of a holder on another machine: no process there can be looked up


class Busy(BenchError):
    """Another process holds the lease of this folder."""


class Lease:
    """The lease of a folder, as its holder has it. `lost` turns True when another process took it over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        pid = os.getpid()
        self._mine = {"host": _host(), "pid": pid, "born": _process_start(pid), "token": uuid.uuid4().hex}

    def beat(self, stop: threading.Event) -> None:
        """Renew the lease every few seconds, until `stop` is set or the lease is lost."""
        while not stop.wait(HEARTBEAT_SECONDS):
            self.lost = not self.renew()
            if self.lost:
                return

    def renew(self) -> bool:
        """Update the heartbeat; False when the lease is no longer ours."""
        current = _read(self.path)
        if current is not None and current.get("token") != self._mine["token"]:
            return False
        with suppress(BenchError):  # a disk that is full for a moment must not end the work: the lease only ages
            write_json(self.path, {**self._mine, "time": time.time()}, durable=False)
        return True

    def take(self) -> None:
        """Create the lease file; Busy when another process holds it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                current = _read(self.path)
                if current is not None and is_alive(current):
                    raise Busy(f"{self.path.parent} is in use by process {current.get('pid')} on {current.get('host')}")
                self.path.unlink(missing_ok=True)
                # O_EXCL, because flock does nothing on some file systems.
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                with os.fdopen(descriptor, "w") as file:
                    json.dump({**self._mine, "time": time.time()}, file)
        except FileExistsError:
            raise Busy(f"{self.path.parent} was just taken by another process") from None
        except OSError as error:
            raise unwritable(self.path, error) from None

    def release(self) -> None:
        """Remove the lease file, unless another process holds the lease by now."""
        current = _read(self.path)
        if current is not None and current.get("token") == self._mine["token"]:
            discard(self.path)


@contextmanager
def hold(path: Path) -> Iterator[Lease]:
    """Hold the lease at `path` inside the context, with a heartbeat; Busy when another process holds it."""
    lease = Lease(path)
    lease.take()
    stop = threading.Event()
    heart = threading.Thread(target=lease.beat, args=(stop,), name="lease", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        stop.set()
        heart.join()  # a beat under way must not bring back the file that release removes
        lease.release()


def holder(path: Path) -> dict[str, Any] | None:
    """The live holder of the lease at `path`: {host, pid, time}, or None."""
    current = _read(path)
    return current if current is not None and is_alive(current) else None


def ask_to_stop(path: Path) -> bool:
    """Send SIGTERM to the holder of a lease on this machine; whether there is one."""
    current = holder(path)
    if current is None or current.get("host") != _host():
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(current["pid"], signal.SIGTERM)
    return True


def is_alive(lease: dict[str, Any]) -> bool:
    """Whether the holder still works: its process exists on this machine, or its heartbeat elsewhere is recent."""
    if lease.get("host") == _host():
        return _process_start(lease.get("pid", 0)) == lease.get("born")
    return time.time() - float(lease.get("time", 0)) < STALE_SECONDS


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that no two processes take over a dead lease at the same moment."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        # Unreadable or half written: alive until it is stale by its time of change, like a lease of another machine.
        return {"host": "?", "pid": 0, "time": path.stat().st_mtime if path.exists() else 0}


def _host() -> str:
    """This machine and its process namespace: a process number means nothing outside them."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, to recognise a reused pid; None for no such process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else after_name[19]  # zombie or dead: it does no work
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "exists"  # no /proc on this system
