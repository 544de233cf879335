"""``vlacoach envs play``: what keys do to the world, and what the screen says of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from textual.widgets import Static

from vlacoach.cli.dashboard.picture import PictureView
from vlacoach.cli.play import MOVES, PlayApp, PlayHelp
from vlacoach.cli.play_world import View
from vlacoach.envs.simulator import UnstableSimulationError
from vlacoach.errors import SimulatorError


class Bench:
    """A world that notes what it is told; it waits while its gate is closed."""

    def __init__(self):
        self.calls, self.step, self.action, self.state = [], 0, np.zeros(7), 4
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.threads, self.error, self.success = set(), None, False

    def reset(self):
        self.step, self.action = 0, np.zeros(7)
        return self._view("reset")

    def next_state(self):
        self.state += 1
        return self._view("next")

    def move(self, motion):
        self.step, self.action = self.step + 1, np.append(motion, -1.0)
        return self._view(tuple(motion.tolist()))

    def toggle_gripper(self):
        self.step, self.action = self.step + 10, np.array([0.0] * 6 + [1.0])
        return self._view("gripper")

    def _view(self, call):
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return View(
            picture=np.full((8, 8, 3), 10 * self.step % 256, np.uint8),
            instruction="put the [bowl] away",
            state=self.state,
            seed=7,
            step=self.step,
            success=self.success,
            action=self.action,
            hand=np.array([0.1, -0.2, 1.0]),
        )


def play(drive, size=(80, 24), world=None):
    """Run the app on a stand-in world, and drive it."""
    world = world or Bench()
    app = PlayApp(lambda: world)

    async def run():
        async with app.run_test(size=size) as pilot:
            await settle(pilot)
            await drive(pilot, app, world)

    asyncio.run(run())
    return app, world


async def settle(pilot):
    """Wait until the world stands still and is shown."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def text(app, name):
    return str(app.query_one(name, Static).render())


def unit(axis, amount):
    return tuple(amount if index == axis else 0.0 for index in range(6))


def test_each_key_makes_its_motion():
    async def drive(pilot, app, world):
        for move in MOVES:
            for key in move.keys:
                await pilot.press(key)
                await settle(pilot)

    _, world = play(drive)
    assert world.calls == ["reset", *(unit(move.axis, move.amount) for move in MOVES for _ in move.keys)]
    assert {(move.axis, np.sign(move.amount)) for move in MOVES} == {(a, s) for a in range(6) for s in (-1.0, 1.0)}


def test_space_r_and_n():
    async def drive(pilot, app, world):
        for key in ("space", "n", "r"):
            await pilot.press(key)
            await settle(pilot)

    assert play(drive)[1].calls == ["reset", "gripper", "next", "reset"]


def test_the_screen_says_how_things_stand():
    async def drive(pilot, app, world):
        assert text(app, "#instruction") == "put the [bowl] away"
        assert text(app, "#status") == "state 4  step 0  goal not reached"
        assert text(app, "#action") == "action none  hand x +0.10 y -0.20 z +1.00 m"
        world.success = True
        await pilot.press("d")
        await settle(pilot)
        assert text(app, "#status") == "state 4  step 1  the goal holds"
        assert app.query_one("#status").has_class("success")
        assert text(app, "#action").startswith("action y +1.0, gripper open  hand")
        world.state = -2
        await pilot.press("n")
        await settle(pilot)
        assert text(app, "#status").startswith("fresh state of seed 7")

    play(drive)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 15)])
def test_everything_is_on_the_screen(size):
    async def drive(pilot, app, world):
        for name in ("#instruction", "#picture", "#status", "#action"):
            region = app.query_one(name).region
            assert region.height >= 1
            assert app.screen.region.contains_region(region), name
        assert app.query_one(PictureView).size.height == size[1] - 4
        assert "goal not reached" in text(app, "#status")
        footer = app.query_one("Footer").region
        assert (footer.y, footer.height) == (size[1] - 1, 1)

    play(drive, size)


def test_keys_come_faster_than_the_world_and_only_the_last_motion_waits():
    async def drive(pilot, app, world):
        world.gate.clear()
        world.begun.clear()
        await pilot.press("w")
        await asyncio.to_thread(world.begun.wait, 30)
        await pilot.press("s", "d", "a", "space", "q", "e")
        assert text(app, "#status") == "state 4  step 0  goal not reached"  # The screen is alive meanwhile.
        world.gate.set()
        await settle(pilot)
        assert world.calls == ["reset", unit(0, -1.0), unit(1, -1.0), "gripper", unit(2, 1.0)]
        assert text(app, "#status").startswith("state 4  step 13")

    play(drive)


def test_the_world_lives_in_one_thread_that_is_not_the_screens():
    async def drive(pilot, app, world):
        await pilot.press("w")
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        assert len(world.threads) == 1
        assert threading.get_ident() not in world.threads

    play(drive)


def test_help_shows_every_key_and_closes():
    async def drive(pilot, app, world):
        await pilot.press("question_mark")
        assert isinstance(app.screen, PlayHelp)
        shown = str(app.screen.query_one(Static).render())
        for move in MOVES:
            assert move.text in shown
        for words in ("space         gripper", "n             next state", "escape        quit"):
            assert words in shown
        await pilot.press("escape")
        assert not isinstance(app.screen, PlayHelp)
        assert app.is_running

    play(drive)


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
def test_quitting(key):
    async def drive(pilot, app, world):
        await pilot.press(key)
        assert app._exit

    app, _ = play(drive)
    assert app.failure is None


def test_an_unstable_world_says_so_and_can_be_reset():
    async def drive(pilot, app, world):
        world.error = UnstableSimulationError("The [world] fell over.")
        await pilot.press("w")
        await settle(pilot)
        (note,) = app._notifications
        assert note.message == "The [world] fell over. Press r to reset."
        world.error = None
        await pilot.press("r")
        await settle(pilot)
        assert app.failure is None
        assert world.calls[-1] == "reset"

    play(drive)


def test_any_other_error_of_the_simulator_ends_the_app():
    world = Bench()
    world.error = SimulatorError("no back end draws")

    async def drive(pilot, app, world):
        pass

    app, _ = play(drive, world=world)
    assert app.failure is world.error


REAL = """
import asyncio, json
import numpy as np
from vlacoach.cli.play import PlayApp
from vlacoach.cli.play_world import SimulatedWorld

seen = []

async def main():
    app = PlayApp(lambda: SimulatedWorld("libero_goal", 8, state=49))
    async with app.run_test(size=(80, 24)) as pilot:
        async def settle():
            await app.workers.wait_for_complete()
            await pilot.pause()
            view = app.view
            seen.append({"instruction": view.instruction, "state": view.state, "step": view.step,
                         "hand": view.hand.tolist(), "picture": view.picture.astype(int).sum(axis=2).tolist(),
                         "success": view.success})
        await settle()
        for keys in (["d"] * 6, ["w"] * 6, ["e"] * 6, ["space"], ["r"], ["n"]):
            for key in keys:
                await pilot.press(key)
                await app.workers.wait_for_complete()
            await settle()

asyncio.run(main())
print(json.dumps(seen))
"""


@pytest.mark.sim
def test_a_real_world_is_played():
    # In a process of its own: the GL context of this one belongs to whichever test drew first.
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    start, right, away, up, closed, again, following = json.loads(done.stdout)
    assert start["instruction"] == "put the bowl on the plate"
    assert [view["step"] for view in (start, right, away, up, closed, again)] == [0, 6, 12, 18, 28, 0]
    assert right["hand"][1] - start["hand"][1] > 0.03
    assert away["hand"][0] - right["hand"][0] < -0.03
    assert up["hand"][2] - away["hand"][2] > 0.03
    assert again["hand"] == start["hand"]
    assert again["picture"] == start["picture"]
    assert (start["state"], following["state"], start["success"]) == (49, 0, False)
    # What moves right on the keys moves right in the picture, which people see as they would stand before it.
    change = np.abs(np.array(right["picture"]) - np.array(start["picture"]))
    assert change.max() > 100
    assert center(right, start) > center(start, right) + 2


def center(view, other):
    """Mean column of the pixels that are the light hand's in one picture and the gray wall's in the other."""
    lighter = np.array(view["picture"]) - np.array(other["picture"]) > 60
    return np.nonzero(lighter)[1].mean()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["libero_goal", "8"], "no terminal"),
        (["libero_gaol", "8"], "Did you mean 'libero_goal'?"),
        (["libero_goal", "10"], "no task 10"),
        (["libero_goal", "8", "--state", "50"], "There is no initial state 50"),
    ],
)
def test_what_is_refused(invoke, args, message):
    result = invoke("envs", "play", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
