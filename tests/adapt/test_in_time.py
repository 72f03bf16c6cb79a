"""A patient's detector in time: windows judged together."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone

from metaecg.adapt.personalize import Personalizer
from metaecg.errors import CheckpointError, DataError
from metaecg.models.checkpoints import BaseModel, load_base
from metaecg.models.rhythm import RhythmModel

RHYTHM = RhythmModel(
    p_onset=0.1,
    p_end=0.2,
    strength_onset=50,
    strength_end=10,
    temperature=2,
    bias=0.5,
    threshold=0.35,
    step_s=2,
)


def with_rhythm(base: BaseModel, **changes) -> BaseModel:
    facts = ("architecture", "architecture_kwargs", "n_leads", "classes", "preprocessing")
    values = {name: getattr(base, name) for name in facts} | {"rhythm": RHYTHM} | changes
    return BaseModel(network=base.new_network(), **values)


@pytest.fixture(scope="module")
def timed_base(base):
    return with_rhythm(base)


@pytest.fixture(scope="module")
def fitted(timed_base, support):
    return {
        rhythm: Personalizer(timed_base, method="head", n_steps=5, rhythm=rhythm).fit(
            support[0], support[1], time_s=support[2]
        )
        for rhythm in ("none", "causal", "offline")
    }


def after_support(later):
    return {"time_s": later[2] + 100.0}


def test_without_a_rhythm_all_is_as_before(base, timed_base, support, later):
    plain = Personalizer(base, n_steps=3).fit(support[0], support[1])
    beside = Personalizer(timed_base, n_steps=3, rhythm="none").fit(support[0], support[1])
    assert (plain.predict_proba(later[0]) == beside.predict_proba(later[0])).all()
    assert plain.threshold == beside.threshold == 0.5 and beside.chain_ is None
    in_time = beside.predict_proba(later[0], time_s=later[2])
    assert (in_time == plain.predict_proba(later[0])).all()


@pytest.mark.parametrize("rhythm", ["causal", "offline"])
def test_the_probabilities_are_the_posterior_of_the_patients_own_chain(
    fitted, support, later, rhythm
):
    personal = fitted[rhythm]
    chain = RHYTHM.for_patient(support[2], support[1])
    assert personal.chain_ == chain != RHYTHM.chain
    logits = personal.logits(later[0])
    times = after_support(later)
    expected = RHYTHM.posterior(
        logits[:, 1] - logits[:, 0], times["time_s"], chain=chain, mode=rhythm
    )
    found = personal.predict_proba(later[0], **times)
    np.testing.assert_allclose(found[:, 1], expit(expected), rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    assert (personal.predict(later[0], **times) == "va").tolist() == (found[:, 1] >= 0.35).tolist()


def test_the_causal_probabilities_of_a_window_do_not_change_with_what_follows(fitted, later):
    times = after_support(later)["time_s"]
    whole = fitted["causal"].predict_proba(later[0], time_s=times)
    part = fitted["causal"].predict_proba(later[0][:30], time_s=times[:30])
    np.testing.assert_allclose(whole[:30], part, rtol=0, atol=1e-6)
    offline = fitted["offline"].predict_proba(later[0][:30], time_s=times[:30])
    assert abs(offline[:-1] - part[:-1]).max() > 1e-3
    np.testing.assert_allclose(offline[-1], part[-1], rtol=0, atol=1e-6)


def test_another_recording_starts_anew(fitted, later):
    ids, times = np.repeat(["a", "b"], 40), after_support(later)["time_s"]
    personal = fitted["offline"]
    apart = np.concatenate(
        [personal.predict_proba(later[0][ids == r], time_s=times[ids == r]) for r in ("a", "b")]
    )
    found = personal.predict_proba(later[0], time_s=times, record_ids=ids)
    np.testing.assert_allclose(found, apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rhythm", ["causal", "offline"])
def test_a_stream_gives_the_causal_probabilities_window_by_window(fitted, later, rhythm):
    times, stream = after_support(later)["time_s"], fitted[rhythm].stream()
    found = [stream.step(w, t) for w, t in zip(later[0], times, strict=True)]
    expected = fitted["causal"].predict_proba(later[0], time_s=times)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_stream_goes_on_where_it_stood(fitted, later):
    times, personal = after_support(later)["time_s"], fitted["causal"]
    stream, found = personal.stream(), []
    for window, t in zip(later[0], times, strict=True):
        found.append(stream.step(window, t, record_id="r"))
        stream = personal.stream(json.loads(json.dumps(stream.to_dict())))
    expected = personal.predict_proba(later[0], time_s=times)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_state_of_another_patients_stream_is_refused(fitted, timed_base, support):
    other = Personalizer(timed_base, method="head", n_steps=1, rhythm="causal")
    other.fit(support[0], support[1], time_s=7 * support[2])
    with pytest.raises(ValueError, match="the state belongs to a stream with"):
        fitted["causal"].stream(other.stream().to_dict())


def test_a_stream_needs_a_rhythm(fitted):
    with pytest.raises(ValueError, match="rhythm is 'none'; a stream needs one"):
        fitted["none"].stream()


def test_va_is_the_positive_class_wherever_it_stands(make_base, support, later):
    base = with_rhythm(make_base(classes=("va", "other")))
    personal = Personalizer(base, method="head", rhythm="offline")
    times = np.where(support[1] == 1, support[2] / 2, 50 + support[2])  # va in one run, other not
    personal.fit(support[0], 1 - support[1], time_s=times)
    assert personal.chain_ == RHYTHM.for_patient(times, support[1])
    assert personal.chain_ != RHYTHM.for_patient(times, 1 - support[1])
    logits = personal.logits(later[0])
    log_odds = RHYTHM.posterior(logits[:, 0] - logits[:, 1], later[2], chain=personal.chain_)
    found = personal.predict_proba(later[0], time_s=later[2])
    np.testing.assert_allclose(found[:, 0], expit(log_odds), rtol=1e-12)


def test_the_threshold_is_the_models_unless_one_is_given(timed_base):
    assert Personalizer(timed_base, rhythm="offline").threshold == 0.35
    assert Personalizer(timed_base, rhythm="offline", threshold=0.6).threshold == 0.6
    assert Personalizer(timed_base, rhythm="causal").set_params(threshold=0.2).threshold == 0.2
    assert Personalizer(timed_base).threshold == 0.5
    twin = clone(Personalizer(timed_base)).set_params(rhythm="causal")
    assert twin.threshold == 0.35  # a clone has not taken the 0.5 for one that was given


@pytest.mark.parametrize("rhythm", ["causal", "offline"])
def test_a_saved_detector_comes_back_with_its_chain(fitted, later, tmp_path, rhythm):
    fitted[rhythm].save(tmp_path / "p")
    fitted[rhythm].base.save(tmp_path / "base")
    loaded = Personalizer.load(tmp_path / "p", load_base(tmp_path / "base"))
    assert loaded.chain_ == fitted[rhythm].chain_ and loaded.threshold == 0.35
    times = after_support(later)
    expected = fitted[rhythm].predict_proba(later[0], **times)
    assert (loaded.predict_proba(later[0], **times) == expected).all()


def change_document(folder, change) -> None:
    path = folder / "adapter.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_an_adapter_from_before_there_were_rhythms_loads(fitted, later, tmp_path):
    fitted["none"].save(tmp_path / "p")
    assert "rhythm_chain" not in json.loads((tmp_path / "p" / "adapter.json").read_text())
    change_document(tmp_path / "p", lambda document: document["params"].pop("rhythm"))
    loaded = Personalizer.load(tmp_path / "p", fitted["none"].base)
    expected = fitted["none"].predict_proba(later[0])
    assert (loaded.predict_proba(later[0]) == expected).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("rhythm_chain"), "RhythmChain was given None"),
        (lambda document: document["rhythm_chain"].update(p_onset=3.0), "p_onset is 3.0"),
        (lambda document: document["params"].update(rhythm="salsa"), "rhythm is 'salsa'"),
    ],
)
def test_a_damaged_chain_is_refused(fitted, tmp_path, change, message):
    fitted["causal"].save(tmp_path / "p")
    change_document(tmp_path / "p", change)
    with pytest.raises(CheckpointError, match=message):
        Personalizer.load(tmp_path / "p", fitted["causal"].base)


def test_a_base_without_a_rhythm_model_is_refused(base, support):
    personal = Personalizer(base, rhythm="offline")
    with pytest.raises(ValueError, match="rhythm is 'offline', but the base has no rhythm model"):
        personal.fit(support[0], support[1], time_s=support[2])


def test_an_unknown_rhythm_is_refused(timed_base, support):
    with pytest.raises(ValueError, match="rhythm is 'ofline'.*Did you mean 'offline'"):
        Personalizer(timed_base, rhythm="ofline").fit(support[0], support[1], time_s=support[2])


def test_the_times_are_needed_to_fit_and_to_predict(fitted, timed_base, support, later):
    with pytest.raises(DataError, match="rhythm='causal'.*time_s is None"):
        Personalizer(timed_base, rhythm="causal").fit(support[0], support[1])
    with pytest.raises(DataError, match="rhythm='offline'.*time_s is None"):
        fitted["offline"].predict(later[0])
    with pytest.raises(DataError, match=r"time_s has shape \(3,\); expected \(80,\)"):
        fitted["offline"].predict_proba(later[0], time_s=[0.0, 2.0, 4.0])


def test_no_window_gives_no_row(fitted, later):
    assert fitted["offline"].predict_proba(later[0][:0], time_s=[]).shape == (0, 2)


def test_an_open_stream_stays_with_its_patient_when_the_personalizer_is_fitted_again(
    timed_base, support, later
):
    def fitted_to(labels):
        return personal.fit(support[0], labels, time_s=support[2])

    personal = Personalizer(timed_base, method="full", n_steps=5, rhythm="causal")
    expected = fitted_to(support[1]).stream().step(later[0][0], 0.0)
    stream = personal.stream()
    fitted_to(1 - support[1])
    assert abs(personal.stream().step(later[0][0], 0.0) - expected).max() > 1e-3
    assert (stream.step(later[0][0], 0.0) == expected).all()


def test_the_state_of_a_patient_with_the_same_counts_is_refused(timed_base, support):
    """Times and labels of both supports are the same, and so are their chains; windows aren't."""
    mine, other = (
        Personalizer(timed_base, method="head", n_steps=2, rhythm="causal").fit(
            windows, support[1], time_s=support[2]
        )
        for windows in (support[0], support[0][:, :, ::-1])
    )
    assert mine.chain_ == other.chain_
    with pytest.raises(ValueError, match="the state belongs to a stream with.*adapter"):
        mine.stream(other.stream().to_dict())


def test_the_state_of_a_stream_on_another_base_is_refused(timed_base, make_base, support):
    mine, other = (
        Personalizer(base, method="head", n_steps=0, rhythm="causal").fit(
            support[0], support[1], time_s=support[2]
        )
        for base in (timed_base, with_rhythm(make_base(width=16, seed=1)))
    )
    with pytest.raises(ValueError, match="the state belongs to a stream with the base"):
        mine.stream(other.stream().to_dict())


def test_a_state_goes_on_with_the_detector_that_was_saved_and_loaded(fitted, later, tmp_path):
    fitted["causal"].save(tmp_path / "p")
    loaded = Personalizer.load(tmp_path / "p", fitted["causal"].base)
    stream = fitted["causal"].stream()
    stream.step(later[0][0], 0.0)
    again = loaded.stream(json.loads(json.dumps(stream.to_dict())))
    assert (again.step(later[0][1], 2.0) == stream.step(later[0][1], 2.0)).all()


@pytest.mark.parametrize("state", [{}, "a", {"filter": {}, "base": "", "adapter": ""}])
def test_a_state_that_is_none_is_refused(fitted, state):
    with pytest.raises(ValueError, match="expected what to_dict returned"):
        fitted["causal"].stream(state)


def test_the_default_threshold_of_a_fitted_detector_is_that_of_the_rhythm_it_was_fitted_with(
    timed_base, support
):
    personal = Personalizer(timed_base, n_steps=0, rhythm="causal")
    personal.fit(support[0], support[1], time_s=support[2]).set_params(rhythm="none")
    assert personal.threshold == 0.35
    assert personal.fit(support[0], support[1]).threshold == 0.5
    assert clone(personal).set_params(rhythm="causal").threshold == 0.35


def test_a_threshold_that_was_not_given_is_saved_as_such(fitted, tmp_path):
    fitted["causal"].save(tmp_path / "p")
    document = json.loads((tmp_path / "p" / "adapter.json").read_text())
    assert document["params"]["threshold"] is None
    loaded = Personalizer.load(tmp_path / "p", fitted["causal"].base)
    assert loaded.threshold == 0.35
    assert clone(loaded).set_params(rhythm="none").threshold == 0.5


@pytest.mark.parametrize("threshold", [float("nan"), 1.5, -0.1, "high"])
def test_a_threshold_out_of_range_is_refused_where_it_is_used(base, support, tmp_path, threshold):
    personal = Personalizer(base, n_steps=0).fit(support[0], support[1])
    personal.threshold = threshold
    message = f"threshold is {threshold!r}; a number from 0 to 1"
    with pytest.raises(ValueError, match=message):
        personal.predict(support[0])
    with pytest.raises(ValueError, match=message):
        personal.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()
