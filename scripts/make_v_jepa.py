"""Train the small V-JEPA that comes with the package, from scratch, on episodes.

    python scripts/make_v_jepa.py build/v-jepa/*.hdf5 --steps 4000 --checkpoint-folder build/v-jepa/checkpoints

Files are LIBERO's demonstrations (``*_demo.hdf5``, or folders of them) or rollouts as vlacoach records them, in any
mixture. Started again with the same arguments and ``--resume``, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from vlacoach.data.hdf5 import DemonstrationReader
from vlacoach.data.rollouts import read_rollouts
from vlacoach.errors import ConfigError, VlacoachError
from vlacoach.rewards.v_jepa import BUILT_IN
from vlacoach.rewards.v_jepa_training import save_v_jepa, tiny_config, train_v_jepa


def read_episodes(paths: list[Path], camera: str = "agentview") -> list[NDArray[np.uint8]]:
    """Pictures of every episode, (T, H, W, 3) uint8 each, in the order of the files."""
    episodes: list[NDArray[np.uint8]] = []
    for path in paths:
        if path.is_dir() or is_demonstrations(path):
            found = [one.images[camera] for one in DemonstrationReader(path, [camera])]
        else:
            found = [one.pictures for one in read_rollouts(path)]
        print(f"{path}: {len(found)} episodes, {sum(map(len, found))} frames", flush=True)
        episodes += found
    return episodes


def is_demonstrations(path: Path) -> bool:
    """Whether a file has LIBERO's layout. One that cannot be opened is left to the reader of rollouts to explain."""
    try:
        with h5py.File(path, "r") as content:
            return "data" in content
    except OSError:
        return False


class Progress:
    """Prints a line now and then, with what the steps since the last one averaged."""

    def __init__(self, steps: int, every: int) -> None:
        self.steps = steps
        self.every = every
        self.rows: list[Mapping[str, float]] = []
        self.since = time.perf_counter()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the measurements of one step."""
        self.rows.append(metrics)
        if step % self.every and step != self.steps:
            return
        now = time.perf_counter()
        mean = {key: math.fsum(row[key] for row in self.rows) / len(self.rows) for key in metrics}
        print(
            f"step {step}/{self.steps}  loss {mean['loss']:.4f}  feature std {mean['feature_std']:.3f}  "
            f"clip std {mean['clip_std']:.3f}  gradient {mean['grad_norm']:.2f}  rate {mean['learning_rate']:.1e}  "
            f"{(now - self.since) / len(self.rows):.2f} s/step",
            flush=True,
        )
        self.rows, self.since = [], now


def main() -> None:
    """Read the command line, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", nargs="+", type=Path, help="demonstrations, folders of them, or rollouts")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--momentum", type=float, default=0.998, help="of the following encoder, at the start")
    parser.add_argument("--weight-decay", type=float, default=0.04)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BUILT_IN, help="folder of the encoder; replaced")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights stored")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="more only help on idle cores")
    parser.add_argument("--checkpoint-folder", type=Path)
    parser.add_argument("--checkpoint-every", type=int, default=250)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--print-every", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.resume and arguments.checkpoint_folder is None:
        raise ConfigError("--resume needs --checkpoint-folder.")
    torch.set_num_threads(arguments.threads)
    model = train_v_jepa(
        read_episodes(arguments.files),
        tiny_config(),
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        warmup_steps=arguments.warmup_steps,
        weight_decay=arguments.weight_decay,
        momentum=arguments.momentum,
        bf16=arguments.bf16,
        device=arguments.device,
        report=Progress(arguments.steps, arguments.print_every),
        checkpoint_folder=arguments.checkpoint_folder,
        checkpoint_every=arguments.checkpoint_every,
        resume=arguments.resume,
    )
    folder = save_v_jepa(model, arguments.out, arguments.dtype)
    size = (folder / "model.safetensors").stat().st_size
    count = sum(parameter.numel() for parameter in model.encoder.parameters())
    print(f"{folder}: {count:,} parameters, {size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    try:
        main()
    except VlacoachError as error:
        raise SystemExit(str(error)) from error
