"""Progress: a redrawn display in a terminal, timed lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vlacoach.cli.progress import (
    LineReporter,
    LiveReporter,
    format_metrics,
    format_seconds,
    format_value,
    reporting,
)
from vlacoach.runs import constants as names
from vlacoach.runs.reporting import NullReporter, Reporter


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def lines(console):
    return console.file.getvalue().splitlines()


def test_lines_come_every_few_seconds_only(console, clock):
    reporter = LineReporter(console, clock)
    reporter.stage("rollout", total=100)
    for _ in range(20):
        clock.now += 1
        reporter.advance(2, success=0.5)
    assert lines(console) == [f"rollout {done}/100  success 0.5" for done in (10, 20, 30, 40)]


def test_updates_and_messages_are_always_printed_with_time_left(console, clock):
    reporter = LineReporter(console, clock)
    reporter.update({}, done=0, total=4)
    clock.now += 30
    reporter.update({names.ROLLOUT_SUCCESS: 0.437512, names.TRAIN_KL: 0.01}, done=1, total=4)
    clock.now += 30
    reporter.update({names.ROLLOUT_SUCCESS: 0.5}, done=4, total=4)
    reporter.message("saved [3]", "warning")
    assert lines(console) == [
        "update 0/4",
        "update 1/4  1:30 left  success 0.4375  KL 0.01",
        "update 4/4  success 0.5",
        "saved [3]",
    ]


def test_time_left_of_a_resumed_run_counts_only_its_own_updates(console, clock):
    reporter = LineReporter(console, clock)
    clock.now += 10
    reporter.update({}, done=31, total=40)
    assert lines(console) == ["update 31/40  1:30 left"]


def test_live_display_shows_run_stage_and_metrics():
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    with LiveReporter(console) as reporter:
        reporter.advance()
        reporter.stage("rollout", total=10)
        reporter.advance(4, success=0.25)
        reporter.update({names.TRAIN_ENTROPY: 1.5}, done=2, total=8)
        reporter.message("hello")
        with console.capture() as capture:
            console.print(reporter._draw())
    drawn = capture.get()
    for part in ("update 2/8", "entropy 1.5", "rollout", "4/10", "success 0.25"):
        assert part in drawn
    assert "working" not in drawn
    assert "hello" in console.file.getvalue()


@pytest.mark.parametrize(
    ("options", "quiet", "kind"),
    [
        ({}, False, LineReporter),
        ({"force_terminal": True}, False, LiveReporter),
        ({"force_terminal": True, "_environ": {"TERM": "dumb"}}, False, LineReporter),
        ({"force_terminal": True}, True, NullReporter),
    ],
)
def test_the_reporter_suits_the_console(options, quiet, kind):
    console = Console(file=io.StringIO(), **{"_environ": {"TERM": "xterm"}, **options})
    with reporting(console, quiet) as reporter:
        assert type(reporter) is kind
        assert isinstance(reporter, Reporter)
        reporter.stage("a", 3)
        reporter.advance(1, x="y")
        reporter.update({"a": 1.0}, 1, 2)
        reporter.message("m")
    assert ("m" in console.file.getvalue()) != quiet


def test_formats():
    assert format_value(0.000123456) == "0.0001235"
    assert format_value(float("nan")) == "nan"
    assert format_value(True) == "True"
    assert format_seconds(42.4) == "0:42"
    assert format_seconds(3803) == "1:03:23"
    assert format_metrics({"loss_of_mine": 0.5}) == "loss_of_mine 0.5"
