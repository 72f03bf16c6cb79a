"""The search space: declared, narrowed, replaced; a trial asks for what matters in its branch."""

import re

import optuna
import pytest

from metaecg.errors import ConfigError
from metaecg.experiments.tune_options import as_yaml, make_plan, nested
from metaecg.experiments.tune_space import Choices, Range, narrowed, parse_entry
from metaecg.experiments.va_methods import METHODS
from metaecg.experiments.va_space import SPACE, asks, defaults, value_of


def plan(**values):
    return make_plan({"databases": ["demo"], **values})


def asked(chosen: dict, **values) -> set[str]:
    """Return the fields that a trial with these choices asks for."""
    made = plan(**values)
    return {name for name in made.space if asks(name, chosen, made.shared)}


def sections(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_without_a_section_the_space_is_the_declared_one():
    assert dict(plan().space) == SPACE


def test_every_declared_field_is_one_of_the_recipe_and_can_be_asked_for():
    made = plan()
    found = set()
    for method in SPACE["method"].values:
        chosen = {"method": method, "meta.warm_start": 0.5, "augment.noise": 0.1}
        found |= {name for name in made.space if asks(name, chosen, made.shared)}
    assert found == set(SPACE)


def test_supervised_pre_training_asks_for_nothing_of_meta_learning():
    assert sections(asked({"method": "pretrain+full"})) == {
        "method", "network", "pretrain", "augment", "personalize"
    }  # fmt: skip


def test_plain_meta_learning_asks_for_no_curriculum_and_curriculum_does():
    assert "curriculum" not in sections(asked({"method": "maml+full"}))
    assert "curriculum" in sections(asked({"method": "maml+curriculum+full"}))


def test_pre_training_is_asked_for_in_meta_learning_only_with_a_warm_start():
    chosen = {"method": "maml+full", "meta.warm_start": 0.25}
    assert "pretrain.lr" in asked(chosen)
    assert "pretrain.lr" not in asked({**chosen, "meta.warm_start": 0.0})


def test_the_rank_is_asked_for_with_low_rank_layers_and_the_reading_with_prefine():
    assert "personalize.rank" in asked({"method": "pretrain+lora"})
    assert "personalize.rank" not in asked({"method": "pretrain+full"})
    assert "personalize.prefine" in asked({"method": "maml+curriculum+prefine+lora"})
    assert "personalize.prefine" not in asked({"method": "maml+curriculum+lora"})


def test_no_adaptation_asks_for_nothing_of_it():
    assert "personalize" not in sections(asked({"method": "zero-shot"}, method=["zero-shot"]))


def test_the_part_of_augmented_windows_is_asked_for_only_if_something_augments():
    assert "augment.probability" not in asked({"method": "pretrain+full", "augment.gain": 0.0})
    assert "augment.probability" in asked({"method": "pretrain+full", "augment.gain": 0.2})


def test_the_arguments_of_another_network_are_not_asked_for():
    networks = {"network.name": {"choices": ["compact-cnn", "gru"]}}
    chosen = {"method": "pretrain+full", "network.name": "gru"}
    assert "network.arguments.width" not in asked(chosen, space=networks)
    assert "network.arguments.width" in asked(
        {**chosen, "network.name": "compact-cnn"}, space=networks
    )


def test_a_trial_asks_for_the_method_first_and_ends_in_a_configuration():
    made = plan()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(30):
        trial, chosen = study.ask(), {}
        for name, entry in made.space.items():
            if made.recipe.asks(name, chosen, made.shared):
                chosen[name] = entry.ask(trial, name)
        config = made.recipe.with_values(made.shared, chosen)
        assert next(iter(chosen)) == "method"
        assert config.methods == [chosen["method"]]
        for name, value in chosen.items():
            if name != "method":
                assert value_of(name, {}, config) == value


def test_what_is_configured_is_not_searched():
    made = plan(config={"pretrain": {"lr": 0.002}, "meta.inner_steps": 3})
    assert set(SPACE) - set(made.space) == {"pretrain.lr", "meta.inner_steps"}
    assert (made.shared.pretrain.lr, made.shared.meta.inner_steps) == (0.002, 3)


def test_one_method_is_fixed_and_a_family_stands_for_its_members():
    assert "method" not in plan(method=["head"]).space
    assert plan(method=["pretrain"]).space["method"].values == ("pretrain+full", "pretrain+lora")


def test_an_entry_replaces_adds_or_takes_out():
    made = plan(
        space={
            "pretrain.lr": {"low": 1e-3, "high": 2e-3},
            "meta": {"n_query": {"choices": [5, 10]}},
            "augment.noise": None,
        }
    )
    assert made.space["pretrain.lr"] == Range(low=1e-3, high=2e-3)
    assert made.space["meta.n_query"] == Choices(values=(5, 10))
    assert "augment.noise" not in made.space


def test_a_number_that_yaml_takes_for_a_word_is_a_number():
    assert parse_entry("x", {"low": "1e-4", "high": 1, "log": True}).low == 1e-4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, r"space.x is 3; expected \{choices"),
        ({"lo": 1}, "space.x has 'lo'; expected some of choices, low"),
        ({"choices": []}, r"space.x.choices is \[\]; expected a list"),
        ({"choices": [1, 1]}, "expected every value once"),
        ({"choices": [[1]]}, r"has \[1\]; expected numbers, words"),
        ({"choices": [1], "low": 0}, "has choices and low; expected one or the other"),
        ({"low": 1}, "space.x.high is None; expected a number"),
        ({"low": 2, "high": 1}, "low is 2 and high 1; expected low to be the smaller"),
        ({"low": 0, "high": 1, "log": True}, "log is true with low 0; expected low above 0"),
        ({"low": 0, "high": 1, "step": 0}, "step is 0; expected a number above 0"),
        ({"low": 1, "high": 9, "step": 2, "log": True}, "step is 2 with log"),
        ({"low": 0.5, "high": 2, "int": True}, "int is true with low 0.5.*whole numbers"),
        ({"low": 0, "high": float("nan")}, "high is nan; expected a number"),
        ({"low": 0, "high": 1, "log": "yes"}, "log is 'yes'; expected true or false"),
    ],
)
def test_a_mistake_in_an_entry_is_named_with_what_was_expected(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_entry("x", entry)


def test_all_mistakes_of_a_study_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        plan(
            config={"seeds": [1], "pretrain": {"lr": 1e-3}, "meta": {"x": 3}},
            space={
                "meta.inner_lrr": {"low": 1, "high": 2},
                "pretrain.lr": {"low": 1e-3, "high": 1e-2},
                "meta.algorithm": {"choices": ["maml", "mamm"]},
                "network.arguments.depth": {"choices": [3]},
                "folds": {"low": 2, "high": 5},
            },
        )
    expected = (
        "config has 'seeds'; expected the study's own field seed",
        "config.meta.x is no setting",
        "space has 'meta.inner_lrr'; .*Did you mean 'meta.inner_lr'",
        "pretrain.lr is in config and in space",
        "space.meta.algorithm has 'mamm'",
        "space has 'network.arguments.depth'; compact-cnn takes",
        "space has 'folds'; expected",
    )
    assert len(caught.value.problems) == len(expected)
    for text in expected:
        assert any(re.search(text, problem) for problem in caught.value.problems), text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": ["mamll"]}, "method has 'mamll'.*Did you mean"),
        ({"method": ["metava-released"]}, "'metava-released', which has nothing to tune"),
        ({"config": {"protocol": "as_published"}}, "expected deploy"),
        ({"storage": "mysql://x"}, "storage is 'mysql://x'; expected sqlite"),
        ({"hold_out_folds": [-1]}, r"hold_out_folds is \[-1\]"),
        ({"n_trials": 0}, "n_trials is 0"),
        ({"objective": "accuracy"}, "objective is 'accuracy'"),
        ({"method": ["head", "head"]}, "expected every method once"),
        ({"method": ["head"], "space": {"method": {"choices": ["head"]}}}, "are both given"),
    ],
)
def test_a_mistake_in_a_field_of_the_study_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        plan(**values)


def test_a_space_with_nothing_left_is_refused():
    everything = {name: None for name in SPACE if name != "method"}
    with pytest.raises(ConfigError, match="space is empty"):
        plan(method=["head"], space=everything)


def test_the_defaults_lie_in_the_space_and_leave_the_configuration_as_it_is():
    made = plan()
    chosen = defaults(made.space, made.shared)
    assert all(made.space[name].holds(value) for name, value in chosen.items())
    config = made.recipe.with_values(made.shared, chosen)
    assert (config.pretrain, config.meta, config.augment) == (
        made.shared.pretrain, made.shared.meta, made.shared.augment
    )  # fmt: skip
    assert (config.personalize.lr, config.personalize.rank) == (5e-3, 4)  # what None stands for


def test_a_default_outside_the_space_is_left_to_the_sampler():
    made = plan(space={"pretrain.lr": {"low": 5e-3, "high": 1e-2}})
    assert "pretrain.lr" not in defaults(made.space, made.shared)


def test_the_whole_space_stands_in_the_dry_run_and_can_be_read_back():
    import yaml

    made = plan(space={"meta.inner_lr": {"low": 0.01, "high": 0.1, "log": True}})
    again = make_plan(yaml.safe_load(as_yaml(made)))
    assert dict(again.space) == dict(made.space)
    assert again.shared == made.shared


def test_nested_and_dotted_fields_are_the_same():
    assert nested({"a.b": 1, "a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_a_range_holds_its_ends_and_its_grid_only():
    grid = Range(low=10, high=60, step=10, is_whole=True)
    assert [v for v in (0, 10, 15, 60, 70) if grid.holds(v)] == [10, 60]
    assert Range(low=0.0, high=0.5, step=0.1).holds(0.3)  # 0.3 is 2.9999999999999996 steps
    assert not Range(low=0.0, high=1.0).holds(True)


def test_narrowing_reports_what_the_recipe_says_of_a_value_once():
    with pytest.raises(ConfigError) as caught:
        narrowed({}, {"x": {"low": 1, "high": 2}}, fixed=set(), check=lambda name, value: "bad x")
    assert caught.value.problems == ["bad x"]


def test_every_method_that_a_study_tunes_is_one_of_the_recipe():
    assert set(SPACE["method"].values) <= set(METHODS)
