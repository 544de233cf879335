"""Checkpoints: atomic, pruned, verified; a full disk and a kill lose nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vlacoach.errors import CheckpointError, RunError
from vlacoach.runs.checkpoints import CheckpointStore, checkpoint_step, verify_checkpoint
from vlacoach.runs.state import load_state, load_tree, save_state, save_tree


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def writer(value):
    def write(folder):
        save_state(folder / "training_state", {"x": np.full(1000, value, np.float32)}, {"value": value})

    return write


def steps(store):
    return [int(path.name) for path in store.entries()]


def test_save_points_last_at_the_new_one_and_prunes(store):
    for step in (1, 2, 3):
        store.save(step, writer(step))
    assert steps(store) == [2, 3]
    assert os.readlink(store.folder / "last") == "000003"
    assert checkpoint_step(store.last()) == 3
    tensors, meta = load_state(store.last() / "training_state", "numpy")
    assert meta == {"value": 3}
    np.testing.assert_array_equal(tensors["x"], np.full(1000, 3, np.float32))
    assert not list(store.folder.glob(".*"))


def test_best_is_kept_beside_the_newest(store):
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.4), (4, None), (5, float("nan"))):
        store.save(step, writer(step), score)
    assert steps(store) == [2, 4, 5]
    assert store.best().name == "000002"
    CheckpointStore(store.folder, keep=1).save(6, writer(6), 0.9)
    assert store.best().name == "000006"


def test_same_step_is_replaced(store):
    store.save(1, writer(1))
    store.save(1, writer(9))
    assert load_state(store.last() / "training_state", "numpy")[1] == {"value": 9}


def test_nothing_saved_yet(store):
    assert store.best() is None
    for find in (store.last, store.newest_intact):
        with pytest.raises(CheckpointError, match="no"):
            find()


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data[:-3]) if how == "truncate" else bytes(data))
    if how == "delete":
        file.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", ["training_state/state.safetensors", "training_state/state.json"])
def test_damage_names_the_file_and_offers_the_one_before(store, how, name):
    store.save(1, writer(1))
    store.save(2, writer(2))
    damage(store.folder / "000002" / name, how)
    with pytest.raises(CheckpointError) as caught:
        store.last()
    assert str(store.folder / "000002" / name) in caught.value.message
    assert str(store.folder / "000001") in caught.value.hint
    path, problems = store.newest_intact()
    assert path.name == "000001"
    assert len(problems) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": 1}', '{"step": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}']
)
def test_bad_manifest(store, text):
    path = store.save(1, writer(1))
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify_checkpoint(path)


def test_error_while_writing_leaves_the_old_ones(store):
    store.save(1, writer(1))

    def fail(folder):
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.save(2, fail)
    assert steps(store) == [1]
    assert not list(store.folder.glob(".*"))


def test_a_checkpoint_whose_replacement_was_killed_halfway_is_brought_back(store):
    store.save(1, writer(1))
    os.rename(store.folder / "000001", store.folder / ".000001.old")
    (store.folder / ".000001.77").mkdir()
    store.recover()
    assert load_state(store.last() / "training_state", "numpy")[1] == {"value": 1}
    assert not list(store.folder.glob(".*"))


def test_an_interrupted_replacement_leaves_the_one_that_was_there(store, monkeypatch):
    store.save(1, writer(1))
    replace = os.replace

    def interrupted(source, target):
        if str(source).endswith(f".{os.getpid()}"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(1, writer(9))
    assert load_state(store.last() / "training_state", "numpy")[1] == {"value": 1}


def test_damaged_checkpoints_are_set_aside_so_that_newer_ones_take_their_place(store):
    for step in (1, 2, 3):
        store.save(step, writer(step))
    damage(store.folder / "000003" / "training_state" / "state.json", "flip")
    store.set_aside(2)
    assert steps(store) == [2]
    assert store.last().name == "000002"
    assert (store.folder / "000003.damaged").is_dir()
    store.save(3, writer(3), 0.5)
    assert (steps(store), store.best().name) == ([2, 3], "000003")


def test_a_deleted_run_folder_does_not_come_back_half(tmp_path):
    with pytest.raises(RunError, match="No such file"):
        CheckpointStore(tmp_path / "run" / "checkpoints").save(1, writer(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["../../elsewhere", "/etc", "000009", "000001/training_state"])
def test_links_that_somebody_bent_lead_nowhere(store, tmp_path, target):
    store.save(1, writer(1), 0.5)
    (tmp_path / "elsewhere").mkdir()
    for link in ("best", "last"):
        (store.folder / link).unlink()
        (store.folder / link).symlink_to(target)
    assert store.best() is None
    assert store.named("last").name == "000001"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        store.named("best")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        store.named("../000001")
    store.save(2, writer(2), 0.6)
    assert store.best().name == "000002"


def test_a_file_that_is_a_link_out_of_its_checkpoint_is_refused(store, tmp_path):
    path = store.save(1, writer(1))
    file = path / "training_state" / "state.json"
    outside = tmp_path / "state.json"
    os.rename(file, outside)
    file.symlink_to(outside)
    with pytest.raises(CheckpointError, match="link out of its checkpoint"):
        store.last()


def test_a_checkpoint_under_the_name_of_another_is_refused(store):
    store.save(1, writer(1))
    os.rename(store.folder / "000001", store.folder / "000005")
    with pytest.raises(CheckpointError, match="is of update 1, its folder is 000005"):
        store.last()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from vlacoach.errors import RunError
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.state import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
def write(folder):
    if sys.argv[2] == "tensors":
        save_state(folder, {"x": np.zeros(100_000)}, {})
    else:
        (folder / "notes.txt").write_text("n" * 100_000)
try:
    CheckpointStore(Path(sys.argv[1])).save(2, write)
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["tensors", "text"])
def test_full_disk_while_saving(store, what):
    store.save(1, writer(1))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(store.folder), what], capture_output=True, text=True, check=True
    )
    assert "Cannot write" in done.stdout
    assert "full" in done.stdout
    assert store.last().name == "000001"
    assert sorted(path.name for path in store.folder.iterdir()) == ["000001", "last"]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.state import save_state
store = CheckpointStore(Path(sys.argv[1]), keep=2)
print("go", flush=True)
for step in range(1, 10_000):
    write = lambda folder: save_state(folder, {"x": np.zeros(200_000)}, {"step": step})
    store.save(step % 5, write, step / 10)
"""


def test_kill_at_any_moment_leaves_an_intact_checkpoint(store):
    store.save(0, writer(0), 0.0)
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(store.folder)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.13 * random.Random(attempt).random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        path, problems = store.newest_intact()
        assert problems == []
        verify_checkpoint(path)


def test_state_of_torch_tensors_round_trips(tmp_path):
    shared = torch.arange(6, dtype=torch.bfloat16)
    tensors = {"a": shared, "b": shared.view(2, 3).T, "c": torch.tensor(3), "n": np.float32(2.5)}
    save_state(tmp_path, tensors, {"k": 1})
    loaded, meta = load_state(tmp_path)
    assert meta == {"k": 1}
    assert loaded["a"].dtype == torch.bfloat16
    for name in "abc":
        assert torch.equal(loaded[name], tensors[name])
    assert loaded["n"].item() == 2.5


def test_state_refuses_what_json_would_change(tmp_path):
    with pytest.raises(CheckpointError):
        save_state(tmp_path, {}, {"x": float("nan")})
    with pytest.raises(CheckpointError, match="object"):
        save_tree(tmp_path, {"a": [object()]})
    with pytest.raises(CheckpointError, match="key"):
        save_tree(tmp_path, {(1, 2): 3})


def test_tree_keeps_types_and_huge_numbers(tmp_path):
    tree = {
        1: "int key",
        "1": [np.arange(3, dtype=np.uint32), (True, None, 2**127)],
        "f": [0.1, float("inf")],
        "": {},
    }
    save_tree(tmp_path, tree)
    loaded = load_tree(tmp_path)
    assert list(loaded) == [1, "1", "f", ""]
    array, rest = loaded["1"]
    assert array.dtype == np.uint32
    np.testing.assert_array_equal(array, [0, 1, 2])
    assert rest == (True, None, 2**127)
    assert loaded["f"] == [0.1, float("inf")]
    assert loaded[""] == {}


def test_optimizer_and_random_states_go_on_as_if_never_stopped(tmp_path):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    generator = np.random.default_rng(3)

    def step(weight, optimizer):
        optimizer.zero_grad()
        (
            weight * torch.as_tensor(generator.normal(size=4)) + torch.randn(4) * weight**2 + random.random()
        ).sum().backward()
        optimizer.step()

    step(weight, optimizer)
    save_tree(
        tmp_path,
        {
            "w": weight.data,
            "o": optimizer.state_dict(),
            "py": random.getstate(),
            "np": generator.bit_generator.state,
            "t": torch.get_rng_state(),
            "legacy": np.random.get_state(),
        },
    )
    step(weight, optimizer)

    tree = load_tree(tmp_path)
    other = torch.nn.Parameter(tree["w"])
    resumed = torch.optim.AdamW([other], lr=0.5)
    resumed.load_state_dict(tree["o"])
    random.setstate(tree["py"])
    np.random.set_state(tree["legacy"])
    generator.bit_generator.state = tree["np"]
    torch.set_rng_state(tree["t"])
    step(other, resumed)
    assert torch.equal(other, weight)


@pytest.mark.parametrize("text", ["", "{}", '{"tree": ["odd", 1]}', '{"tree": ["numpy", "none"]}', '{"tree": [1]}'])
def test_corrupt_tree(tmp_path, text):
    save_tree(tmp_path, {"a": np.zeros(2)})
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tree(tmp_path)


def test_corrupt_tensors(tmp_path):
    save_state(tmp_path, {"a": np.zeros(2)}, {})
    (tmp_path / "state.safetensors").write_bytes(b"\xff" * 20)
    for framework in ("torch", "numpy"):
        with pytest.raises(CheckpointError, match=r"state\.safetensors"):
            load_state(tmp_path, framework)
