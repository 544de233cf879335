"""Nothing that comes from outside is unpickled or run: the source is searched for every way of doing so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import vlacoach
from vlacoach.runs import yaml_io

ROOT = Path(vlacoach.__file__).parent
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE = {"unsafe_load", "full_load", "unsafe_load_all", "full_load_all", "read_pickle", "extractall"}

IMPORTS_ALLOWED = {
    # For the name of an error alone, see the test below; torch.load has weights_only.
    "policies/openvla.py": {"pickle"},
}
LOADS_ALLOWED = {
    # The published heads of OpenVLA-OFT are .pt files.
    ("policies/openvla.py", "torch.load"),
    # With a subclass of SafeLoader, see the test below.
    ("runs/yaml_io.py", "yaml.load"),
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def complaints(name: str, tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            pickles = {module.split(".")[0] for module in modules} & PICKLES - IMPORTS_ALLOWED.get(name, set())
            found += [f"{where} imports {module}" for module in pickles]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("torch.load", "yaml.load", "yaml.load_all") and (name, called) not in LOADS_ALLOWED:
                found.append(f"{where} calls {called}")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{where} calls torch.load without weights_only=True")
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{where} allows pickles")
            if called.rpartition(".")[2] in UNSAFE or called in ("eval", "exec"):
                found.append(f"{where} calls {called}")
            if "trust_remote_code" in keywords:
                found.append(f"{where} may run code of others")
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            found.append(f"{where} may run code of others")
    return found


def test_no_source_file_can_run_what_it_reads():
    files = list(sources())
    assert len(files) > 150
    assert [complaint for name, tree in files for complaint in complaints(name, tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "load(**{'trust_remote_code': True})",
        "eval(text)",
        "archive.extractall(folder)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str):
    assert complaints("somewhere.py", ast.parse(code))


def test_the_exceptions_are_what_they_are_said_to_be():
    openvla = ast.parse((ROOT / "policies/openvla.py").read_text(encoding="utf-8"))
    used = {ast.unparse(node) for node in ast.walk(openvla) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.UnpicklingError"}
    assert issubclass(yaml_io._StrictLoader, yaml.SafeLoader)
    calls = [node for node in ast.walk(ast.parse((ROOT / "runs/yaml_io.py").read_text())) if isinstance(node, ast.Call)]
    assert [ast.unparse(node.args[1]) for node in calls if ast.unparse(node.func) == "yaml.load"] == ["_StrictLoader"]
