"""What a perturbation is, how it is written, what is drawn from, and those axes that need no simulator."""

from __future__ import annotations

import numpy as np
import pytest

from vlacoach.envs.perturbations import (
    ALL_SEVERITY,
    AXES,
    MAGNITUDES,
    MAX_SEVERITY,
    Perturbation,
    PerturbedEpisode,
    check_perturbations,
    parse_perturbations,
)
from vlacoach.envs.rephrasing import rephrase
from vlacoach.envs.sensor_noise import disturb_picture, disturb_state
from vlacoach.errors import ConfigError, UnknownNameError


def episode(axis: str, severity: int, seed: int = 0, task: int = 0, state: int = 0) -> PerturbedEpisode:
    return PerturbedEpisode((Perturbation(axis, severity),), seed, task, state)


def test_what_a_person_writes_is_read_in_its_order():
    assert parse_perturbations("camera:3, light:2") == (Perturbation("camera", 3), Perturbation("light", 2))
    assert [str(each) for each in parse_perturbations("layout:5")] == ["layout:5"]


def test_all_is_one_of_each_axis():
    assert parse_perturbations("all") == tuple(Perturbation(axis, ALL_SEVERITY) for axis in AXES)
    assert parse_perturbations("all:5") == tuple(Perturbation(axis, 5) for axis in AXES)


@pytest.mark.parametrize("text", ["camra:3", "camera:1,camra:3", "", "camera:1,"])
def test_an_axis_that_nobody_knows_is_an_error(text):
    with pytest.raises(UnknownNameError, match="Unknown perturbation axis"):
        parse_perturbations(text)


def test_the_nearest_axis_is_suggested():
    with pytest.raises(UnknownNameError, match="Did you mean 'camera'"):
        parse_perturbations("camra:3")
    with pytest.raises(UnknownNameError, match="Did you mean 'light'"):
        Perturbation("lights", 1)


@pytest.mark.parametrize("severity", ["0", "6", "-1", "2.5", "x", "", "²"])
def test_a_severity_other_than_1_to_5_is_an_error(severity):
    with pytest.raises(ConfigError, match="Severities are 1 to 5") as caught:
        parse_perturbations(f"light:{severity}")
    assert caught.value.message == f"The severity of light is {severity or 'missing'}."


def test_a_severity_that_is_left_out_is_an_error():
    with pytest.raises(ConfigError, match="The severity of light is missing"):
        parse_perturbations("light")
    with pytest.raises(ConfigError, match="The severity of light is 6"):
        Perturbation("light", 6)


def test_an_axis_that_comes_twice_is_an_error():
    for text in ("light:1,light:2", "all,light:2"):
        with pytest.raises(ConfigError, match="light is given twice"):
            parse_perturbations(text)
    with pytest.raises(ConfigError, match="noise is given twice"):
        check_perturbations([Perturbation("noise", 1)] * 2)


def test_every_axis_has_magnitudes_that_grow():
    assert set(MAGNITUDES) == set(AXES)
    for axis, quantities in MAGNITUDES.items():
        for quantity, values in quantities.items():
            assert len(values) == MAX_SEVERITY
            assert list(values) == sorted(values)
            assert Perturbation(axis, 5).magnitude(quantity) == values[4] > 0
            assert Perturbation(axis, 0).magnitude(quantity) == 0


def test_what_is_drawn_belongs_to_seed_axis_severity_task_and_state():
    def draw(axis: str = "noise", severity: int = 2, **others: int) -> float:
        return float(episode(axis, severity, **others).generator(axis).random())

    assert draw() == draw()
    others = [draw(seed=1), draw(task=1), draw(state=1), draw(state=-1), draw(severity=3), draw("light")]
    assert len({draw(), *others}) == 7
    two = PerturbedEpisode((Perturbation("light", 2), Perturbation("noise", 2)), 0, 0, 0)
    assert two.generator("noise").random() == draw()  # whatever else is perturbed
    assert two.generator("noise", 5, 1).random() != two.generator("noise", 6, 1).random()


def test_other_words_keep_the_goal_and_grow_with_severity():
    plain = "pick up the bowl and put it on the plate"
    added = MAGNITUDES["language"]["added_words"]
    for severity in range(1, 6):
        said = {rephrase(plain, episode("language", severity, seed)) for seed in range(40)}
        assert len(said) > 2
        for words in said:
            assert words != plain
            assert all(word in words for word in ("the bowl and", "it on the plate"))
            one_for_two = severity >= 3  # "grab" for "pick up"
            assert len(words.split()) - len(plain.split()) == added[severity - 1] - one_for_two
            assert ("pick up" in words) == ("put it" in words) == (severity < 3)


def test_verbs_are_replaced_once_and_from_severity_3_on():
    for seed in range(20):
        words = rephrase("put the bowl on the stove", episode("language", 3, seed))
        assert any(f"{verb} the bowl" in words for verb in ("place", "set", "lay"))
        assert "put the bowl" in rephrase("put the bowl on the stove", episode("language", 2, seed))


def test_without_the_language_axis_the_words_stay():
    assert rephrase("open the drawer", episode("language", 0)) == "open the drawer"
    assert rephrase("open the drawer", episode("camera", 5)) == "open the drawer"


@pytest.mark.parametrize("size", [32, 30])
def test_pictures_get_worse_with_severity(size):
    picture = np.random.default_rng(0).integers(0, 256, (size // 2, size // 2, 3)).repeat(2, 0).repeat(2, 1)
    picture = picture.astype(np.uint8)
    kept = picture.copy()
    distances = []
    for severity in range(1, 6):
        one = Perturbation("noise", severity)
        seen = [disturb_picture(picture, one, np.random.default_rng(seed)) for seed in range(3)]
        assert all(each.shape == picture.shape and each.dtype == np.uint8 for each in seen)
        assert np.any(seen[0] != seen[1])
        np.testing.assert_array_equal(seen[0], disturb_picture(picture, one, np.random.default_rng(0)))
        distances.append(np.mean([np.abs(each.astype(float) - picture).mean() for each in seen]))
    assert distances == sorted(distances)
    np.testing.assert_array_equal(picture, kept)


def test_a_flat_picture_stays_flat_but_for_noise():
    flat = np.full((64, 64, 3), 128, dtype=np.uint8)
    seen = disturb_picture(flat, Perturbation("noise", 1), np.random.default_rng(0)).astype(float)
    assert abs(seen.mean() - 128) < 1
    assert 0 < seen.std() < 8


def test_proprioception_gets_noise_of_its_own_units():
    state = np.zeros(8, dtype=np.float32)
    generator = np.random.default_rng(0)
    seen = np.stack([disturb_state(state, Perturbation("noise", 5), generator) for _ in range(2000)])
    assert seen.dtype == np.float32
    expected = [MAGNITUDES["noise"][name][4] for name in ["position_m"] * 3 + ["angle_rad"] * 3 + ["finger_m"] * 2]
    np.testing.assert_allclose(seen.std(axis=0), expected, rtol=0.1)
