"""H-Tuning as a way to fine-tune: what is trained, the schedule, batches, settings, bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from metaecg.adapt import h_tuning
from metaecg.adapt.arguments import training_arguments
from metaecg.adapt.h_tuning import HTuning, h_tune, learning_rate, rate_factor, shallow_and_deep
from metaecg.adapt.methods import merged, prepare_network, running_statistics, trained_parameters
from metaecg.adapt.personalize import Personalizer
from metaecg.adapt.training import fine_tune
from metaecg.errors import AdaptationError
from metaecg.models.backbones.cnn_transformer import SIZES
from metaecg.models.registry import build_network

SMALL = {
    "compact-cnn": {"width": 16},
    "resnet1d-18": {"width": 16},
    "net1d": {},
    "metava": {"mid": 16, "d_model": 16, "feedforward": 32},
    "cnn-transformer": {"width": 32},
    "gru": {},
    "lstm": {},
}
"""Every kind of network; the recurrent ones have no layer of rank 16 that LoRA can reach."""


@pytest.fixture(scope="module")
def resnet_base(make_base):
    return make_base(architecture="resnet1d-18", width=16)


@pytest.fixture(scope="module")
def personal(resnet_base, support):
    return Personalizer(resnet_base, method="h-tuning", n_steps=4).fit(support[0], support[1])


def prepared(base, **kwargs):
    return prepare_network(base.new_network(), "h-tuning", **kwargs)


def tensors_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(network, before):
    after = network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("architecture", SMALL)
def test_it_fits_saves_and_loads_on_every_kind_of_network(
    architecture, make_base, support, later, tmp_path
):
    base = make_base(architecture=architecture, **SMALL[architecture])
    before = tensors_of(base.network)
    fitted = Personalizer(base, method="h-tuning", n_steps=3).fit(support[0], support[1])
    fitted.save(tmp_path / "a")
    loaded = Personalizer.load(tmp_path / "a", base)
    expected = fitted.predict_proba(later[0])
    assert (loaded.predict_proba(later[0]) == expected).all()
    assert (expected != base.predict_proba(later[0])).any()
    assert (fitted.adapted_layers_ == []) == (architecture in ("gru", "lstm"))
    assert loaded.adapted_layers_ == fitted.adapted_layers_
    assert_same(base.network, before)


def test_low_rank_layers_every_bias_and_the_head_are_trained_and_no_weight_of_a_norm():
    network = build_network("cnn-transformer", n_leads=1, n_samples=100, fs_hz=100.0, n_classes=2)
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    names = set(trained_parameters(prepare_network(network, "h-tuning")))
    low_rank = {n for n in names if "lora_A" in n or "lora_B" in n}
    plain = {n.removeprefix("base_model.model.").replace("base_layer.", "") for n in names}
    others = {n.replace("modules_to_save.default.", "") for n in plain if "lora" not in n}
    assert others == biases | {"head.weight"}
    # two of the first block read one lead: 9 samples, or 1, hold no change of rank 16
    assert len(low_rank) == 2 * (7 + 4 + 1)  # convolutions, one transformer block, the neck


@pytest.mark.parametrize(("size", "published"), [("tinylight", 0.081e6), ("tiny", 0.262e6)])
def test_the_trained_parameters_of_the_papers_network_are_as_many_as_published(size, published):
    width, n_blocks = SIZES[size]
    network = build_network(
        "cnn-transformer",
        **{"n_leads": 12, "n_samples": 6144, "fs_hz": 500.0, "n_classes": 18},
        **{"width": width, "n_blocks": n_blocks},
    )
    n_trained = sum(
        p.numel() for p in trained_parameters(prepare_network(network, "h-tuning")).values()
    )
    # The paper gives rank 16 also to the 1x1 convolution of 12 leads, which holds no more than 12.
    n_of_the_leads = 16 * (12 + width)
    # It gives query, key and value an A each, where ours share one, and leaves out the projection
    # after attention, which we adapt: 2 * 16 * width less here, as many more there.
    assert round(n_trained + n_of_the_leads, -3) == published


def test_the_last_layers_are_those_that_the_network_names(base):
    network = build_network("cnn-transformer", n_leads=1, n_samples=100, fs_hz=100.0, n_classes=2)
    _, deep = shallow_and_deep(prepare_network(network, "h-tuning"))
    assert [name.removeprefix("base_model.model.") for name, _ in deep] == [
        "neck.base_layer.bias",
        "neck.lora_A.default.weight",
        "neck.lora_B.default.weight",
        "head.modules_to_save.default.weight",
        "head.modules_to_save.default.bias",
    ]
    shallow, deep = shallow_and_deep(prepared(base))
    assert [name.rsplit(".", 1)[-1] for name, _ in deep] == ["weight", "bias"]
    assert all(".head." in name for name, _ in deep)
    assert len(shallow) + len(deep) == len(trained_parameters(prepared(base)))


def test_the_low_rank_start_is_the_published_one_at_rank_16_and_scale_1(resnet_base):
    network = prepared(resnet_base)
    tensors = trained_parameters(network)
    a = torch.cat([t.flatten() for n, t in tensors.items() if "lora_A" in n]).detach()
    assert abs(float(a.std()) - 0.02) < 1e-3 and abs(float(a.mean())) < 1e-3
    assert all(t.count_nonzero() == 0 for n, t in tensors.items() if "lora_B" in n)
    config = network.peft_config["default"]
    assert (config.r, config.lora_alpha) == (16, 16)


def test_the_same_seed_gives_the_same_start_and_the_global_state_stays(base):
    before = torch.get_rng_state()
    first, again, other = (trained_parameters(prepared(base, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_move_in_fitting_and_are_what_predict_uses(resnet_base, personal, later):
    moved = dict(running_statistics(merged(personal.network_)))
    still = dict(running_statistics(resnet_base.network))
    assert set(moved) == set(still) and all("running" in n or "num" in n for n in moved)
    assert all((moved[name] != still[name]).any() for name in moved)
    assert moved["stem_norm.num_batches_tracked"] == 2 * 4  # both sides of every step

    plain = personal.merged_network()
    probabilities = personal.predict_proba(later[0])
    x = torch.from_numpy(resnet_base.preprocessing.normalize_windows(later[0]))
    with torch.inference_mode():
        own = plain(x).double().softmax(1).numpy()
        for name, tensor in running_statistics(plain):
            tensor.copy_(still[name])
        of_the_base = plain(x).double().softmax(1).numpy()
    np.testing.assert_allclose(own, probabilities, atol=1e-6)
    assert np.abs(of_the_base - probabilities).max() > 1e-3


def test_with_batch_norm_eval_the_statistics_stay_those_of_the_base(resnet_base, support):
    settings = HTuning(batch_norm="eval")
    fitted = Personalizer(resnet_base, method="h-tuning", n_steps=2, h_tuning=settings)
    fitted.fit(support[0], support[1])
    still = dict(running_statistics(resnet_base.network))
    found = dict(running_statistics(fitted.merged_network()))
    assert all(torch.equal(found[name], still[name]) for name in still)


def test_merging_and_unmerging_give_the_same_outputs_and_keep_the_statistics(
    personal, resnet_base, later
):
    before = tensors_of(resnet_base.network)
    x = torch.from_numpy(resnet_base.preprocessing.normalize_windows(later[0]))
    network = personal.network_
    statistics = {name: tensor.clone() for name, tensor in running_statistics(network)}
    with torch.inference_mode():
        expected = network(x)
    network.merge_adapter(safe_merge=True)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)
    network.unmerge_adapter()
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(personal.merged_network()(x), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, statistics[n]) for n, tensor in running_statistics(network))
    assert_same(resnet_base.network, before)


def test_pefts_own_switch_does_not_give_the_base_back_but_the_base_is_still_there(
    personal, resnet_base, later
):
    # The biases and statistics were trained in place: what PEFT switches off is the low-rank part.
    x = torch.from_numpy(resnet_base.preprocessing.normalize_windows(later[0]))
    with torch.inference_mode(), personal.network_.disable_adapter():
        switched_off = personal.network_(x)
    with torch.inference_mode():
        of_the_base = resnet_base.network(x)
    assert (switched_off - of_the_base).abs().max() > 1e-3
    fresh = Personalizer(resnet_base, n_steps=0).fit(later[0], later[1])
    assert (fresh.predict_proba(later[0]) == resnet_base.predict_proba(later[0])).all()


def test_no_step_gives_the_base_exactly(resnet_base, support, later):
    fitted = Personalizer(resnet_base, method="h-tuning", n_steps=0).fit(support[0], support[1])
    assert (fitted.predict_proba(later[0]) == resnet_base.predict_proba(later[0])).all()


def test_the_size_of_the_adapter_is_reported_with_its_statistics(resnet_base, personal, tmp_path):
    personal.save(tmp_path / "a")
    n_statistics = sum(t.numel() for _, t in running_statistics(resnet_base.network))
    n_counts = sum(n.endswith("tracked") for n, _ in running_statistics(resnet_base.network))
    # float32, but for the counts of batches, which are int64
    assert personal.adapter_bytes_ == 4 * (personal.n_trainable_ + n_statistics + n_counts)
    file = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert personal.adapter_bytes_ < file < personal.adapter_bytes_ + 40_000


def test_settings_come_back_from_the_file(base, support, tmp_path):
    settings = HTuning(mixing=1.0, n_first_order=4, direction="random")
    fitted = Personalizer(
        base, method="h-tuning", n_steps=1, h_tuning=settings, freeze=["blocks.0"], micro_batch=7
    ).fit(support[0], support[1])
    fitted.save(tmp_path / "a")
    loaded = Personalizer.load(tmp_path / "a", base)
    assert loaded.h_tuning == settings
    assert loaded.get_params() == fitted.get_params()


class Spy:
    """In the stepper's place: keeps what it was given and leaves a gradient of ones."""

    def __init__(self, network, loss, *, shallow, deep, **settings):
        self.parameters = [parameter for _, parameter in [*shallow, *deep]]
        self.settings = settings
        Spy.last, self.batches = self, []

    def backward(self, x, y):
        self.batches.append(x)
        for parameter in self.parameters:
            parameter.grad = torch.ones_like(parameter)
        return 0.0


@pytest.fixture
def spied(base, support, monkeypatch):
    """Run `h_tune` with the spy; return it and the network."""
    monkeypatch.setattr(h_tuning, "MixOrder", Spy)
    x, y = torch.from_numpy(support[0]), torch.from_numpy(support[1])

    def run(**kwargs):
        network = prepared(base)
        h_tune(network, x, y, generator=torch.Generator().manual_seed(3), **kwargs)
        return Spy.last, network

    return run


def test_the_first_order_windows_are_others_in_every_step(spied):
    whole = spied(n_steps=8)[0].batches
    assert all(len(windows) == 20 for windows in whole)
    assert len({windows[0, 0, 0].item() for windows in whole}) > 2
    sevens = spied(n_steps=8, batch_size=7)[0].batches  # 7 + 7, the other 6 wait
    assert all(len(windows) == 7 for windows in sevens)
    assert len(torch.cat(sevens[:2]).unique(dim=0)) == 14


def test_every_setting_reaches_the_stepper(spied):
    settings = {"mixing": 0.9, "scale": 1e-4, "n_samples": 3, "n_first_order": 5}
    settings |= {"direction": "random", "batch_norm": "eval"}
    spy, _ = spied(n_steps=1, settings=HTuning(**settings), micro_batch=6)
    del spy.settings["generator"]
    assert spy.settings == {**settings, "chunk": 6}


def test_the_steps_follow_the_schedule(spied, base):
    # under a gradient that stays the same, AdamW without decay moves by the learning rate
    _, network = spied(n_steps=5, lr=1e-3, weight_decay=0.0)
    moved = merged(network).head.bias - base.network.head.bias
    expected = -1e-3 * sum(rate_factor(step, 5) for step in range(5))
    torch.testing.assert_close(moved, torch.full((2,), expected), rtol=1e-3, atol=0)


def test_the_rate_rises_over_a_hundredth_of_the_steps_and_falls_to_zero():
    factors = [rate_factor(step, 1000) for step in range(1001)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[-1] == 0.0
    assert np.allclose(np.diff(factors[10:]), -1 / 990)
    assert [rate_factor(step, 1) for step in range(2)] == [1.0, 0.0]


@pytest.mark.parametrize(("n", "lr"), [(2, 1e-3), (64, 1e-3), (65, 2e-3), (128, 2e-3)])
def test_the_published_rate_depends_on_the_windows_of_a_step(n, lr):
    assert learning_rate(n) == lr


def test_the_defaults_are_the_papers(base):
    settings = HTuning()
    assert (settings.mixing, settings.scale, settings.n_samples) == (0.85, 1e-3, 1)
    assert (settings.n_first_order, settings.direction) == (2, "measured")
    arguments = training_arguments(Personalizer(base, method="h-tuning").get_params(deep=False))
    assert (arguments["batch_size"], arguments["weight_decay"]) == (128, 0.01)
    assert arguments["lr"] is None  # by the number of windows


def test_the_same_number_gives_the_same_detector_and_controls_another(base, support, later):
    def probabilities(**kwargs):
        settings = HTuning(**kwargs)
        fitted = Personalizer(base, method="h-tuning", n_steps=3, h_tuning=settings)
        return fitted.fit(support[0], support[1]).predict_proba(later[0])

    published = probabilities()
    assert (published == probabilities()).all()
    for control in ({"mixing": 1.0}, {"direction": "random"}, {"n_samples": 2}):
        assert (published != probabilities(**control)).any(), control


def test_a_micro_batch_changes_nothing_but_rounding_where_there_is_no_batch_norm(base, support):
    def tuned(micro_batch):
        fitted = Personalizer(base, method="h-tuning", n_steps=1, micro_batch=micro_batch)
        return fitted.fit(support[0], support[1])

    assert tuned(None).loss_curve_ == pytest.approx(tuned(3).loss_curve_, abs=1e-6)


def test_accumulated_lora_gradients_are_those_of_the_whole_batch(metava_base, support):
    # metava has batch norm, in eval mode: the windows of a batch don't see each other
    x, y = torch.from_numpy(support[0]), torch.from_numpy(support[1])

    def gradients(micro_batch):
        network = prepare_network(metava_base.new_network(), "lora", rank=2)
        (loss,) = fine_tune(
            network,
            x,
            y,
            n_steps=1,
            lr=1e-3,
            weight_decay=0.0,
            generator=torch.Generator(),
            micro_batch=micro_batch,
        )
        return loss, {n: p.grad for n, p in trained_parameters(network).items()}

    loss, whole = gradients(None)
    for micro_batch in (2, 7, 64):
        other_loss, pieces = gradients(micro_batch)
        assert other_loss == pytest.approx(loss, abs=1e-6)
        for name, gradient in whole.items():
            torch.testing.assert_close(pieces[name], gradient, rtol=1e-4, atol=1e-6)


def test_at_most_a_micro_batch_of_windows_goes_through_at_once(base, support):
    sizes = []
    network = prepare_network(base.new_network(), "lora")
    network.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    x, y = torch.from_numpy(support[0]), torch.from_numpy(support[1])
    kwargs = {"n_steps": 1, "lr": 1e-3, "weight_decay": 0.0, "generator": torch.Generator()}
    fine_tune(network, x, y, micro_batch=8, **kwargs)
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize("method", ["full", "bias", "lora", "h-tuning"])
def test_frozen_blocks_stay_those_of_the_base_and_the_others_learn(base, support, method):
    fitted = Personalizer(base, method=method, n_steps=2, freeze=["blocks.0", "blocks.1"])
    fitted.fit(support[0], support[1])
    found, expected = fitted.merged_network().state_dict(), base.network.state_dict()
    changed = {name for name in expected if not torch.equal(found[name], expected[name])}
    assert changed and not [n for n in changed if n.startswith(("blocks.0.", "blocks.1."))]
    assert any(name.startswith("blocks.2.") for name in changed)


def test_a_frozen_parameter_can_be_named_and_a_name_is_no_prefix_of_another(odd):
    network = prepare_network(
        odd, "h-tuning", rank=2, freeze=["plain.bias", "norm", "gru.bias_ih_l0"]
    )
    names = {n.removeprefix("base_model.model.") for n in trained_parameters(network)}
    assert "plain.lora_A.default.weight" in names
    assert "plain.base_layer.bias" not in names
    assert not names & {"norm.bias", "gru.bias_ih_l0"} and "gru.bias_hh_l0" in names
    with pytest.raises(
        AdaptationError, match="freeze has 'gru.bias_ih',.* such as 'gru.bias_ih_l0'"
    ):
        prepare_network(odd, "bias", freeze=["gru.bias_ih"])


def test_what_bad_input_says_and_that_the_base_is_as_before(odd, resnet_base, support):
    before = tensors_of(resnet_base.network)
    cases = [
        ({"rank": 500, "target_modules": ["stem"]}, "'stem': rank 500 is above its size, 7"),
        (
            {"target_modules": ["stage.*"]},
            r"'stage\.\*' of target_modules matches no layer.*stages",
        ),
        ({"target_modules": ["sten"]}, "'sten': there is no such layer"),
        ({"freeze": ["stages.9"]}, "freeze has 'stages.9'.*no parameter"),
        ({"freeze": ["stages", "stem", "stem_norm", "head"]}, "leaves nothing that method"),
        ({"h_tuning": HTuning(n_first_order=21)}, "n_first_order is 21.*20 windows"),
        ({"batch_size": 8, "h_tuning": HTuning(n_first_order=9)}, "n_first_order is 9.*8 windows"),
        ({"h_tuning": HTuning(scale=0.0)}, "scale is 0.0"),
        ({"h_tuning": HTuning(mixing=1.1)}, "mixing is 1.1"),
        ({"h_tuning": HTuning(direction="up")}, "direction is 'up'"),
        ({"h_tuning": HTuning(scale=1e38)}, "loss is nan.*plus scale"),
        ({"lr": 1e30}, "finite"),
        ({"dropout": True}, "dropout is True with method='h-tuning'.*Leave dropout out"),
        ({"method": "lora", "h_tuning": HTuning()}, "method is 'lora', which has no use"),
    ]
    for arguments, message in cases:
        personal = Personalizer(resnet_base, **{"method": "h-tuning", "n_steps": 3, **arguments})
        with pytest.raises((ValueError, AdaptationError), match=message):
            personal.fit(support[0], support[1])
        assert_same(resnet_base.network, before)
        assert not hasattr(personal, "network_")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dilated", "dilation=2"),
        ("grouped", "groups=2"),
        ("circular", "padding_mode='circular'"),
        ("dil*", "only layers that can't be adapted, such as 'dilated': it has dilation=2"),
    ],
)
def test_layers_that_pefts_low_rank_change_gets_wrong_are_refused_when_named(odd, name, why):
    with pytest.raises(AdaptationError, match=why):
        prepare_network(odd, "h-tuning", rank=2, target_modules=[name])


def test_they_are_passed_over_otherwise_and_the_merge_is_right(odd, odd_x):
    network = prepare_network(odd, "h-tuning", rank=2)
    y = torch.arange(6) % 2
    h_tune(network, odd_x, y, n_steps=5, lr=1e-2, generator=torch.Generator().manual_seed(0))
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n in trained_parameters(network)}
    assert {"plain", "wide"} <= adapted and not adapted & {"dilated", "grouped", "circular"}
    plain = merged(network)
    with torch.inference_mode():
        torch.testing.assert_close(plain(odd_x), network(odd_x), rtol=1e-5, atol=1e-6)


def test_several_labels_per_window_can_be_learned(resnet_base, support):
    network = prepared(resnet_base)
    targets = torch.randint(2, (20, 2), generator=torch.Generator().manual_seed(0)).float()
    losses = h_tune(
        network,
        torch.from_numpy(support[0]),
        targets,
        n_steps=2,
        generator=torch.Generator(),
        loss=nn.functional.binary_cross_entropy_with_logits,
    )
    assert len(losses) == 2 and all(np.isfinite(losses))
