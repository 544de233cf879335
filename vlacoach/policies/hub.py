"""Policies on the Hugging Face Hub: found in its cache or downloaded, files of known names only, no code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlacoach.errors import CheckpointError

FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "dataset_statistics.json",
    "action_head--*",
    "proprio_projector--*",
    "adapter_config.json",
    "adapter_model.safetensors",
    "vlacoach.json",
)
"""What is downloaded of a repository, as patterns."""

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Snapshot:
    """A downloaded repository.

    Attributes:
        folder: Where its files are.
        revision: The commit, for the record.
    """

    folder: Path
    revision: str


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``organization/model``."""
    return _ID.fullmatch(name) is not None


def download(name: str, revision: str | None = None) -> Snapshot:
    """Fetch a policy from the Hub, or from its cache if it is there.

    Args:
        name: ``organization/model``.
        revision: Branch, tag or commit; None is the newest.

    Returns:
        Its folder and its commit.

    Raises:
        CheckpointError: There is no such model, it may not be read, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"The model {name!r} may only be read by those whom its owners have let in.",
            "Ask for access on its page, then log in with: hf auth login",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"There is no folder {name!r}, and no model of that name{at} on the Hugging Face Hub.",
            "Check the spelling; a private model needs a login: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder {name!r}, and the Hugging Face Hub cannot be reached for a model of that name{at}.",
            "Check the network, or download the model elsewhere and pass its folder.",
        ) from error
    except Exception as error:  # Transport errors are those of whichever HTTP library the Hub's client uses.
        raise CheckpointError(
            f"The model {name!r}{at} could not be downloaded: {error}.", "Files that are complete are kept; try again."
        ) from error
    return Snapshot(folder, folder.name)
