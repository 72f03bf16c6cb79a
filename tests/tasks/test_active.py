"""Which beats to label: every kind early, each beat once, the same questions for the same answers."""

from collections import Counter

import numpy as np
import pytest

from metaecg.data.beats import cut_beats
from metaecg.data.labels import DS1
from metaecg.data.records import Annotations, Record, read_record
from metaecg.errors import DataError
from metaecg.tasks import beat_tree
from metaecg.tasks.active import ActiveLabeller, beat_features, propose_beats
from metaecg.tasks.beat_tree import BeatTree

KINDS = {"N": (0.0, 0.0), "V": (9.0, 0.0), "S": (0.0, 9.0)}


def beats_of(letters, *, seed=7):
    """Return features of beats that lie in one cloud per letter, and the letters."""
    rng = np.random.default_rng(seed)
    centres = np.array([KINDS[letter] for letter in letters])
    return centres + rng.normal(scale=0.5, size=(len(letters), 2)), np.array(list(letters))


def ask(labeller, letters, n):
    """Ask for `n` beats one by one, and answer; return their letters in order."""
    asked = []
    for _ in range(n):
        found = labeller.next()
        labeller.tell(found, letters[found])
        asked += letters[found].tolist()
    return asked


def test_three_beats_in_two_thousand_are_among_the_first_labels():
    features, letters = beats_of("N" * 1000 + "V" * 3 + "N" * 1000)
    asked = ask(ActiveLabeller(features, n_per_class=3), letters, 12)
    assert Counter(asked)["V"] == 3


def test_a_kind_that_was_found_is_collected_until_there_are_enough():
    features, letters = beats_of("N" * 300 + "V" * 40 + "S" * 20)
    labeller = ActiveLabeller(features, n_per_class=10)
    assert Counter(ask(labeller, letters, 30)) == {"N": 10, "V": 10, "S": 10}
    assert labeller.n_told == 30


def test_a_cluster_whose_labels_disagree_is_looked_into():
    # Half of what looks like one kind is another: the parts have to be asked for, too.
    features, letters = beats_of("N" * 200)
    letters[features[:, 0] > 0.3] = "V"
    labeller = ActiveLabeller(features, n_per_class=10, n_clusters=1)
    assert Counter(ask(labeller, letters, 24))["V"] >= 10


def test_no_beat_is_asked_twice_and_all_are_asked_in_the_end():
    features, letters = beats_of("NNVNSNVNNN")
    labeller = ActiveLabeller(features, n_per_class=2, n_clusters=3)
    assert len(ask(labeller, letters, 10)) == 10
    assert sorted(labeller.labels) == list(range(10))
    assert labeller.next(5).tolist() == []


def test_asking_changes_nothing():
    features, letters = beats_of("N" * 50 + "V" * 10)
    labeller = ActiveLabeller(features)
    ask(labeller, letters, 9)
    assert labeller.next(4).tolist() == labeller.next(4).tolist()
    assert labeller.next(4)[:2].tolist() == labeller.next(2).tolist()


def test_the_same_answers_give_the_same_questions():
    features, letters = beats_of("N" * 80 + "V" * 10 + "S" * 5)
    first, second = (ask(ActiveLabeller(features), letters, 20) for _ in range(2))
    assert first == second


def test_beats_asked_for_at_once_differ_and_do_not_exceed_the_need():
    features, letters = beats_of("N" * 100 + "V" * 30)
    labeller = ActiveLabeller(features, n_per_class=10, n_clusters=2)
    labeller.tell([0, 100], ["N", "V"])
    found = labeller.next(18)
    assert len(set(found.tolist())) == 18
    assert Counter(letters[found]) == {"N": 9, "V": 9}


def test_only_beats_of_the_pool_are_asked_for():
    features, letters = beats_of("N" * 100 + "V" * 30)
    pool = np.arange(90, 110)
    labeller = ActiveLabeller(features, pool=pool)
    assert set(labeller.next(100).tolist()) == set(pool.tolist())
    ask(labeller, letters, 5)
    assert set(labeller.labels) <= set(pool.tolist())


def test_what_is_outside_the_pool_changes_nothing():
    features, _ = beats_of("N" * 100 + "V" * 30)
    changed = features.copy()
    changed[60:] += 100.0
    pool = np.arange(60)
    first, second = (ActiveLabeller(f, pool=pool).next(20) for f in (features, changed))
    assert first.tolist() == second.tolist()


def test_a_beat_told_without_being_asked_counts_and_the_last_word_holds():
    features, _ = beats_of("N" * 20)
    labeller = ActiveLabeller(features)
    labeller.tell([3, 4], ["N", "V"])
    labeller.tell([4], ["N"])
    assert labeller.labels == {3: "N", 4: "N"}
    assert labeller.n_told == 2
    assert not {3, 4} & set(labeller.next(18).tolist())


def test_telling_what_does_not_fit_is_refused_and_leaves_all_as_it_was():
    labeller = ActiveLabeller(beats_of("N" * 20)[0], pool=range(10))
    with pytest.raises(DataError, match="2 beats were told with 1 labels"):
        labeller.tell([0, 1], ["N"])
    with pytest.raises(DataError, match="beat 12 is not in the pool of 10 beats"):
        labeller.tell([0, 12], ["N", "N"])
    assert labeller.n_told == 0


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.zeros(5), {}, r"shape \(5,\)"),
        (np.full((5, 2), np.nan), {}, "expected finite numbers"),
        (np.zeros((0, 2)), {}, "pool holds no beat"),
        (np.zeros((5, 2)), {"pool": [1, 1]}, "2 rows from 1 to 1; expected rows of the 5 beats"),
        (np.zeros((5, 2)), {"pool": [5]}, "1 rows from 5 to 5"),
        (np.zeros((5, 2)), {"n_per_class": 0}, "n_per_class is 0"),
        (np.zeros((5, 2)), {"n_clusters": 0}, "n_clusters is 0"),
    ],
)
def test_impossible_input_is_refused(features, options, message):
    with pytest.raises(ValueError, match=message):
        ActiveLabeller(features, **options)


def test_without_answers_every_cluster_is_proposed_first():
    features, letters = beats_of("N" * 300 + "V" * 20 + "S" * 10)
    proposed = propose_beats(features, n_total=3)
    assert sorted(letters[proposed]) == ["N", "S", "V"]
    assert len(propose_beats(features, n_total=400)) == 330
    assert propose_beats(features, n_total=5, pool=range(300)).max() < 300


def test_one_beat_is_a_recording_too():
    assert propose_beats(np.zeros((1, 3)), n_total=5).tolist() == [0]


def test_equal_beats_are_asked_one_by_one():
    assert sorted(propose_beats(np.zeros((6, 2)), n_total=6).tolist()) == list(range(6))


def test_many_beats_are_grouped_first_and_rare_ones_still_found(monkeypatch):
    monkeypatch.setattr(beat_tree, "MAX_LEAVES", 50)
    features, letters = beats_of("N" * 900 + "V" * 30)
    labeller = ActiveLabeller(features, n_per_class=10)
    assert Counter(ask(labeller, letters, 20)) == {"N": 10, "V": 10}
    assert len(labeller.next(2000)) == 910


# The tree


def test_a_node_is_its_two_parts_side_by_side():
    features, _ = beats_of("N" * 30 + "V" * 10)
    tree = BeatTree(features)
    assert sorted(tree.order.tolist()) == list(range(40))
    for node in range(40, 79):
        left, right = (tree.span(part) for part in tree.parts(node))
        whole = tree.span(node)
        assert (whole.start, left.stop, whole.stop) == (left.start, right.start, right.stop)
        assert tree.size(node) == sum(map(tree.size, tree.parts(node)))


def test_cutting_in_two_parts_two_kinds():
    features, letters = beats_of("N" * 30 + "V" * 10)
    tree = BeatTree(features)
    found = [set(letters[tree.order[tree.span(node)]]) for node in tree.cut(2)]
    assert sorted(found, key=min) == [{"N"}, {"V"}]
    assert len(tree.cut(100)) == 40


def test_the_middle_is_the_allowed_beat_nearest_to_the_mean():
    tree = BeatTree(np.array([[0.0], [1.0], [2.0], [3.0], [10.0]]))
    root = 8
    everyone = np.ones(5, dtype=bool)
    assert tree.order[tree.middle(root, everyone)] == 3  # the mean is 3.2
    assert tree.order[tree.middle(root, tree.order != 3)] == 2


# From beats to features


def record_of(letters, *, fs_hz=250.0):
    """Return a recording with a beat a second; V is upside down and comes 0.4 s early."""
    places = 250 * np.arange(1, len(letters) + 1) - 100 * (np.array(list(letters)) == "V")
    signal = np.zeros(250 * (len(letters) + 2))
    signal[places] = np.where(np.array(list(letters)) == "V", -1.0, 1.0)
    signal += np.random.default_rng(7).normal(scale=0.001, size=len(signal))
    return Record(
        record_id="own/a",
        subject_id="own/a",
        signal_mv=np.convolve(signal, np.hanning(15), mode="same")[None].astype(np.float32),
        fs_hz=fs_hz,
        lead_names=("II",),
        annotations=Annotations(sample=places, symbol=tuple(letters), note=("",) * len(places)),
    )


def test_beats_of_other_form_and_rhythm_are_far_apart():
    letters = "NNNNNNVNNNNNNVNNNN"
    beats, _ = cut_beats(record_of(letters))
    features = beat_features(beats)
    assert features.shape == (18, 10) and features.dtype == np.float32
    is_v = beats.letters == "V"
    between = np.linalg.norm(features[is_v].mean(axis=0) - features[~is_v].mean(axis=0))
    within = np.linalg.norm(features[is_v][0] - features[is_v][1])
    assert between > 4 * within


def test_labels_play_no_part_in_the_features():
    beats, _ = cut_beats(record_of("NNNNVNNN"))
    others, _ = cut_beats(record_of("NNNNVNNN"), r_peaks=beats.sample)
    hidden = others.select(np.arange(len(others)))
    hidden.labels[:] = -1
    hidden.symbols[:] = ""
    np.testing.assert_array_equal(beat_features(beats), beat_features(hidden))


@pytest.mark.parametrize("n_beats", [1, 2])
def test_very_few_beats_have_features(n_beats):
    beats, _ = cut_beats(record_of("NNNN"))
    assert np.isfinite(beat_features(beats.select(np.arange(n_beats)))).all()


def test_no_beats_are_refused():
    beats, _ = cut_beats(record_of("NNNN"))
    with pytest.raises(DataError, match="there are no beats"):
        beat_features(beats.select(np.arange(0)))


@pytest.mark.real
@pytest.mark.parametrize("name", ["108", "118", "223"])
def test_ten_ventricular_beats_of_ds1_take_few_labels(real_data, name):
    assert name in DS1
    beats, _ = cut_beats(read_record(real_data / "mitdb" / name))
    labeller = ActiveLabeller(beat_features(beats))
    asked = ask(labeller, beats.letters, 35)  # by time: 849, 1270 and 175 labels
    assert Counter(asked)["V"] >= 10
