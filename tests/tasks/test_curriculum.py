"""Difficulties, pacings and the curriculum: who may be drawn when, with answers to read off."""

import json

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.tasks.curriculum import (
    PACINGS,
    Curriculum,
    RunningLoss,
    initial_loss,
    measure_difficulty,
    plot_simulation,
    separability,
    simulate,
)
from metaecg.tasks.pacing import Linear, MetaVA, Progress, SelfPaced

N = 30
SUBJECTS = [f"s{i:02d}" for i in range(N)]  # s00 is the easiest, s29 the hardest
SCORES = np.arange(N) / N
SOFTMAX = np.exp(SCORES) / np.exp(SCORES).sum()


def play(pacing, *, difficulty=SCORES, n_iterations=100, meta_batch_size=5, seed=7, loss_at=None):
    return simulate(
        SUBJECTS,
        difficulty,
        pacing=pacing,
        n_iterations=n_iterations,
        meta_batch_size=meta_batch_size,
        rng=np.random.default_rng(seed),
        loss_at=loss_at,
    )


@pytest.mark.parametrize("pacing", ["linear", "exponential", "self-paced"])
def test_at_first_only_the_easiest_third_is_drawn_and_in_the_end_everybody(pacing):
    seen = play(pacing, n_iterations=400)
    assert seen.n_admitted[0] == 10
    assert seen.draws[0].max() < 10
    assert (seen.n_admitted[200:] == N).all()
    assert set(seen.draws[200:].ravel()) == set(range(N))
    assert (np.diff(seen.n_admitted) >= 0).all()


@pytest.mark.parametrize("pacing", ["linear", "exponential"])
def test_nobody_is_drawn_who_is_harder_than_those_admitted(pacing):
    seen = play(pacing)
    assert (seen.draws.max(axis=1) < seen.n_admitted).all()


def test_linear_adds_by_the_same_amount_and_exponential_later():
    linear, exponential = play("linear").n_admitted, play("exponential").n_admitted
    assert [linear[0], linear[25], linear[50]] == [10, 20, 30]
    assert exponential[25] == 18  # 30 times the square root of a third, rounded up
    assert (exponential <= linear).all()


def test_the_order_of_the_subjects_is_that_of_their_difficulty_not_of_their_names():
    curriculum = Curriculum(
        ["easy", "hard", "middle"],
        pacing=Linear(start_share=0.3),
        difficulty=[0.1, 0.9, 0.5],
        n_iterations=10,
        meta_batch_size=1,
        rng=np.random.default_rng(7),
    )
    assert [curriculum.draw(0) for _ in range(5)] == [["easy"]] * 5
    assert {curriculum.draw(4)[0] for _ in range(60)} == {"easy", "hard", "middle"}


def test_without_a_curriculum_everybody_is_drawn_about_as_often():
    seen = play("none", n_iterations=3000)
    counts = np.bincount(seen.draws.ravel(), minlength=N)
    assert (seen.n_admitted == N).all()
    assert counts.sum() == 15_000
    assert np.abs(counts - 500).max() < 100  # five standard deviations


def test_metava_draws_the_fixed_easiest_set_before_iteration_43():
    seen = play("metava", difficulty=SOFTMAX, n_iterations=60, meta_batch_size=9)
    assert (seen.draws[:43] == np.arange(9)).all()
    assert (seen.n_admitted[:43] == 9).all()


def test_metava_keeps_the_two_easiest_of_nine_and_opens_to_everybody_at_iteration_50():
    seen = play("metava", difficulty=SOFTMAX, n_iterations=400, meta_batch_size=9)
    assert (seen.draws[:, :2] == [0, 1]).all()
    assert (seen.n_admitted[50:] == N).all()
    assert set(seen.draws[50:, 2:].ravel()) == set(range(2, N))


def test_metavas_switch_depends_on_the_iteration_not_on_the_length_of_training():
    short = play("metava", difficulty=SOFTMAX, n_iterations=60, meta_batch_size=9)
    long = play("metava", difficulty=SOFTMAX, n_iterations=300, meta_batch_size=9)
    np.testing.assert_array_equal(short.draws, long.draws[:60])


def test_metava_never_draws_by_chance_whom_it_drew_as_often_as_there_were_iterations():
    progress = Progress(
        iteration=60,
        n_iterations=300,
        meta_batch_size=200,
        difficulty=np.full(300, 0.01),
        losses=np.full(300, np.nan),
        n_drawn=np.where(np.arange(300) < 298, 60, [30] * 299 + [0]),
    )
    always, by_chance = np.split(MetaVA().draw(progress, np.random.default_rng(7)), [60])
    assert always.tolist() == list(range(60))
    assert set(by_chance) == {298, 299}
    # Half the iterations against none: one draw to two, of 140.
    assert 30 <= (by_chance == 298).sum() <= 63


def test_metava_opens_for_every_difficulty_whatever_its_scale():
    seen = play("metava", difficulty=100 * SCORES, n_iterations=60, meta_batch_size=9)
    assert (seen.draws[:30] == np.arange(9)).all()
    assert (seen.n_admitted[50:] == N).all()


def test_self_paced_admits_those_whose_observed_loss_is_low():
    curriculum = Curriculum(
        SUBJECTS,
        pacing="self-paced",
        difficulty=SCORES,
        n_iterations=100,
        meta_batch_size=5,
        rng=np.random.default_rng(7),
    )
    curriculum.observe(SUBJECTS, 1.0 - SCORES)  # the hardest by the first guess is learned best
    drawn = {subject for _ in range(50) for subject in curriculum.draw(0)}
    assert drawn == set(SUBJECTS[20:])


def test_self_paced_lets_a_subject_in_that_was_not_yet_seen_before_one_seen_to_be_hard():
    curriculum = Curriculum(
        ["a", "b", "c"],
        pacing=SelfPaced(start_share=0.6),
        difficulty=[0, 1, 2],
        n_iterations=100,
        meta_batch_size=2,
        rng=np.random.default_rng(7),
    )
    assert sorted(curriculum.draw(0)) == ["a", "b"]
    curriculum.observe(["a", "b"], [2.0, 0.5])
    assert sorted(curriculum.draw(0)) == ["b", "c"]


def test_the_running_loss_changes_whom_linear_pacing_draws():
    curriculum = Curriculum(
        ["a", "b", "c"],
        pacing="linear",
        difficulty=RunningLoss([0.1, 0.5, 0.9]),
        n_iterations=100,
        meta_batch_size=1,
        rng=np.random.default_rng(7),
    )
    assert curriculum.draw(0) == ["a"]
    curriculum.observe(["a"], [2.0])
    assert curriculum.difficulty.tolist() == [2.0, 0.5, 0.9]
    assert curriculum.draw(0) == ["b"]


def test_fixed_difficulties_do_not_change_by_what_is_observed():
    first = play("linear")
    second = play("linear", loss_at=lambda iteration, subject: 5.0)
    np.testing.assert_array_equal(first.draws, second.draws)


def test_the_running_mean_keeps_the_momentums_share_of_the_old_value():
    running = RunningLoss([9.0, 4.0], momentum=0.75)
    running.observe([0], [1.0])
    running.observe([0], [2.0])
    assert running.scores.tolist() == [0.75 * 1.0 + 0.25 * 2.0, 4.0]
    assert running.is_seen.tolist() == [True, False]


@pytest.mark.parametrize("pacing", sorted(PACINGS))
def test_the_same_seed_gives_the_same_draws_and_another_seed_others(pacing):
    np.testing.assert_array_equal(play(pacing, seed=1).draws, play(pacing, seed=1).draws)
    assert (play(pacing, seed=1).draws != play(pacing, seed=2).draws).any()


@pytest.mark.parametrize("pacing", sorted(set(PACINGS) - {"metava"}))
def test_a_meta_batch_holds_distinct_subjects(pacing):
    seen = play(pacing, meta_batch_size=12)
    assert all(len(set(batch)) == 12 for batch in seen.draws)


@pytest.mark.parametrize("pacing", sorted(PACINGS))
@pytest.mark.parametrize("n_subjects", [1, 2, 3])
def test_a_batch_larger_than_the_number_of_subjects_repeats_them(pacing, n_subjects):
    curriculum = Curriculum(
        SUBJECTS[:n_subjects],
        pacing=pacing,
        difficulty=SCORES[:n_subjects],
        n_iterations=60,
        meta_batch_size=7,
        rng=np.random.default_rng(7),
    )
    for iteration in range(60):
        drawn = curriculum.draw(iteration)
        assert len(drawn) == 7
        assert set(drawn) <= set(SUBJECTS[:n_subjects])
        if pacing != "metava":
            counts = [drawn.count(subject) for subject in SUBJECTS[:n_subjects]]
            assert max(counts) - min(counts) <= 1


def test_equal_difficulties_are_no_obstacle():
    for pacing in PACINGS:
        seen = play(pacing, difficulty=np.zeros(N), n_iterations=60)
        assert seen.n_admitted[-1] == N


def test_the_initial_loss_becomes_a_softmax_over_the_subjects():
    losses = {"a": 0.0, "b": np.log(3.0)}
    np.testing.assert_allclose(initial_loss(["a", "b"], losses.get), [0.25, 0.75])
    huge = {"a": 1000.0, "b": 1001.0}
    assert np.isfinite(initial_loss(["a", "b"], huge.get)).all()


def make_subject(kind, rng, n=40, fs_hz=200.0):
    """Two classes of noisy tones: 5 Hz against 12 Hz, or both at 5 Hz."""
    labels = np.arange(n) % 2
    time_s = np.arange(400) / fs_hz
    tone_hz = np.where((labels == 1) & (kind == "apart"), 12.0, 5.0)
    windows = np.sin(2 * np.pi * tone_hz[:, None] * time_s) + 0.3 * rng.standard_normal((n, 400))
    return windows[:, None, :], labels


def test_separability_is_0_for_classes_far_apart_and_high_for_equal_ones():
    rng = np.random.default_rng(7)
    data = {kind: make_subject(kind, rng) for kind in ("apart", "equal")}
    apart, equal = separability(["apart", "equal"], data.get, fs_hz=200.0)
    assert apart == 0.0
    assert equal > 0.5


def test_a_subject_with_one_window_of_a_class_counts_as_hardest():
    windows, _ = make_subject("apart", np.random.default_rng(7))
    labels = np.zeros(40, dtype=int)
    assert separability(["s"], lambda s: (windows, labels), fs_hz=200.0).tolist() == [1.0]
    labels[3] = 1
    assert separability(["s"], lambda s: (windows, labels), fs_hz=200.0).tolist() == [1.0]


def test_a_difficulty_can_be_had_by_name():
    data = make_subject("apart", np.random.default_rng(7))
    losses = {"a": 0.0, "b": np.log(3.0)}
    scores = measure_difficulty("initial-loss", ["a", "b"], loss_of=losses.get)
    np.testing.assert_allclose(scores, [0.25, 0.75])
    running = measure_difficulty("running-loss", ["a", "b"], loss_of=losses.get)
    np.testing.assert_allclose(running.scores, [0.0, np.log(3.0)])
    scores = measure_difficulty("separability", ["a"], windows_of=lambda s: data, fs_hz=200.0)
    assert scores.tolist() == [0.0]


def test_a_difficulty_says_what_it_needs():
    with pytest.raises(ValueError, match="'initial-loss' needs loss_of"):
        measure_difficulty("initial-loss", ["a"])
    with pytest.raises(ValueError, match="'separability' needs fs_hz"):
        measure_difficulty("separability", ["a"], windows_of=lambda s: None)


def test_a_wrong_name_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="'self-pased'.*Did you mean 'self-paced'"):
        play("self-pased")
    with pytest.raises(ValueError, match="'inital-loss'.*Did you mean 'initial-loss'"):
        measure_difficulty("inital-loss", ["a"])


def test_scores_that_do_not_fit_the_subjects_are_refused():
    with pytest.raises(ValueError, match="29 numbers for 30 subjects"):
        play("linear", difficulty=SCORES[1:])
    with pytest.raises(ValueError, match=r"difficulty\[3\] is nan"):
        play("linear", difficulty=np.where(np.arange(N) == 3, np.nan, SCORES))
    with pytest.raises(ValueError, match="start_share is 0.0"):
        Linear(start_share=0.0)


def test_subjects_must_be_there_and_be_named_once():
    settings = {"n_iterations": 5, "meta_batch_size": 2, "rng": np.random.default_rng(7)}
    with pytest.raises(DataError, match="subject 'a' occurs twice"):
        Curriculum(["a", "b", "a"], pacing="none", difficulty=[1, 2, 3], **settings)
    with pytest.raises(DataError, match="subject_ids is empty"):
        Curriculum([], pacing="none", difficulty=[], **settings)
    curriculum = Curriculum(["a"], pacing="none", difficulty=[1], **settings)
    with pytest.raises(DataError, match="'x' isn't among the curriculum's 1 subjects"):
        curriculum.observe(["x"], [1.0])
    with pytest.raises(ValueError, match=r"losses\[0\] is nan"):
        curriculum.observe(["a"], [float("nan")])


def test_the_plot_orders_the_subjects_by_difficulty():
    seen = simulate(
        ["hard", "easy"],
        [2.0, 1.0],
        pacing=Linear(start_share=0.5, full_at=1.0),
        n_iterations=3,
        meta_batch_size=1,
        rng=np.random.default_rng(7),
    )
    figure = plot_simulation(seen)
    assert figure.data[0].text[0] == "easy"
    assert figure.data[0].y[0] == 0
    assert figure.data[1].y.tolist() == (seen.n_admitted - 0.5).tolist()


@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize("running", [False, True], ids=["fixed", "running"])
def test_a_restored_curriculum_draws_what_the_first_would_have_drawn(pacing, running):
    def build(scores):
        difficulty = RunningLoss(scores) if running else scores
        rng = np.random.default_rng(7)
        return Curriculum(
            SUBJECTS,
            pacing=pacing,
            difficulty=difficulty,
            n_iterations=20,
            meta_batch_size=4,
            rng=rng,
        )

    def go_on(curriculum, iterations):
        drawn = []
        for iteration in iterations:
            drawn.append(curriculum.draw(iteration))
            losses = [int(s[1:]) % 7 + iteration / 10 for s in drawn[-1]]
            curriculum.observe(drawn[-1], losses)
        return drawn

    first = build(SOFTMAX)
    go_on(first, range(8))
    state = json.loads(json.dumps(first.state()))
    restored = build(np.zeros(N))
    restored.restore(state)
    expected = go_on(first, range(8, 20))
    assert go_on(restored, range(8, 20)) == expected
    assert restored.difficulty.tolist() == first.difficulty.tolist()
    assert restored.state() == first.state()


def test_the_state_of_other_subjects_is_refused():
    def build(subjects):
        return Curriculum(
            subjects,
            pacing="none",
            difficulty=np.zeros(len(subjects)),
            n_iterations=1,
            meta_batch_size=1,
            rng=np.random.default_rng(7),
        )

    with pytest.raises(DataError, match="one of 2 other subjects than its 3"):
        build(["a", "b", "c"]).restore(build(["a", "b"]).state())
    with pytest.raises(ValueError, match="the state has 2 subjects; 3 were expected"):
        RunningLoss(np.zeros(3)).restore(RunningLoss(np.zeros(2)).state())
