"""The page about a run: what is on it, that it is whole, and that nothing from the run's files gets out of its text."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import pytest

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs import report_html
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.report_html import report_page, write_report
from vlacoach.runs.results import EvaluationResult, TaskResult, TrainResult, compare, write_results

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://evil.example/x>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page says, and what it asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.cells, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def evaluation(success, name):
    task = TaskResult(3, name, tuple(range(30, 34)), tuple(success), (80,) * 4)
    return EvaluationResult("libero_goal", "held-out", "tiny", 1.0, (0,), (task,), 1.5)


@pytest.fixture
def run(tmp_path):
    origins = {"seed": "--seed"}
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig(seed=3), origins, argv=["train", EVIL]) as folder:
        folder.log_metrics(0, {"eval/success": 0.25, "eval/successes": 1, "eval/episodes": 4})
        for step in (1, 2):
            folder.log_metrics(
                step, {names.ROLLOUT_SUCCESS: 0.5, names.TRAIN_KL: 0.1, "time/rollout": 2.0, "time/total": 3.0}
            )
            folder.log_episode(step, task=3, success=step == 2, valid=True)
        folder.alert("warning", EVIL, "advice")
        (folder.path / names.VIDEOS_FOLDER).mkdir()
        (folder.path / names.VIDEOS_FOLDER / "after_a&b.gif").write_bytes(b"GIF89a")
        (folder.path / names.VIDEOS_FOLDER / "before.mp4").write_bytes(b"mp4")
    return folder


def finish(run, name="open it"):
    comparison = compare(evaluation([False] * 3 + [True], name), evaluation([True] * 3 + [False], name))
    write_results(TrainResult(run.path, 2, 9.0, {"held-out": comparison}, {}), run.path / names.RESULTS_FILE)


def test_the_page_has_every_section(run, tmp_path):
    finish(run)
    page = Page(report_page(run, tmp_path))
    assert page.open == []
    for heading in ("State", "Alerts", "Before and after", "Success", "Health", "Time by stage", "Tasks", "Settings"):
        assert heading in page.text
    assert f"first {run.info()['id']}" in page.text
    row = page.cells.index("3  open it")
    assert page.cells[row + 1 : row + 5] == ["4", "25.0 [5, 70]", "75.0 [30, 95]", page.cells[row + 4]]
    assert page.cells[row + 4].startswith("+50.0 [")
    row = page.cells.index("3  open it", row + 1)
    assert page.cells[row + 1 : row + 5] == [
        "0.0 [0, 79] of 1", "100.0 [21, 100] of 1", "25.0 [5, 70] of 4", "75.0 [30, 95] of 4"
    ]  # fmt: skip
    row = page.cells.index("seed", row)
    assert page.cells[row : row + 3] == ["seed", "3", "--seed"]


def test_the_page_needs_no_other_file_and_no_network(run, tmp_path):
    finish(run)
    page = Page(report_page(run, tmp_path))
    assert len(page.addresses) == 5  # Three figures, two videos.
    assert all(address.startswith("data:") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    videos = [address for address in page.addresses if not address.startswith("data:image/svg")]
    assert [base64.b64decode(address.partition(",")[2]) for address in videos] == [b"GIF89a", b"mp4"]
    assert [address.partition(";")[0] for address in videos] == ["data:image/gif", "data:video/mp4"]


def test_nothing_from_the_files_becomes_markup(run, tmp_path):
    finish(run, EVIL)
    (run.path / names.CONFIG_FILE).write_text(f"name: {json.dumps(EVIL)}\n")
    run.update_info(name=EVIL, origins={"name": EVIL}, versions={EVIL: EVIL}, error=EVIL, host=EVIL)
    text = report_page(run, tmp_path)
    page = Page(text)
    assert "<script" not in text
    assert "evil.example/x>" not in text
    assert page.text.count(EVIL) >= 8
    assert page.open == []


def test_large_videos_are_linked_relative_to_the_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report_html, "EMBEDDED_MEGABYTES", 8e-6)
    page = Page(report_page(run, tmp_path / "elsewhere"))
    links = [address for address in page.addresses if not address.startswith("data:")]
    assert links == [f"../runs/{run.path.name}/videos/after_a%26b.gif", f"../runs/{run.path.name}/videos/before.mp4"]
    assert "linked" in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    with RunFolder.create(tmp_path / "runs", "bare") as folder:
        page = Page(report_page(folder, tmp_path))
    assert "There are no metrics yet." in page.text
    assert "created" in page.cells
    assert "Settings" not in page.text


def test_before_the_end_the_baseline_is_what_is_known_of_held_out_states(run, tmp_path):
    text = json.dumps({"held-out": evaluation([True] * 4, "open it").to_json()})
    (run.path / names.BASELINE_FILE).write_text(text)
    page = Page(report_page(run, tmp_path))
    row = page.cells.index("3  open it")
    assert page.cells[row + 3 : row + 5] == ["100.0 [51, 100] of 4", "-"]
    (run.path / names.BASELINE_FILE).write_text('{"held-out": {}}')
    with pytest.raises(RunError, match=r"baseline\.json"):
        report_page(run, tmp_path)


def test_the_page_of_a_finished_run_is_always_the_same(run, tmp_path):
    run.set_status(names.STATUS_FINISHED)
    assert report_page(run, tmp_path) == report_page(run, tmp_path)


def test_the_file_is_written_whole_or_not_at_all(run, tmp_path):
    assert write_report(run, tmp_path / "report.html").read_text().endswith("</html>\n")
    with pytest.raises(RunError, match="Cannot write"):
        write_report(run, tmp_path / "none" / "report.html")
