"""The bases that come with the package: small, whole, described, and giving what they gave."""

import json
from pathlib import Path

import numpy as np
import pytest

from metaecg import Personalizer, load_base
from metaecg.models.checkpoints import PUBLISHED, published_names

EXPECTED = json.loads((Path(__file__).parent / "published.json").read_text())


def windows_of(base, n: int = 6) -> np.ndarray:
    """Return sines of 1, 2, ... hertz and a beat-like spike train, in millivolts, the same anywhere."""
    t = np.arange(base.preprocessing.n_samples) / base.preprocessing.fs_hz
    waves = [np.sin(2 * np.pi * (k + 1) * t) / (k + 1) for k in range(n - 1)]
    beats = np.exp(-(((t + 0.3) % 0.8 - 0.4) ** 2) / (2 * 0.012**2))
    return np.stack([*waves, beats])[:, None].astype(np.float32).repeat(base.n_leads, axis=1)


def test_the_base_of_va_fewshot_is_there():
    assert "va-base" in published_names()


@pytest.mark.parametrize("name", ["va-base"])
def test_a_published_base_gives_the_outputs_that_were_stored_with_it(name):
    base = load_base(name)
    assert base.fingerprint == EXPECTED[name]["fingerprint"]
    given = base.logits(windows_of(base))
    np.testing.assert_allclose(given, EXPECTED[name]["logits"], rtol=1e-4, atol=1e-4)


def test_va_base_is_personalized_from_twenty_windows_and_judges_them_in_time():
    base = load_base("va-base")
    windows = np.concatenate([windows_of(base), windows_of(base)[::-1]])
    labels, time_s = ["other", "va"] * 6, 2.0 * np.arange(12)
    personal = Personalizer(base, method="lora", rhythm="causal", n_steps=3)
    personal.fit(windows, labels, time_s=time_s)
    stream, together = personal.stream(), personal.predict_proba(windows, time_s=time_s)
    one_by_one = [stream.step(window, t) for window, t in zip(windows, time_s, strict=True)]
    np.testing.assert_allclose(np.stack(one_by_one).reshape(together.shape), together, atol=1e-6)


@pytest.mark.parametrize("name", ["va-base"])
def test_a_published_base_is_small_and_has_a_card(name):
    files = {path.name: path.stat().st_size for path in (PUBLISHED / name).iterdir()}
    assert set(files) == {"base.json", "weights.safetensors", "README.md"}
    assert sum(files.values()) < 2_000_000
    card = (PUBLISHED / name / "README.md").read_text()
    assert all(word in card for word in ("Research use only", "mitdb", "deploy", "Limits"))


@pytest.mark.parametrize("name", ["va-base"])
def test_a_published_base_says_whom_it_was_trained_on(name):
    training = load_base(name).training
    assert training["split"] == "everybody"
    assert len(training["subject_ids"]) > 80 and len(training["file_sha256"]) > 80
