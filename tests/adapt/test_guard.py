"""A personalization that its own support speaks against is refused, and the caller is told."""

import warnings

import numpy as np
import pytest

from metaecg.adapt.guard import Guard, GuardedPersonalizer, parts_of_support
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import NotEnoughWindowsError, PersonalizationRefusedWarning
from metaecg.models.checkpoints import BaseModel


@pytest.fixture(scope="module")
def good_base(base, make_windows):
    """A base that tells the two classes apart: the other one, fitted to plenty of windows."""
    windows, labels, _ = make_windows(60, seed=3)
    fitted = Personalizer(base, method="full", n_steps=40, lr=3e-3).fit(windows, labels)
    return BaseModel(
        network=fitted.merged_network(),
        architecture=base.architecture,
        architecture_kwargs=base.architecture_kwargs,
        n_leads=1,
        classes=base.classes,
        preprocessing=base.preprocessing,
    )


def guarded(base, **limits) -> GuardedPersonalizer:
    return GuardedPersonalizer(Personalizer(base, method="full", n_steps=15), Guard(**limits))


def test_a_personalization_that_helps_is_kept_without_a_word(base, support, later):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        personal = guarded(base).fit(*support[:2], so_far=later[0])
    assert not personal.refused_ and personal.reasons_ == ()
    assert np.array_equal(personal.logits(later[0]), personal.personal_.logits(later[0]))
    assert (
        personal.checks_["held_out"]["personal"]["loss"]
        < personal.checks_["held_out"]["base"]["loss"]
    )


def test_a_fit_that_spoils_what_the_base_could_do_is_refused_and_the_base_stays(
    good_base, support, later
):
    """Steps far too large: what is held out is judged worse than by the base."""
    wild = Personalizer(good_base, method="full", n_steps=3, lr=1.0)
    with pytest.warns(
        PersonalizationRefusedWarning, match="'p-1' is refused, the base's answer is kept"
    ):
        personal = GuardedPersonalizer(wild).fit(*support[:2], subject_id="p-1")
    assert personal.refused_ and personal.reasons_
    assert np.array_equal(personal.logits(later[0]), good_base.logits(later[0]))
    assert np.array_equal(personal.predict_proba(later[0]), good_base.predict_proba(later[0]))


def test_a_detector_that_names_too_many_windows_otherwise_is_refused(base, support, later):
    with pytest.warns(PersonalizationRefusedWarning, match="of the windows so far otherwise"):
        personal = guarded(base, max_changed=0.0).fit(*support[:2], so_far=later[0])
    assert personal.refused_
    assert personal.checks_["changed"] > 0


def test_a_class_with_one_window_leaves_the_change_alone_to_check(base, support):
    windows, labels, _ = support
    few = np.array([0, 1, 2, 4])
    personal = guarded(base).fit(windows[few], labels[few])
    assert personal.checks_["held_out"] is None


def test_the_parts_of_a_support_are_dealt_in_turn_within_each_class():
    assert parts_of_support(np.array([0, 0, 0, 1, 1, 1]), 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert parts_of_support(np.array([0, 0, 1]), 2) is None


def test_windows_of_a_group_are_held_out_together(base, support, monkeypatch):
    windows, labels, _ = support
    fitted_on = []
    plain = Personalizer.fit

    def watched(self, windows, *given, **options):
        fitted_on.append(windows)
        return plain(self, windows, *given, **options)

    monkeypatch.setattr(Personalizer, "fit", watched)
    both = np.concatenate([windows, windows + 1])
    groups = np.tile(np.arange(len(windows)), 2)
    guarded(base, n_parts=3).fit(both, np.tile(labels, 2), groups=groups)
    for part in fitted_on[1:]:
        first = {w.tobytes() for w in part if any(np.array_equal(w, x) for x in windows)}
        assert len(part) == 2 * len(first) < len(both)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"n_parts": 1}, "n_parts is 1; at least 2"), ({"max_changed": 1.5}, "max_changed is 1.5")],
)
def test_a_limit_out_of_range_is_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Guard(**limits)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("refused", [False, True])
def test_the_threshold_decides_as_in_the_personalizer_also_where_it_is_refused(
    base, support, later, threshold, refused
):
    personal = Personalizer(base, n_steps=1, threshold=threshold)
    guarded = GuardedPersonalizer(personal, Guard(max_loss_rise=-9.0 if refused else 9.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PersonalizationRefusedWarning)
        guarded.fit(*support[:2])
    assert guarded.refused_ == refused
    is_va = guarded.predict_proba(later[0])[:, 1] >= threshold
    assert (guarded.predict(later[0]) == "va").tolist() == is_va.tolist()
    if not refused:
        assert (guarded.predict(later[0]) == guarded.personal_.predict(later[0])).all()


def test_errors_and_change_are_counted_by_the_threshold(good_base, support, later):
    """With a threshold that nothing reaches every va is missed, and no fit changes a name."""
    personal = Personalizer(good_base, method="full", n_steps=5, threshold=1.0)
    guarded = GuardedPersonalizer(personal, Guard(max_loss_rise=9.0)).fit(
        *support[:2], so_far=later[0]
    )
    errors = {who: found["errors"] for who, found in guarded.checks_["held_out"].items()}
    assert errors == {"base": 10, "personal": 10}
    assert guarded.checks_["changed"] == 0.0


def test_of_three_classes_the_most_probable_is_named(make_base, make_windows):
    windows, labels, _ = make_windows(4, frequencies_hz=(1.5, 4.0, 9.0))
    base = make_base(classes=("a", "b", "c"), width=16)
    guarded = GuardedPersonalizer(
        Personalizer(base, threshold=0.0, n_steps=5), Guard(max_loss_rise=9.0, max_more_errors=99)
    ).fit(windows, labels)
    expected = guarded.classes_[guarded.logits(windows).argmax(axis=1)]
    assert guarded.predict(windows).tolist() == expected.tolist()


@pytest.mark.parametrize("n_each", [2, 3])
def test_where_a_part_leaves_too_few_for_the_fit_nothing_is_held_out(base, support, n_each):
    windows, labels, time_s = support
    few = np.sort(np.concatenate([np.flatnonzero(labels == k)[:n_each] for k in (0, 1)]))
    personal = Personalizer(base, prefine="intended", n_steps=1)
    guarded = GuardedPersonalizer(personal, Guard(max_loss_rise=9.0, max_more_errors=9))
    guarded.fit(windows[few], labels[few], time_s=time_s[few])
    assert (guarded.checks_["held_out"] is None) == (n_each == 2)


def test_a_support_that_is_too_small_names_its_subject(base, support):
    with pytest.raises(NotEnoughWindowsError, match="'p-7' has 0 windows of class 'va'"):
        guarded(base).fit(support[0][::2], support[1][::2], subject_id="p-7")
