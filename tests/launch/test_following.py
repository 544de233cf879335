"""Following a training that runs elsewhere, with calls that end in every way."""

from __future__ import annotations

import json

import modal
import pytest

from vlacoach.errors import CheckpointError, LaunchError, RunError
from vlacoach.launch import following
from vlacoach.launch import modal as launch
from vlacoach.launch.following import follow, record_of, ways_to_go_on

RECORD = {"app": "ap-1", "call": "fc-1"}
OUTCOME = {"status": 0, "output": "x"}


class Call:
    """Gives the answers of a list, one a look; those that are errors are raised."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def get(self, timeout=None):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Mirror:
    """Notes what was asked of it; has a copy from the look of a number on."""

    def __init__(self, folder, appears=0, errors=()):
        self.path = None
        self.looks = []
        self._folder = folder
        self._appears = appears
        self._errors = dict(errors)

    def sync(self, last=False):
        self.looks.append(last)
        if len(self.looks) in self._errors:
            raise self._errors[len(self.looks)]
        if len(self.looks) > self._appears:
            self.path = self._folder
        return 0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)


def test_the_copy_is_made_until_the_end_and_then_with_checkpoints(tmp_path):
    mirror, said = Mirror(tmp_path), []
    assert follow(Call(TimeoutError(), TimeoutError(), OUTCOME), mirror, said.append, RECORD) == OUTCOME
    assert mirror.looks == [False, False, False, True]
    assert [line for line in said if "vlacoach watch" in line] == said
    assert len(said) == 1


@pytest.mark.parametrize("appears", [0, 1, 2])
def test_the_record_is_left_in_the_copy_whenever_it_appears(tmp_path, appears):
    assert record_of(tmp_path) is None
    said = []
    follow(Call(TimeoutError(), OUTCOME), Mirror(tmp_path, appears), said.append, RECORD)
    assert json.loads((tmp_path / "modal.json").read_text()) == RECORD
    assert record_of(tmp_path) == RECORD
    assert len(said) == 1


def test_a_network_that_fails_for_a_while_ends_nothing(tmp_path):
    outage = modal.exception.ConnectionError("no route")
    mirror, said = Mirror(tmp_path, errors={1: outage}), []
    assert follow(Call(outage, TimeoutError(), OUTCOME), mirror, said.append, RECORD) == OUTCOME
    assert said[:2] == [
        "The run folder was not copied, and will be: no route",
        "Modal does not answer, and is asked again: no route",
    ]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (modal.exception.FunctionTimeoutError("24 h"), LaunchError, "gave the training up: FunctionTimeoutError: 24 h"),
        (modal.exception.RemoteError("killed"), LaunchError, "gave the training up: RemoteError: killed"),
        (CheckpointError("No such policy."), CheckpointError, "No such policy."),
    ],
)
def test_a_training_that_was_given_up_is_copied_and_said(tmp_path, error, kind, message):
    mirror = Mirror(tmp_path)
    with pytest.raises(kind, match=message):
        follow(Call(error), mirror, [].append, RECORD)
    assert mirror.looks == [False, True]


def test_a_disk_that_is_full_is_an_error_here_and_the_training_goes_on(tmp_path):
    said = []
    mirror = Mirror(tmp_path, errors={2: RunError("The disk is full.")})
    with pytest.raises(RunError), ways_to_go_on(mirror, "ap-1", said.append):
        follow(Call(TimeoutError(), OUTCOME), mirror, said.append, RECORD)
    assert said[1].startswith("The training goes on at Modal, as app ap-1.")
    assert said[-1] == "Stop it: modal app stop ap-1"


def test_who_leaves_before_there_is_a_run_is_told_of_the_log_alone(tmp_path):
    said = []
    with pytest.raises(KeyboardInterrupt), ways_to_go_on(Mirror(tmp_path), "ap-1", said.append):
        raise KeyboardInterrupt
    assert len(said) == 2
    assert "modal app logs ap-1" in said[0]
    assert not any("--resume" in line for line in said)


@pytest.mark.parametrize(
    ("answer", "running"),
    [
        (TimeoutError(), True),
        (OUTCOME, False),
        (LaunchError("status -9"), False),
        (modal.exception.OutputExpiredError("a week ago"), False),
        (modal.exception.NotFoundError("no such call"), False),
    ],
)
def test_a_call_runs_as_long_as_it_has_no_result(monkeypatch, answer, running):
    call = Call(answer)
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda name: call)
    assert (launch.running_call(RECORD) is call) is running


def test_a_run_is_not_taken_for_ended_because_modal_does_not_answer(monkeypatch):
    call = Call(modal.exception.ConnectionError("no route"))
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda name: call)
    with pytest.raises(LaunchError, match="cannot be told: no route"):
        launch.running_call(RECORD)
