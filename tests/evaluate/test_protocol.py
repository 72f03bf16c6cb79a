"""The named protocols: who can be evaluated, on what, and under which words."""

import numpy as np
import pytest

from metaecg.data.datasets import Dataset
from metaecg.data.windows import RecordInfo, WindowSet, join
from metaecg.errors import NotEnoughWindowsError
from metaecg.evaluate.protocol import (
    PROTOCOLS,
    eligibility,
    held_out_task,
    prepare_for_protocol,
)

WINDOW_S = 2.0
GOOD = "000110" + "01" * 5
"""With two shots: support windows 0, 2, 3, 4; five test windows of each class from 6 on."""


def make_windows(labels: str, subject_id="s", *, scale=1.0, seed=7) -> WindowSet:
    n = len(labels)
    rng = np.random.default_rng(seed)
    return WindowSet(
        windows=(scale * (1 + rng.standard_normal((n, 1, 4)))).astype(np.float32),
        labels=np.array([int(label) for label in labels], dtype=np.int64),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, subject_id),
        record_ids=np.full(n, f"record of {subject_id}"),
        start_s=WINDOW_S * np.arange(n),
        time_s=WINDOW_S * np.arange(n),
        fs_hz=2.0,
        window_s=WINDOW_S,
    )


def make_dataset(**labels: str) -> Dataset:
    """One recording per subject; a subject without labels has no window at all."""
    sets = [make_windows(text, subject_id) for subject_id, text in labels.items() if text]
    records = tuple(
        RecordInfo(
            record_id=f"record of {subject_id}",
            subject_id=subject_id,
            database="hand-made",
            duration_s=WINDOW_S * len(text),
            episodes=(),
            excluded={},
        )
        for subject_id, text in labels.items()
    )
    return Dataset(windows=join(sets), records=records)


def test_deploy_takes_the_first_windows_and_judges_what_follows_without_drawing_anything():
    task = held_out_task(make_windows(GOOD), protocol="deploy", n_shots=2)
    assert (task.support.start_s / WINDOW_S).tolist() == [0, 2, 3, 4]
    assert task.support.labels.tolist() == [0, 0, 1, 1]
    assert (task.query.start_s / WINDOW_S).tolist() == list(range(6, 16))


def test_as_published_draws_the_support_anywhere_and_judges_all_the_rest():
    windows = make_windows(GOOD)
    drawn = [
        held_out_task(windows, protocol="as_published", n_shots=2, rng=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    supports = [task.support.start_s.tolist() for task in drawn]
    assert supports[0] == supports[1] != supports[2]
    assert drawn[0].support.count("va") == drawn[0].support.count("other") == 2
    everything = np.sort(np.concatenate([drawn[0].support.start_s, drawn[0].query.start_s]))
    assert np.array_equal(everything, windows.start_s)


def test_as_published_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="'as_published' draws its support; pass rng"):
        held_out_task(make_windows(GOOD), protocol="as_published", n_shots=2)


def test_only_the_published_protocol_lets_support_and_test_windows_overlap():
    windows = make_windows(GOOD)
    rng = np.random.default_rng(0)
    published = held_out_task(windows, protocol="as_published", n_shots=2, rng=rng)
    assert published.overlap_allowed
    assert not held_out_task(windows, protocol="deploy", n_shots=2).overlap_allowed


def test_the_published_protocol_is_marked_as_optimistic_and_deploy_is_not():
    assert PROTOCOLS == {
        "deploy": "",
        "as_published": "optimistic, not a deployment figure",
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda: held_out_task(make_windows(GOOD), protocol="deployed", n_shots=2),
        lambda: prepare_for_protocol(make_dataset(a=GOOD), "deployed"),
    ],
    ids=["held_out_task", "prepare_for_protocol"],
)
def test_an_unknown_protocol_is_answered_with_the_nearest_name(call):
    with pytest.raises(ValueError, match="'deployed'.*Did you mean 'deploy'"):
        call()


def test_a_subject_that_cannot_be_evaluated_says_what_is_missing():
    with pytest.raises(NotEnoughWindowsError, match="'s' has 1 windows of class 'va'.* needs 2"):
        held_out_task(make_windows("0001000"), protocol="deploy", n_shots=2)


def test_everybody_is_eligible_or_has_a_reason_and_who_has_no_va_counts_for_false_alarms():
    dataset = make_dataset(
        good=GOOD,
        late="000110" + "01" * 4,  # four test windows of each class, five are needed
        healthy="0" * 30,
        always="1" * 30,
        gone="",
    )
    found = eligibility(dataset, protocol="deploy", n_shots=2)
    assert found.eligible == ("good",)
    assert found.one_class == ("healthy",)
    assert sorted(found.reasons) == ["always", "gone", "healthy", "late"]
    assert "4 windows" in found.reasons["late"] and "after its support" in found.reasons["late"]
    assert "0 windows of class 'va'" in found.reasons["healthy"]
    assert "0 windows of class 'other'" in found.reasons["always"]
    assert found.reasons["gone"].startswith("no usable window")


def test_who_is_eligible_depends_on_the_protocol():
    """VA comes first: nothing to label as other before it, but plenty to draw from."""
    dataset = make_dataset(backwards="1" * 10 + "0" * 10)
    assert eligibility(dataset, protocol="deploy", n_shots=2).eligible == ()
    assert eligibility(dataset, protocol="as_published", n_shots=2).eligible == ("backwards",)


def test_deploy_leaves_every_window_as_it_is():
    dataset = make_dataset(a=GOOD, b=GOOD)
    assert prepare_for_protocol(dataset, "deploy") is dataset


def test_as_published_scales_each_subject_by_its_own_mean_and_spread_over_everything():
    small, large = make_windows(GOOD, "small", scale=0.1), make_windows(GOOD, "large", scale=7.0)
    records = make_dataset(small=GOOD, large=GOOD).records
    dataset = Dataset(windows=join([small, large]), records=records)
    before = dataset.windows.windows.copy()
    scaled = prepare_for_protocol(dataset, "as_published")
    for subject_id, original in (("small", small), ("large", large)):
        values = scaled.of_subject(subject_id).windows
        assert values.mean() == pytest.approx(0.0, abs=1e-6)
        assert values.std() == pytest.approx(1.0, rel=1e-5)
        line = np.polyfit(original.windows.ravel(), values.ravel(), 1)
        assert np.allclose(np.polyval(line, original.windows), values, atol=1e-4)
        assert line[0] > 0  # one straight line for all of the subject's windows
    assert np.array_equal(dataset.windows.windows, before)
    assert scaled.records == dataset.records
    assert scaled.windows.windows.dtype == np.float32


def test_as_published_lets_the_test_part_reach_into_the_support_and_deploy_does_not():
    changed = make_windows(GOOD)
    changed.windows[-1] *= 100
    records = make_dataset(s=GOOD).records
    firsts = {
        protocol: [
            prepare_for_protocol(Dataset(windows=w, records=records), protocol).windows.windows[0]
            for w in (make_windows(GOOD), changed)
        ]
        for protocol in PROTOCOLS
    }
    assert np.array_equal(*firsts["deploy"])
    assert not np.allclose(*firsts["as_published"])


def test_a_flat_subject_is_scaled_to_zero_and_not_to_nan():
    windows = make_windows(GOOD)
    windows.windows[:] = 3.0
    dataset = Dataset(windows=windows, records=make_dataset(s=GOOD, gone="").records)
    assert not prepare_for_protocol(dataset, "as_published").windows.windows.any()
