"""A fitted detector stays with the base it was fitted on, whatever `set_params` says since."""

import json

import numpy as np
import pytest

from metaecg.adapt.guard import GuardedPersonalizer
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import CheckpointError


@pytest.fixture(scope="module")
def other(make_base):
    return make_base(width=16, seed=1)


def test_a_base_that_is_set_after_the_fit_changes_nothing_until_the_next_fit(
    base, other, support, later, tmp_path
):
    personal = Personalizer(base, n_steps=2).fit(support[0], support[1])
    expected = personal.predict_proba(later[0])
    personal.set_params(base=other)
    assert np.array_equal(personal.predict_proba(later[0]), expected)
    personal.save(tmp_path / "p")
    document = json.loads((tmp_path / "p" / "adapter.json").read_text())
    assert document["base_fingerprint"] == base.fingerprint
    loaded = Personalizer.load(tmp_path / "p", base)
    assert np.array_equal(loaded.predict_proba(later[0]), expected)
    with pytest.raises(CheckpointError, match=base.fingerprint):
        Personalizer.load(tmp_path / "p", other)
    assert personal.fit(support[0], support[1]).fitted_base_ is other


def test_the_windows_are_those_of_the_base_that_was_fitted(base, make_base, support):
    personal = Personalizer(base, n_steps=0).fit(support[0], support[1])
    expected = personal.predict_proba(support[0])
    personal.set_params(base=make_base(classes=("a", "b", "c"), width=16))
    assert np.array_equal(personal.predict_proba(support[0]), expected)
    assert set(personal.predict(support[0])) <= {"other", "va"}


def test_a_guard_that_refused_keeps_the_answer_of_the_base_it_was_fitted_with(
    base, other, support, later
):
    guarded = GuardedPersonalizer(Personalizer(base, n_steps=1)).fit(support[0], support[1])
    guarded.refused_ = True
    guarded.set_params(personalizer__base=other)
    assert np.array_equal(guarded.logits(later[0]), base.logits(later[0]))
