"""Policies on disk: folders of config.json, model.safetensors, tokenizer.json and dataset_statistics.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.policies import statistics, tokenizer
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.folders import replaced_folder, shapes
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.openvla import CONFIG, OpenVLAOptions, OpenVLAWeights, unused_parts
from vlacoach.policies.policy import Precision, VLAPolicy
from vlacoach.policies.quantization import Quantization, choose_quantization, quantize_layers
from vlacoach.policies.source import PolicySource, find_source
from vlacoach.policies.weights import SINGLE, WeightFiles, fill, require_fit

_CARD = "README.md"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_policy(
    name_or_folder: str | Path,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    *,
    quantize: str = "none",
    revision: str | None = None,
    unnorm_key: str | None = None,
    options: OpenVLAOptions | None = None,
) -> VLAPolicy:
    """Load a policy; all its parameters are frozen.

    Args:
        name_or_folder: ``"tiny"``; a folder written by :meth:`VLAPolicy.save`; a folder in OpenVLA's published form
            (single file or shards; the repository's own code is never run); a folder of a LoRA adapter, which is
            put onto the base that it names; or a Hub id of one of these, ``organization/model``.
        device: Where to put it.
        precision: See :class:`VLAPolicy`. Weights are held in float32; at precision bf16, on a CUDA device or beside
            quantized ones, in bfloat16.
        quantize: ``"nf4"`` or ``"int8"`` for the language model's linear layers, ``"none"``, or ``"auto"``: NF4 for
            large models on a CUDA device.
        revision: Branch, tag or commit of a Hub id.
        unnorm_key: Data set whose statistics turn tokens into actions, where the policy knows several.
        options: How a folder of OpenVLA's is to be used; None is the default.

    Returns:
        The policy, in evaluation mode.

    Raises:
        UnknownNameError: Neither a built-in policy, nor a folder, nor the form of a Hub id.
        CheckpointError: The folder is incomplete, corrupt, or does not fit its own configuration; the Hub has no such
            model or cannot be reached; it cannot be quantized here; there are no such statistics.
        ConfigError: Options for a folder that says itself how it is to be used.
    """
    wanted = _Wanted(name_or_folder, torch.device(device), quantize, revision, unnorm_key, options)
    with _opened(wanted) as found:
        compact = precision == "bf16" and (found.quantization != "none" or wanted.device.type == "cuda")
        dtype = torch.bfloat16 if compact else torch.float32
        quantize_layers(found.model, found.quantization, dtype)
        fill(found.model, found.files.read, wanted.device, dtype)
    policy = VLAPolicy(found.model, found.words, found.ranges, str(name_or_folder), precision)
    policy.revision, policy.quantization, policy.remark = found.commit, found.quantization, found.remark
    policy.options = found.options
    if found.adapter is not None:
        from vlacoach.policies.lora import load_adapter

        load_adapter(policy, found.adapter, trainable=False)
    return policy


def check_policy(
    name_or_folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    quantize: str = "none",
    revision: str | None = None,
    unnorm_key: str | None = None,
    options: OpenVLAOptions | None = None,
) -> PolicyFacts:
    """Everything that :func:`load_policy` checks before it reads weights: names and shapes come from their headers.

    Returns:
        What the policy is.

    Raises:
        UnknownNameError: See :func:`load_policy`; so are the rest.
    """
    with _opened(_Wanted(name_or_folder, torch.device(device), quantize, revision, unnorm_key, options)) as found:
        facts = found.model.config, found.commit, found.quantization, found.ranges.name, found.options
        return PolicyFacts(*facts, adapter=found.adapter)


@dataclass(frozen=True)
class PolicyFacts:
    """What is known of a policy before its weights are read.

    Attributes:
        config: Its configuration.
        revision: Commit of the Hub repository it comes from, or None.
        quantization: How its language model would be stored.
        statistics: Name of the data set whose statistics scale its actions.
        options: How a folder of OpenVLA's would be used, written out; None for other policies.
        adapter: Folder of the LoRA adapter on it, where an adapter was named; or None.
    """

    config: VLAConfig
    revision: str | None
    quantization: Quantization
    statistics: str
    options: OpenVLAOptions | None
    adapter: Path | None = None


@dataclass(frozen=True)
class _Wanted:
    name: str | Path
    device: torch.device
    quantize: str
    revision: str | None
    unnorm_key: str | None
    options: OpenVLAOptions | None


@dataclass(frozen=True)
class _Found:
    """A policy's parts before its weights are read; the model is on the meta device."""

    model: PrismaticVLA
    words: PreTrainedTokenizerFast
    ranges: statistics.DatasetStatistics
    files: WeightFiles | OpenVLAWeights
    quantization: Quantization
    commit: str | None
    remark: str | None
    options: OpenVLAOptions | None
    adapter: Path | None


@contextmanager
def _opened(wanted: _Wanted) -> Iterator[_Found]:
    """Find a policy, and check all there is to check without reading its weights."""
    source = find_source(wanted.name, wanted.revision)
    config, folder, used = source.config(wanted.options), source.folder, None
    if source.is_openvla:
        used = OpenVLAOptions(config.head, config.num_images, config.proprio_dim is not None, config.center_crop)
    try:
        with init_empty_weights(include_buffers=False):
            model = PrismaticVLA(config)
    except Exception as error:  # transformers raises errors of its own kinds for sizes that do not fit together.
        raise CheckpointError(
            f"No model can be built from {folder / CONFIG}: {error}", hint="Copy or download the folder again."
        ) from error
    chosen = choose_quantization(wanted.quantize, model, wanted.device)
    words = tokenizer.load_tokenizer(folder)
    ranges = statistics.load_statistics(
        folder,
        config.action_dim,
        config.proprio_dim,
        wanted.unnorm_key or source.unnorm_key,
        source.stored.get("norm_stats"),
    )
    with _weights(source, model) as files:
        remark = unused_parts(folder, config) if source.is_openvla else None
        yield _Found(model, words, ranges, files, chosen, source.revision, remark, used, source.adapter)


def _weights(source: PolicySource, model: PrismaticVLA) -> WeightFiles | OpenVLAWeights:
    """The folder's weights, which hold exactly the model's tensors."""
    if source.is_openvla:
        return OpenVLAWeights(source.folder, model.config, model)
    files = WeightFiles(source.folder)
    try:
        require_fit(source.folder, shapes(model.state_dict()), files.shapes())
    except CheckpointError:
        files.close()
        raise
    return files


def save_policy(policy: VLAPolicy, folder: Path, dtype: Precision) -> Path:
    """See :meth:`VLAPolicy.save`."""
    if policy.adapter is not None:
        raise ConfigError(
            f"Policy {policy.name!r} has a LoRA adapter attached.",
            hint="Call save_adapter to store the adapter alone, or merge_lora first to store everything.",
        )
    if policy.quantization != "none":
        raise ConfigError(
            f"Policy {policy.name!r} is quantized ({policy.quantization}); its own weights are no longer there.",
            hint="Load it with quantize='none' to save it, or save the adapter alone.",
        )
    state = {
        key: value.detach().to("cpu", _DTYPES[dtype]).contiguous() for key, value in policy.model.state_dict().items()
    }
    with replaced_folder(folder, "policy") as fresh:
        save_file(state, fresh / SINGLE, metadata={"format": "pt"})
        (fresh / CONFIG).write_text(policy.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        policy.tokenizer.backend_tokenizer.save(str(fresh / tokenizer.FILE_NAME))
        (fresh / statistics.FILE_NAME).write_text(policy.statistics.to_json(), encoding="utf-8")
        (fresh / _CARD).write_text(_model_card(policy, state), encoding="utf-8")
    return folder


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
