"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

CONFIGURATION = "Configuration"
DATA = "Data"
OUTPUT = "Output"
POLICY = "The policy"
ENGINE = "Where it runs"


class HeadChoice(str, Enum):
    """How a folder of OpenVLA's decodes actions."""

    AUTO = "auto"
    OPENVLA = "openvla"
    OFT_DISCRETE = "oft-discrete"
    OFT_L1 = "oft-l1"


class EngineChoice(str, Enum):
    """What starts a training."""

    LOCAL = "local"
    RAY = "ray"
    MODAL = "modal"


class Placement(str, Enum):
    """How Ray lays workers out on nodes."""

    PACK = "pack"
    SPREAD = "spread"


class QuantizeChoice(str, Enum):
    """How the language model's linear layers are stored."""

    AUTO = "auto"
    NONE = "none"
    NF4 = "nf4"
    INT8 = "int8"


class Gripper(str, Enum):
    """What the last number of an action means."""

    ENV = "env"
    RLDS = "rlds"


class RenderProfileName(str, Enum):
    """Kinds of pictures."""

    COARSE = "coarse"
    FAST = "fast"
    REFERENCE = "reference"


class PictureKind(str, Enum):
    """How a LeRobot data set keeps pictures."""

    VIDEO = "video"
    IMAGE = "image"


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Runs that the shell may complete to: ``latest``, ids, and folder names."""
    from vlacoach.runs.constants import LATEST_LINK
    from vlacoach.runs.finding import list_runs

    folders = [path.name for path in list_runs(context.params.get("runs_dir") or DEFAULT_RUNS_DIR)]
    known = [LATEST_LINK, *(folder.rpartition("_")[2] for folder in folders), *folders]
    return [name for name in known if name.startswith(incomplete)]


def complete_suite(incomplete: str) -> list[str]:
    """Suites that the shell may complete to."""
    from vlacoach.envs.suites import SUITES

    return [name for name in SUITES if name.startswith(incomplete)]


NotTurned = Annotated[
    bool,
    typer.Option(
        "--not-turned",
        help="The LeRobot data set's pictures are LIBERO's own, upside down; turn them.",
        rich_help_panel=DATA,
    ),
]
GripperSign = Annotated[
    Gripper,
    typer.Option(
        "--gripper",
        help="The LeRobot data set's gripper commands: env (-1 opens, +1 closes) or rlds (1 opens, 0 closes).",
        rich_help_panel=DATA,
    ),
]
RenderedAs = Annotated[
    RenderProfileName,
    typer.Option(
        "--render-profile",
        help="How the LeRobot data set's pictures were rendered, which it cannot say.",
        rich_help_panel=DATA,
    ),
]

Head = Annotated[
    HeadChoice | None,
    typer.Option(
        "--head", help="How a folder of OpenVLA's decodes actions; auto by what lies in it.", rich_help_panel=POLICY
    ),
]
Quantize = Annotated[
    QuantizeChoice | None,
    typer.Option(
        "--quantize",
        help="Store the language model in 4 (nf4) or 8 bits (int8); auto is nf4 for large models on a CUDA device.",
        rich_help_panel=POLICY,
    ),
]
UnnormKey = Annotated[
    str | None,
    typer.Option(
        "--unnorm-key",
        help="Data set whose statistics scale the actions, if there are several.",
        rich_help_panel=POLICY,
    ),
]

Engine = Annotated[
    EngineChoice,
    typer.Option(
        "--engine",
        help="local: this process. ray: workers of a Ray cluster. modal: a GPU rented from modal.com.",
        rich_help_panel=ENGINE,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Ray: processes that train together.", rich_help_panel=ENGINE),
]
GpusPerWorker = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-worker",
        min=0,
        help="Ray: GPUs of each worker; 1 if left out and any node has one.",
        rich_help_panel=ENGINE,
    ),
]
CpusPerWorker = Annotated[
    int | None,
    typer.Option("--cpus-per-worker", min=1, help="Ray: cores set aside for each worker.", rich_help_panel=ENGINE),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        metavar="HOST:PORT",
        help="Ray: head of the cluster, or auto for the one of this machine; left out, one is started here.",
        rich_help_panel=ENGINE,
    ),
]
StoragePlace = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="PATH_OR_URI",
        help="Ray: place that all nodes reach, such as s3://bucket/runs, if they do not share --runs-dir.",
        rich_help_panel=ENGINE,
    ),
]
MaxFailures = Annotated[
    int | None,
    typer.Option("--max-failures", min=0, help="Ray: times that lost workers are replaced.", rich_help_panel=ENGINE),
]
PlacementOption = Annotated[
    Placement | None,
    typer.Option("--placement", help="Ray: workers on few nodes (pack) or many (spread).", rich_help_panel=ENGINE),
]
RentedGpu = Annotated[
    str | None,
    typer.Option("--gpu", help="GPU to rent, such as L4, A10G, or H100; A10G if left out.", rich_help_panel=ENGINE),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Do not ask about the cost; needed where there is no terminal.", rich_help_panel=ENGINE
    ),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings.", rich_help_panel=CONFIGURATION),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set one value, for example --set grpo.clip_high=0.3; may be repeated.",
        rich_help_panel=CONFIGURATION,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random number.", rich_help_panel=CONFIGURATION)]
RunsDir = Annotated[
    Path,
    typer.Option("--runs-dir", envvar="VLACOACH_RUNS_DIR", help="Folder of all runs.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead of tables.", rich_help_panel=OUTPUT),
]
RunReference = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Path, name or id of a run, or 'latest'.", show_default=True, autocompletion=complete_run
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export.", rich_help_panel=OUTPUT)]
Pictures = Annotated[
    PictureKind,
    typer.Option(
        "--pictures",
        help="How a LeRobot data set keeps pictures: video (H.264, small) or image (PNG, exact).",
        rich_help_panel=OUTPUT,
    ),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="Checkpoint of the run: last, best, or its step.")]
DEFAULT_RUNS_DIR = Path("runs")
