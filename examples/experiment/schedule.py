"""Jobs on the GPUs of one machine, each in processes of its own, by priority, until all are done or the time is up.

A job is done when its outputs exist. Nothing else is remembered: whatever ended a run, the next one goes on with what
is missing, and a job goes on from its own checkpoint or with the files it has not written yet.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GRACE = 25.0  # seconds before the end at which jobs are told to stop: time to write a checkpoint
LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Job:
    """`run(part, parts, device)` does the share of one of `processes`; `needs` names the jobs whose outputs it reads.

    A `target` is wanted for its own sake, other jobs only while something that needs them is not done.
    """

    name: str
    run: Callable[[int, int, str], None]
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    processes: int = 1
    gpu: bool = True
    target: bool = False

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.outputs)


def wanted(jobs: list[Job]) -> list[Job]:
    """Those that are not done and lead to a target, in their order, which is their priority."""
    by_name, found = {job.name: job for job in jobs}, set()

    def want(job: Job) -> None:
        if job.name not in found and not job.done:
            found.add(job.name)
            for name in job.needs:
                want(by_name[name])

    for job in jobs:
        if job.target:
            want(job)
    return [job for job in jobs if job.name in found]


@dataclass
class Running:
    """A job with its processes, and the place on a GPU that it occupies; None for the CPU."""

    job: Job
    place: int | None
    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]
    begun: float

    @classmethod
    def start(cls, job: Job, place: int | None, gpus: int, command: list[str], logs: Path) -> Running:
        processes, files = [], []
        for part in range(job.processes):
            environment = os.environ | {
                "CUDA_VISIBLE_DEVICES": "" if place is None else str(place % gpus),
                "OMP_NUM_THREADS": "1",
                "PYTHONUNBUFFERED": "1",
            }
            files.append(logs / f"{job.name.replace('/', '-')}.{part}.log")
            with files[-1].open("ab") as log:
                share = ["--job", job.name, "--part", f"{part}/{job.processes}"]
                processes.append(subprocess.Popen([*command, *share], stdout=log, stderr=log, env=environment))
        return cls(job, place, processes, files, time.monotonic())

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def complaint(self) -> str:
        """The last line that a process which failed has written."""
        failed = [log for process, log in zip(self.processes, self.logs, strict=True) if process.returncode]
        lines = failed[0].read_text(errors="replace").strip().splitlines() if failed else []
        return lines[-1] if lines else "it ended without its outputs"

    def stop(self, patience: float) -> None:
        for process in self.processes:
            process.terminate()
        until = time.monotonic() + patience
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def on_gpus(
    plan: Callable[[], list[Job]],
    command: list[str],
    gpus: int,
    logs: Path,
    seconds: float,
    report: Callable[[str], None],
    each: int = 1,
) -> bool:
    """Run what `plan` wants, `each` jobs on every GPU and one on the CPU, each by `command`; whether all is done.

    The plan is asked again whenever a job has ended, so it may depend on results. A job that failed is not tried again,
    nor are those that need it; the others go on.
    """
    logs.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    failed: set[str] = set()
    running: list[Running] = []
    jobs = plan()
    places: set[int | None] = {None, *range(each * gpus)}
    while True:
        open_jobs = wanted(jobs)
        busy = {r.job.name for r in running} | failed
        names = {job.name for job in open_jobs}
        ready = [job for job in open_jobs if job.name not in busy and not names.intersection(job.needs)]
        for job in ready:
            free = sorted(
                (p for p in places - {r.place for r in running} if (p is not None) == job.gpu), key=lambda p: p or 0
            )
            if free:
                running.append(Running.start(job, free[0], gpus, command, logs))
        if not running:
            return not open_jobs
        while not (ended := [r for r in running if r.ended]):
            if time.monotonic() - begun > seconds - GRACE:
                for one in running:
                    one.stop(GRACE - 5)
                report(f"the time is up with {len(open_jobs)} jobs to go; the same command goes on")
                return False
            time.sleep(LOOK_SECONDS)
        for one in ended:
            running.remove(one)
            where = "CPU" if one.place is None else f"GPU {one.place % gpus}"
            taken = f"{time.monotonic() - one.begun:.0f} s on {where}"
            if one.job.done:
                report(f"{time.monotonic() - begun:6.0f} s  done    {one.job.name} ({taken})")
            else:
                failed.add(one.job.name)
                report(f"{time.monotonic() - begun:6.0f} s  FAILED  {one.job.name} ({taken}): {one.complaint()}")
        jobs = plan()


def in_this_process(plan: Callable[[], list[Job]], device: str, seconds: float, report: Callable[[str], None]) -> bool:
    """The same one after another, for a machine without a GPU; the time is looked at between jobs."""
    begun = time.monotonic()
    while open_jobs := wanted(plan()):
        if time.monotonic() - begun > seconds:
            report(f"the time is up with {len(open_jobs)} jobs to go; the same command goes on")
            return False
        names = {job.name for job in open_jobs}
        job = next(job for job in open_jobs if not names.intersection(job.needs))
        started = time.monotonic()
        job.run(0, 1, device)
        assert job.done, f"{job.name} has not written {[path for path in job.outputs if not path.exists()]}"
        report(f"{time.monotonic() - begun:6.0f} s  done    {job.name} ({time.monotonic() - started:.1f} s)")
    return True
