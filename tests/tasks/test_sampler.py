"""Tasks: the deploy rules with answers that can be read off, and what a drawn task promises."""

from dataclasses import replace

import numpy as np
import pytest

from metaecg.data.datasets import prepare
from metaecg.data.windows import WindowSet, join
from metaecg.errors import DataError, LeakageError, NotEnoughWindowsError
from metaecg.tasks.sampler import (
    GAP_S,
    MIN_TEST_PER_CLASS,
    Task,
    TaskSampler,
    deploy_task,
    published_task,
)


def make_windows(text, *, subject_id="s-1", time_s=None):
    """Windows of 2 s from a text, ``v`` for va and ``.`` for other, one after the other."""
    n = len(text)
    start_s = 2.0 * np.arange(n) if time_s is None else np.asarray(time_s, dtype=float)
    return WindowSet(
        windows=np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, 1, 4), np.float32),
        labels=np.array([c == "v" for c in text], dtype=np.int64),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, subject_id),
        record_ids=np.full(n, subject_id),
        start_s=start_s,
        time_s=start_s,
        fs_hz=2.0,
        window_s=2.0,
    )


def starts(windows):
    return windows.time_s.tolist()


TEST_PART = "....." + "vvvvv"


# deploy


def test_the_support_is_the_first_positives_and_negatives_spread_over_what_came_before():
    #                      0   4   8
    task = deploy_task(make_windows(".........vv" + "." + TEST_PART), n_shots=2)
    assert starts(task.support) == [0.0, 16.0, 18.0, 20.0]  # first and last negative, two positives
    assert task.support.labels.tolist() == [0, 0, 1, 1]


def test_three_shots_take_the_middle_negative_too():
    task = deploy_task(make_windows(".........vvv" + "." + TEST_PART), n_shots=3)
    assert starts(task.support) == [0.0, 8.0, 16.0, 18.0, 20.0, 22.0]


def test_negatives_between_the_positives_count_as_before_the_last_of_them():
    task = deploy_task(make_windows(".v....v" + "." + TEST_PART), n_shots=2)
    assert starts(task.support) == [0.0, 2.0, 10.0, 12.0]


def test_no_negative_after_the_last_support_positive_is_taken():
    with pytest.raises(NotEnoughWindowsError) as caught:
        deploy_task(make_windows(".vv" + "...." + TEST_PART), n_shots=2)
    error = caught.value
    assert (error.subject_id, error.label, error.n_found, error.n_needed) == ("s-1", "other", 1, 2)
    assert "'s-1' has 1 windows of class 'other' before its va window number 2" in str(error)


def test_the_query_is_everything_from_the_gap_after_the_support_on():
    task = deploy_task(make_windows("..vv" + "." + TEST_PART), n_shots=2)
    # The support ends at 8 s; the window at 8 s starts too early, the one at 10 s does not.
    assert GAP_S == 2.0
    assert starts(task.query) == [10.0 + 2 * i for i in range(10)]


def test_the_gap_is_measured_in_time_not_in_windows():
    time_s = [0, 2, 4, 6, 9.9, *np.arange(12.0, 32.0, 2)]
    task = deploy_task(make_windows("..vv" + "." + TEST_PART, time_s=time_s), n_shots=2)
    assert starts(task.query)[0] == 12.0
    time_s[4] = 10.0
    task = deploy_task(make_windows("..vv" + "." + TEST_PART, time_s=time_s), n_shots=2)
    assert starts(task.query)[0] == 10.0


@pytest.mark.parametrize("seed", range(10))
def test_every_query_window_is_later_than_every_support_window(seed):
    text = "." * 10 + "".join(np.random.default_rng(seed).choice(list("..v"), 200))
    task = deploy_task(make_windows(text), n_shots=10)
    assert task.query.time_s.min() >= task.support.time_s.max() + 2.0 + GAP_S
    assert [task.support.count(c) for c in ("other", "va")] == [10, 10]
    assert len(set(starts(task.support))) == 20


@pytest.mark.parametrize(("n_before", "n_shots"), [(10, 10), (11, 10), (13, 10), (19, 10), (37, 5)])
def test_no_negative_is_taken_twice(n_before, n_shots):
    text = "." * n_before + "v" * n_shots + "." + TEST_PART
    task = deploy_task(make_windows(text), n_shots=n_shots)
    assert len(set(starts(task.support))) == 2 * n_shots
    assert starts(task.support)[0] == 0.0
    assert starts(task.support)[n_shots - 1] == 2.0 * (n_before - 1)


def test_too_few_positives_name_subject_class_found_and_needed():
    with pytest.raises(
        NotEnoughWindowsError, match="subject 's-1' has 2 windows of class 'va'; the task needs 3"
    ):
        deploy_task(make_windows("...v...v..."), n_shots=3)


@pytest.mark.parametrize(
    ("rest", "label", "n_found"),
    [(".....vvvv", "va", 4), ("....vvvvv", "other", 4), (".....", "va", 0), ("", "other", 0)],
)
def test_fewer_than_five_test_windows_of_a_class_make_a_subject_ineligible(rest, label, n_found):
    assert MIN_TEST_PER_CLASS == 5
    expected = f"has {n_found} windows of class '{label}' after its support; the task needs 5"
    with pytest.raises(NotEnoughWindowsError, match=expected):
        deploy_task(make_windows("..vv" + "." + rest), n_shots=2)


def test_the_labels_of_the_test_part_play_no_role_for_the_support():
    a = deploy_task(make_windows("..vv" + "." + TEST_PART), n_shots=2)
    b = deploy_task(make_windows("..vv" + "." + TEST_PART[::-1]), n_shots=2)
    assert starts(a.support) == starts(b.support)


def test_windows_of_two_subjects_are_refused():
    both = join([make_windows("..vv" + TEST_PART), make_windows("..", subject_id="s-2")])
    with pytest.raises(DataError, match="one subject's windows; found 2"):
        deploy_task(both.select(np.argsort(both.time_s, kind="stable")), n_shots=2)


@pytest.mark.parametrize("time_s", [[0, 2, 6, 4], [0, 2, 3, 6]])
def test_windows_out_of_order_or_overlapping_are_refused(time_s):
    time_s = [*time_s, *(10 + 2.0 * np.arange(11))]
    windows = make_windows("..vv" + "." + TEST_PART, time_s=time_s)
    with pytest.raises(DataError, match="'s-1' at .* s and .* s are out of order or overlap"):
        deploy_task(windows, n_shots=2)


def test_no_shot_at_all_is_refused():
    with pytest.raises(ValueError, match="n_shots is 0; expected at least 1"):
        deploy_task(make_windows("..vv" + TEST_PART), n_shots=0)


@pytest.mark.real
def test_the_real_recordings_give_25_eligible_subjects_and_7603_test_windows(real_data):
    data = prepare(real_data, ["mitdb", "vfdb", "cudb"])
    tasks, reasons = {}, {}
    for subject_id in data.subject_ids:
        try:
            tasks[subject_id] = deploy_task(data.of_subject(subject_id), n_shots=10)
        except NotEnoughWindowsError as error:
            reasons[subject_id] = str(error)
    assert (len(tasks), sum(len(task.query) for task in tasks.values())) == (25, 7603)
    assert len(tasks) + len(reasons) == 93  # 94 records, 201 and 202 one person
    for subject_id, reason in reasons.items():
        assert repr(subject_id) in reason
    for task in tasks.values():
        assert task.query.time_s.min() >= task.support.time_s.max() + 2 + GAP_S - 1e-9


# A task


def test_a_query_window_that_overlaps_a_support_window_is_leakage():
    windows = make_windows("....vvvv")
    late = replace(windows, time_s=windows.time_s + 9.0)
    with pytest.raises(LeakageError, match="'s-1': the query window at 9.00 s overlaps a support"):
        Task(subject_id="s-1", support=windows.select(np.arange(4, 6)), query=late)


def test_the_same_window_on_both_sides_is_leakage_unless_overlap_is_allowed():
    windows = make_windows("....vvvv")
    with pytest.raises(LeakageError, match="overlaps a support window"):
        Task(subject_id="s-1", support=windows, query=windows.select([3]))
    Task(subject_id="s-1", support=windows, query=windows.select([3]), overlap_allowed=True)


def test_windows_that_only_touch_do_not_overlap():
    windows = make_windows("....vvvv")
    Task(subject_id="s-1", support=windows.select([0, 2, 4]), query=windows.select([1, 3, 5]))


# as_published


def test_the_published_support_is_random_and_the_rest_is_query():
    windows = make_windows("." * 20 + "v" * 20)
    task = published_task(windows, n_shots=10, rng=np.random.default_rng(0))
    assert [task.support.count(c) for c in ("other", "va")] == [10, 10]
    assert sorted(starts(task.support) + starts(task.query)) == starts(windows)
    other = published_task(windows, n_shots=10, rng=np.random.default_rng(1))
    assert starts(other.support) != starts(task.support)
    again = published_task(windows, n_shots=10, rng=np.random.default_rng(0))
    assert starts(again.support) == starts(task.support)


def test_the_published_task_needs_shots_and_test_windows_of_each_class():
    windows = make_windows("." * 20 + "v" * 14)
    with pytest.raises(NotEnoughWindowsError, match="14 windows of class 'va'; the task needs 15"):
        published_task(windows, n_shots=10, rng=np.random.default_rng(0))


# Drawing training tasks


@pytest.fixture
def several():
    rng = np.random.default_rng(0)
    many = [
        make_windows("".join(rng.choice(list("...v"), 80)), subject_id=f"s-{i}") for i in range(5)
    ]
    few = make_windows("." * 40 + "vvv", subject_id="few")
    none = make_windows("." * 40, subject_id="none")
    return join([*many, few, none])


@pytest.mark.parametrize("chronological", [True, False])
def test_a_drawn_task_has_its_windows_of_each_class_and_none_on_both_sides(several, chronological):
    sampler = TaskSampler(several, n_shots=5, n_query=8, chronological=chronological)
    rng = np.random.default_rng(0)
    for _ in range(50):
        for subject_id in sampler.subject_ids:
            task = sampler.draw(subject_id, rng=rng)
            assert [task.support.count(c) for c in ("other", "va")] == [5, 5]
            assert [task.query.count(c) for c in ("other", "va")] == [8, 8]
            assert len(set(starts(task.support))) == 10
            assert not set(starts(task.support)) & set(starts(task.query))
            assert {*task.support.subject_ids, *task.query.subject_ids} == {subject_id}


def test_a_chronological_query_is_later_than_the_support(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8)
    rng = np.random.default_rng(0)
    for _ in range(100):
        task = sampler.draw("s-1", rng=rng)
        assert task.query.time_s.min() > task.support.time_s.max()


def test_a_task_without_the_order_of_time_mixes_early_and_late(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8, chronological=False)
    task = sampler.draw("s-1", rng=np.random.default_rng(0))
    assert task.query.time_s.min() < task.support.time_s.max()


def test_where_the_classes_leave_no_moment_all_windows_serve():
    apart = make_windows("." * 20 + "v" * 8)
    sampler = TaskSampler(apart, n_shots=5, n_query=3)
    for seed in range(20):
        task = sampler.draw("s-1", rng=np.random.default_rng(seed))
        assert not set(starts(task.support)) & set(starts(task.query))
        assert task.query.count("va") == 3


def test_a_query_repeats_windows_only_where_a_class_has_too_few_left():
    sampler = TaskSampler(make_windows("." * 20 + "v" * 6), n_shots=5, n_query=8)
    task = sampler.draw("s-1", rng=np.random.default_rng(0))
    times, labels = task.query.time_s, task.query.labels
    assert len(set(times[labels == 1])) == 1 and (labels == 1).sum() == 8
    assert len(set(times[labels == 0])) == 8


def test_the_same_generator_draws_the_same_tasks(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8)

    def draws(seed):
        rng = np.random.default_rng(seed)
        tasks = [sampler.draw(s, rng=rng) for s in sampler.subject_ids for _ in range(3)]
        return [(starts(task.support), starts(task.query)) for task in tasks]

    assert draws(4) == draws(4)
    assert draws(4) != draws(5)


def test_windows_out_of_order_are_sorted_first(several):
    order = np.random.default_rng(1).permutation(len(several))
    sampler = TaskSampler(several.select(order), n_shots=5, n_query=8)
    for seed in range(20):
        task = sampler.draw("s-2", rng=np.random.default_rng(seed))
        assert task.query.time_s.min() > task.support.time_s.max()


def test_subjects_with_too_few_windows_are_listed_with_the_reason(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8)
    assert sampler.subject_ids == [f"s-{i}" for i in range(5)]
    assert sorted(sampler.ineligible) == ["few", "none"]
    assert "'few' has 3 windows of class 'va'; the task needs 6" in sampler.ineligible["few"]
    assert "'none' has 0 windows of class 'va'" in sampler.ineligible["none"]


@pytest.mark.parametrize(("n_positive", "is_eligible"), [(5, False), (6, True)])
def test_a_subject_needs_one_window_more_than_the_shots(n_positive, is_eligible):
    sampler = TaskSampler(make_windows("." * 9 + "v" * n_positive), n_shots=5, n_query=2)
    assert (sampler.subject_ids == ["s-1"]) is is_eligible


def test_drawing_from_a_subject_with_too_few_names_subject_class_found_and_needed(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8)
    with pytest.raises(NotEnoughWindowsError) as caught:
        sampler.draw("few", rng=np.random.default_rng(0))
    error = caught.value
    assert (error.subject_id, error.label, error.n_found, error.n_needed) == ("few", "va", 3, 6)


def test_an_unknown_subject_is_answered_with_the_nearest(several):
    sampler = TaskSampler(several, n_shots=5, n_query=8)
    with pytest.raises(DataError, match="'s-9' has no windows here; expected one of s-0.*mean 's-"):
        sampler.draw("s-9", rng=np.random.default_rng(0))
