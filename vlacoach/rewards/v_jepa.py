"""V-JEPA: whole episodes, embedded by a video encoder of its own (arXiv 2404.08471, arXiv 2506.09985).

This is what SRPO scores with. An episode's pictures are sampled to the number that the encoder was trained on, and
its tokens are averaged. Any V-JEPA that transformers reads will do, from a folder or from the Hub; a small one,
trained on LIBERO by :mod:`vlacoach.rewards.v_jepa_training`, comes with the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from vlacoach.errors import CheckpointError, ConfigError, UnknownNameError, VlacoachError
from vlacoach.rewards.scorers import HasFeatures, Scorer, finite_embedding
from vlacoach.rewards.siglip import kept_frames
from vlacoach.rewards.trajectory import Trajectory

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's channels, of values in 0..1; what every published V-JEPA was trained with."""

IMAGE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's channels."""

DType: TypeAlias = Literal["auto", "fp32", "fp16", "bf16"]
"""Number format of the encoder; ``"auto"`` is bfloat16 on a GPU and float32 on a CPU."""

BUILT_IN = Path(__file__).parent / "assets" / "v-jepa-tiny"
"""The encoder that comes with the package."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What the Hub accepts: an organization and a name. Anything else is meant to be a folder.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ENCODER = "encoder."


def make_v_jepa(
    policy: HasFeatures | None = None,
    *,
    path: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    rule: Mapping[str, Any] | None = None,
) -> Scorer:
    """Build the V-JEPA scorer; see :class:`VJepaScorer`.

    Args:
        policy: Not used: the encoder is V-JEPA's own.
        path: A folder or a name on the Hub; None for the encoder that comes with the package.
        device: Where the encoder computes.
        dtype: Number format of the encoder.
        rule: Constants of the self-referential rule.
    """
    return VJepaScorer(path=path, device=device, dtype=dtype, rule=rule)


class VJepaScorer(Scorer):
    """Mean of the tokens of a frozen V-JEPA encoder that has seen the episode from first to last picture.

    The encoder is loaded at once, so that a wrong path stops a run before its first rollout and not after.

    Args:
        path: A folder that transformers' ``VJEPA2Model`` can be loaded from, or its name on the Hub, such as
            ``facebook/vjepa2-vitg-fpc64-384``; None for the small one that comes with the package.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, or ``"cuda:<number>"``.
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``, or ``"auto"``: bfloat16 on a GPU, float32 on a CPU.
        rule: See :class:`Scorer`.

    Raises:
        ConfigError: If the device does not exist.
        UnknownNameError: If the number format does not exist.
        CheckpointError: If the model is missing, corrupt, or no V-JEPA.
    """

    name = "v-jepa"

    def __init__(
        self,
        path: str | None = None,
        device: str = "auto",
        dtype: DType = "auto",
        rule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(rule)
        self.path = None if path is None else str(path)
        self.device = device
        self.dtype = dtype
        self.model = load_v_jepa(self.path, device, dtype)

    @property
    def needs_frames(self) -> bool:
        """Yes: the encoder looks at the pictures themselves."""
        return True

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Embed a trajectory; (D,) float32, of any length.

        Raises:
            VlacoachError: If the trajectory kept no frames, or they are no pictures.
            NonFiniteError: If the embedding is not finite; names the rollout slot.
        """
        frames, config = kept_frames(trajectory), self.model.config
        rows = torch.from_numpy(sample_frames(len(frames), config.frames_per_clip))
        pixels = preprocess_frames(frames.cpu()[rows], config.crop_size)
        with torch.inference_mode():
            encoded = self.model(pixel_values_videos=pixels[None].to(self.model.device), skip_predictor=True)
            embedding = encoded.last_hidden_state[0].float().mean(dim=0).cpu()
        return finite_embedding(embedding, trajectory)

    def parameters(self) -> list[Tensor]:
        """The encoder's weights."""
        return list(self.model.encoder.parameters())

    def config(self) -> dict[str, Any]:
        """Options; see :meth:`Scorer.config`."""
        return {**super().config(), "path": self.path, "device": self.device, "dtype": self.dtype}


def sample_frames(count: int, frames: int = 64) -> npt.NDArray[np.int64]:
    """Choose pictures of an episode, evenly from the first to the last: ``floor(linspace(0, count - 1, frames))``.

    A short episode repeats each of its pictures some times, in order, as if it were played more slowly. SRPO's public
    implementation takes picture ``i mod count`` there instead. Such a video starts over and over, and the encoder
    sees the robot jump back to the start; we do not follow it in that. From ``frames`` pictures on, both agree.

    Args:
        count: Pictures there are.
        frames: Pictures to choose.

    Returns:
        (frames,) int64, never falling, 0 to ``count - 1``.

    Raises:
        VlacoachError: If there is no picture, or none is wanted.
    """
    if count < 1 or frames < 1:
        raise VlacoachError(f"Cannot choose {frames} of {count} frames.", "An episode has at least one frame.")
    return np.floor(np.linspace(0, count - 1, frames)).astype(np.int64)


def preprocess_frames(frames: Tensor, crop_size: int) -> Tensor:
    """Bring pictures to the form that V-JEPA is evaluated with.

    The short side becomes ``int(256 / 224 * crop_size)`` pixels, by bilinear resampling (with antialiasing, which
    matters only where pictures shrink) and rounding to whole levels; the middle is cut out and normalized. So
    about an eighth of the picture at its margins is not seen.

    Args:
        frames: (T, H, W, 3) uint8.
        crop_size: Side S of the result, pixels.

    Returns:
        (T, 3, S, S) float32: ``(value / 255 - mean) / std``.

    Raises:
        VlacoachError: If the frames are no such pictures.
    """
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise VlacoachError(f"Frames must be (T, height, width, 3) uint8, not {tuple(frames.shape)} {frames.dtype}.")
    levels = frames.permute(0, 3, 1, 2).float()
    # In whole numbers: 256 / 224 * 448 must not become 511.99.
    short = crop_size * 256 // 224
    height, width = levels.shape[-2:]
    scaled = (height * short // min(height, width), width * short // min(height, width))
    if scaled != (height, width):
        levels = functional.interpolate(levels, scaled, mode="bilinear", antialias=True, align_corners=False)
        levels = levels.round().clamp(0, 255)
    top, left = (round((side - crop_size) / 2) for side in scaled)
    return normalize_levels(levels[..., top : top + crop_size, left : left + crop_size])


def normalize_levels(levels: Tensor) -> Tensor:
    """Normalize channel values 0 to 255, (..., 3, H, W), by ImageNet's statistics; same shape, float32."""
    mean = torch.tensor(IMAGE_MEAN, device=levels.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=levels.device)[:, None, None]
    return (levels.float() / 255.0 - mean) / std


def load_v_jepa(path: str | None = None, device: str = "auto", dtype: DType = "auto") -> Any:
    """Load a V-JEPA's encoder; its predictor, which no embedding needs, is left out.

    Weights are read from safetensors only, never from pickles.

    Args:
        path: See :class:`VJepaScorer`; so are the rest.
        device: Where to put it.
        dtype: Number format.

    Returns:
        A ``VJEPA2Model`` in evaluation mode, frozen, whose predictor has no layers.

    Raises:
        ConfigError: If the device does not exist.
        UnknownNameError: If the number format does not exist.
        CheckpointError: If the model is missing, corrupt, or no V-JEPA.
    """
    place = _device(device)
    number_format = _dtype(dtype, place)
    source, local = _source(path)
    config = _read_config(source, local)
    # Drawing weights for what the file lacks must not move the random numbers of a run.
    with _quiet(progress=not local), torch.random.fork_rng(devices=[]):
        try:
            model, report = VJEPA2Model.from_pretrained(
                source,
                config=config,
                dtype=number_format,
                use_safetensors=True,
                local_files_only=local,
                output_loading_info=True,
            )
        except Exception as error:  # transformers, safetensors, and the Hub's client have errors of their own each.
            raise CheckpointError(
                f"The weights of the V-JEPA in {source} cannot be read: {_first_line(error)}",
                "model.safetensors must be whole and belong to config.json; copy or download both again.",
            ) from error
    missing = sorted(key for key in report["missing_keys"] if key.startswith(_ENCODER))
    if missing:
        raise CheckpointError(
            f"The weights in {source} lack {len(missing)} tensors of V-JEPA's encoder, such as {missing[0]}.",
            "model.safetensors must hold a VJEPA2Model of transformers; copy or download it again.",
        )
    return model.requires_grad_(False).eval().to(place)


def _source(path: str | None) -> tuple[str, bool]:
    """What to load from, and whether that is a folder."""
    if path is None:
        if not (BUILT_IN / "config.json").is_file():
            raise CheckpointError(
                f"The V-JEPA that comes with the package is missing: there is no {BUILT_IN}.",
                "Install vlacoach again, make it with scripts/make_v_jepa.py, or name another by path=.",
            )
        return str(BUILT_IN), True
    if Path(path).is_dir():
        return path, True
    if not _HUB_ID.fullmatch(path):
        raise CheckpointError(
            f"There is no folder {path} to load a V-JEPA from.",
            "Give a folder with config.json and model.safetensors, or a name on the Hub such as "
            "facebook/vjepa2-vitg-fpc64-384.",
        )
    return path, False


def _read_config(source: str, local: bool) -> Any:
    try:
        with _quiet(progress=not local):
            config = AutoConfig.from_pretrained(source, local_files_only=local)
    except Exception as error:  # As above.
        raise CheckpointError(
            f"The configuration of a V-JEPA cannot be had from {source}: {_first_line(error)}",
            "The folder must hold config.json as transformers writes it."
            if local
            else "This is no folder, so it was looked for on the Hub; check the name and the connection.",
        ) from error
    if not isinstance(config, VJEPA2Config):
        raise CheckpointError(
            f"{source} holds a model of type {config.model_type!r}, not a V-JEPA ('vjepa2').",
            "Give a folder, or a name on the Hub, of transformers' VJEPA2Model.",
        )
    config.pred_num_hidden_layers = 0
    return config


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Device {name!r} of scorer 'v-jepa' cannot be used: {_first_line(error)}", "Try device='auto'."
        ) from error
    return device


def _dtype(name: DType, device: torch.device) -> torch.dtype:
    if name not in get_args(DType):
        raise UnknownNameError("dtype", name, get_args(DType))
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


def _first_line(error: BaseException) -> str:
    # transformers' messages go on for a page.
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Keep transformers from printing: what matters of its report becomes an error here.

    Args:
        progress: Whether progress bars stay; a download may take minutes.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    if bars and not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars and not progress:
            transformers_logging.enable_progress_bar()
