"""OpenVLA's published folders: their configuration and their weights, without their code.

Covers OpenVLA (openvla/openvla) and OpenVLA-OFT (moojink/openvla-oft; discrete as siiRL and SimpleVLA-RL train it, and
the L1 head). A folder does not say how it is to be decoded: :class:`OpenVLAOptions` does, or what lies in the folder.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import nn

from vlacoach.errors import CheckpointError
from vlacoach.policies.action_tokens import NUM_BINS
from vlacoach.policies.configuration import DinoConfig, Head, LanguageConfig, VisionConfig, VLAConfig
from vlacoach.policies.folders import Shape, read_json, shapes
from vlacoach.policies.openvla_keys import published_shapes, sources, take
from vlacoach.policies.weights import WeightFiles, require_fit

MODEL_TYPE = "openvla"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
ACTION_HEAD, PROPRIO_PROJECTOR = "action_head--*_checkpoint.pt", "proprio_projector--*_checkpoint.pt"

OFT_CHUNK_SIZE, LIBERO_PROPRIO, CAMERA_SIZE = 8, 8, 256
"""What OpenVLA-OFT's code sets for LIBERO and no file of a checkpoint says (its ``constants.py``)."""

_EMPTY_WORD = 29871  # "▁", which Llama's tokenizer puts in front of what follows "Out:"
_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
_PROMPT_V01 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What action should the robot take to {instruction}? ASSISTANT:"
)

# timm's names: width, blocks, heads.
_DINO = {"vit_large_patch14_reg4_dinov2.lvd142m": (1024, 24, 16)}
_SIGLIP = {"vit_so400m_patch14_siglip_224": (1152, 27, 16)}
_OFT = re.compile(r"(^|[-_.])oft([-_.]|$)")

_PATCH, _SIGLIP_MLP_RATIO = 14, 3.7362

_Colors = tuple[tuple[float, float, float], tuple[float, float, float]]


class OpenVLASettings(Protocol):
    """What a configuration says of a published folder; see :class:`OpenVLAOptions`."""

    @property
    def head(self) -> str:
        """How actions are decoded."""

    @property
    def num_images(self) -> int | None:
        """Images a look."""

    @property
    def proprio(self) -> bool | None:
        """Whether proprioception is read."""

    @property
    def center_crop(self) -> bool:
        """Whether the policy was trained with random crops."""


@dataclass(frozen=True)
class OpenVLAOptions:
    """How a published folder is to be used, where its files leave it open.

    Attributes:
        head: See :class:`VLAConfig`. ``"auto"``: ``"oft-l1"`` if the folder holds an action head, ``"oft-discrete"`` if
            it holds another file of OpenVLA-OFT's or ``oft`` is in its name, else ``"openvla"``.
        num_images: Images a look; None is 2 for the L1 head, as published, and 1 for the others.
        proprio: Whether proprioception is read; None is where the L1 head comes with its projector.
        center_crop: Whether the policy was trained with random crops, as all published LIBERO policies were.
        tokens_only: ``"auto"`` never is ``"oft-l1"``, which reinforcement learning cannot train.
    """

    head: Head | str = "auto"
    num_images: int | None = None
    proprio: bool | None = None
    center_crop: bool = True
    tokens_only: bool = False

    @classmethod
    def from_settings(cls, settings: OpenVLASettings, tokens_only: bool) -> OpenVLAOptions:
        """The options of a configuration's policy section."""
        return cls(settings.head, settings.num_images, settings.proprio, settings.center_crop, tokens_only)

    def agrees_with(self, config: VLAConfig) -> bool:
        """Whether a policy that says itself how it is used is used as is asked for here."""
        return (
            self.head in ("auto", config.head)
            and self.num_images in (None, config.num_images)
            and self.proprio in (None, config.proprio_dim is not None)
            and (self.center_crop or not config.center_crop)
        )


def choose_head(folder: Path, name: str, wanted: str, tokens_only: bool = False) -> Head:
    """The head that options and folder amount to; see :class:`OpenVLAOptions`.

    Args:
        folder: The policy's folder.
        name: What the user called it; a Hub id says more than its cache folder.
        wanted: ``"auto"`` or a head.
        tokens_only: See :class:`OpenVLAOptions`.

    Raises:
        CheckpointError: There is no such head, or its file is not in the folder.
    """
    if wanted == "auto":
        head = any(folder.glob(ACTION_HEAD))
        if head and not tokens_only:
            return "oft-l1"
        # A word of the model's own name: "oft" also is in "software" and "microsoft".
        named = any(_OFT.search(one.rstrip("/").rpartition("/")[2].lower()) for one in (name, folder.name))
        oft = head or named or any(folder.glob(PROPRIO_PROJECTOR))
        return "oft-discrete" if oft else "openvla"
    if wanted == "oft-l1":
        _only_file(folder, ACTION_HEAD, "L1 action head")
        return "oft-l1"
    if wanted in ("openvla", "oft-discrete"):
        return "openvla" if wanted == "openvla" else "oft-discrete"
    raise CheckpointError(f"There is no head {wanted!r}.", "Available: auto, oft-discrete, oft-l1, openvla.")


def unused_parts(folder: Path, config: VLAConfig) -> str | None:
    """A remark on what a folder holds and a configuration leaves aside, or None."""
    if config.head != "oft-l1" and any(folder.glob(ACTION_HEAD)):
        return (
            f"{folder} holds an L1 action head, which is not used: the policy decodes tokens. If it was fine-tuned for "
            "the L1 head alone, its tokens know little; vlacoach eval --head oft-l1 measures it as it was published."
        )
    return None


def read_config(data: Mapping[str, Any], folder: Path, name: str, options: OpenVLAOptions) -> VLAConfig:
    """The configuration of a published folder.

    Args:
        data: Content of its ``config.json``.
        folder: The policy's folder.
        name: What the user called it.
        options: What the files leave open.

    Raises:
        CheckpointError: A file is missing or malformed, or asks for a part that is not supported.
    """
    head = choose_head(folder, name, options.head, options.tokens_only)
    parallel = head != "openvla"
    proprio = options.proprio
    if proprio is None:
        proprio = head == "oft-l1" and any(folder.glob(PROPRIO_PROJECTOR))
    if proprio:
        _only_file(folder, PROPRIO_PROJECTOR, "proprioception projector")
    try:
        if int(data.get("n_action_bins", NUM_BINS)) != NUM_BINS:
            raise ValueError(f"n_action_bins is {data['n_action_bins']}, not {NUM_BINS}")
        vision, dino, (mean, std) = _towers(data, read_json(folder / PREPROCESSOR))
        language = _language(data["text_config"])
        fused = vision.hidden_size + (dino.hidden_size if dino else 0)
        return VLAConfig(
            vision=vision,
            dino=dino,
            language=language,
            head=head,
            num_images=options.num_images or (2 if head == "oft-l1" else 1),
            chunk_size=OFT_CHUNK_SIZE if parallel else 1,
            proprio_dim=LIBERO_PROPRIO if proprio else None,
            first_action_id=language.vocab_size - int(data["pad_to_multiple_of"]) - NUM_BINS,
            prompt_end_id=_EMPTY_WORD,
            attention="bidirectional" if parallel else "causal",
            projector_size=4 * fused if dino else None,
            prompt=_PROMPT_V01 if "openvla-v01" in name else _PROMPT,
            image_processing="openvla",
            resize_strategy=data.get("image_resize_strategy", "letterbox"),
            center_crop=options.center_crop,
            camera_size=CAMERA_SIZE,
            image_mean=mean,
            image_std=std,
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} cannot be used: {error!r}.", "It is not as OpenVLA's published folders have it."
        ) from error


def require_tokens(config: VLAConfig, name: str) -> None:
    """Refuse a policy whose actions have no probabilities.

    Args:
        config: Its configuration.
        name: What it is called.

    Raises:
        CheckpointError: Its head is ``"oft-l1"``.
    """
    if config.head == "oft-l1":
        raise CheckpointError(
            f"Policy {name!r} has an L1 head: it computes actions and draws no tokens, so they have no probability "
            "that reinforcement learning could raise.",
            "Train its tokens instead: --head oft-discrete. Its success without the L1 head is where that starts; if "
            "it is near zero, fine-tune it on demonstrations first (vlacoach sft).",
        )


class OpenVLAWeights:
    """Reads a model's tensors from a published folder.

    Args:
        folder: The policy's folder.
        config: Its configuration.
        model: On the meta device; for the names and shapes of its tensors.

    Raises:
        CheckpointError: A tensor is missing, surplus or of another shape, or a file is corrupt.
    """

    def __init__(self, folder: Path, config: VLAConfig, model: nn.Module) -> None:
        own = shapes(model.state_dict())
        self._parts: dict[str, torch.Tensor] = {}
        for part, pattern in (("action_head", ACTION_HEAD), ("proprio_projector", PROPRIO_PROJECTOR)):
            expected = {key: shape for key, shape in own.items() if key.startswith(f"{part}.")}
            if expected:
                self._parts |= _read_part(folder, part, pattern, expected)
        self._files = WeightFiles(folder)
        with_source = {key: shape for key, shape in own.items() if key not in self._parts}
        try:
            require_fit(folder, published_shapes(config, with_source), self._files.shapes())
        except CheckpointError:
            self._files.close()
            raise
        self._sources = sources(config, with_source)
        self._own = own

    def __enter__(self) -> OpenVLAWeights:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def read(self, key: str) -> torch.Tensor:
        """A tensor of the model by its own name; zeros for the one that no checkpoint holds."""
        if key in self._parts:
            return self._parts[key]
        if key not in self._sources:
            return torch.zeros(self._own[key])
        origin = self._sources[key]
        if origin.part is not None:
            return self._files.read_third(origin.key, origin.part)
        return take(origin, self._files.read(origin.key))


def _towers(data: Mapping[str, Any], processor: Mapping[str, Any]) -> tuple[VisionConfig, DinoConfig | None, _Colors]:
    """Sizes of the SigLIP and the DINOv2 tower, and mean and standard deviation of the former's channels."""
    names, fused = list(data["timm_model_ids"]), bool(data["use_fused_vision_backbone"])
    if any(data.get("timm_override_act_layers") or ()):
        raise ValueError(f"timm_override_act_layers {data['timm_override_act_layers']} is not supported")
    known = [_DINO, _SIGLIP] if fused else [_SIGLIP]
    if len(names) != len(known) or any(name not in table for name, table in zip(names, known, strict=True)):
        supported = " beside ".join(", ".join(table) for table in known)
        raise ValueError(f"vision towers {names} are not supported; {supported} is")
    sizes = [table[name] for name, table in zip(names, known, strict=True)]
    if "tiny_vision_kwargs" in data:  # Not published: small models of the published form, for tests.
        sizes = [(tower["embed_dim"], tower["depth"], tower["num_heads"]) for tower in data["tiny_vision_kwargs"]]
    # What from_pretrained passes to the published processor, and what therefore wins over its `means` and `stds`.
    colors = [(tuple(entry["mean"]), tuple(entry["std"])) for entry in processor["tvf_normalize_params"]]
    if len(colors) != len(sizes):
        raise ValueError(f"{PREPROCESSOR} normalizes for {len(colors)} towers, not for {len(sizes)}")
    width, depth, heads = sizes[-1]
    vision = VisionConfig(
        image_size=int(data["image_sizes"][-1]),
        patch_size=_PATCH,
        hidden_size=width,
        num_layers=depth,
        num_heads=heads,
        mlp_size=int(width * _SIGLIP_MLP_RATIO),
    )
    if not fused:
        return vision, None, colors[0]
    width, depth, heads = sizes[0]
    dino = DinoConfig(
        hidden_size=width, num_layers=depth, num_heads=heads, image_mean=colors[0][0], image_std=colors[0][1]
    )
    return vision, dino, colors[1]


def _language(text: Mapping[str, Any]) -> LanguageConfig:
    """Sizes of the Llama: only what differs from transformers' defaults is stored, those of Llama-1 7B."""
    if text.get("model_type", "llama") != "llama":
        raise ValueError(f"a language model of type {text['model_type']!r} is not supported")
    if text.get("rope_scaling"):
        raise ValueError("rope_scaling is not supported")
    return LanguageConfig(
        vocab_size=int(text["vocab_size"]),
        hidden_size=int(text.get("hidden_size", 4096)),
        num_layers=int(text.get("num_hidden_layers", 32)),
        num_heads=int(text.get("num_attention_heads", 32)),
        num_key_value_heads=text.get("num_key_value_heads"),
        mlp_size=int(text.get("intermediate_size", 11008)),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(text.get("rope_theta", 10000.0)),
        max_positions=int(text.get("max_position_embeddings", 2048)),
    )


def _only_file(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = f" ({', '.join(path.name for path in found)})" if found else ""
        raise CheckpointError(
            f"{folder} holds {len(found)} files {pattern}{names}; the {what} is exactly one.",
            "Choose another --head (or policy.proprio=false), or move the files of other steps away.",
        )
    return found[0]


def _read_part(folder: Path, part: str, pattern: str, expected: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """Tensors of a part that is stored apart, by their names in the model."""
    path = _only_file(folder, pattern, part.replace("_", " "))
    try:
        # weights_only: the file is a pickle, and must not run code.
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state = {_part_key(part, key): tensor for key, tensor in stored.items()}
        found = shapes(state)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise CheckpointError(f"{path} is corrupt or no state dict: {error}", "Download the file again.") from error
    require_fit(path, expected, found)
    return state


def _part_key(part: str, key: str) -> str:
    # DistributedDataParallel's prefix, and the head's own, whose network is an attribute called `model`.
    return f"{part}.{key.removeprefix('module.').removeprefix('model.')}"
