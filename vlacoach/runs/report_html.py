"""A run as one page that needs no other file and no network.

Whatever comes from the run's files is text, and is escaped where it enters the page: by :func:`_table` and
:func:`_paragraph`, which take plain text, and nowhere else.
"""

from __future__ import annotations

import base64
import mimetypes
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlacoach.runs import constants as names
from vlacoach.runs.difference import settings
from vlacoach.runs.files import replace_text
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.report import Records, as_data_uri, figures
from vlacoach.runs.resolve import DEFAULT_ORIGIN
from vlacoach.runs.results import Comparison, EvaluationResult, read_baseline, read_comparisons
from vlacoach.runs.statistics import change_with_interval, rate_with_interval
from vlacoach.runs.task_table import Count, task_rows, window

EMBEDDED_MEGABYTES = 8.0
"""Videos larger than this together are linked, not embedded."""

_HELD_OUT = "held-out"
_CAPTIONS = {
    "success": ("Success", "Bars and brackets are 95 % Wilson intervals."),
    "health": ("Health", "Gaps are values that were not finite, or updates in which no group was kept."),
    "time": ("Time by stage", "Seconds of each update."),
}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid var(--soft);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: white; }
.videos { display: flex; flex-wrap: wrap; gap: 1rem; } .videos figure { margin: 0; max-width: 20rem; }
.videos img, .videos video { width: 100%; } figcaption, .note { color: #777; font-size: 0.85rem; }
"""


def write_report(folder: RunFolder, file: Path) -> Path:
    """Write a run's page, whole or not at all.

    Args:
        folder: The run; it may be running still.
        file: Where to; its folder must exist.

    Returns:
        ``file``.

    Raises:
        RunError: The run cannot be read, or the file cannot be written.
    """
    replace_text(file, report_page(folder, file.parent))
    return file


def report_page(folder: RunFolder, base: Path) -> str:
    """A run's page as HTML.

    Args:
        folder: The run.
        base: Folder that the page will lie in; videos that are too large to embed are linked relative to it.

    Raises:
        RunError: The run cannot be read.
    """
    info, records = folder.info(), folder.metrics()
    comparisons = read_comparisons(folder.path / names.RESULTS_FILE)
    title = f"{info.get('name', '')} {info.get('id', '')}"
    sections = [
        _state(folder, info, records),
        _alerts(folder.alerts()),
        _comparisons(comparisons),
        _figures(records),
        _tasks(folder, comparisons),
        _videos(folder.path / names.VIDEOS_FOLDER, base),
        _configuration(folder),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"])


def _paragraph(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join(["<table>", f"<tr>{head}</tr>" if headings else "", *lines, "</table>"])


def _state(folder: RunFolder, info: Mapping[str, Any], records: Records) -> str:
    steps = [record[names.STEP] for record in records if isinstance(record.get(names.STEP), int)]
    rows = {
        "status": folder.status(),
        "error": info.get("error"),
        "updates": max(steps, default=0),
        "created": _moment(info.get("created")),
        "finished": _moment(info.get("finished")),
        "folder": folder.path.name,
        "command": " ".join(str(part) for part in info.get("argv", [])),
        "seed": info.get("seed"),
        "host": info.get("host"),
        "versions": ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items() if version),
    }
    return _section("State", _table((), [(key, value) for key, value in rows.items() if value not in (None, "")]))


def _moment(seconds: object) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}" if isinstance(seconds, (int, float)) else ""


def _alerts(alerts: Sequence[Mapping[str, Any]]) -> str:
    if not alerts:
        return ""
    rows = [
        [_moment(alert.get(names.TIME)), *(alert.get(key) or "" for key in ("level", "message", "advice"))]
        for alert in alerts
    ]
    return _section("Alerts", _table(("when", "level", "message", "advice"), rows))


def _comparisons(comparisons: Mapping[str, Comparison]) -> str:
    parts = []
    for split, comparison in comparisons.items():
        before, after, overall = comparison.before, comparison.after, comparison.overall
        rows = [
            [f"{first.task}  {first.name}", first.episodes, *_pair(first, second), change_with_interval(difference)]
            for first, second, difference in zip(before.tasks, after.tasks, comparison.tasks, strict=True)
        ]
        whole = [_result_rate(before), _result_rate(after), change_with_interval(overall)]
        headings = ("task", "episodes", "before % [95 %]", "after % [95 %]", "change [95 %]")
        parts += [
            f"<h3>{escape(f'{split} states of {after.suite}')}</h3>",
            _table(headings, [*rows, ["all", before.episodes, *whole]]),
            _paragraph(
                f"Wilson intervals; the change is paired by episode: {overall.gained} gained, {overall.lost} lost, "
                f"McNemar's exact p = {overall.p_value:.2g}."
            ),
        ]
    return _section("Before and after", *parts) if parts else ""


def _pair(*counts: Any) -> list[str]:
    return [rate_with_interval(one.successes, one.episodes, one.interval) for one in counts]


def _result_rate(result: EvaluationResult) -> str:
    return rate_with_interval(result.successes, result.episodes, result.interval)


def _figures(records: Records) -> str:
    drawn = figures(records)
    if not drawn:
        return _section("Curves", _paragraph("There are no metrics yet."))
    parts = []
    for name, figure in drawn.items():
        title, note = _CAPTIONS[name]
        picture = f'<figure><img src="{as_data_uri(figure)}" alt="{escape(title)} over the updates"></figure>'
        parts.append(_section(title, picture, _paragraph(note)))
    return "\n".join(parts)


def _tasks(folder: RunFolder, comparisons: Mapping[str, Comparison]) -> str:
    episodes = folder.episodes()
    compared = comparisons.get(_HELD_OUT)
    baseline = read_baseline(folder.path / names.BASELINE_FILE).get(_HELD_OUT)
    rows = task_rows(episodes, compared.before if compared else baseline, compared.after if compared else None)
    if not rows:
        return ""
    width = window(episodes)
    cells = [
        [f"{row.task}  {row.name}", *(_count(count) for count in (row.first, row.last, row.before, row.after))]
        for row in rows
    ]
    headings = ("task", "rollouts, first", "rollouts, last", "held-out, before", "held-out, after")
    updates = "update" if width == 1 else f"{width} updates"
    note = (
        f"Success in % with 95 % Wilson intervals, and episodes. First and last: of the first and the last {updates}."
    )
    return _section("Tasks", _table(headings, cells), _paragraph(note))


def _count(count: Count) -> str:
    rate = rate_with_interval(count.successes, count.episodes, count.interval)
    return f"{rate} of {count.episodes}" if count.episodes else rate


def _videos(folder: Path, base: Path) -> str:
    files = sorted(file for file in folder.glob("*") if file.suffix in (".mp4", ".gif"))
    if not files:
        return ""
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    embed = megabytes <= EMBEDDED_MEGABYTES
    parts = ['<div class="videos">', *(_video(file, base, embed) for file in files), "</div>"]
    if not embed:
        note = f"The videos have {megabytes:.0f} MB together, so they are linked: keep this page where it is."
        parts.insert(0, _paragraph(note))
    return _section("Videos", *parts)


def _video(file: Path, base: Path, embed: bool) -> str:
    if embed:
        kind = mimetypes.guess_type(file.name)[0]
        source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    else:
        source = quote(os.path.relpath(file.resolve(), base.resolve()))
    name = escape(file.stem.replace("_", " "))
    if file.suffix == ".gif":
        player = f'<img src="{source}" alt="{name}">'
    else:
        player = f'<video src="{source}" controls loop muted></video>'
    return f"<figure>{player}<figcaption>{name}</figcaption></figure>"


def _configuration(folder: RunFolder) -> str:
    if not (folder.path / names.CONFIG_FILE).is_file():
        return ""
    rows = [(key, setting.text, setting.origin) for key, setting in settings(folder).items()]
    changed = [row for row in rows if row[2] != DEFAULT_ORIGIN]
    headings = ("setting", "value", "from")
    everything = f"<details><summary>All {len(rows)} settings</summary>\n{_table(headings, rows)}\n</details>"
    return _section("Settings", _table(headings, changed) if changed else _paragraph("All are defaults."), everything)
