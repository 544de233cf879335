"""Action tokens against the tables made by OpenVLA's and siiRL's own code, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.policies import action_tokens
from vlacoach.policies.action_tokens import decode, encode, env_gripper, normalize, unnormalize

FIRST_ID = 31744


# Statistics of the two data sets in the reference checkpoint's config.json: (low, high, mask).
Q01 = [-0.8734362160719826, -0.6256829989930002, -0.027429503398055697, -0.7310954685067078]
Q01 += [-0.7620783012806388, -1.1599041773252792, 0.0]
Q99 = [0.5442555916098241, 0.43455256241806034, 0.24106425233365003, 0.1243710640927849]
Q99 += [2.259219179260791, 0.10139164092319942, 1.0]
Q01_NO_MASK = [-1.4268670577764484, -0.94882214163218, -0.8896898264153571, -2.4547844576267375]
Q01_NO_MASK += [-3.2860488779728083, -2.919035638594336, 0.0]
Q99_NO_MASK = [2.6424131411107386, 2.8477063861415037, 0.5563891509734366, 2.5268357581214436]
Q99_NO_MASK += [1.743181133262591, 0.4933696640597267, 1.0]


@pytest.fixture
def tables(oracle):
    return oracle("openvla/tables")


def kinds(array):
    """The same call for NumPy and torch; the torch result comes back as NumPy."""
    yield lambda function, *rest: function(array, *rest)
    yield lambda function, *rest: function(torch.from_numpy(array), *[torch.from_numpy(r) for r in rest]).numpy()


def test_decode_equals_openvla(tables):
    for call in kinds(tables["token_ids"] - FIRST_ID):
        np.testing.assert_allclose(call(decode), tables["normalized"], rtol=0, atol=1e-15)


def test_encode_equals_openvla(tables):
    for call in kinds(tables["enc_actions"]):
        np.testing.assert_array_equal(call(encode) + FIRST_ID, tables["enc_token_ids"])
        np.testing.assert_allclose(decode(call(encode)), tables["enc_roundtrip"], rtol=0, atol=1e-15)


def test_unnormalize_equals_openvla(tables):
    grid = tables["unnorm_grid_in"]
    mask = np.array([True] * 6 + [False])
    masked = unnormalize(grid, np.array(Q01), np.array(Q99), mask, epsilon=0.0)
    np.testing.assert_allclose(masked, tables["unnorm_grid_fake_dataset"], atol=1e-12)
    for call in kinds(grid):
        scaled = call(unnormalize, np.array(Q01_NO_MASK), np.array(Q99_NO_MASK))
        # OpenVLA itself has no epsilon; OpenVLA-OFT's shifts the result by at most 1e-8.
        np.testing.assert_allclose(scaled, tables["unnorm_grid_fake_dataset_nomask"], atol=1.1e-8)


def test_gripper_equals_siirl(oracle):
    case = oracle("srpo/gripper")
    for call in kinds(case["raw"]):
        np.testing.assert_array_equal(call(env_gripper), case["env"])


def test_zero_survives_exactly():
    assert encode(np.zeros(1))[0] == action_tokens.ZERO_BIN
    assert decode(np.array([action_tokens.ZERO_BIN]))[0] == 0.0
    assert decode(encode(torch.zeros(1))).item() == 0.0


def test_ends_and_order_of_the_bins():
    assert encode(np.array([-1.0, 1.0, -7.0, 7.0])).tolist() == [255, 0, 255, 0]
    values = decode(np.arange(256))
    assert values[0] == values[1] == 254 / 255
    assert values[-1] == -254 / 255
    assert (np.diff(values[1:]) < 0).all()


@given(st.floats(-1, 1))
def test_round_trip_stays_within_one_bin(value):
    bins = encode(np.array([value]))
    assert 0 <= bins[0] <= 255
    assert abs(decode(bins)[0] - value) <= 1 / 255 + 1e-12


def test_float32_and_float64_choose_the_same_bin_in_both_libraries():
    values = np.linspace(-1.1, 1.1, 1001, dtype=np.float32)
    np.testing.assert_array_equal(encode(values), encode(torch.from_numpy(values)).numpy())


def test_normalize_undoes_unnormalize_and_clips():
    low, high = np.array([-0.2, 0.0]), np.array([0.4, 2.0])
    actions = np.array([[-1.0, 0.25], [0.5, 1.0]])
    for call in kinds(unnormalize(actions, low, high)):
        np.testing.assert_allclose(call(normalize, low, high), actions, atol=1e-7)
    assert normalize(np.array([[9.0, -9.0]]), low, high).tolist() == [[1.0, -1.0]]


def test_a_constant_dimension_normalizes_to_a_finite_number():
    bound = np.array([0.3])
    assert np.isfinite(normalize(np.array([0.3]), bound, bound)).all()
