"""Gymnasium ids of the LIBERO suites."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from vlacoach.envs.suite_scan import LazyMapping


def env_id(suite: str) -> str:
    """Gymnasium id of a suite: ``vlacoach/LiberoGoalSwap-v0`` of ``libero_goal_swap``."""
    return f"vlacoach/{''.join(part.capitalize() for part in suite.split('_'))}-v0"


def _ids() -> dict[str, str]:
    from vlacoach.envs.suites import SUITES

    return {suite: env_id(suite) for suite in SUITES}


ENV_IDS: Mapping[str, str] = LazyMapping(_ids)
"""Gymnasium id of each suite."""


def register_envs() -> None:
    """Register every LIBERO suite with Gymnasium; calling it again changes nothing."""
    import gymnasium

    for suite, identifier in ENV_IDS.items():
        if identifier not in gymnasium.registry:
            gymnasium.register(
                identifier,
                entry_point="vlacoach.envs.libero:LiberoEnv",
                vector_entry_point="vlacoach.envs.vector:LiberoVectorEnv",
                kwargs={"suite": suite},
            )


def register_envs_when_needed() -> None:
    """Register every LIBERO suite now if Gymnasium is loaded, else as soon as it is.

    Gymnasium takes longer to import than all that the command line needs to show its help or to complete a word, and
    nobody can ask for an id before it is imported.
    """
    if "gymnasium" in sys.modules:
        register_envs()
    elif not any(isinstance(finder, _GymnasiumFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _GymnasiumFinder())


class _GymnasiumFinder(MetaPathFinder):
    """Finds Gymnasium where it is, once, and has the suites registered after it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # As others see the module from now on.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        register_envs()
