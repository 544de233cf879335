"""The overview as text: what ``watch --once`` prints and the overview pane shows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich.text import Text

from vlacoach.cli.dashboard.bars import interval_bar, progress_bar
from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_bytes, format_percent, format_seconds, format_value
from vlacoach.runs.overview import Overview, Rate, Success

STATUS_STYLES: Mapping[str, str] = {
    names.STATUS_RUNNING: "green",
    names.STATUS_PAUSED: "yellow",
    names.STATUS_FINISHED: "cyan",
    names.STATUS_FAILED: "bold red",
    names.STATUS_INTERRUPTED: "yellow",
    "stalled": "bold red",
}
ALERTS_SHOWN = 3
_LABEL, _RATE = 9, 16


def overview_text(view: Overview, width: int, ascii: bool = False) -> Text:
    """The whole overview.

    Args:
        view: The run.
        width: Columns; lines are cut there.
        ascii: Draw with ASCII characters alone.

    Returns:
        Lines, none longer than ``width``.
    """
    blocks = [_course(view, width, ascii), _successes(view, width, ascii), _health(view), _notes(view, width)]
    text = Text("\n\n").join(block for block in blocks if block)
    lines = text.split("\n", allow_blank=True)
    for line in lines:
        line.truncate(width)
    return Text("\n").join(lines)


def status_text(view: Overview, ascii: bool = False) -> Text:
    """The state of a run, in its color, with a sign that says it without color."""
    signs = {"running": "●", "paused": "‖", "finished": "✓", "failed": "✗", "interrupted": "■", "stalled": "!"}
    sign = "*" if ascii else signs.get(view.status, "○")
    return Text(f"{sign} {view.status}", style=STATUS_STYLES.get(view.status, ""))


def course_text(view: Overview) -> str:
    """How far a run is, on one line."""
    text = f"update {view.update}" + (f"/{view.updates}" if view.updates else "")
    return text if view.remaining is None else f"{text}  {format_seconds(view.remaining)} left"


def _row(label: str, *parts: str | Text) -> Text:
    return Text.assemble((f"{label:<{_LABEL}}", "dim"), *parts)


def _course(view: Overview, width: int, ascii: bool) -> Text:
    size = max(8, min(32, width - 46))
    elapsed = "" if view.elapsed is None else f"  {format_seconds(view.elapsed)} so far"
    rows = [
        _row("state", status_text(view, ascii), f"  {view.error}" if view.error else ""),
        _row("run", progress_bar(view.update, view.updates or 0, size, ascii), f" {course_text(view)}{elapsed}"),
    ]
    if view.stage is not None:
        done = "" if view.done is None else f" {view.done}" + (f"/{view.total}" if view.total else "")
        rows.append(_row("stage", progress_bar(view.done or 0, view.total or 0, size, ascii), f" {view.stage}{done}"))
    shares = [f"{stage} {100 * share:.0f} %" for stage, share in view.shares.items() if share >= 0.005]
    if shares:
        rows.append(_row("time", ", ".join(shares)))
    if view.env_steps_per_second is not None:
        episodes = view.episodes_per_second or 0.0
        rows.append(_row("speed", f"{view.env_steps_per_second:.0f} env steps/s, {episodes:.2f} episodes/s"))
    if memory := _memory(view.system):
        lost = f", {view.workers_replaced} workers replaced" if view.workers_replaced else ""
        rows.append(_row("system", memory, lost))
    return Text("\n").join(rows)


def _memory(system: Mapping[str, float]) -> str:
    parts = []
    if names.SYSTEM_RSS in system:
        parts.append(f"memory {format_bytes(system[names.SYSTEM_RSS])}")
    if names.SYSTEM_VRAM in system:
        parts.append(f"GPU memory {format_bytes(system[names.SYSTEM_VRAM])}")
    if names.SYSTEM_CPU in system:
        parts.append(f"processor {system[names.SYSTEM_CPU]:.0f} %")
    return ", ".join(parts)


def _successes(view: Overview, width: int, ascii: bool) -> Text:
    rows = [
        _success_row(label, success, width, ascii)
        for label, success in (
            ("rollouts", view.success),
            ("held-out", view.held_out),
            ("training", view.training_states),
        )
        if success is not None
    ]
    if not rows:
        return Text("No update is done yet.", style="dim")
    size, columns = _room(width)
    titles = "".join(f"{title:<{_RATE}}" for title in ("now", "start", "best")[:columns])
    heading = Text(f"{'success %':<{_LABEL}}{'':<{size}} {titles}", style="dim")
    return Text("\n").join([heading, *rows])


def _room(width: int) -> tuple[int, int]:
    """Cells for a bar, and how many rates stand beside it."""
    columns = 3 if width >= _LABEL + 7 + 3 * _RATE else 2
    return max(6, min(24, width - _LABEL - 1 - columns * _RATE)), columns


def _success_row(label: str, success: Success, width: int, ascii: bool) -> Text:
    now, (size, columns) = success.now, _room(width)
    low, high = (now.rate, now.rate) if now.low is None or now.high is None else (now.low, now.high)
    figures = "".join(f"{_rate(rate):<{_RATE}}" for rate in (now, success.start, success.best)[:columns])
    return _row(label, interval_bar(now.rate, low, high, size, ascii), f" {figures}")


def _rate(rate: Rate) -> str:
    if rate.low is None or rate.high is None:
        return format_percent(rate.rate)
    return f"{format_percent(rate.rate)} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _health(view: Overview) -> Text:
    health = view.health

    def values(*pairs: tuple[str, str]) -> str:
        return "  ".join(f"{label} {format_value(health[key])}" for label, key in pairs if key in health)

    rows = [
        ("groups", _groups(health)),
        ("reward", values(("mean", names.REWARD_MEAN), ("failures", names.REWARD_FAILURE_MEAN),
                          ("AUROC", names.REWARD_AUROC))),
        ("policy", values(("KL", names.TRAIN_KL), ("entropy", names.TRAIN_ENTROPY),
                          ("clipped", names.TRAIN_CLIP_FRACTION), ("ratio", names.TRAIN_RATIO_FIRST))),
        ("update", values(("loss", names.TRAIN_LOSS), ("gradient", names.TRAIN_GRADIENT_NORM),
                          ("rate", names.TRAIN_LEARNING_RATE))),
    ]  # fmt: skip
    return Text("\n").join(_row(label, text) for label, text in rows if text)


def _groups(health: Mapping[str, float]) -> str:
    if names.ROLLOUT_GROUPS not in health:
        return ""
    kept, failed, solved = (
        f"{health.get(key, 0):.0f}"
        for key in (names.ROLLOUT_GROUPS_KEPT, names.ROLLOUT_GROUPS_FAILED, names.ROLLOUT_GROUPS_SOLVED)
    )
    return f"{kept} of {health[names.ROLLOUT_GROUPS]:.0f} kept, {failed} all failed, {solved} all succeeded"


def _notes(view: Overview, width: int) -> Text:
    """What needs attention, in whole sentences: these lines are wrapped, not cut."""
    notes: list[tuple[str, str]] = []
    if view.problem is not None:
        notes.append((view.problem, "bold red"))
    for alert in view.alerts[-ALERTS_SHOWN:]:
        style = "bold red" if alert.get("level") == "error" else "yellow"
        notes.append((f"{alert.get('level', 'alert')}: {alert.get('message', '')}", style))
        if alert.get("advice"):
            notes.append((f"  {alert['advice']}", "dim"))
    if more := max(0, len(view.alerts) - ALERTS_SHOWN):
        notes.append((f"and {more} earlier alerts", "dim"))
    for file, count in view.broken_lines.items():
        notes.append((f"{count} broken lines in {file} were skipped", "yellow"))
    if view.nonfinite:
        named = ", ".join(f"{key} {count}x" for key, count in list(view.nonfinite.items())[:4])
        notes.append((f"not finite: {named}", "yellow"))
    return Text("\n").join(Text(line, style) for note, style in notes for line in textwrap.wrap(note, max(width, 8)))
