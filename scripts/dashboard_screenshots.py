"""Draw the pictures of the documentation from a real run.

    python scripts/dashboard_screenshots.py RUN docs/images

RUN is a run folder; one that was watched while it worked also has a picture of the robot.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from textual.pilot import Pilot

from vlacoach.cli.dashboard.app import DashboardApp
from vlacoach.cli.dashboard.view import Options

PICTURES: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "overview": ((120, 30), ()),
    "charts": ((120, 32), ("2",)),
    "tasks": ((100, 16), ("3",)),
    "episode": ((64, 26), ("4", "slash", *"video", "enter", "enter", "right", "right", "right", "right")),
    "reward": ((80, 24), ("6",)),
    "small": ((60, 15), ()),
}
"""Name of each picture to the size of its terminal and the keys that lead there."""


async def draw(run: Path, folder: Path) -> None:
    """Start the dashboard for each picture, press the keys, and save what is on screen."""
    for name, (size, keys) in PICTURES.items():
        app = DashboardApp(run, Options(run.parent))
        async with app.run_test(size=size) as pilot:
            await settle(pilot)
            for key in keys:
                await pilot.press(key)
                await settle(pilot)
            picture = app.export_screenshot(title="vlacoach watch")
        # Fonts from elsewhere would be fetched by whoever reads the page.
        picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
        file = folder / f"dashboard_{name}.svg"
        file.write_text(picture, encoding="utf-8")
        print(f"{file} ({file.stat().st_size / 1024:.0f} kB)")


async def settle(pilot: Pilot[None]) -> None:
    """Wait until files have been read and everything is drawn."""
    await pilot.pause(0.6)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(draw(arguments.run, arguments.folder))


if __name__ == "__main__":
    main()
