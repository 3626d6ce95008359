"""How close does a prior that never saw a clean image come to one that saw them all? One experiment, one command.

    python examples/prior_experiment.py --images brain_t1_slices.npz --volume head_t1_volume.npz \
        --work runs/experiment --gpus 4 --seconds 560 -o docs/results/prior-experiment.json

simulates undersampled noisy scans, trains the same network with each objective and with EM, reconstructs scans of
people that no prior was trained on, and writes the figures of every scan and the tables made from them (.json, .md).
examples/experiment/plan.py says what is run and in which order; a line is printed for each job that is done. --rows
runs some rows alone, --arms also what else they learn from.

The same command goes on where it was, after --seconds or any other end, and with a complete work folder it only
writes the tables. A job whose outputs exist is not repeated, nor what it alone needs. In a new work folder --record
goes on from the record (.json) that a run left: what that has figures of is not run again. To run a row again, remove
its folder in `figures/` of the work folder, and its prior in `priors/`. --tiny runs everything within a minute on a
CPU, with figures that mean nothing. The images are those of examples/train_bundled_prior.py.

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from experiment.plan import ARM_ROWS, ARMS, ROWS, SHORT, TINY, Experiment, Size
from experiment.report import markdown, record, restore
from experiment.schedule import in_this_process, on_gpus
from experiment.work import say, write_json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="brain_t1_slices.npz")
    parser.add_argument("--volume", type=Path, help="head_t1_volume.npz, for one more person to train on")
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, priors and figures")
    parser.add_argument("--record", type=Path, help=".json of an earlier run, whose figures are kept")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time, to be resumed")
    parser.add_argument("--jobs-per-gpu", type=int, default=1, help="at once; small networks leave room for several")
    parser.add_argument("--rows", nargs="+", default=[], choices=list(ROWS), help="these alone, with one seed")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        choices=[arm.name for arm in ARMS],
        help="with --rows: those of them that have arms are learned from these, too",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", action="store_true", help="the same in small: examples/experiment/plan.py")
    size.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    parser.add_argument("-o", "--out", type=Path, required=True, help=".json; tables go to .md beside it")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one job, as the schedule calls it
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)

    if args.arms and not set(args.rows).intersection(ARM_ROWS):
        parser.error(f"--arms goes with --rows that have arms: {', '.join(ARM_ROWS)}")
    cores = max(1, (os.cpu_count() or 1) * 3 // 4) if args.gpus else 1
    experiment = Experiment(
        args.images,
        args.volume,
        args.work,
        SHORT if args.short else Size(),
        cores,
        only=tuple(args.rows),
        only_arms=tuple(args.arms),
    )
    if args.tiny:
        quick = args.work / "tiny.toml"
        args.work.mkdir(parents=True, exist_ok=True)
        quick.write_text('description = "tiny"\nsteps = 2\ncg_iterations = 3\n')
        arms = tuple(arm for arm in ARMS if arm.name in args.arms) or ARMS[3:4]
        experiment = replace(experiment, size=replace(TINY, em_recipe=str(quick)), arms=arms)
    if args.job:
        job = next(job for job in experiment.jobs() if job.name == args.job)
        part, parts = (int(n) for n in args.part.split("/"))
        job.run(part, parts, "cuda" if job.gpu and torch.cuda.is_available() else "cpu")
        return
    if args.record:
        try:
            restore(experiment, json.loads(args.record.read_text()))
        except ValueError as error:
            parser.error(f"--record {args.record}: {error}")
    if args.gpus:
        command = [sys.executable, str(Path(__file__).resolve()), *(arguments or sys.argv[1:])]
        complete = on_gpus(
            experiment.jobs, command, args.gpus, args.work / "logs", args.seconds, say, args.jobs_per_gpu
        )
    else:
        complete = in_this_process(experiment.jobs, "cpu", args.seconds, say)
    found = record(experiment)
    write_json(args.out, found)
    args.out.with_suffix(".md").write_text(markdown(found))
    say(f"{'complete' if complete else 'not complete'}: wrote {args.out} and {args.out.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
