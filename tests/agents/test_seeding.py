"""Random numbers by address."""

from __future__ import annotations

import numpy as np
import torch

from vlacoach.agents.seeding import Stream, derived_seed, numpy_generator, torch_generator

ADDRESSES = [
    (seed, stream, *address)
    for seed in (0, 1)
    for stream in Stream
    for address in [(first, second, third) for first in range(3) for second in range(3) for third in range(3)]
]


def test_an_address_always_gives_the_same_numbers():
    first = [numpy_generator(*one).random() for one in ADDRESSES]
    again = [numpy_generator(*one).random() for one in reversed(ADDRESSES)]
    assert first == again[::-1]


def test_every_address_gives_numbers_of_its_own():
    numpy_draws = {numpy_generator(*one).random() for one in ADDRESSES}
    torch_draws = {torch.rand(1, generator=torch_generator(*one), dtype=torch.float64).item() for one in ADDRESSES}
    assert len(numpy_draws) == len(torch_draws) == len(ADDRESSES)


def test_addresses_are_read_in_order_and_not_run_together():
    draws = [numpy_generator(0, Stream.ROLLOUT, *address).random() for address in [(1, 2, 3), (3, 2, 1), (12, 3, 0)]]
    assert len(set(draws)) == 3


def test_a_torch_generator_repeats_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = torch.rand(4, generator=torch_generator(3, Stream.ROLLOUT, 1, 2, 3))
    two = torch.rand(4, generator=torch_generator(3, Stream.ROLLOUT, 1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_derived_seed_fits_where_32_bits_are_asked_for():
    seeds = [derived_seed(2**32 - 1, Stream.SCORER, update) for update in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)
    np.random.SeedSequence(seeds)
