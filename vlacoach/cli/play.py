"""The app of ``vlacoach envs play``: a world's picture in the terminal, and keys that move the arm."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from vlacoach.cli.dashboard.picture import PictureView
from vlacoach.errors import VlacoachError

if TYPE_CHECKING:
    from vlacoach.cli.play_world import View, World

_TURN = 0.5
"""Of a rotation's range; a full one turns the hand too far for one key press."""


@dataclass(frozen=True)
class Move:
    """A motion of the hand that keys stand for.

    Attributes:
        keys: The keys.
        axis: 0 to 2 translate along x, y, z; 3 to 5 rotate about them.
        amount: In [-1, 1].
        text: What it does, as seen in the picture.
    """

    keys: tuple[str, ...]
    axis: int
    amount: float
    text: str


MOVES = (
    Move(("w", "up"), 0, -1.0, "away from you (-x)"),
    Move(("s", "down"), 0, 1.0, "toward you (+x)"),
    Move(("a", "left"), 1, -1.0, "left (-y)"),
    Move(("d", "right"), 1, 1.0, "right (+y)"),
    Move(("q",), 2, -1.0, "down (-z)"),
    Move(("e",), 2, 1.0, "up (+z)"),
    Move(("i",), 3, _TURN, "turn about +x"),
    Move(("k",), 3, -_TURN, "turn about -x"),
    Move(("j",), 4, _TURN, "turn about +y"),
    Move(("l",), 4, -_TURN, "turn about -y"),
    Move(("u",), 5, _TURN, "turn about +z"),
    Move(("o",), 5, -_TURN, "turn about -z"),
)
"""Every motion; bindings and help are made from it."""

_AXES = ("x", "y", "z", "turn x", "turn y", "turn z")


class PlayHelp(ModalScreen[None]):
    """What each key does."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q", "dismiss", "Close")]

    DEFAULT_CSS = """
    PlayHelp { align: center middle; }
    PlayHelp > Static { width: auto; height: auto; max-height: 100%; padding: 0 2; border: round $primary;
        background: $panel; }
    """

    def compose(self) -> ComposeResult:
        """The keys, in two columns."""
        others = [
            (binding.key, binding.description)
            for binding in PlayApp.BINDINGS
            if isinstance(binding, Binding) and binding.show
        ]
        rows = [(" ".join(move.keys), move.text) for move in MOVES] + [
            (key.replace("question_mark", "?"), text.lower()) for key, text in others
        ]
        yield Static("\n".join(f"{keys:<13} {text}" for keys, text in rows), markup=False)


class PlayApp(App[None]):
    """Plays a world.

    The world works in one thread of its own: the screen never waits for it, and its GL context has one owner. Keys that
    come faster than the world can follow are not kept: of several motions that wait, the last is made.

    Args:
        world: What is played; made in its thread.
        ascii: Draw pictures in characters instead of colored blocks.

    Attributes:
        failure: The error that ended the app, if one did.
        view: What is shown.
    """

    CSS = """
    Screen { layers: base; overflow: hidden; }
    #instruction { height: 1; text-style: bold; content-align: center middle; }
    #picture { height: 1fr; }
    #status, #action { height: 1; content-align: center middle; }
    #action { color: $text-muted; }
    .success { color: $text-success; text-style: bold; }
    """
    TITLE = "vlacoach envs play"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(",".join(move.keys), f"move({move.axis}, {move.amount})", move.text, show=False) for move in MOVES),
        Binding("space", "gripper", "Gripper"),
        Binding("r", "reset_world", "Reset"),
        Binding("n", "next_state", "Next state"),
        Binding("question_mark", "help", "Help"),
        Binding("escape", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(self, world: Callable[[], World], ascii: bool = False) -> None:
        super().__init__()
        self.failure: VlacoachError | None = None
        self.view: View | None = None
        self._make_world = world
        self._world: World | None = None
        self._ascii = ascii
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="world")
        self._jobs: deque[tuple[str, Callable[[World], View]]] = deque()
        self._busy = False

    def compose(self) -> ComposeResult:
        """The instruction, the picture, how things stand, and the keys."""
        yield Static("", id="instruction", markup=False)
        yield PictureView(ascii=self._ascii, empty="making the scene; the first time takes some seconds", id="picture")
        yield Static("", id="status", markup=False)
        yield Static("", id="action", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin with a reset."""
        self.action_reset_world()

    def on_unmount(self) -> None:
        """Let the world finish what it does; its thread ends with it."""
        self._jobs.clear()
        self._thread.submit(self._forget)
        self._thread.shutdown(wait=True)

    def _forget(self) -> None:
        # In its own thread: a GL context is not to be taken down by another.
        self._world = None

    def action_move(self, axis: int, amount: float) -> None:
        """Take a control step along or about an axis."""
        motion = np.zeros(6)
        motion[axis] = amount
        self._do("move", lambda world: world.move(motion))

    def action_gripper(self) -> None:
        """Open or close the gripper."""
        self._do("gripper", lambda world: world.toggle_gripper())

    def action_reset_world(self) -> None:
        """Start anew from the same state."""
        self._do("reset", lambda world: world.reset())

    def action_next_state(self) -> None:
        """Start from the next state."""
        self._do("next", lambda world: world.next_state())

    def action_help(self) -> None:
        """Show what each key does."""
        self.push_screen(PlayHelp())

    def _do(self, kind: str, job: Callable[[World], View]) -> None:
        if kind == "move" and self._jobs and self._jobs[-1][0] == "move":
            self._jobs.pop()
        self._jobs.append((kind, job))
        if not self._busy:
            self._busy = True
            self.run_worker(self._work(), name="world")

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                _, job = self._jobs.popleft()
                self._show(await loop.run_in_executor(self._thread, partial(self._run_job, job)))
        except VlacoachError as error:
            self._jobs.clear()
            if _is_unstable(error):
                self.notify(f"{error.message} Press r to reset.", severity="error", markup=False)
            else:
                self.failure = error
                self.exit()
        finally:
            self._busy = False

    def _run_job(self, job: Callable[[World], View]) -> View:
        if self._world is None:
            self._world = self._make_world()
        return job(self._world)

    def _show(self, view: View) -> None:
        self.view = view
        self.query_one("#instruction", Static).update(view.instruction)
        self.query_one("#picture", PictureView).show(view.picture)
        state = f"state {view.state}" if view.state >= 0 else f"fresh state of seed {view.seed}"
        goal = "the goal holds" if view.success else "goal not reached"
        status = self.query_one("#status", Static)
        status.update(f"{state}  step {view.step}  {goal}")
        status.set_class(view.success, "success")
        hand = " ".join(f"{axis} {value:+.2f}" for axis, value in zip("xyz", view.hand, strict=True))
        self.query_one("#action", Static).update(f"action {_describe(view)}  hand {hand} m")


def _is_unstable(error: VlacoachError) -> bool:
    # Not before a world was made, in its thread: it takes a second to load.
    from vlacoach.envs.simulator import UnstableSimulationError

    return isinstance(error, UnstableSimulationError)


def _describe(view: View) -> str:
    parts = [f"{axis} {value:+.1f}" for axis, value in zip(_AXES, view.action[:6], strict=True) if value]
    if view.action[6]:
        parts.append("gripper closed" if view.action[6] > 0 else "gripper open")
    return ", ".join(parts) or "none"
