"""How others measure success on LIBERO: step limits, pictures, decoding, episodes.

Figures of different protocols do not compare: on ``libero_goal`` alone they cut an episode off after 300, 320, or 512
steps. A protocol here is data; what vlacoach cannot do as its authors do is part of it.

Sources, each the evaluation code of the project at the time of writing:
    openvla: ``experiments/robot/libero/run_libero_eval.py`` of openvla/openvla.
    openvla-oft: the same file of moojink/openvla-oft.
    lerobot: ``src/lerobot/envs/libero.py`` (step limits, initial states), ``envs/configs.py`` (cameras) and
        ``configs/eval.py`` (seed, episodes) of huggingface/lerobot.
    rlinf: ``examples/embodiment/config`` (step limits, cameras, seed, sampling) and the LIBERO environment of
        RLinf/RLinf.
    simplevla: the rollout worker of PRIME-RL/SimpleVLA-RL, whose values siiRL took over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.runs.indices import format_indices


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate on LIBERO.

    Attributes:
        name: What it is called here.
        source: Project and file that define it.
        max_steps: Step limit of each suite, settling excluded.
        settle_steps: Idle steps after a reset.
        image_size: Side of the rendered pictures in pixels.
        resize: How a picture becomes what the policy reads.
        center_crop: Whether nine tenths of the picture's area are cut out; None leaves it to the policy.
        inputs: What the policy reads.
        decoding: How actions are chosen.
        temperature: Sampling temperature, 0 for greedy; None leaves it to the policy.
        trials: Episodes for each task.
        states: Initial states, in turn.
        seed: Seed of the evaluation; None where none is set.
        not_reproduced: What vlacoach does differently all the same.
    """

    name: str
    source: str
    max_steps: Mapping[str, int]
    settle_steps: int
    image_size: int
    resize: str
    center_crop: bool | None
    inputs: str
    decoding: str
    temperature: float | None
    trials: int
    states: tuple[int, ...]
    seed: int | None
    not_reproduced: tuple[str, ...]

    def step_limit(self, suite: str) -> int:
        """Step limit of a suite; a variant such as ``libero_goal_swap`` has that of the suite it varies.

        Raises:
            ConfigError: The protocol says nothing of the suite.
        """
        bases = [base for base in self.max_steps if suite == base or suite.startswith(f"{base}_")]
        if not bases:
            raise ConfigError(
                f"The protocol {self.name} has no step limit for {suite}.",
                f"It knows {', '.join(self.max_steps)}.",
            )
        return self.max_steps[max(bases, key=len)]

    def settings(self, suite: str) -> dict[str, Any]:
        """What it sets in a configuration, by dotted key; what it leaves to the policy is not there."""
        wanted = {
            "env.max_steps": self.step_limit(suite),
            "env.settle_steps": self.settle_steps,
            "env.image_size": self.image_size,
            # All of them draw and step with LIBERO's own classes.
            "env.render_profile": "reference",
            "env.exact": True,
            "policy.center_crop": self.center_crop,
            "evaluation.trials": self.trials,
            "evaluation.temperature": self.temperature,
            "seed": self.seed,
        }
        return {key: value for key, value in wanted.items() if value is not None}

    def rows(self) -> dict[str, str]:
        """What it says, in words, by heading; the same headings for every protocol."""
        crop = {True: "0.9 of the area", False: "none", None: "the policy's own"}[self.center_crop]
        limits = {f"steps, {suite}": str(limit) for suite, limit in self.max_steps.items()}
        return {
            **limits,
            "settle steps": str(self.settle_steps),
            "camera": f"{self.image_size} px",
            "resize": self.resize,
            "center crop": crop,
            "inputs": self.inputs,
            "decoding": self.decoding,
            "trials a task": str(self.trials),
            "initial states": format_indices(self.states),
            "seed": "none" if self.seed is None else str(self.seed),
        }

    def to_json(self) -> dict[str, Any]:
        """Its rows, its source, and what is not reproduced."""
        return {"source": self.source, **self.rows(), "not_reproduced": list(self.not_reproduced)}


_ALL_STATES = tuple(range(50))
_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
_OPENVLA_STEPS = dict(zip(_SUITES, (220, 280, 300, 520, 400), strict=True))
_OPENVLA_RESIZE = "JPEG round trip, Lanczos to 224"
_NUMBERS = "The numbers drawn are vlacoach's own, each episode's apart: a seed names other episodes than theirs."
_GLOBAL_SEED = (
    "env.seed(0) seeds NumPy for the whole process there, and moves objects that an initial state leaves open; "
    "vlacoach has no such seed."
)
_OWN_RESIZE = (
    "JPEG, Lanczos and crop apply to policies in OpenVLA's form; another policy prepares pictures its own way."
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "openvla",
            "openvla/openvla, experiments/robot/libero/run_libero_eval.py",
            max_steps=_OPENVLA_STEPS,
            settle_steps=10,
            image_size=256,
            resize=_OPENVLA_RESIZE,
            center_crop=True,
            inputs="1 image",
            decoding="greedy",
            temperature=0.0,
            trials=50,
            states=_ALL_STATES,
            seed=7,
            not_reproduced=(
                "It looks before every action; here a policy looks once a chunk, which is 1 for the head openvla.",
                _OWN_RESIZE,
                _GLOBAL_SEED,
            ),
        ),
        Protocol(
            "openvla-oft",
            "moojink/openvla-oft, experiments/robot/libero/run_libero_eval.py",
            max_steps=_OPENVLA_STEPS,
            settle_steps=10,
            image_size=256,
            resize=_OPENVLA_RESIZE,
            center_crop=True,
            inputs="2 images + proprioception",
            decoding="regression head, deterministic",
            temperature=0.0,
            trials=50,
            states=_ALL_STATES,
            seed=7,
            not_reproduced=(
                "Two images, proprioception and regression belong to the policy (head oft-l1); no protocol adds them.",
                _OWN_RESIZE,
                _GLOBAL_SEED,
            ),
        ),
        Protocol(
            "lerobot",
            "huggingface/lerobot, src/lerobot/envs/libero.py",
            max_steps=dict(zip(_SUITES, (280, 280, 300, 520, 400), strict=True)),
            settle_steps=10,
            image_size=360,
            resize="the policy's own",
            center_crop=None,
            inputs="2 images + state",
            decoding="the policy's own",
            temperature=None,
            trials=10,
            states=tuple(range(10)),
            seed=1000,
            not_reproduced=(
                "Its configuration renders 360 px, its class 256 px; this is the configuration's.",
                "Its policies do not load here; evaluation.temperature decides how a policy of vlacoach decodes.",
                _NUMBERS,
            ),
        ),
        Protocol(
            "rlinf",
            "RLinf/RLinf, examples/embodiment/config",
            max_steps=dict(zip(_SUITES, (240, 280, 320, 520, 512), strict=True)),
            settle_steps=15,
            image_size=256,
            resize="the model's processor",
            center_crop=None,
            inputs="1 or 2 images",
            decoding="sampled, T = 1.6",
            temperature=1.6,
            trials=50,
            states=_ALL_STATES,
            seed=0,
            not_reproduced=(
                "Step limits differ between its configuration files; an earlier one of libero_goal has 512.",
                "Pictures go through the model's processor; a policy in OpenVLA's form keeps its JPEG round trip here.",
                _NUMBERS,
            ),
        ),
        Protocol(
            "simplevla",
            "PRIME-RL/SimpleVLA-RL, rollout worker; siiRL",
            max_steps=dict.fromkeys(_SUITES, 512),
            settle_steps=10,
            image_size=256,
            resize=_OPENVLA_RESIZE,
            center_crop=True,
            inputs="1 image",
            decoding="greedy",
            temperature=0.0,
            trials=50,
            states=_ALL_STATES,
            seed=None,
            not_reproduced=(
                "It counts 64 chunks of 8 actions; here 512 single actions are counted, whatever the chunk size.",
                "It trains on the states it evaluates on; --split held-out keeps them apart.",
                _OWN_RESIZE,
            ),
        ),
    )
}
"""Protocols by name."""


def get_protocol(name: str) -> Protocol:
    """Look a protocol up.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def differences(name: str) -> dict[str, dict[str, str]]:
    """Where others differ from a protocol: heading to the others' values, by name."""
    own = get_protocol(name).rows()
    others = {other: protocol.rows() for other, protocol in PROTOCOLS.items() if other != name}
    found = {
        heading: {other: rows[heading] for other, rows in others.items() if rows[heading] != value}
        for heading, value in own.items()
    }
    return {heading: values for heading, values in found.items() if values}
