from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.errors import ConfigError
from vlacoach.runs.indices import format_indices, parse_indices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,4,8", (1, 4, 8)),
        ("30-33", (30, 31, 32, 33)),
        (" 0-2 , 7", (0, 1, 2, 7)),
        (5, (5,)),
        ([2, 0], (2, 0)),
    ],
)
def test_parse(text, expected):
    assert parse_indices(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,,2", "3-1", "-1", "1.5", "0-99999999", "1,1", "0-3,2", True, [1.5]])
def test_refused(text):
    with pytest.raises(ConfigError):
        parse_indices(text)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_format_is_the_inverse(indices):
    assert parse_indices(format_indices(indices)) == tuple(sorted(indices))
