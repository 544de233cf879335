"""Draw docs/perturbations.png: one episode, each axis that shows, severities 0 to 5."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vlacoach.envs.libero import LiberoEnv
from vlacoach.envs.perturbations import AXES, MAX_SEVERITY, Perturbation

ROWS = [axis for axis in AXES if axis != "language"]
MARGIN = 14
COLORS = 256


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--task", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=112, help="side of one picture in pixels")
    parser.add_argument("--out", type=Path, default=Path("docs/perturbations.png"))
    arguments = parser.parse_args()
    env = LiberoEnv(arguments.suite, task=arguments.task, image_size=arguments.size)
    rows = []
    for axis in ROWS:
        pictures = []
        for severity in range(MAX_SEVERITY + 1):
            perturbations = (Perturbation(axis, severity),)
            options = {"init_state": 0, "perturbations": perturbations, "perturbation_seed": arguments.seed}
            pictures.append(env.reset(seed=0, options=options)[0]["image"])
        rows.append(np.concatenate(pictures, axis=1))
    height = arguments.size + MARGIN
    sheet = Image.new("RGB", (rows[0].shape[1], height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (axis, row) in enumerate(zip(ROWS, rows, strict=True)):
        sheet.paste(Image.fromarray(row), (0, number * height + MARGIN))
        for severity in range(MAX_SEVERITY + 1):
            label = f"{axis} {severity}" if severity else "plain"
            pen.text((severity * arguments.size + 2, number * height + 1), label, fill="black")
    sheet.quantize(COLORS).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
