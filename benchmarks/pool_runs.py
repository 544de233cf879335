"""Pool the evaluations of several finished runs (seeds): success before and after, with intervals and the difference.

python benchmarks/pool_runs.py runs/<run> runs/<run> ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vlacoach.runs.constants import RESULTS_FILE
from vlacoach.runs.results import read_comparisons
from vlacoach.runs.statistics import paired_difference, wilson_interval


def rate(success: np.ndarray) -> str:
    interval = wilson_interval(int(success.sum()), len(success))
    return f"{success.mean():6.1%} [{interval.low:.1%}, {interval.high:.1%}] ({int(success.sum())}/{len(success)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    found = {run: read_comparisons(run / RESULTS_FILE) for run in parser.parse_args().runs}
    for split in sorted({split for comparisons in found.values() for split in comparisons}):
        before, after = [], []
        print(f"{split} states")
        for run, comparisons in found.items():
            comparison = comparisons[split]
            before.append(comparison.before.success)
            after.append(comparison.after.success)
            print(f"  {run.name:<40} {rate(before[-1])}  ->  {rate(after[-1])}")
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
