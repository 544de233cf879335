"""Pool the evaluations of several finished runs (seeds): success before and after, with intervals and the difference.

python benchmarks/pool_runs.py runs/<run> runs/<run> ... [--plot FILE]

With --plot, the learning curves of all runs are drawn in one picture, colored by reward.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vlacoach.runs.constants import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, ROLLOUT_SUCCESS
from vlacoach.runs.jsonl import JsonlReader
from vlacoach.runs.report import series
from vlacoach.runs.results import read_comparisons
from vlacoach.runs.statistics import moving_average, paired_difference, wilson_interval
from vlacoach.runs.yaml_io import read_yaml


def rate(success: np.ndarray) -> str:
    interval = wilson_interval(int(success.sum()), len(success))
    return f"{success.mean():6.1%} [{interval.low:.1%}, {interval.high:.1%}] ({int(success.sum())}/{len(success)})"


def plot(runs: list[Path], file: Path) -> None:
    """Draw success over updates: rollouts as thin lines, held-out evaluations with Wilson intervals."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    colors: dict[str, str] = {}
    labeled: set[str] = set()
    for number, run in enumerate(runs):
        reward = read_yaml(run / CONFIG_FILE)["reward"]["name"]
        color = colors.setdefault(reward, f"C{len(colors)}")
        records = JsonlReader(run / METRICS_FILE).read()
        steps, rates = series(records, ROLLOUT_SUCCESS)
        axes.plot(steps, 100 * moving_average(rates), color=color, alpha=0.5, linewidth=1)
        points = [record for record in records if "eval/successes" in record]
        for record in points:
            interval = wilson_interval(record["eval/successes"], record["eval/episodes"])
            rate = record["eval/successes"] / record["eval/episodes"]
            error = 100 * np.array([[rate - interval.low], [interval.high - rate]])
            where = record["step"] + 0.15 * (number - len(runs) / 2)  # side by side
            label = None if reward in labeled else reward
            labeled.add(reward)
            axes.errorbar(where, 100 * rate, error, fmt="o", capsize=3, color=color, label=label)
    axes.set_xlabel("updates")
    axes.set_ylabel("success (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(title="points: held-out states, 95 % Wilson\nlines: rollouts, moving average", loc="lower right")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.runs, arguments.plot)
    found = {run: read_comparisons(run / RESULTS_FILE) for run in arguments.runs}
    for run, comparisons in found.items():
        if not comparisons:
            raise SystemExit(f"{run} has no comparison of before and after: did it finish?")
    for split in sorted(set.intersection(*(set(comparisons) for comparisons in found.values()))):
        before, after = [], []
        tasks: dict[tuple[int, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        print(f"{split} states")
        for run, comparisons in found.items():
            comparison = comparisons[split]
            before.append(comparison.before.success)
            after.append(comparison.after.success)
            for old, new in zip(comparison.before.tasks, comparison.after.tasks, strict=True):
                tasks.setdefault((old.task, old.name), []).append((np.array(old.success), np.array(new.success)))
            print(f"  {run.name:<40} {rate(before[-1])}  ->  {rate(after[-1])}")
        for (task, name), pairs in tasks.items():
            first, last = (np.concatenate(side) for side in zip(*pairs, strict=True))
            print(f"  {f'task {task} {name}':<40} {rate(first)}  ->  {rate(last)}")
        first, last = np.concatenate(before), np.concatenate(after)
        difference = paired_difference(first, last)
        print(f"  {'pooled':<40} {rate(first)}  ->  {rate(last)}")
        print(
            f"  difference {difference.difference:+.1%} "
            f"[{difference.interval.low:+.1%}, {difference.interval.high:+.1%}], "
            f"McNemar p = {difference.p_value:.2g} ({difference.gained} gained, {difference.lost} lost)"
        )


if __name__ == "__main__":
    main()
