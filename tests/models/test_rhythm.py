"""A rhythm lasts: the two-state model against brute force over all sequences of states."""

import itertools
import json
import math

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.models.rhythm import (
    BOUND,
    END_RANGE,
    ONSET_RANGE,
    RhythmChain,
    RhythmFilter,
    RhythmModel,
)

VALUES = {
    "p_onset": 0.05,
    "p_end": 0.2,
    "strength_onset": 100.0,
    "strength_end": 10.0,
    "temperature": 2.0,
    "bias": 1.0,
    "threshold": 0.4,
    "step_s": 2.0,
}


def make_model(**changes) -> RhythmModel:
    return RhythmModel(**{**VALUES, **changes})


def made_series(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and times with gaps of one to four steps."""
    rng = np.random.default_rng(seed)
    return rng.normal(1, 6, n), 2.0 * np.cumsum(rng.integers(1, 5, n))


def by_brute_force(model: RhythmModel, logits, start_s, *, chain=None) -> np.ndarray:
    """Sum over all sequences of states; a step's transition is a power of the matrix of one."""
    chain = chain or model.chain
    a, b = chain.p_onset, chain.p_end
    one = np.array([[1 - a, a], [b, 1 - b]])
    share = np.array([b, a]) / (a + b)
    seen = [math.exp(model.evidence(logit)) for logit in logits]
    weight = np.zeros((len(logits), 2))
    for states in itertools.product((0, 1), repeat=len(logits)):
        p = share[states[0]]
        for i in range(1, len(states)):
            k = round((start_s[i] - start_s[i - 1]) / model.step_s)
            p *= np.linalg.matrix_power(one, k)[states[i - 1], states[i]]
        p *= math.prod(s for s, state in zip(seen, states, strict=True) if state)
        for i, state in enumerate(states):
            weight[i, state] += p
    return np.log(weight[:, 1] / weight[:, 0])


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("chain", [None, RhythmChain(p_onset=0.45, p_end=0.85)], ids=str)
def test_the_posterior_is_that_of_all_sequences_of_states(n, chain):
    model, (logits, start_s) = make_model(), made_series(n)
    found = model.posterior(logits, start_s, chain=chain)
    expected = by_brute_force(model, logits, start_s, chain=chain)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_the_causal_posterior_uses_nothing_later():
    model, (logits, start_s) = make_model(), made_series(10)
    found = model.posterior(logits, start_s, mode="causal")
    expected = [by_brute_force(model, logits[: i + 1], start_s)[i] for i in range(10)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lag_s", [0, 2.0, 5, 8.0, 30.0])
def test_a_lag_gives_what_offline_gives_on_data_that_end_there(lag_s):
    model, (logits, start_s) = make_model(), made_series(12)
    found = model.posterior(logits, start_s, mode=lag_s)
    for i in range(12):
        seen = start_s <= start_s[i] + lag_s
        cut = model.posterior(logits[seen], start_s[seen])
        brute = by_brute_force(model, logits[seen], start_s[seen]) if seen.sum() < 9 else cut
        assert found[i] == pytest.approx(cut[i], abs=1e-10)
        assert found[i] == pytest.approx(brute[i], abs=1e-10)


def test_no_lag_is_causal_and_a_long_one_offline():
    model, (logits, start_s) = make_model(), made_series(300)
    for mode, lag_s in (("causal", 0), ("offline", 1e6)):
        expected = model.posterior(logits, start_s, mode=mode)
        found = model.posterior(logits, start_s, mode=lag_s)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_backwards_in_time_is_the_same():
    model, (logits, start_s) = make_model(), made_series(200)
    mirrored = model.posterior(logits[::-1], start_s[-1] - start_s[::-1])[::-1]
    np.testing.assert_allclose(mirrored, model.posterior(logits, start_s), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["offline", "causal", 6.0])
def test_logits_that_say_nothing_leave_the_share_in_the_long_run(mode):
    model = make_model(temperature=1e13)
    logits, start_s = made_series(50)
    found = model.posterior(logits, start_s, mode=mode)
    np.testing.assert_allclose(found, math.log(0.05 / 0.2), rtol=0, atol=1e-10)


def test_after_a_long_gap_nothing_is_known_of_before():
    model = make_model()
    found = model.posterior([30.0, 4.0], [0.0, 1e6])
    np.testing.assert_allclose(found, [*model.posterior([30.0], [0]), *model.posterior([4.0], [0])])
    near = model.posterior([30.0, 4.0], [0.0, 2.0])
    assert near[1] > found[1] + 1


@pytest.mark.parametrize("mode", ["offline", "causal", 4.0])
def test_another_record_or_a_time_that_goes_back_starts_anew(mode):
    model, (logits, start_s) = make_model(), made_series(6)
    apart = np.concatenate(
        [model.posterior(logits, start_s, mode=mode), model.posterior(logits, start_s, mode=mode)]
    )
    twice = np.tile(logits, 2)
    back = model.posterior(twice, np.tile(start_s, 2), mode=mode)
    on = np.concatenate([start_s, start_s + start_s[-1]])
    other = model.posterior(twice, on, record_ids=np.repeat(["a", "b"], 6), mode=mode)
    same = model.posterior(twice, on, record_ids=np.repeat(["a", "a"], 6), mode=mode)
    np.testing.assert_allclose(back, apart, rtol=0, atol=1e-12)
    np.testing.assert_allclose(other, apart, rtol=0, atol=1e-12)
    assert abs(same - apart).max() > 0.1


def test_a_rhythm_fills_its_holes_and_a_lone_window_is_doubted():
    model, start_s = make_model(), np.arange(9) * 2.0
    hole = model.posterior([9, 9, 9, 9, -1, 9, 9, 9, 9], start_s)
    lone = model.posterior([-9, -9, -9, -9, 3, -9, -9, -9, -9], start_s)
    assert hole[4] > 0 > lone[4]


@pytest.mark.parametrize("p_onset", ONSET_RANGE)
@pytest.mark.parametrize("p_end", END_RANGE)
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_posterior_is_so_sure_that_its_probability_is_0_or_1(p_onset, p_end, sign):
    model = make_model(p_onset=p_onset, p_end=p_end)
    found = model.posterior(np.full(500, sign * 1e9), np.arange(500) * 2.0)
    assert abs(found).max() < 29 < 36  # 1 / (1 + exp(-36)) is below 1 in float64
    probabilities = 1 / (1 + np.exp(-found))
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_logits_that_differ_keep_posteriors_that_differ():
    logits = np.linspace(-200, 200, 2001)
    found = [make_model().posterior([logit], [0.0])[0] for logit in logits]
    assert (np.diff(found) > 0).all() and max(map(abs, found)) < BOUND + 2


def test_the_longest_recordings_stay_finite_and_no_time_is_lost_in_them():
    logits = np.random.default_rng(0).normal(0, 50, 100_000)
    for mode in ("offline", "causal", 10.0):
        found = make_model().posterior(logits, np.arange(100_000) * 2.0, mode=mode)
        assert found.shape == (100_000,) and np.isfinite(found).all()
        assert np.corrcoef(found, logits)[0, 1] > 0.8


def test_no_window_gives_no_posterior():
    for mode in ("offline", "causal", 3.0):
        assert make_model().posterior([], [], mode=mode).shape == (0,)


def test_times_are_rounded_to_whole_steps():
    model, logits = make_model(), [5.0, -2.0, 5.0]
    found = model.posterior(logits, [0.0, 2.001, 5.9])
    assert (found == model.posterior(logits, [0, 2, 6])).all()


@pytest.mark.parametrize("mode", ["offline", "causal", 4.0])
@pytest.mark.parametrize("gap_s", [0.1, 1.0, 1.98])
def test_windows_that_overlap_are_refused_and_named(mode, gap_s):
    times = [0.0, 2.0, 2.0 + gap_s]
    with pytest.raises(DataError, match=rf"windows 1 and 2 start {gap_s:g} s apart.*step is 2 s"):
        make_model().posterior([1.0, 2.0, 3.0], times, mode=mode)
    stream, other = RhythmFilter(make_model()), RhythmFilter(make_model())
    for logit, start_s in zip([1.0, 2.0], times[:2], strict=True):
        stream.step(logit, start_s)
        other.step(logit, start_s)
    with pytest.raises(DataError, match=rf"{gap_s:g} s apart.*step is 2 s"):
        stream.step(3.0, times[2])
    assert stream.step(1.0, 4.0) == other.step(1.0, 4.0)  # it stands where it stood


def test_times_rounded_to_a_sample_are_not_taken_for_an_overlap():
    found = make_model().posterior([1.0, 2.0, 3.0], [0.0, 1.992, 3.99])
    assert (found == make_model().posterior([1.0, 2.0, 3.0], [0.0, 2.0, 4.0])).all()


def test_windows_of_two_records_may_start_close_to_each_other():
    model = make_model()
    found = model.posterior([1.0, 2.0], [0.0, 0.5], record_ids=["a", "b"])
    assert (found == model.posterior([1.0, 2.0], [0.0, 8.0], record_ids=["a", "b"])).all()
    stream = RhythmFilter(model)
    stream.step(1.0, 0.0, record_id="a")
    stream.step(2.0, 0.5, record_id="b")


@pytest.mark.parametrize(
    ("logits", "start_s", "message"),
    [
        ([1.0], [0.0, 2.0], r"logits has shape \(1,\) and start_s \(2,\)"),
        ([[1.0]], [[0.0]], r"expected \(n_windows,\)"),
        ([1.0, np.nan], [0.0, 2.0], r"logits\[1\] is nan"),
        ([1.0, 2.0], [np.inf, 2.0], r"start_s\[0\] is inf"),
    ],
)
def test_logits_and_times_that_do_not_fit_are_refused(logits, start_s, message):
    with pytest.raises(DataError, match=message):
        make_model().posterior(logits, start_s)


def test_record_ids_of_another_length_are_refused():
    with pytest.raises(DataError, match=r"record_ids has shape \(1,\); expected \(2,\)"):
        make_model().posterior([1, 2], [0, 2], record_ids=["a"])


@pytest.mark.parametrize("mode", ["ofline", -1.0, math.inf, math.nan, True, None])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="mode is .*a lag in seconds"):
        make_model().posterior([1.0], [0.0], mode=mode)


def test_a_stream_has_the_causal_numbers_to_the_bit():
    model, (logits, start_s) = make_model(), made_series(500)
    chain = RhythmChain(p_onset=0.01, p_end=0.3)
    records = np.repeat(["a", "b"], 250)
    stream = RhythmFilter(model, chain)
    found = [
        stream.step(z, t, record_id=str(r))
        for z, t, r in zip(logits, start_s, records, strict=True)
    ]
    expected = model.posterior(logits, start_s, chain=chain, record_ids=records, mode="causal")
    assert found == expected.tolist()


def test_a_stream_goes_on_from_its_written_state():
    model, (logits, start_s) = make_model(), made_series(20)
    whole = RhythmFilter(model)
    expected = [whole.step(z, t) for z, t in zip(logits, start_s, strict=True)]
    stream, found = RhythmFilter(model), []
    for z, t in zip(logits, start_s, strict=True):
        stream = RhythmFilter.from_dict(json.loads(json.dumps(stream.to_dict())))
        found.append(stream.step(z, t))
    assert found == expected


@pytest.mark.parametrize("values", [None, {}, {"model": VALUES, "last": None}])
def test_a_state_with_other_keys_is_refused(values):
    with pytest.raises(ValueError, match="expected what to_dict returned"):
        RhythmFilter.from_dict(values)


def test_a_window_that_can_not_be_used_leaves_the_stream_as_it_was():
    stream, other = RhythmFilter(make_model()), RhythmFilter(make_model())
    stream.step(3.0, 0.0)
    other.step(3.0, 0.0)
    with pytest.raises(DataError, match="logits"):
        stream.step(math.nan, 2.0)
    assert stream.step(1.0, 4.0) == other.step(1.0, 4.0)


def test_a_patients_chain_is_that_of_the_formula():
    model = make_model()
    # two runs, 0 to 4 and 10 to 10 s, in the eleven steps from 0 to 20 s; four are positive
    start_s = np.array([20.0, 0.0, 2.0, 4.0, 10.0, 6.0])
    chain = model.for_patient(start_s, [0, 1, 1, 1, 1, 0])
    assert chain.p_onset == pytest.approx((2 + 100 * 0.05) / (7 + 100))
    assert chain.p_end == pytest.approx((2 + 10 * 0.2) / (4 + 10))


def test_without_support_a_patient_has_the_populations_chain():
    model = make_model()
    assert model.for_patient([], []) == model.chain == RhythmChain(p_onset=0.05, p_end=0.2)


def test_what_was_never_seen_becomes_rarer_but_stays_possible():
    chain = make_model(strength_onset=1e-3).for_patient(np.arange(0, 2e6, 100.0), np.zeros(20_000))
    assert chain.p_onset == ONSET_RANGE[0] and chain.p_end == pytest.approx(0.2)


def test_a_chain_of_single_windows_is_kept_within_its_ranges():
    model = make_model(strength_onset=1e-3, strength_end=1e-3)
    chain = model.for_patient(np.arange(20) * 2.0, np.tile([1, 0], 10))
    assert chain == RhythmChain(p_onset=ONSET_RANGE[1], p_end=END_RANGE[1])


def test_times_a_little_off_are_one_run_and_the_order_is_no_matter():
    model = make_model()
    near = model.for_patient([4.009, 0.0, 2.005], [True, True, True])
    assert near.p_end == pytest.approx((1 + 10 * 0.2) / (3 + 10))
    apart = model.for_patient([0.0, 2.011, 4.03], [1, 1, 1])
    assert apart.p_end == pytest.approx((3 + 10 * 0.2) / (3 + 10))


@pytest.mark.parametrize(
    ("start_s", "labels", "message"),
    [
        ([0.0, 2.0], [1], r"start_s has shape \(2,\) and labels \(1,\)"),
        ([0.0, np.nan], [1, 0], "one finite time"),
        ([0.0, 2.0], [1, 2], "labels holds 2; 1 for the positive class"),
        ([0.0, 2.0], ["va", "other"], "labels holds 'va'"),
    ],
)
def test_a_support_that_can_not_be_used_is_refused(start_s, labels, message):
    with pytest.raises(DataError, match=message):
        make_model().for_patient(start_s, labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p_onset", 0.0),
        ("p_onset", 0.6),
        ("p_end", 1.0),
        ("p_end", "often"),
        ("strength_onset", 0.0),
        ("strength_end", -1.0),
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("bias", math.nan),
        ("threshold", 1.5),
        ("threshold", True),
        ("step_s", 0.0),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        make_model(**{name: value})


def test_a_model_and_a_chain_come_back_from_json_to_the_bit():
    model = make_model(temperature=1 / 3, step_s=2)
    assert RhythmModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    chain = model.for_patient([0.0, 2.0, 9.0], [1, 1, 0])
    assert RhythmChain.from_dict(json.loads(json.dumps(chain.to_dict()))) == chain
    assert isinstance(model.to_dict()["step_s"], float)


@pytest.mark.parametrize("values", [{}, {**VALUES, "speed": 1}, [1, 2], None])
def test_a_dict_with_other_keys_is_refused(values):
    with pytest.raises(ValueError, match="RhythmModel was given .*expected .'bias'"):
        RhythmModel.from_dict(values)
