"""Other words for an instruction, with the same goal."""

from __future__ import annotations

import re

from vlacoach.envs.perturbations import PerturbedEpisode

_FRAMES: tuple[tuple[str, ...], ...] = (
    ("please {}", "now {}", "{} please", "kindly {}"),
    ("could you please {}", "you should now {}", "please go and {}", "{} for me please"),
    ("i want you to {}", "i need you to {}", "your task is to {}", "robot could you please {}"),
    (
        "when you are ready please go ahead and {}",
        "it would be very helpful if you could {}",
        "the next thing that i need is to {}",
        "{} and let me know as soon as possible",
    ),
    (
        "i have some guests coming over later today so could you please go ahead and {}",
        "we have been working on this for a while and now it is time to {}",
        "{} and when you are done with that you can take a rest until i call",
        "there are quite a few things on the table here but your task is to {}",
    ),
)
"""Frames of severities 1 to 5; each adds the number of words that the table of magnitudes has."""

_SYNONYMS = {
    "pick up": ("grab", "lift", "take"),
    "turn on": ("switch on", "start"),
    "turn off": ("switch off", "shut off"),
    "put": ("place", "set", "lay"),
    "place": ("put", "set", "lay"),
    "open": ("pull open", "slide open"),
    "close": ("shut", "push shut"),
    "push": ("slide", "shove", "move"),
    "stack": ("pile", "put"),
}
_VERBS = re.compile(r"\b(" + "|".join(_SYNONYMS) + r")\b")
_SYNONYMS_FROM = 3
"""Severity from which verbs are replaced too."""


def rephrase(instruction: str, episode: PerturbedEpisode) -> str:
    """The instruction of a perturbed episode.

    Args:
        instruction: The task's own, lower case.
        episode: The episode; without a perturbation of ``language`` the instruction stays as it is.
    """
    severity = episode.along("language").severity
    if not severity:
        return instruction
    generator = episode.generator("language")
    if severity >= _SYNONYMS_FROM:

        def other(match: re.Match[str]) -> str:
            words = _SYNONYMS[match[1]]
            return words[int(generator.integers(len(words)))]

        instruction = _VERBS.sub(other, instruction)
    frames = _FRAMES[severity - 1]
    return frames[int(generator.integers(len(frames)))].format(instruction)
