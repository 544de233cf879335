"""A run's policy as a repository of the Hugging Face Hub: the folder with its model card, and pushing it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlacoach.errors import CheckpointError, ConfigError, RunError
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import checkpoint_step
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.export import copy_folder, is_policy_folder, trained_folder
from vlacoach.runs.files import publish_folder
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.model_card import CardFacts, model_card
from vlacoach.runs.results import Comparison, read_comparisons

CARD_FILE = "README.md"
SETTINGS_FILE = "vlacoach.json"
"""Beside an adapter: how its base is used, where the base leaves that open."""

_ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_LONGEST = 96
_USE = ("head", "num_images", "proprio", "center_crop", "unnorm_key")


def write_hub_folder(
    run: RunFolder,
    checkpoint: Path,
    target: Path,
    repo: str,
    *,
    base: str | None = None,
    datasets: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write what is pushed: a checkpoint's adapter in PEFT format, or its policy, with a model card.

    Args:
        run: The run.
        checkpoint: One of its checkpoints, already checked.
        target: Folder that is to hold it; its parents are made.
        repo: Name on the Hub, ``user/name``.
        base: Hub id of the base policy, if the run knows it as a folder of this machine only.
        datasets: Hub ids of data sets that the base was trained on, for the card.
        force: Replace an adapter or a policy that is there.

    Returns:
        ``target``, in which no path of this machine is named.

    Raises:
        ConfigError: A name is none of the Hub's, the base is a folder that nobody else has, or ``target`` may not be
            replaced.
        CheckpointError: The checkpoint holds no weights.
        RunError: The run is damaged, or the folder cannot be written; ``target`` is then as before.
    """
    for name in (repo, *datasets, *([] if base is None else [base])):
        require_hub_id(name)
    source, config = trained_folder(checkpoint), run.config()
    adapter = (source / _ADAPTER_CONFIG).is_file()
    known = _base(source, config, base) if adapter else (base or _public(config.policy.path), None)
    step = checkpoint_step(checkpoint)
    facts = CardFacts(
        repo=repo,
        base=known[0],
        base_on_hub="/" in known[0],
        revision=known[1],
        adapter=adapter,
        step=step,
        config=_without_paths(config, known[0]),
        comparisons=_measured(run, step),
        datasets=datasets,
    )

    def fill(folder: Path) -> None:
        copy_folder(source, folder)
        if adapter:
            _name_base(folder / _ADAPTER_CONFIG, *known)
            use = {key: getattr(config.policy, key) for key in _USE}
            (folder / SETTINGS_FILE).write_text(json.dumps(use, indent=2) + "\n", encoding="utf-8")
        (folder / CARD_FILE).write_text(model_card(facts), encoding="utf-8")

    return publish_folder(target, fill, is_policy_folder, force)


def require_hub_id(name: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        ConfigError: It is not of the form ``user/name``.
    """
    if _HUB_ID.fullmatch(name) is None or "--" in name or ".." in name or len(name) > _LONGEST:
        raise ConfigError(f"{name!r} is no name on the Hugging Face Hub.", "Give USER/NAME, such as me/bowls.")


def require_login() -> None:
    """Refuse to go on without a token.

    Raises:
        ConfigError: There is none.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError(
            "Nobody is logged in to the Hugging Face Hub.",
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write. --dry-run needs none.",
        )


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Push a folder to the Hub as one commit; the repository is made if there is none.

    Args:
        folder: As :func:`write_hub_folder` leaves it.
        repo: Name on the Hub, ``user/name``.
        private: Whether a new repository is for its owners only; one that is there stays what it is.

    Returns:
        Address of the repository.

    Raises:
        ConfigError: Nobody is logged in.
        RunError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    require_login()
    try:
        api = HfApi()
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Adapter and model card")
    except HfHubHTTPError as error:
        raise RunError(
            f"The Hub refuses to take {repo}: {str(error).strip()}",
            "The token must be allowed to write there: hf auth whoami, hf auth login.",
        ) from error
    except Exception as error:  # Transport errors are those of whichever HTTP library the Hub's client uses.
        raise RunError(
            f"{repo} could not be pushed: {type(error).__name__}: {error}",
            "Check the network; or write the folder with --dry-run --out FOLDER, and push it later: "
            f"hf upload {repo} FOLDER",
        ) from error
    return str(address)


def _base(source: Path, config: TrainConfig, given: str | None) -> tuple[str, str | None]:
    """Name and revision of an adapter's base, as others can find it."""
    if given is not None:
        return given, None
    if os.path.isabs(config.policy.path):
        raise ConfigError(
            f"The adapter's base policy is a folder of this machine, {config.policy.path}.",
            "Push that folder, `hf upload USER/BASE FOLDER`, and name it: --base USER/BASE.",
        )
    return config.policy.path, config.policy.revision


def _public(path: str) -> str:
    return Path(path).name if os.path.isabs(path) else path


def _without_paths(config: TrainConfig, base: str) -> TrainConfig:
    changes: dict[str, Any] = {"path": base}
    if config.policy.adapter is not None:
        changes["adapter"] = Path(config.policy.adapter).name
    return config.model_copy(update={"policy": config.policy.model_copy(update=changes)})


def _measured(run: RunFolder, step: int) -> dict[str, Comparison]:
    """The run's measurements, which are of its last checkpoint."""
    last = run.checkpoints.entries()
    if not last or checkpoint_step(last[-1]) != step:
        return {}
    return read_comparisons(run.path / names.RESULTS_FILE)


def _name_base(file: Path, base: str, revision: str | None) -> None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file.name} of the checkpoint is not JSON: {error}.") from error
    stored |= {"base_model_name_or_path": base, "revision": revision}
    file.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
