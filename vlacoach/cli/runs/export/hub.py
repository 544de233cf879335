"""``vlacoach runs export hub``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Checkpoint, Force, Json, RunReference, RunsDir
from vlacoach.errors import ConfigError


def hub_command(
    repo: Annotated[str, typer.Option("--repo", metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    run: RunReference = "latest",
    checkpoint: Checkpoint = "last",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="USER/NAME",
            help="Where the base policy is on the Hub, if the run took it from a folder.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="USER/NAME",
            help="Data set on the Hub that the base was trained on, for the card; may be repeated.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is for its owners only.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder to --out, and push nothing.", rich_help_panel=OUTPUT)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Keep what is pushed here too.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Push the trained adapter (PEFT format) to the Hugging Face Hub, with a model card that says how it was measured.

    Needs a token that may write: `hf auth login`, or HF_TOKEN. `vlacoach eval --policy USER/NAME` loads it back.

    For example:

      vlacoach runs export hub latest --repo me/bowls --dry-run --out bowls

      vlacoach runs export hub latest --repo me/bowls --checkpoint best --private
    """  # fmt: skip
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.hub import push_folder, require_login, write_hub_folder

    if dry_run and out is None:
        raise ConfigError("--dry-run writes a folder.", "Say where: --out FOLDER.")
    folder = RunFolder.open(run, runs_dir)
    chosen = folder.checkpoints.named(checkpoint)
    if not dry_run:
        require_login()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model" if out is None else out
        write_hub_folder(folder, chosen, target, repo, base=base, datasets=dataset or (), force=force)
        if not dry_run:
            narration().print(f"Pushing to {repo} ...")
        address = None if dry_run else push_folder(target, repo, private)
    if as_json:
        show_json({"repo": repo, "folder": None if out is None else str(out), "url": address})
        return
    if out is not None:
        show(f"folder: {out}")
    if address is not None:
        show(f"hub: {address}")
