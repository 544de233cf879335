"""The command as a whole: what it loads, how it ends, what it says."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from vlacoach import __version__, errors
from vlacoach.cli.main import _Group, app
from vlacoach.runs.folder import RunFolder

HEAVY = ("torch", "mujoco", "textual", "transformers", "matplotlib", "scipy", "robosuite", "h5py", "gymnasium", "modal")


@pytest.mark.parametrize(
    "code",
    [
        "import vlacoach",
        "import vlacoach.runs.folder, vlacoach.runs.resolve",
        "from typer.testing import CliRunner; from vlacoach.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0",
    ],
)
def test_light_things_load_nothing_heavy(code):
    code += f"\nimport sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_version(invoke):
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"vlacoach {__version__}\n")


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "vlacoach", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vlacoach {__version__}\n"


def commands(command=None, path=()):
    """Every command that does something, as the words it is called by."""
    inner = getattr(get_command(app) if command is None else command, "commands", None)
    if inner is None:
        return [path]
    return [leaf for name, one in inner.items() for leaf in commands(one, (*path, name))]


def test_help_lists_every_command_under_a_heading(invoke):
    text = invoke("--help").stdout
    assert {path[0] for path in commands()} >= {"train", "eval", "sft", "demos", "runs", "envs", "config", "doctor"}
    rows = [line.strip("│ ").split(" ")[0] for line in text.splitlines()]
    assert {path[0] for path in commands()} <= set(rows)
    assert "─ Commands ─" not in text


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(invoke, path):
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    before, _, examples = result.stdout.partition("For example:")
    assert before.strip()
    assert f"vlacoach {' '.join(path)}" in examples


def test_the_documentation_has_every_command_with_an_example():
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = [" ".join(path) for path in commands() if f"| `vlacoach {' '.join(path)}` | `vlacoach" not in text]
    assert missing == []


def texts():
    """What a reader may copy a command from: the documentation, and every string of the source."""
    root = Path(__file__).parents[2]
    for page in (root / "README.md", root / "CHANGELOG.md", *(root / "docs").glob("*.md")):
        yield page.name, page.read_text(encoding="utf-8").replace("\\\n", " ")
    for module in (root / "vlacoach").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield module.name, node.value
            elif isinstance(node, ast.JoinedStr):
                yield module.name, "".join(str(getattr(part, "value", "X")) for part in node.values)


def unknown_options(text, root):
    """Options that the text gives to a command which does not have them, with as much of the command as there is."""
    found = []
    for words, rest in re.findall(r"\bvlacoach((?: +[a-z][a-z-]*)+)((?: [^\n`;|()]*)?)", text):
        command, path = root, []
        for word in words.split():
            if (inner := getattr(command, "commands", {}).get(word)) is None:
                break
            command, path = inner, [*path, word]
        known = {"--help", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}
        options = re.findall(r"(?<= )--[a-z][a-z-]*", re.split(r"\. | #", rest)[0]) if path else []
        found += [" ".join([*path, option]) for option in options if option not in known]
    return found


def test_no_message_and_no_page_names_an_option_that_does_not_exist():
    root = get_command(app)
    assert unknown_options("Try `vlacoach runs export --adapter F`.", root) == ["runs export --adapter"]
    assert unknown_options("vlacoach runs export adapter --checkpoint best --out F", root) == []
    assert {f"{name}: {option}" for name, text in texts() for option in unknown_options(text, root)} == set()


def complete(words, folder):
    """What the shell is told that the last word may be."""
    environment = {**os.environ, "_VLACOACH_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words),
                   "COMP_CWORD": str(len(words) - 1), "VLACOACH_RUNS_DIR": str(folder)}  # fmt: skip
    command = [sys.executable, "-m", "vlacoach"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_shell_completes_commands_runs_and_suites(tmp_path):
    with RunFolder.create(tmp_path, "first") as folder:
        name = folder.path.name
    assert complete(["vlacoach", "ru"], tmp_path) == ["runs"]
    assert complete(["vlacoach", "runs", "show", ""], tmp_path) == ["latest", name[-4:], name]
    assert complete(["vlacoach", "runs", "diff", "latest", name[:6]], tmp_path) == [name]
    assert complete(["vlacoach", "envs", "ls", "libero_9"], tmp_path) == ["libero_90"]


def test_usage_errors_exit_2(invoke):
    for args in (["nonsense"], ["train", "--nonsense"], ["train", "--updates", "x"], ["-v", "-q", "runs", "ls"]):
        result = invoke(*args)
        assert result.exit_code == 2, args
        assert result.stdout == ""
        assert result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("m", "h"), 2),
        (errors.SimulatorError("m", "h"), 3),
        (errors.CheckpointError("m", "h"), 4),
        (errors.RunError("m", "h"), 5),
        (errors.NonFiniteError("m", "h"), 6),
        (errors.VlacoachError("m", "h"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_and_message_of_each_error(error, code):
    app = typer.Typer(cls=_Group)

    @app.command()
    def fail():
        raise error

    @app.command()
    def other():
        pass

    result = CliRunner().invoke(app, ["fail"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == ("Interrupted.\n" if code == 130 else "Error: m\nh\n")


def test_message_with_brackets_is_printed_as_it_is():
    app = typer.Typer(cls=_Group)

    @app.command()
    def fail():
        raise errors.ConfigError("[red]x[/red] [0, 1]", "[b]")

    @app.command()
    def other():
        pass

    assert CliRunner().invoke(app, ["fail"]).stderr == "Error: [red]x[/red] [0, 1]\n[b]\n"


def test_unexpected_errors_keep_their_traceback(tmp_path):
    code = (
        "import vlacoach.cli.runs as runs\n"
        "from vlacoach.cli import main\n"
        "@main.app.command()\n"
        f"def boom(): raise OSError({errno.EIO}, 'broken bone')\n"
        "import sys; sys.argv = ['vlacoach', 'boom']; main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken bone" in done.stderr
    assert "Traceback" in done.stderr
