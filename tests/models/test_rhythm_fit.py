"""A rhythm model from many subjects: what is chosen, and what is refused."""

import dataclasses

import numpy as np
import pytest

from metaecg.errors import DataError, LeakageError
from metaecg.models import rhythm_fit
from metaecg.models.rhythm import RhythmModel
from metaecg.models.rhythm_fit import GRID, RhythmSequence, fit_rhythm

TRUE = {"p_onset": 0.1, "p_end": 0.2, "temperature": 3.0, "bias": 2.0}


def made_sequence(seed: int, *, n: int = 400, n_support: int = 60, **changes) -> RhythmSequence:
    """A subject drawn from the model itself: the evidence is what the logit is worth."""
    rng, true = np.random.default_rng(seed), {**TRUE, **changes}
    labels = np.zeros(n, dtype=int)
    for i in range(1, n):
        turns = rng.random() < (true["p_end"] if labels[i - 1] else true["p_onset"])
        labels[i] = 1 - labels[i - 1] if turns else labels[i - 1]
    evidence = rng.normal(np.where(labels == 1, 2.0, -2.0), 2.0)  # log likelihood ratio: itself
    is_support = np.arange(n) < n_support
    return RhythmSequence(
        logits=true["temperature"] * evidence + true["bias"],
        labels=labels,
        start_s=2.0 * np.arange(n),
        record_ids=np.full(n, "r"),
        is_support=is_support,
        is_scored=~is_support,
    )


@pytest.fixture(scope="module")
def sequences():
    return [made_sequence(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def fitted(sequences):
    return fit_rhythm(sequences, step_s=2.0)


def log_loss(model: RhythmModel, sequence: RhythmSequence) -> float:
    support = sequence.is_support
    chain = model.for_patient(sequence.start_s[support], sequence.labels[support])
    log_odds = model.posterior(sequence.logits, sequence.start_s, chain=chain)
    wrong = np.where(sequence.labels, -log_odds, log_odds)
    return float(np.logaddexp(0, wrong)[sequence.is_scored].mean())


def test_the_model_that_made_the_subjects_is_found(fitted):
    found = {name: getattr(fitted, name) for name in TRUE}
    assert found == TRUE and fitted.step_s == 2.0
    # of a calibrated posterior the best F1 is reached near half of itself, below one half
    assert 0.3 <= fitted.threshold <= 0.5


def test_no_other_model_of_the_grid_has_a_lower_mean_loss(fitted, sequences):
    best = np.mean([log_loss(fitted, s) for s in sequences])
    for name, choices in GRID.items():
        for value in choices:
            other = dataclasses.replace(fitted, **{name: value})
            assert np.mean([log_loss(other, s) for s in sequences]) >= best - 1e-12


def test_new_subjects_are_judged_better_than_window_by_window(fitted):
    for seed in range(100, 105):
        sequence = made_sequence(seed)
        alone = np.array([fitted.evidence(z) for z in sequence.logits])
        wrong = np.where(sequence.labels, -alone, alone)[sequence.is_scored]
        assert log_loss(fitted, sequence) < 0.8 * np.logaddexp(0, wrong).mean()


def test_all_subjects_together_have_the_posteriors_of_each(sequences):
    short = made_sequence(50, n=70)
    halves = dataclasses.replace(
        sequences[0],
        record_ids=np.repeat(["a", "b"], 200),
        start_s=np.concatenate([2.0 * np.arange(200), 6.0 * np.arange(200)]),
    )
    chosen = [short, halves, sequences[1]]
    models = [
        RhythmModel(**dict(zip(GRID, values, strict=True)), step_s=2.0)
        for values in [(2, 1, 0.03, 0.4, 30, 100), (6, 0, 0.45, 0.8, 1e4, 1e4)]
    ]
    parameters = np.array([[getattr(m, name) for name in GRID] for m in models])
    together = rhythm_fit._Subjects(chosen, 2.0).posteriors(parameters)
    for i, model in enumerate(models):
        for j, s in enumerate(chosen):
            chain = model.for_patient(s.start_s[s.is_support], s.labels[s.is_support])
            alone = model.posterior(s.logits, s.start_s, chain=chain, record_ids=s.record_ids)
            found = together[: len(alone), i, j]
            np.testing.assert_allclose(found, alone, rtol=0, atol=1e-8)


def test_a_subject_weighs_the_same_however_long_it_is():
    long, short = made_sequence(30, n=2000, temperature=6.0), made_sequence(31, n=80)
    parameters = np.array([[3.0, 2.0, 0.1, 0.2, 100.0, 10.0]])
    alone = [rhythm_fit._Subjects([s], 2.0).losses(parameters)[0] for s in (long, short)]
    together = rhythm_fit._Subjects([long, short], 2.0).losses(parameters)[0]
    assert together == pytest.approx(np.mean(alone), abs=1e-12)
    assert abs(alone[0] - alone[1]) > 0.01


def test_the_same_subjects_give_the_same_model_however_many_are_tried_at_once(
    fitted, sequences, monkeypatch
):
    monkeypatch.setattr(rhythm_fit, "CHUNK", 1)
    monkeypatch.setattr(
        rhythm_fit, "GRID", {k: (getattr(fitted, k), v[0]) for k, v in GRID.items()}
    )
    assert fit_rhythm(sequences, step_s=2.0) == fitted


def test_the_threshold_is_the_middle_of_the_good_ones():
    # F1 is 1 from 0.31 to 0.70, less than 0.005 lower from 0.11 on, and far lower elsewhere
    labels = np.repeat([0, 0, 1], [500, 1, 1000])
    probabilities = np.repeat([0.105, 0.305, 0.705], [500, 1, 1000])
    sequence = made_sequence(0, n=len(labels), n_support=0)
    subjects = rhythm_fit._Subjects([dataclasses.replace(sequence, labels=labels)], 2.0)
    log_odds = np.log(probabilities / (1 - probabilities))[:, None]
    assert rhythm_fit._best_threshold(log_odds, subjects) == pytest.approx((0.11 + 0.70) / 2)


def test_a_subject_without_positives_has_no_part_in_the_threshold(sequences):
    quiet = dataclasses.replace(sequences[0], labels=np.zeros(400, int))

    def threshold(*chosen):
        subjects = rhythm_fit._Subjects(chosen, 2.0)
        log_odds = np.stack([s.logits / 3 - 3 for s in chosen], axis=1)
        return rhythm_fit._best_threshold(log_odds, subjects)

    assert threshold(sequences[1], quiet) == threshold(sequences[1])
    assert fit_rhythm([*sequences[1:5], quiet], step_s=2.0).threshold > 0


def test_four_subjects_are_too_few(sequences):
    unscored = dataclasses.replace(sequences[5], is_scored=np.zeros(400, bool))
    with pytest.raises(DataError, match="4 subjects have scored windows; at least 5"):
        fit_rhythm([*sequences[:4], unscored], step_s=2.0)


def test_subjects_without_any_positive_are_refused(sequences):
    quiet = [dataclasses.replace(s, labels=np.zeros(400, int)) for s in sequences[:5]]
    with pytest.raises(DataError, match="no scored window of any subject is positive"):
        fit_rhythm(quiet, step_s=2.0)


def test_a_scored_window_of_the_support_is_a_leak(sequences):
    with pytest.raises(LeakageError, match="60 windows of a sequence are both"):
        dataclasses.replace(sequences[0], is_scored=np.ones(400, bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros(3)}, r"'logits': \(3,\)"),
        ({"logits": np.full(400, np.nan)}, "finite logits"),
        ({"record_ids": ["a"]}, r"'record_ids': \(1,\)"),
        ({"labels": np.full(400, 2)}, "labels holds 2"),
        ({"start_s": np.full(400, np.inf)}, "one finite time"),
    ],
)
def test_columns_that_do_not_fit_are_refused(sequences, change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(sequences[0], **change)
