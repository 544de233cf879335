from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from trajectories import graded_failures, make_trajectory

from vlacoach.errors import CheckpointError, ConfigError, NonFiniteError, VlacoachError
from vlacoach.rewards import ReferenceBank, make_scorer
from vlacoach.rewards.bank import BANK_FILE, BANK_TENSORS_FILE
from vlacoach.rewards.scorers import Scorer

DIM = 16


def success_at(*place: float, task: int = 0, slot: int = 0, **options):
    """A success whose SigLIP embedding is ``place``."""
    return make_trajectory(torch.tensor([place, place]), True, task=task, slot=slot, **options)


def trained_scorer(seed: int = 0):
    batch, _ = graded_failures(DIM, 12, seed=seed)
    scorer = make_scorer("siglip-t", feature_dim=DIM, steps=10)
    scorer.fit(batch)
    return scorer, batch


def test_the_latest_successes_of_each_task_stay_and_the_oldest_goes():
    bank, scorer = ReferenceBank(capacity=2), make_scorer("siglip")
    bank.add(scorer, [success_at(1.0, task=5), success_at(2.0, task=3), success_at(3.0, task=5)])
    bank.add(scorer, [success_at(4.0, task=5)])
    embeddings, tasks = bank.embeddings(scorer)
    assert tasks.tolist() == [3, 5, 5]
    np.testing.assert_allclose(embeddings, [[2.0], [3.0], [4.0]])
    assert (bank.tasks, len(bank)) == ([3, 5], 3)
    embeddings, tasks = bank.embeddings(scorer, [5, 9])
    assert tasks.tolist() == [5, 5]
    np.testing.assert_allclose(embeddings, [[3.0], [4.0]])


def test_an_empty_bank_has_no_references():
    embeddings, tasks = ReferenceBank().embeddings(make_scorer("siglip"), [0])
    assert (embeddings.shape, tasks.shape) == ((0, 0), (0,))


def test_failures_and_broken_episodes_are_not_kept():
    bank = ReferenceBank()
    failure = make_trajectory(torch.ones(2, 1), False)
    bank.add(make_scorer("siglip"), [failure, success_at(math.nan, valid=False)])
    assert len(bank) == 0


def test_what_is_kept_does_not_change_with_the_trajectory():
    class LastPlace(Scorer):
        """Gives out the trajectory's own memory."""

        name = "last-place"

        def embed(self, trajectory):
            return trajectory.proprio[-1].numpy()

    bank, trajectory = ReferenceBank(), success_at(2.0)
    trajectory.proprio += 1.0
    bank.add(LastPlace(), [trajectory])
    trajectory.proprio += 1.0
    np.testing.assert_array_equal(bank.embeddings(LastPlace())[0], np.ones((1, 8)))


@pytest.mark.parametrize("pooling", ["mean", "last-k", "segments"])
def test_references_are_embedded_as_their_trajectories_are(pooling):
    batch, _ = graded_failures(DIM, 12, seed=1)
    batch[3] = make_trajectory(torch.randn(4, DIM), True, terminal=torch.randn(DIM))
    wins = [one for one in batch if one.success]
    for scorer in (make_scorer("siglip", pooling=pooling), make_scorer("siglip-t", feature_dim=DIM, pooling=pooling)):
        scorer.fit(batch)
        bank = ReferenceBank()
        bank.add(scorer, batch)
        np.testing.assert_array_equal(bank.embeddings(scorer)[0], scorer.embed_all(wins))


def test_references_follow_a_scorer_that_is_trained_on():
    # A kept embedding would be one of the scorer of back then, and far from all that is embedded now.
    scorer, batch = trained_scorer()
    bank = ReferenceBank()
    bank.add(scorer, batch)
    stale, _ = bank.embeddings(scorer)
    scorer.fit(batch, seed=1)
    now = scorer.embed_all([one for one in batch if one.success])
    assert np.abs(now - stale).max() > 1e-3
    np.testing.assert_array_equal(bank.embeddings(scorer)[0], now)


def test_references_that_say_nothing_are_refused_with_their_slot():
    scorer = make_scorer("siglip")
    bank = ReferenceBank()
    with pytest.raises(NonFiniteError, match="slot 7"):
        bank.add(scorer, [success_at(math.nan, slot=7)])
    for kind in (scorer, make_scorer("siglip-t", feature_dim=1)):
        with pytest.raises(VlacoachError, match=r"reference of slot 8 .* all zeros"):
            ReferenceBank().add(kind, [success_at(0.0, slot=8)])
    with pytest.raises(VlacoachError, match=r"slot 9 .* no looks"):
        bank.add(scorer, [make_trajectory(torch.ones(0, 1), True, slot=9)])
    assert len(bank) == 0


def test_a_bank_serves_one_scorer():
    bank = ReferenceBank()
    bank.add(make_scorer("siglip"), [success_at(1.0)])
    other = make_scorer("siglip-t", feature_dim=1)
    with pytest.raises(VlacoachError, match="'siglip', not 'siglip-t'"):
        bank.add(other, [success_at(2.0)])
    with pytest.raises(VlacoachError, match="'siglip', not 'siglip-t'"):
        bank.embeddings(other)
    with pytest.raises(ConfigError, match="capacity"):
        ReferenceBank(capacity=0)


# ---------------------------------------------------------------- save and load


def full_bank(capacity: int = 32):
    scorer, batch = trained_scorer()
    bank = ReferenceBank(capacity)
    bank.add(scorer, batch)
    bank.add(scorer, [success_at(*range(DIM), task=11), success_at(*range(1, DIM + 1), task=2)])
    return bank, scorer


def test_a_saved_bank_comes_back_and_forgets_in_the_same_order(tmp_path):
    bank, scorer = full_bank(capacity=4)
    bank.save(tmp_path)
    again = ReferenceBank(capacity=4)
    again.load(tmp_path)
    assert again.tasks == bank.tasks == [0, 2, 11]
    for _ in range(3):
        for one, other in zip(again.embeddings(scorer), bank.embeddings(scorer), strict=True):
            np.testing.assert_array_equal(one, other)
        for each in (again, bank):
            each.add(scorer, [success_at(*[float(len(bank))] * DIM)])
    with pytest.raises(VlacoachError, match="siglip-t"):
        again.add(make_scorer("siglip"), [])


def test_a_bank_is_written_the_same_each_time_and_replaces_what_was_there(tmp_path):
    bank, _ = full_bank()
    bank.save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {BANK_FILE, BANK_TENSORS_FILE}
    again = ReferenceBank()
    again.load(tmp_path)
    again.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    ReferenceBank().save(tmp_path)
    again.load(tmp_path)
    assert len(again) == 0


def test_a_smaller_bank_takes_over_the_latest(tmp_path):
    bank, scorer = full_bank()
    bank.save(tmp_path)
    smaller = ReferenceBank(capacity=2)
    smaller.load(tmp_path)
    np.testing.assert_array_equal(smaller.embeddings(scorer, [0])[0], bank.embeddings(scorer, [0])[0][-2:])


def test_a_scorer_and_its_bank_share_a_folder(tmp_path):
    bank, scorer = full_bank()
    scorer.save(tmp_path)
    bank.save(tmp_path)
    scorer.load(tmp_path)
    bank.load(tmp_path)


def test_corrupt_or_missing_banks_are_refused_and_change_nothing(tmp_path):
    bank, scorer = full_bank()
    before = bank.embeddings(scorer)[0]
    with pytest.raises(CheckpointError, match=r"missing.*\n.*reward.reference"):
        bank.load(tmp_path)
    bank.save(tmp_path)
    description = json.loads((tmp_path / BANK_FILE).read_text())
    tensors = (tmp_path / BANK_TENSORS_FILE).read_bytes()

    flipped = bytearray(tensors)
    flipped[-1] ^= 1
    for data in (tensors[:-4], bytes(flipped), b""):
        (tmp_path / BANK_TENSORS_FILE).write_bytes(data)
        with pytest.raises(CheckpointError, match="checksum"):
            bank.load(tmp_path)
    (tmp_path / BANK_TENSORS_FILE).unlink()
    with pytest.raises(CheckpointError, match=BANK_TENSORS_FILE):
        bank.load(tmp_path)
    (tmp_path / BANK_TENSORS_FILE).write_bytes(tensors)

    for text, message in [
        ("{", "Cannot read"),
        ("[]", "does not describe"),
        (json.dumps({**description, "format": 99}), "format 99"),
        (json.dumps({**description, "successes": [[0, 99]]}), "does not fit"),
        (json.dumps({**description, "successes": 3}), "does not fit"),
    ]:
        (tmp_path / BANK_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            bank.load(tmp_path)
    np.testing.assert_array_equal(bank.embeddings(scorer)[0], before)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Cannot save"):
        ReferenceBank().save(tmp_path / "file" / "scorer")
