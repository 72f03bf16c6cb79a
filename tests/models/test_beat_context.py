"""How a patient's other beats count for one of them."""

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.models import beat_context
from metaecg.models.beat_context import BeatContext

PLAIN = BeatContext(threshold=0.0, usual_logit=-3.0, level_weight=0.0, neighbour_weight=0.0)


def forms_of(kinds: str) -> np.ndarray:
    """Beats of one letter look the same, those of two letters differ."""
    return np.array([[10.0 * ord(kind)] for kind in kinds], dtype=np.float32)


def make(**arguments) -> BeatContext:
    return BeatContext(threshold=0.0, usual_logit=-3.0, **arguments)


def test_without_weights_only_the_threshold_is_taken_off():
    context = BeatContext(threshold=1.0, usual_logit=-3.0, level_weight=0.0, neighbour_weight=0.0)
    assert context.log_odds(np.array([0.0, 2.0]), forms_of("ab")).tolist() == [-1.0, 1.0]


def test_a_patient_whose_beats_all_lie_higher_is_brought_down_to_the_usual_level():
    context = make(level_weight=1.0, neighbour_weight=0.0, n_prior=1)
    found = context.log_odds(np.full(200, 0.5), forms_of("a" * 200))
    assert found[0] == 0.5  # nothing is known of the patient yet
    assert np.allclose(found[100:], -3.0)


def test_half_of_the_level_weight_takes_half_of_the_difference_off():
    context = make(level_weight=0.5, neighbour_weight=0.0, n_prior=1)
    assert context.log_odds(np.full(200, 1.0), forms_of("a" * 200))[-1] == pytest.approx(-1.0)


def test_beats_that_look_alike_are_judged_alike():
    context = make(level_weight=0.0, neighbour_weight=1.0, n_neighbours=2)
    logits = np.array([4.0, -4.0, 4.0, -4.0, -1.0, -4.0])  # the fifth looks like the first two V
    found = context.log_odds(logits, forms_of("vnvnvn"))
    assert found[4] == pytest.approx((4.0 + 4.0 - 1.0) / 3)


@pytest.mark.parametrize("n_seen", [1, 7, 50, 300])
def test_causal_answers_do_not_change_with_what_comes_later(n_seen):
    rng = np.random.default_rng(0)
    logits, forms = rng.normal(size=400), rng.normal(size=(400, 3)).astype(np.float32)
    context = make(n_searched=100, n_neighbours=5)
    whole = context.log_odds(logits, forms)
    assert np.allclose(context.log_odds(logits[:n_seen], forms[:n_seen]), whole[:n_seen])


def test_offline_answers_know_the_beats_after():
    context = make(level_weight=0.0, neighbour_weight=1.0, n_neighbours=1)
    logits, forms = np.array([-1.0, 5.0]), forms_of("vv")
    assert context.log_odds(logits, forms)[0] == -1.0
    assert context.log_odds(logits, forms, mode="offline")[0] == 2.0


def test_a_label_counts_for_beats_like_it_wherever_it_stands_and_not_for_its_own_beat():
    context = make(level_weight=0.0, neighbour_weight=1.0, n_neighbours=1, label_logit=6.0)
    logits = np.array([-1.0, -2.0, -1.0])
    found = context.log_odds(logits, forms_of("vnv"), known={2: True})
    assert found[0] == pytest.approx((-1.0 + 6.0) / 2)
    own = context.log_odds(logits, forms_of("nvw"), known={2: True})
    assert own[2] == pytest.approx((-1.0 - 2.0) / 2)  # its neighbour is the beat before


def test_another_recording_has_no_part_in_it():
    context = make(level_weight=1.0, neighbour_weight=0.5, n_neighbours=3)
    rng = np.random.default_rng(1)
    logits, forms = rng.normal(size=60), rng.normal(size=(60, 2)).astype(np.float32)
    ids = np.repeat(["a", "b"], 30)
    both = context.log_odds(logits, forms, record_ids=ids)
    assert np.allclose(both[30:], context.log_odds(logits[30:], forms[30:]))


def test_no_beat_gives_no_answer():
    assert make().log_odds(np.zeros(0), np.zeros((0, 3), dtype=np.float32)).shape == (0,)


def test_it_comes_back_from_its_values_and_an_unknown_one_is_refused():
    assert BeatContext.from_dict(PLAIN.to_dict()) == PLAIN
    with pytest.raises(DataError, match="'colour'.*Update metaecg"):
        BeatContext.from_dict({**PLAIN.to_dict(), "colour": 1})


def test_a_weight_above_one_is_refused():
    with pytest.raises(ValueError, match="neighbour_weight is 1.5; expected a number from 0 to 1"):
        make(neighbour_weight=1.5)


def test_offline_looks_as_far_ahead_as_back_and_no_further():
    n = 2 * beat_context.N_BEFORE_AND_AFTER + 3
    logits, forms = np.zeros(n), np.zeros((n, 1), dtype=np.float32)
    logits[0] = logits[-1] = 8.0
    middle = n // 2
    context = BeatContext(
        threshold=0.0, usual_logit=0.0, level_weight=0.0, n_neighbours=n, neighbour_weight=1.0
    )
    found = context.log_odds(logits, forms, mode="offline")
    assert found[middle] == 0.0
    assert found[middle - 1] == pytest.approx(8.0 / (n - 2))
    assert found[middle + 1] == pytest.approx(8.0 / (n - 2))
