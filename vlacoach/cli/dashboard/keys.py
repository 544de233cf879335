"""Keys of the dashboard as data: the footer, the help screen, the palette, and the documentation are made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlacoach.errors import ConfigError, UnknownNameError

GENERAL, PANES, CHARTS, LISTS, RUN = "General", "Panes", "Charts", "Lists and episodes", "The run"


@dataclass(frozen=True)
class Key:
    """What a key does.

    Attributes:
        id: Name by which a user's settings give it other keys.
        keys: Textual's names of the keys, separated by commas.
        action: Textual's name of the action.
        label: Word for the footer.
        description: Sentence for the help screen.
        category: Heading it stands under.
        footer: Whether the footer shows it.
        panes: Panes it works in; empty for all.
    """

    id: str
    keys: str
    action: str
    label: str
    description: str
    category: str
    footer: bool = False
    panes: tuple[str, ...] = ()


PANE_NAMES: tuple[tuple[str, str], ...] = (
    ("overview", "Overview"),
    ("charts", "Charts"),
    ("tasks", "Tasks"),
    ("episodes", "Episodes"),
    ("robot", "Robot"),
    ("reward", "Reward"),
    ("log", "Log"),
    ("config", "Config"),
    ("system", "System"),
)
"""Identifier and title of each pane, in the order of their keys 1 to 9."""

_WITH_CHARTS = ("charts", "overview", "reward", "system")
_CHARTS_ONLY = ("charts",)

KEYS: tuple[Key, ...] = (
    Key("quit", "q", "quit", "Quit", "Leave. A run goes on without its dashboard.", GENERAL, footer=True),
    Key("help", "question_mark,h,f1", "help", "Help", "Show this help.", GENERAL, footer=True),
    Key("runs", "o", "runs", "Runs", "Choose the run, and runs to lay over its charts.", GENERAL, footer=True),
    Key("theme", "t", "next_theme", "Theme", "Take the next theme; it is kept between starts.", GENERAL),
    Key("screenshot", "s", "screenshot", "SVG", "Save a picture of the screen as SVG.", GENERAL),
    Key("export", "e", "export", "CSV", "Save the metrics of the charts on screen as CSV.", GENERAL),
    *(
        Key(f"pane-{name}", str(number), f"pane('{name}')", title, f"Show {title.lower()}.", PANES)
        for number, (name, title) in enumerate(PANE_NAMES, 1)
    ),
    Key("next-pane", "tab", "next_pane(1)", "Next", "Show the next pane.", PANES),
    Key("previous-pane", "shift+tab", "next_pane(-1)", "Previous", "Show the pane before.", PANES),
    Key("pause", "p", "pause", "Pause", "Let the run wait, or go on.", RUN, footer=True),
    Key("checkpoint", "c", "ask('checkpoint')", "Checkpoint", "Write a checkpoint after this update.", RUN),
    Key("evaluate", "v", "ask('evaluate')", "Evaluate", "Evaluate on held-out states after this update.", RUN),
    Key("stop", "x", "stop", "Stop", "End the run after this update, with a checkpoint.", RUN, footer=True),
    Key("filter", "slash", "filter", "Filter", "Choose metrics or episodes by parts of their names.", LISTS, True,
        ("charts", "episodes", "log", "config")),
    Key("sort", "r", "sort", "Sort", "Sort by the next column.", LISTS, True, ("episodes",)),
    Key("level", "l", "level", "Level", "Show messages of the next graver level only.", LISTS, True, ("log",)),
    Key("follow", "f", "follow", "Follow", "Keep the newest line in view, or not.", LISTS, True, ("log",)),
    Key("difference", "d", "difference", "Diff", "Compare the configuration with another run's.", LISTS, True,
        ("config",)),
    Key("maximize", "m", "maximize_chart", "Maximize", "Show the chosen chart alone, or all again.", CHARTS, True,
        _CHARTS_ONLY),
    Key("zoom-in", "plus,equals_sign", "zoom(2)", "Zoom in", "Show half as many updates.", CHARTS, False,
        _WITH_CHARTS),
    Key("zoom-out", "minus", "zoom(0.5)", "Zoom out", "Show twice as many updates.", CHARTS, False, _WITH_CHARTS),
    Key("pan-left", "left_square_bracket", "pan(-0.25)", "Earlier", "Move to earlier updates.", CHARTS, False,
        _WITH_CHARTS),
    Key("pan-right", "right_square_bracket", "pan(0.25)", "Later", "Move to later updates.", CHARTS, False,
        _WITH_CHARTS),
    Key("reset-view", "0", "reset_view", "Reset", "Show all updates.", CHARTS, False, _WITH_CHARTS),
    Key("cursor-left", "left", "cursor(-1)", "Read", "Read the values one update earlier.", CHARTS, False,
        _WITH_CHARTS),
    Key("cursor-right", "right", "cursor(1)", "Read", "Read the values one update later.", CHARTS, False,
        _WITH_CHARTS),
    Key("log-scale", "y", "log_scale", "Log y", "Draw the vertical axis as logarithm, or not.", CHARTS, True,
        _CHARTS_ONLY),
    Key("smoothing", "w", "smoothing", "Smooth", "Take the next amount of smoothing.", CHARTS, True, _CHARTS_ONLY),
)  # fmt: skip
"""Every key that works on the main screen."""

EPISODE_KEYS: tuple[Key, ...] = (
    Key("episode-back", "left", "step(-1)", "Back", "Show the picture before.", LISTS, footer=True),
    Key("episode-forward", "right", "step(1)", "Forward", "Show the next picture.", LISTS, footer=True),
    Key("episode-first", "home", "step(-10000)", "First", "Show the first picture.", LISTS),
    Key("episode-last", "end", "step(10000)", "Last", "Show the last picture.", LISTS),
    Key("episode-play", "space", "play", "Play", "Play the episode, or stop.", LISTS, footer=True),
    Key("episode-close", "escape,q", "dismiss", "Close", "Back to the list.", LISTS, footer=True),
)
"""Keys of an episode that has been opened with Enter."""


def check_keymap(keymap: Mapping[str, str], origin: str) -> dict[str, str]:
    """Check a user's choice of keys.

    Args:
        keymap: Identifier to keys, separated by commas.
        origin: Where it stands, for messages.

    Raises:
        UnknownNameError: There is no such identifier.
        ConfigError: Two things would have the same key.
    """
    known = {key.id: key for key in (*KEYS, *EPISODE_KEYS)}
    for name in keymap:
        if name not in known:
            raise UnknownNameError(f"key in {origin}", name, known)
    taken: dict[str, str] = {}
    for key in KEYS:
        for one in keymap.get(key.id, key.keys).split(","):
            if one in taken:
                raise ConfigError(f"{origin}: {one!r} is the key of both {taken[one]!r} and {key.id!r}.")
            taken[one] = key.id
    return dict(keymap)


def by_category(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """Keys under their headings, in order."""
    found: dict[str, list[Key]] = {}
    for key in keys:
        found.setdefault(key.category, []).append(key)
    return found


_NAMES = {
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}


def shown(keys: str) -> str:
    """Keys as a person writes them, for example ``"? h f1"``."""
    return " ".join(_NAMES.get(key, key) for key in keys.split(","))


def markdown(keys: Sequence[Key] = (*KEYS, *EPISODE_KEYS)) -> str:
    """A table of keys for the documentation."""
    lines = []
    for category, members in by_category(keys).items():
        lines += [f"### {category}", "", "| key | id | what it does |", "|---|---|---|"]
        for key in members:
            where = f" ({', '.join(key.panes)})" if key.panes else ""
            lines.append(f"| `{shown(key.keys)}` | `{key.id}` | {key.description}{where} |")
        lines.append("")
    return "\n".join(lines)
