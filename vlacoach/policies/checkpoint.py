"""Policies on disk: folders of config.json, model.safetensors, tokenizer.json and dataset_statistics.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlacoach.errors import CheckpointError, ConfigError, UnknownNameError
from vlacoach.policies import statistics, tokenizer
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.folders import differences, replaced_folder
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.policy import Precision, VLAPolicy

BUILT_IN = ("tiny",)
"""Policies that come with the package."""

_ASSETS = Path(__file__).parent / "assets"
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_policy(
    name_or_folder: str | Path, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> VLAPolicy:
    """Load a built-in policy or one from a folder; all its parameters are frozen.

    Args:
        name_or_folder: ``"tiny"`` or a folder written by :meth:`VLAPolicy.save`.
        device: Where to put it. On a CPU weights are held in float32, whatever they are stored in.
        precision: See :class:`VLAPolicy`.

    Returns:
        The policy, in evaluation mode.

    Raises:
        UnknownNameError: Neither a built-in policy nor a folder.
        CheckpointError: The folder is incomplete, corrupt, or does not fit its own configuration.
    """
    folder = Path(name_or_folder)
    if str(name_or_folder) in BUILT_IN:
        folder = _ASSETS / str(name_or_folder)
    elif not folder.is_dir():
        raise UnknownNameError("policy (or folder)", str(name_or_folder), BUILT_IN)
    config = load_config(folder)
    model = PrismaticVLA(config)
    _load_weights(model, folder / _WEIGHTS)
    return VLAPolicy(
        model.requires_grad_(False).to(device),
        tokenizer.load_tokenizer(folder),
        statistics.load_statistics(folder, config.action_dim, config.proprio_dim),
        str(name_or_folder),
        precision,
    )


def load_config(folder: Path) -> VLAConfig:
    """Read ``config.json`` of a policy's folder.

    Args:
        folder: The policy's folder.

    Returns:
        The configuration.

    Raises:
        CheckpointError: The file is missing or malformed.
    """
    path = folder / _CONFIG
    try:
        return VLAConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", hint="Is this a policy's folder?") from error
    except (ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} is not a policy's configuration: {error}") from error


def save_policy(policy: VLAPolicy, folder: Path, dtype: Precision) -> Path:
    """See :meth:`VLAPolicy.save`."""
    if policy.adapter is not None:
        raise ConfigError(
            f"Policy {policy.name!r} has a LoRA adapter attached.",
            hint="Call save_adapter to store the adapter alone, or merge_lora first to store everything.",
        )
    state = {
        key: value.detach().to("cpu", _DTYPES[dtype]).contiguous() for key, value in policy.model.state_dict().items()
    }
    with replaced_folder(folder, "policy") as fresh:
        save_file(state, fresh / _WEIGHTS, metadata={"format": "pt"})
        (fresh / _CONFIG).write_text(policy.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        policy.tokenizer.backend_tokenizer.save(str(fresh / tokenizer.FILE_NAME))
        (fresh / statistics.FILE_NAME).write_text(policy.statistics.to_json(), encoding="utf-8")
        (fresh / _CARD).write_text(_model_card(policy, state), encoding="utf-8")
    return folder


def _load_weights(model: PrismaticVLA, path: Path) -> None:
    """Fill the model from a safetensors file that must hold exactly its tensors."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing.", hint="The folder holds no weights; copy it again.")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is corrupt or cut short: {error}.", hint="Copy or download the file again."
        ) from error
    problems = differences(model.state_dict(), state)
    if problems:
        raise CheckpointError(
            f"{path} does not fit its configuration: {'; '.join(problems[:5])} ({len(problems)} in all).",
            hint="The weights and config.json must come from the same policy.",
        )
    model.load_state_dict(state)


def _model_card(policy: VLAPolicy, state: dict[str, torch.Tensor]) -> str:
    config, count = policy.config, sum(tensor.numel() for tensor in state.values())
    return (
        "---\nlibrary_name: vlacoach\ntags: [robotics, vla, libero]\n---\n\n"
        f"# {policy.name}\n\n"
        f"A vision-language-action policy of {count / 1e6:.1f} M parameters: {config.num_images} image(s) of "
        f"{config.vision.image_size} pixels, chunks of {config.chunk_size} actions in {config.action_dim} dimensions, "
        f"statistics `{policy.statistics.name}`.\n\n"
        "Load it with `vlacoach.load_policy(<this folder>)`.\n"
    )
