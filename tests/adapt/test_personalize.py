import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from metaecg.adapt.arguments import LEARNING_RATES
from metaecg.adapt.methods import METHODS
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import DataError, NotEnoughWindowsError

FIT_COMBINATIONS = [(method, None) for method in METHODS] + [
    ("head", "released"),
    ("lora", "released"),
    ("head", "intended"),
    ("lora", "intended"),
]


def names(labels, base):
    return np.asarray(base.classes)[labels]


@pytest.mark.parametrize(("method", "prefine"), FIT_COMBINATIONS)
def test_ten_windows_per_class_make_a_detector(base, support, later, method, prefine):
    personal = Personalizer(base, method=method, prefine=prefine)
    assert personal.fit(support[0], support[1], time_s=support[2]) is personal
    truth = names(later[1], base)
    before = np.mean(names(base.predict_proba(later[0]).argmax(1), base) == truth)
    assert before < 0.9 < personal.score(later[0], truth)
    assert personal.loss_curve_[-1] < personal.loss_curve_[0]


@pytest.mark.parametrize(("method", "prefine"), FIT_COMBINATIONS)
def test_the_base_never_changes(base, support, method, prefine):
    before = {name: t.clone() for name, t in base.network.state_dict().items()}
    Personalizer(base, method=method, prefine=prefine).fit(
        support[0], support[1], time_s=support[2]
    )
    after = base.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in base.network.parameters())


@pytest.mark.parametrize(("method", "batch_size"), [("lora", None), ("head", 4)])
def test_the_same_number_gives_the_same_detector_and_another_another(
    base, support, later, method, batch_size
):
    def probabilities(random_state):
        personal = Personalizer(
            base, method=method, random_state=random_state, batch_size=batch_size, n_steps=5
        )
        return personal.fit(support[0], support[1]).predict_proba(later[0])

    assert (probabilities(1) == probabilities(1)).all()
    assert (probabilities(1) != probabilities(2)).any()


def test_fitting_leaves_the_global_random_states(base, metava_base, support):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for prefine in ("released", "intended"):
        personal = Personalizer(metava_base, prefine=prefine, dropout=True, batch_size=5)
        personal.fit(support[0], support[1], time_s=support[2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_no_step_gives_the_base_exactly(base, support, later):
    personal = Personalizer(base, n_steps=0).fit(support[0], support[1])
    assert (personal.predict_proba(later[0]) == base.predict_proba(later[0])).all()


def test_training_starts_at_the_loss_of_the_base_on_the_support(metava_base, support):
    millivolts = 0.4 * support[0] + 1.0
    probabilities = metava_base.predict_proba(millivolts)[np.arange(20), support[1]]
    personal = Personalizer(metava_base, n_steps=1).fit(millivolts, support[1])
    assert personal.loss_curve_ == [pytest.approx(-np.log(probabilities).mean(), abs=1e-6)]


def test_names_and_indices_as_labels_give_the_same(base, support, later):
    by_index = Personalizer(base, n_steps=3).fit(support[0], support[1])
    by_name = Personalizer(base, n_steps=3).fit(support[0], names(support[1], base).tolist())
    assert (by_index.predict_proba(later[0]) == by_name.predict_proba(later[0])).all()


def test_fitting_again_starts_from_the_base_again(base, support, later):
    personal = Personalizer(base, n_steps=3)
    once = personal.fit(support[0], support[1]).predict_proba(later[0])
    again = personal.fit(support[0], support[1]).predict_proba(later[0])
    assert (once == again).all()


def test_windows_already_normalised_give_the_same(base, support, later):
    personal = Personalizer(base, n_steps=3).fit(support[0], support[1])
    millivolts = personal.predict_proba(0.4 * later[0] + 1.0)
    normalised = personal.predict_proba(base.preprocessing.normalize_windows(later[0]))
    np.testing.assert_allclose(millivolts, normalised, atol=1e-5)


def test_probabilities_are_float64_sum_to_one_and_may_be_none(base, support, later):
    personal = Personalizer(base, n_steps=3).fit(support[0], support[1])
    probabilities = personal.predict_proba(later[0])
    assert probabilities.dtype == np.float64 and probabilities.shape == (80, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert personal.predict_proba(later[0][:0]).shape == (0, 2)
    assert personal.predict(later[0][:0]).shape == (0,)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_threshold_decides_between_two_classes(base, support, later, threshold):
    personal = Personalizer(base, n_steps=3, threshold=threshold).fit(support[0], support[1])
    is_va = personal.predict_proba(later[0])[:, 1] >= threshold
    assert personal.predict(later[0]).tolist() == np.where(is_va, "va", "other").tolist()


def test_va_is_the_positive_class_wherever_it_stands(support, make_base):
    base = make_base(classes=("va", "other"))
    personal = Personalizer(base, threshold=0.0).fit(support[0], support[1])
    assert set(personal.predict(support[0])) == {"va"}


def test_of_three_classes_the_most_probable_is_named(make_base, make_windows):
    base = make_base(classes=("N", "S", "V"))
    windows, labels, _ = make_windows(8, frequencies_hz=(1.5, 6.0, 15.0))
    personal = Personalizer(base, method="full").fit(windows, labels)
    assert personal.predict(windows).tolist() == names(labels, base).tolist()


def test_a_class_that_the_patient_lacks_is_allowed_among_three(make_base, support):
    personal = Personalizer(make_base(classes=("N", "S", "V"))).fit(support[0], support[1])
    assert personal.n_support_ == {"N": 10, "S": 10, "V": 0}


def test_what_was_trained_is_told(base, support):
    personal = Personalizer(base, method="lora", rank=2, n_steps=4).fit(support[0], support[1])
    assert personal.classes_.tolist() == ["other", "va"]
    assert personal.adapted_layers_ == [f"blocks.{i}.conv" for i in range(4)]
    head = base.network.head.weight.numel() + 2
    assert head < personal.n_trainable_ < 0.5 * sum(p.numel() for p in base.network.parameters())
    assert len(personal.loss_curve_) == 4 and personal.prefine_curve_ == []
    assert personal.fit_seconds_ > 0
    assert Personalizer(base, method="head").fit(support[0], support[1]).n_trainable_ == head


def test_the_merged_network_gives_the_personal_probabilities(base, support, later):
    personal = Personalizer(base).fit(support[0], support[1])
    x = torch.from_numpy(base.preprocessing.normalize_windows(later[0]))
    plain = personal.merged_network()
    assert set(plain.state_dict()) == set(base.network.state_dict())
    with torch.inference_mode():
        probabilities = plain(x).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities, personal.predict_proba(later[0]), atol=1e-6)


def test_the_constructor_only_stores(base):
    personal = Personalizer(base, method="hypnosis", n_steps=-1)
    assert personal.get_params()["n_steps"] == -1 and personal.base is base
    assert not [name for name in vars(personal) if name.endswith("_")]


def test_a_clone_is_unfitted_and_shares_the_base(base, support):
    personal = Personalizer(base, method="bias", n_steps=7, threshold=0.4).fit(
        support[0], support[1]
    )
    twin = clone(personal)
    assert twin.get_params() == personal.get_params() and twin.base is base
    assert not hasattr(twin, "network_")


def test_parameters_can_be_set(base):
    personal = Personalizer(base).set_params(method="head", n_steps=2)
    assert (personal.method, personal.n_steps) == ("head", 2)


def test_nothing_works_before_fit(base, later, tmp_path):
    personal = Personalizer(base)
    for call in (
        lambda: personal.predict_proba(later[0]),
        lambda: personal.predict(later[0]),
        lambda: personal.save(tmp_path / "a"),
        lambda: personal.merged_network(),
    ):
        with pytest.raises(NotFittedError):
            call()


def test_a_fit_that_fails_leaves_the_earlier_one(base, support, later):
    personal = Personalizer(base, n_steps=3).fit(support[0], support[1])
    before = personal.predict_proba(later[0])
    with pytest.raises(NotEnoughWindowsError):
        personal.fit(support[0], np.zeros(20, int))
    assert (personal.predict_proba(later[0]) == before).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 100), r"shape \(20, 100\); expected \(n_windows, n_leads, n_samples\)"),
        ((20, 2, 100), r"shape \(20, 2, 100\); expected \(n_windows, 1, 100\): the base takes"),
        ((20, 1, 90), r"1 s at 100 Hz"),
    ],
)
def test_windows_of_another_shape_are_refused(base, support, shape, message):
    personal = Personalizer(base, n_steps=1)
    with pytest.raises(DataError, match=message):
        personal.fit(np.zeros(shape), support[1])
    personal.fit(support[0], support[1])
    with pytest.raises(DataError, match=message):
        personal.predict_proba(np.zeros(shape))


def test_windows_with_nan_are_refused_with_the_place(base, support):
    windows = support[0].copy()
    windows[7, 0, 3] = np.nan
    with pytest.raises(DataError, match=r"windows\[7\] holds NaN"):
        Personalizer(base).fit(windows, support[1])


def test_one_class_only_is_refused_and_the_missing_one_named(base, support):
    with pytest.raises(NotEnoughWindowsError, match="0 windows of class 'va' among the 20 given"):
        Personalizer(base).fit(support[0], ["other"] * 20)


def test_no_windows_are_refused(base, support):
    with pytest.raises(NotEnoughWindowsError, match="among the 0 given"):
        Personalizer(base).fit(support[0][:0], [])


def test_prefine_intended_needs_times_and_two_windows_of_each_class(base, support):
    personal = Personalizer(base, prefine="intended")
    with pytest.raises(DataError, match="time_s is None.*Hand over"):
        personal.fit(support[0], support[1])
    with pytest.raises(NotEnoughWindowsError, match="1 windows of class 'va'.*needs 2"):
        personal.fit(support[0][:3], [0, 1, 0], time_s=support[2][:3])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("method", "lroa"),
        ("n_steps", -1),
        ("n_steps", 2.5),
        ("n_steps", True),
        ("lr", 0.0),
        ("weight_decay", -1e-3),
        ("rank", 0),
        ("alpha", -1.0),
        ("batch_size", 0),
        ("micro_batch", 0),
        ("micro_batch", 2.0),
        ("freeze", "blocks.0"),
        ("h_tuning", {"mixing": 1.0}),
        ("prefine", "inteded"),
        ("weight_decay", float("nan")),
        ("threshold", 1.5),
        ("threshold", "high"),
        ("random_state", None),
    ],
)
def test_an_argument_out_of_range_is_named_when_fitting(base, support, argument, value):
    with pytest.raises(ValueError, match=f"{argument} is"):
        Personalizer(base, **{argument: value}).fit(support[0], support[1])


def test_every_method_has_a_learning_rate():
    # that of H-Tuning depends on the number of windows: test_h_tune.py
    assert sorted([*LEARNING_RATES, "h-tuning"]) == sorted(METHODS)


def test_marks_on_a_recording_are_cut_and_fitted(base, monkeypatch, support):
    from types import SimpleNamespace

    from metaecg.data import windows as windows_module

    def cut(record, marks, preprocessing, *, classes):
        assert (marks, preprocessing) == ([(0, 20, "va")], base.preprocessing)
        return SimpleNamespace(
            windows=support[0],
            labels=1 - support[1],
            classes=classes[::-1],  # another order than the base's: names count
            time_s=support[2],
        )

    monkeypatch.setattr(windows_module, "windows_from_marks", cut)
    record = SimpleNamespace(subject_id="s-1")
    by_record = Personalizer(base, n_steps=3).fit_record(record, [(0, 20, "va")])
    by_windows = Personalizer(base, n_steps=3).fit(support[0], support[1])
    assert (by_record.predict_proba(support[0]) == by_windows.predict_proba(support[0])).all()


def test_importing_the_module_imports_no_heavy_package():
    code = (
        "import sys, metaecg.adapt.personalize as m; "
        "print(sorted({'peft', 'transformers', 'mlflow', 'optuna', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("method", "n_steps"), [("lora", 5), ("h-tuning", 4)])
def test_each_step_of_a_fit_is_told_and_changes_nothing(base, support, later, method, n_steps):
    told = []
    watched = Personalizer(base, method=method, n_steps=n_steps)
    watched.fit(*support[:2], on_step=lambda done, total: told.append((done, total)))
    alone = Personalizer(base, method=method, n_steps=n_steps).fit(*support[:2])
    assert told == [(step + 1, n_steps) for step in range(n_steps)]
    assert np.array_equal(watched.logits(later[0]), alone.logits(later[0]))


def test_what_is_raised_at_a_step_ends_the_fit_and_keeps_the_last_one(base, support, later):
    class Cancelled(Exception):
        pass

    def cancel(done, total):
        if done == 2:
            raise Cancelled

    personal = Personalizer(base, n_steps=5).fit(*support[:2])
    before, curve = personal.logits(later[0]), personal.loss_curve_
    with pytest.raises(Cancelled):
        personal.fit(support[0], 1 - support[1], on_step=cancel)
    assert np.array_equal(personal.logits(later[0]), before)
    assert personal.loss_curve_ is curve
