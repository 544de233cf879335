"""``vlacoach runs ls``."""

from __future__ import annotations

from datetime import datetime

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, Json, RunsDir
from vlacoach.cli.runs.summary import percentage, summarize
from vlacoach.errors import RunError


def ls_command(runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """List runs, newest last.

    For example:

      vlacoach runs ls

      vlacoach runs ls --runs-dir shared/runs --json
    """  # fmt: skip
    from rich.table import Table

    from vlacoach.runs.finding import list_runs
    from vlacoach.runs.folder import RunFolder

    summaries = []
    for path in list_runs(runs_dir):
        try:
            summaries.append(summarize(RunFolder.open(path)))
        except RunError as error:
            # One damaged run must not hide the others.
            narration().print(f"{path.name}: {error.message}", style="yellow")
    if as_json:
        show_json(summaries)
        return
    if not summaries:
        narration().print(f"There are no runs in {runs_dir}.")
        return
    table = Table("id", "name", "status", "updates", "success", "held-out", "created")
    for summary in summaries:
        table.add_row(
            summary["id"],
            summary["name"],
            summary["status"],
            str(summary["updates"]),
            percentage(summary["rollout_success"]),
            percentage(summary["eval_success"]),
            f"{datetime.fromtimestamp(summary['created']):%Y-%m-%d %H:%M}",
        )
    show(table)
