"""Leases: one process at a time works on a run folder, and a dead one does not block it for ever."""

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
STALE_SECONDS = 60.0  # without a heartbeat, for a holder on another machine


class Busy(BenchError):
    """Another process works on this folder."""


class Lease:
    """What the holder of a folder has in its hands. `lost` turns True when somebody else took over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._mine = {"host": _host(), "pid": os.getpid(), "born": _born(os.getpid()), "token": uuid.uuid4().hex}

    def beat(self, stop: threading.Event) -> None:
        """Renew the lease until `stop` is set."""
        while not stop.wait(HEARTBEAT_SECONDS):
            self.lost = not self.renew()
            if self.lost:
                return

    def renew(self) -> bool:
        """Say that the holder lives; False when the lease is no longer ours."""
        found = _read(self.path)
        if found is not None and found.get("token") != self._mine["token"]:
            return False
        with suppress(BenchError):  # a disk that is full for a moment does not end the work; the lease only ages
            write_json(self.path, {**self._mine, "time": time.time()}, durable=False)
        return True

    def take(self) -> None:
        """Create the lease file; Busy when somebody holds it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_suffix(".lock")):
                found = _read(self.path)
                if found is not None and is_alive(found):
                    raise Busy(f"{self.path.parent} is in use by process {found.get('pid')} on {found.get('host')}")
                self.path.unlink(missing_ok=True)
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                with os.fdopen(descriptor, "w") as file:
                    json.dump({**self._mine, "time": time.time()}, file)
        except FileExistsError:
            raise Busy(f"{self.path.parent} was taken by another process this moment") from None
        except OSError as error:
            raise unwritable(self.path, error) from None

    def release(self) -> None:
        """Give the folder free, unless somebody else holds it by now."""
        found = _read(self.path)
        if found is not None and found.get("token") == self._mine["token"]:
            discard(self.path)


@contextmanager
def hold(path: Path) -> Iterator[Lease]:
    """Hold the lease at `path` while inside, with a heartbeat; Busy when somebody else has it."""
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
    """Who holds the lease at `path` right now: {host, pid, time}, or None."""
    found = _read(path)
    return found if found is not None and is_alive(found) else None


def ask_to_stop(path: Path) -> bool:
    """Send SIGTERM to the holder of a lease, if it is a process of this machine; whether there is one."""
    found = holder(path)
    if found is None or found.get("host") != _host():
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(found["pid"], signal.SIGTERM)
    return True


def is_alive(found: dict[str, Any]) -> bool:
    """Whether the holder still works: on this machine its process exists, elsewhere its heart beat of late."""
    if found.get("host") == _host():
        return _born(found.get("pid", 0)) == found.get("born")
    return time.time() - float(found.get("time", 0)) < STALE_SECONDS


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else takes over a lease at the same moment. Creation is O_EXCL besides, for file systems without flock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {"host": "?", "pid": 0, "time": path.stat().st_mtime if path.exists() else 0}


def _host() -> str:
    """This machine and its process namespace: a process number means nothing outside them."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When a process started, so that a number used again is not mistaken for it; None when it does not exist."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else after_name[19]  # a zombie does no work
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
