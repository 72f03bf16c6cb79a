"""The base for beats that comes with the package."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metaecg import load_base
from metaecg.adapt.guard import GuardedPersonalizer
from metaecg.adapt.personalize import Personalizer
from metaecg.data.beat_input import beat_inputs
from metaecg.data.beats import BeatSet
from metaecg.data.labels import DS1, DS2
from metaecg.data.rr import rr_features, rr_names
from metaecg.errors import CheckpointError
from metaecg.models.beat_detector import CONTEXT, TWO_LEADS, BeatDetector, v_logits
from metaecg.models.checkpoints import PUBLISHED, published_names

EXPECTED = json.loads((Path(__file__).parent / "veb_base.json").read_text())

PLAIN = {
    "threshold": 0.0,
    "usual_logit": 0.0,
    "level_weight": 0.0,
    "neighbour_weight": 0.0,
}
"""A context that corrects nothing."""


def made_beats(base, n: int = 40) -> BeatSet:
    """Narrow beats, every eighth broad, turned over and early, with the next one late."""
    before_s = base.training["beat_cutting"]["before_s"]
    preprocessing = base.preprocessing
    time_s = np.arange(preprocessing.n_samples) / preprocessing.fs_hz - before_s
    narrow, broad = np.exp(-((time_s / 0.02) ** 2)), -1.5 * np.exp(-((time_s / 0.06) ** 2))
    is_broad = np.arange(n) % 8 == 7
    rr_s = np.where(is_broad, 0.5, np.where(np.roll(is_broad, 1), 1.1, 0.8))
    peaks_s = 2.0 + np.cumsum(rr_s)
    return BeatSet(
        windows=np.where(is_broad[:, None], broad, narrow)[:, None].astype(np.float32),
        labels=np.where(is_broad, 2, 0),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, "made/p"),
        record_ids=np.full(n, "made/p"),
        start_s=peaks_s - before_s,
        time_s=peaks_s - before_s,
        sample=np.round(peaks_s * preprocessing.fs_hz).astype(np.int64),
        symbols=np.where(is_broad, "V", "N"),
        rr=rr_features(peaks_s, use_next=True),
        rr_names=rr_names(use_next=True),
        before_s=before_s,
        fs_hz=preprocessing.fs_hz,
        window_s=preprocessing.window_s,
    )


@pytest.fixture(scope="module")
def base():
    return load_base("veb-base")


def test_it_is_there():
    assert "veb-base" in published_names()


def test_it_gives_the_outputs_that_were_stored_with_it(base):
    assert base.fingerprint == EXPECTED["fingerprint"]
    given = BeatDetector(base).log_odds(made_beats(base))
    np.testing.assert_allclose(given, EXPECTED["log_odds"], rtol=1e-4, atol=1e-4)


def test_it_names_broad_early_beats_ventricular_and_narrow_ones_not(base):
    beats = made_beats(base)
    is_v = BeatDetector(base).predict_proba(beats) >= 0.5
    assert is_v[beats.letters == "V"].all()
    assert not is_v[beats.letters == "N"].any()


def test_each_mode_has_the_context_that_was_learned_for_it(base):
    beats = made_beats(base)
    facts = {CONTEXT: {**PLAIN, "mode": "offline"}, TWO_LEADS: PLAIN}
    facts[f"{CONTEXT}_causal"] = {**PLAIN, "threshold": 7.0}
    detector = BeatDetector(replace(base, training={**base.training, **facts}))
    offline = detector.log_odds(beats)
    np.testing.assert_array_equal(detector.log_odds(beats, mode="offline"), offline)
    np.testing.assert_allclose(detector.log_odds(beats, mode="causal"), offline - 7.0)


def test_a_base_that_learned_for_one_mode_alone_judges_all_by_it(base):
    kept = {key: fact for key, fact in base.training.items() if not key.endswith("_causal")}
    detector = BeatDetector(replace(base, training=kept))
    assert detector.context_of(mode="causal") == detector.context_of() is not None
    assert detector.context_of(n_leads=2, mode="causal") == detector.two_leads


def test_the_shipped_base_judges_with_the_whole_recording_and_learned_for_the_past_too(base):
    detector = BeatDetector(base)
    assert detector.mode == "offline"
    for n_leads in (1, 2):
        offline, causal = (
            detector.context_of(n_leads=n_leads, mode=m) for m in ("offline", "causal")
        )
        assert offline == detector.context_of(n_leads=n_leads)
        assert causal != offline


def test_it_is_small_and_has_a_card():
    files = {path.name: path.stat().st_size for path in (PUBLISHED / "veb-base").iterdir()}
    assert set(files) == {"base.json", "weights.safetensors", "README.md"}
    assert sum(files.values()) < 1_000_000
    card = (PUBLISHED / "veb-base" / "README.md").read_text()
    assert all(word in card for word in ("Research use only", "mitdb", "aami", "Limits"))


def test_it_was_trained_on_ds1_without_201_alone(base):
    assert base.training["subject_ids"] == sorted(f"mitdb/{n}" for n in DS1 if n != "201")
    assert not {f"mitdb/{n}" for n in DS2} & set(base.training["subject_ids"])


def test_of_two_leads_the_one_that_speaks_against_v_decides(base):
    beats = made_beats(base)
    other = np.roll(beats.windows, 3, axis=0)
    both = replace(beats, windows=np.concatenate([beats.windows, other], axis=1))
    contexts = {CONTEXT: base.training[CONTEXT], TWO_LEADS: dict(PLAIN)}
    made_for_two = replace(base, training={**base.training, **contexts})
    given = BeatDetector(made_for_two).log_odds(both)
    leads = [v_logits(base.logits(beat_inputs(both, lead=k)), base.classes) for k in (0, 1)]
    np.testing.assert_allclose(given, np.minimum(*leads), rtol=1e-6)
    assert (given < leads[0] - 1).any() and (given < leads[1] - 1).any()


def test_a_base_for_one_lead_looks_at_the_first(base):
    beats = made_beats(base)
    both = replace(beats, windows=np.concatenate([beats.windows, -beats.windows], axis=1))
    for_one = {k: v for k, v in base.training.items() if k != TWO_LEADS}
    detector = BeatDetector(replace(base, training=for_one))
    assert np.array_equal(detector.log_odds(both), detector.log_odds(beats))


@pytest.mark.parametrize(
    ("fact", "key", "value"),
    [
        ("beat_context", "threshold", 50.0),
        ("beat_context_two_leads_causal", "neighbour_weight", 0.1),
        ("beat_cutting", "before_s", 0.9),
    ],
)
def test_what_decides_about_beats_beside_the_network_is_in_the_fingerprint(
    tmp_path, fact, key, value
):
    folder = shutil.copytree(PUBLISHED / "veb-base", tmp_path / "veb")
    config = json.loads((folder / "base.json").read_text())
    config["training"][fact][key] = value
    (folder / "base.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_base(folder)


def test_other_facts_of_the_training_are_not_in_the_fingerprint(base):
    told = replace(base, training={**base.training, "recipe": "another"})
    assert told.fingerprint == base.fingerprint


def test_a_base_that_was_saved_comes_back_with_its_fingerprint(base, tmp_path):
    base.save(tmp_path / "veb")
    assert load_base(tmp_path / "veb").fingerprint == base.fingerprint


def test_a_model_that_belongs_to_another_base_is_refused(base):
    training = {**base.training, CONTEXT: {**PLAIN, "threshold": 7.0}}
    other = replace(base, training=training)
    rows = np.zeros((4, 2, base.preprocessing.n_samples), np.float32)
    personal = Personalizer(base, method="head", n_steps=0).fit(rows, ["V", "V", "other", "other"])
    guarded = GuardedPersonalizer(personal).fit(rows, ["V", "V", "other", "other"])
    for model in (base, personal, guarded):
        assert BeatDetector(base, model).model is model
        with pytest.raises(CheckpointError, match=f"{base.fingerprint}.*{other.fingerprint}"):
            BeatDetector(other, model)
