"""Sizes of policies: which there are, and the bytes of their weights by part; no weight is read or made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from accelerate import init_empty_weights
from pydantic import ValidationError

from vlacoach.agents.plan_activations import HALF, SINGLE, Numerics, linear_shapes
from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.policies.configuration import DinoConfig, Head, LanguageConfig, VisionConfig, VLAConfig
from vlacoach.policies.hub import Snapshot
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.openvla import CAMERA_SIZE, LIBERO_PROPRIO, OFT_CHUNK_SIZE, OpenVLAOptions
from vlacoach.policies.quantization import AUTO_BYTES, Quantization, language_linear_layers
from vlacoach.policies.source import BUILT_IN, find_source

TOWERS, PROJECTOR, EMBEDDING = "vision towers", "projector and small networks", "embedding"
OUTPUT, LINEAR, NORMS = "output layer", "language model's linear layers", "norms"
"""Parts of a policy."""

_PREFIXES = {
    "vision_tower.": TOWERS,
    "language_model.model.embed_tokens.": EMBEDDING,
    "language_model.lm_head.": OUTPUT,
    "language_model.": NORMS,
}
_NF4_BLOCK, _NF4_GROUP = 64, 256  # Weights that share a scale, and scales that share one of theirs.
_NF4_TABLES = 4 * (16 + 256) + 4  # A layer's two code books and the scales' offset.


KNOWN: dict[str, Head] = {"openvla-7b": "openvla", "openvla-oft-7b": "oft-discrete"}
"""Published policies whose sizes are known without their files, and how they decode actions."""


def _published(head: Head, options: OpenVLAOptions) -> VLAConfig:
    parallel = head != "openvla"
    return VLAConfig(
        vision=VisionConfig(
            image_size=224, patch_size=14, hidden_size=1152, num_layers=27, num_heads=16, mlp_size=4304
        ),
        dino=DinoConfig(hidden_size=1024, num_layers=24, num_heads=16),
        language=LanguageConfig(vocab_size=32064, hidden_size=4096, num_layers=32, num_heads=32, mlp_size=11008),
        head=head,
        num_images=options.num_images or 1,
        chunk_size=OFT_CHUNK_SIZE if parallel else 1,
        proprio_dim=LIBERO_PROPRIO if options.proprio else None,
        attention="bidirectional" if parallel else "causal",
        projector_size=8704,
        prompt_end_id=29871,
        image_processing="openvla",
        camera_size=CAMERA_SIZE,
    )


def find_config(name: str, revision: str | None = None, options: OpenVLAOptions | None = None) -> VLAConfig:
    """The configuration of a policy, read from its ``config.json`` alone.

    Args:
        name: One of :data:`KNOWN`, a built-in policy, a policy's folder, or the Hub id of one that has been downloaded.
        revision: Of a Hub id.
        options: How a folder of OpenVLA's is to be used; None leaves its L1 head aside, which cannot be trained.

    Raises:
        UnknownNameError: It is none of these; names the nearest.
        CheckpointError: The folder's files cannot be used, or the Hub's policy is not here.
        ConfigError: Options for a policy that is used in one way.
    """
    options = options or OpenVLAOptions(tokens_only=True)
    if name not in KNOWN:
        return find_source(name, revision, fetch=_downloaded, known=(*KNOWN, *BUILT_IN)).config(options)
    if options.head not in ("auto", KNOWN[name]):
        raise ConfigError(f"{name} has head {KNOWN[name]!r}, not {options.head!r}.", f"Known are {', '.join(KNOWN)}.")
    try:
        return _published(KNOWN[name], options)
    except ValidationError as error:
        raise ConfigError(f"{name} cannot be used in this way: {error}") from error


def _downloaded(name: str, revision: str | None) -> Snapshot:
    """A Hub policy in the cache: a plan is no reason to fetch fifteen gigabytes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"The model {name!r} has not been downloaded, so its sizes are not known.",
            f"Plan with the sizes of {', '.join(KNOWN)}, which fine-tuned OpenVLA models share, or download it first.",
        ) from error
    return Snapshot(folder, folder.name)


def parameters(config: VLAConfig) -> dict[str, int]:
    """Weights by part, counted on a model without storage."""
    return dict(_parameters(config))


@functools.cache
def _parameters(config: VLAConfig) -> dict[str, int]:
    with init_empty_weights(include_buffers=False):
        model = PrismaticVLA(config)
    linear = {f"{name}.weight" for name in language_linear_layers(model)}
    counts = dict.fromkeys((TOWERS, PROJECTOR, EMBEDDING, LINEAR, NORMS, OUTPUT), 0)
    for name, value in model.named_parameters():
        matching = (part for prefix, part in _PREFIXES.items() if name.startswith(prefix))
        counts[LINEAR if name in linear else next(matching, PROJECTOR)] += value.numel()
    return counts


def weight_bytes(config: VLAConfig, numerics: Numerics) -> dict[str, int]:
    """Bytes of the weights by part, as :func:`vlacoach.policies.load_policy` holds them."""
    counts = parameters(config)
    sizes = {part: numerics.weights * count for part, count in counts.items()}
    layers = linear_shapes(config.language).values()
    if numerics.quantization != "none":
        stored = [quantized_bytes(inputs, outputs, numerics.quantization) for inputs, outputs in layers]
        sizes[LINEAR] = config.language.num_layers * sum(stored)
    return sizes


def quantized_bytes(inputs: int, outputs: int, quantization: Quantization) -> int:
    """Bytes of one linear layer that bitsandbytes has quantized.

    ``"nf4"``: half a byte a weight, a byte for each 64 weights, and a float32 for each 256 of those: 4.127 bits a
    weight (Dettmers et al., 2023). ``"int8"``: a byte a weight, and a float32 for each row.
    """
    count = inputs * outputs
    if quantization == "int8":
        return count + SINGLE * outputs
    scales = -(-count // _NF4_BLOCK)
    return -(-count // 2) + scales + SINGLE * -(-scales // _NF4_GROUP) + _NF4_TABLES


def quantization_for(wanted: Quantization | Literal["auto"], config: VLAConfig) -> Quantization:
    """What ``"auto"`` stands for on a CUDA device where bitsandbytes is installed."""
    if wanted != "auto":
        return wanted
    return "nf4" if HALF * parameters(config)[LINEAR] > AUTO_BYTES else "none"
