"""Meta-learned bases: the budget is fair whatever the algorithm; learned facts come along."""

import pytest

from metaecg.errors import ConfigError
from metaecg.experiments.config import build_config
from metaecg.experiments.va_bases import base_note, build_augmentation
from metaecg.experiments.va_meta import n_meta


def iterations(algorithm: str, **meta) -> int:
    """With 10 shots and 10 queries per class, 8 tasks and half of 240 000 windows."""
    return n_meta(build_config({"meta": {"algorithm": algorithm, **meta}}))


def test_every_algorithm_gets_the_same_number_of_windows():
    # A support window counts once per inner step, a query window once.
    assert iterations("maml") == 120_000 / (8 * (20 * 5 + 20))
    assert iterations("fomaml") == iterations("meta-sgd") == iterations("maml")
    # The body sees every window once; the inner loop repeats the head alone.
    assert iterations("anil") == 120_000 / (8 * (20 + 20))
    # The inner loop runs on support and query together.
    assert iterations("reptile") == 120_000 / (8 * (20 + 20) * 5)
    # 15 % of the training pass the query after each of five steps.
    assert iterations("maml++") == round(120_000 / (8 * (20 * 5 + 20 * (1 + 4 * 0.15))))


def test_no_warm_start_leaves_twice_the_iterations():
    assert iterations("maml", warm_start=0.0) == 2 * iterations("maml")


def test_a_base_that_another_algorithm_has_trained_says_so():
    reptile = build_config({"meta": {"algorithm": "reptile"}})
    assert base_note("maml+curriculum", reptile) == " (meta.algorithm=reptile)"
    assert base_note("pretrain", reptile) == base_note("maml", build_config({})) == ""


def test_a_base_that_learns_from_changed_windows_says_so():
    config = build_config(
        {"augment": {"noise": 0.2, "probability": 0.5}, "meta": {"algorithm": "anil"}}
    )
    said = " (augment: noise=0.2, probability=0.5)"
    assert base_note("pretrain", config) == base_note("shuffled", config) == said
    assert base_note("maml", config) == " (meta.algorithm=anil)" + said
    assert base_note("random", config) == base_note("metava-released", config) == ""


def test_the_noise_gets_the_band_of_the_preprocessing_and_nothing_is_no_augmentation():
    band = {"lowcut_hz": 1.0, "highcut_hz": 30.0}
    config = build_config({"augment": {"noise": 0.2}, "preprocessing": band})
    found = build_augmentation(config)
    assert (found.noise, found.gain, found.band_hz) == (0.2, 0.0, (1.0, 30.0))
    assert build_augmentation(build_config({"augment": {"probability": 0.5}})) is None


def test_an_unknown_algorithm_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="meta.algorithm is 'mamml'.*'maml', .* or 'reptile'"):
        build_config({"meta": {"algorithm": "mamml"}})
