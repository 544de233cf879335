from __future__ import annotations

import pytest
from typer.testing import CliRunner

from vlacoach.cli.main import app


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run the command line in an empty folder, wide enough that tables do not wrap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run
