"""A worker that trains nothing: it holds leases, counts steps, stops when asked, and fails when told to.

Started by tests of the walk over a plan as a real process, in place of bench.training.worker. PRETEND_FAIL names the
stage that fails ("teacher demo": kind and task), PRETEND_DIE one whose process is killed, PRETEND_SECONDS how long a
stage takes.
"""

import os
import signal
import sys
import time
from pathlib import Path

from bench.errors import ExitCode
from bench.files import write_json
from bench.runs.lease import Busy
from bench.runs.run import Run

STEPS = 20


def main(folders: list[str]) -> int:
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    for folder in folders:
        try:
            with Run(Path(folder)).lease():
                code = work(Run(Path(folder)), asked)
        except Busy:
            return ExitCode.BUSY
        if code:
            return code
    return ExitCode.OK


def work(run: Run, asked: list[int]) -> int:
    if run.is_done():
        return ExitCode.OK
    name, pause = f"{run.stage().kind} {run.stage().task}", float(os.environ.get("PRETEND_SECONDS", "0")) / STEPS
    first = run.status().step
    run.log_attempt("start", step=first, cuda=os.environ.get("CUDA_VISIBLE_DEVICES"))
    run.set_status("running", step=first, steps=STEPS)
    if name == os.environ.get("PRETEND_FAIL"):
        print("the loss is not a number", file=sys.stderr)
        run.set_status("failed", error="diverged at step 3", step=3, steps=STEPS)
        return ExitCode.FAILED
    if name == os.environ.get("PRETEND_DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(first, STEPS):
        if asked:
            run.set_status("interrupted", step=step, steps=STEPS)
            return ExitCode.INTERRUPTED
        write_json(run.path("progress.json"), {"step": step, "steps": STEPS, "images_per_second": 100.0, "loss": 1.5})
        time.sleep(pause)
    run.path("final").mkdir(exist_ok=True)
    run.path("final", "model.safetensors").write_bytes(b"weights")
    run.finish({"steps": STEPS, "images_per_second": 100.0}, ["final/model.safetensors"])
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
