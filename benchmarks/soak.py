"""Hours of training, watched from outside: are memory, file handles and processes what they were at the start?

    python benchmarks/soak.py --minutes 120

The first ten minutes do not count: scenes are compiled, buffers filled. Memory is the proportional set size (PSS) of
the trainer and its simulator processes, so that pages they share count once. Its parts stand beside it, from Linux's
`smaps_rollup`: `anonymous` is what the run allocated itself and what a leak would show in; `files`, its share of
libraries and other mapped files, also rises when another program that uses the same ones ends, so nothing else should
run. The log has both for each process. What the run itself samples, the sum of resident sets, stands beside them.
Training goes on in a run folder of its own, with a checkpoint every second update and an evaluation every tenth, so
that both are done often.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

Sample = dict[str, float]
WARM_UP = 600.0
MIB = 2**20
PARTS = {"Pss:": "pss", "Pss_Anon:": "anonymous", "Pss_File:": "files", "Pss_Shmem:": "shared memory"}


def memory(process: psutil.Process) -> Sample:
    """The proportional set size of one process and its parts, in MiB."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    fields = [line.split() for line in lines]
    return {PARTS[words[0]]: int(words[1]) / 1024 for words in fields if words[0] in PARTS}


def sample(process: psutil.Process, started: float) -> Sample | None:
    """What the tree of processes holds now, or None if it is gone."""
    try:
        tree = [process, *process.children(recursive=True)]
        held = [memory(one) for one in tree]
        return {
            "seconds": time.monotonic() - started,
            **{part: sum(one[part] for one in held) for part in PARTS.values()},
            **{f"{part} of process {rank}": one[part] for rank, one in enumerate(held) for part in PARTS.values()},
            "handles": float(sum(one.num_fds() for one in tree)),
            "threads": float(sum(one.num_threads() for one in tree)),
            "processes": float(len(tree)),
        }
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None  # A process ended while it was looked at.


def watch(process: subprocess.Popen[bytes], interval: float) -> Iterator[Sample]:
    watched, started = psutil.Process(process.pid), time.monotonic()
    while process.poll() is None:
        if (found := sample(watched, started)) is not None:
            yield found
        time.sleep(interval)


def figures(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Medians of the first and the last third after the warm-up, and their ratio."""
    counted = [one for one in samples if one["seconds"] >= min(WARM_UP, samples[-1]["seconds"] / 4)]
    third = max(1, len(counted) // 3)
    result = {}
    for key in sorted(counted[0].keys() - {"seconds"}):
        seen = [one.get(key, 0.0) for one in counted]  # A process of a later rank may have ended.
        first, last = statistics.median(seen[:third]), statistics.median(seen[-third:])
        result[key] = {"first third": first, "last third": last, "most": max(seen)}
        if first:
            result[key]["ratio"] = last / first
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--interval", type=float, default=20.0, help="seconds between two looks")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("more", nargs="*", help="further arguments of vlacoach train, after --")
    arguments = parser.parse_args()
    settings = ["checkpoint.every=2", "evaluation.every=10", "evaluation.trials=4", "grpo.updates=100000"]
    command = [sys.executable, "-m", "vlacoach", "train", "--name", "soak", "--minutes", str(arguments.minutes)]
    command += ["--runs-dir", str(arguments.runs_dir), *(word for one in settings for word in ("--set", one))]
    with (arguments.runs_dir.resolve().parent / "soak.jsonl").open("w") as log:
        process = subprocess.Popen([*command, *arguments.more], stdout=subprocess.DEVNULL)
        samples = []
        for found in watch(process, arguments.interval):
            samples.append(found)
            log.write(json.dumps(found) + "\n")
            log.flush()
    (run,) = arguments.runs_dir.glob("*_soak_*")
    updates = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = [json.loads(line) for line in (run / "system.jsonl").read_text().splitlines()]
    seen = [{"seconds": line["time"] - own[0]["time"], "rss": line["system/rss"] / MIB} for line in own]
    alerts = run / "alerts.jsonl"
    print(
        json.dumps(
            {
                "status": process.returncode,
                "minutes": samples[-1]["seconds"] / 60,
                "updates": sum("train/steps" in line for line in updates),
                "episodes": sum(line.get("rollout/episodes", 0) for line in updates),
                "alerts": alerts.read_text().splitlines() if alerts.exists() else [],
                **figures(samples),
                **figures(seen),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
