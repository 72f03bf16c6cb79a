"""Configuration: overrides, presets, lists, and every mistake reported at once."""

from importlib import import_module
from pathlib import Path

import pytest

from metaecg.errors import ConfigError
from metaecg.experiments.config import (
    NO_FIGURE,
    NetworkConfig,
    VAConfig,
    build_config,
    field_names,
    load_yaml,
    merge,
    over,
    parse_override,
)

FOLDER = Path(__file__).parents[2] / "experiments" / "configs"
STUDIES = ("va_tune.yaml",)  # of the tuner, whose tests have it
CONFIGS = sorted(path for path in FOLDER.glob("va_*.yaml") if path.name not in STUDIES)
OF_BEATS = {"beat-cnn"}  # its windows have RR rows; veb_fewshot's


def test_every_mistake_is_reported_at_once_with_name_value_and_expectation():
    with pytest.raises(ConfigError) as caught:
        build_config({"folds": 1, "meta": {"inner_stepz": 3}, "seeds": "0,x"})
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "folds is 1: input should be greater than or equal to 2" in text
    assert "Did you mean 'meta.inner_steps'" in text
    assert "seeds.1 is 'x'" in text


def test_an_override_is_read_as_yaml_and_lands_in_its_section():
    values = merge({"meta": {"inner_lr": 0.1}}, *parse_override("meta.first_order=true"))
    assert values == {"meta": {"inner_lr": 0.1, "first_order": True}}


def test_an_override_does_not_change_the_values_it_starts_from():
    values = {"meta": {"inner_lr": 0.1}}
    merge(values, ["meta", "inner_lr"], 0.2)
    assert values == {"meta": {"inner_lr": 0.1}}


def test_what_wins_replaces_single_fields_of_inner_sections_too():
    values = {"personalize": {"lr": 0.1, "h_tuning": {"mixing": 0.5, "scale": 0.01}}, "folds": 3}
    found = over(values, {"personalize": {"h_tuning": {"scale": 0.02}}})
    assert found == {
        "personalize": {"lr": 0.1, "h_tuning": {"mixing": 0.5, "scale": 0.02}},
        "folds": 3,
    }
    assert values["personalize"]["h_tuning"]["scale"] == 0.01


@pytest.mark.parametrize("recipe", ["va", "veb"])
def test_an_override_leaves_the_files_other_fields_of_its_section(recipe, tmp_path):
    options = import_module(f"metaecg.experiments.{recipe}_options")
    file = tmp_path / "a.yaml"
    file.write_text("personalize: {h_tuning: {mixing: 0.5, n_samples: 3}}\n")
    typed = ["--config", str(file), "personalize.h_tuning.n_samples=2"]
    config = options.resolve(options.make_parser("").parse_intermixed_args(typed))
    assert config.personalize.h_tuning.mixing == 0.5
    assert config.personalize.h_tuning.n_samples == 2


def test_text_without_an_equals_sign_is_no_override():
    with pytest.raises(ConfigError, match="'fast' is no override; expected key.subkey=value"):
        parse_override("fast")


def test_comma_separated_lists_and_single_numbers_are_taken():
    config = build_config({"seeds": "0,1,2", "databases": "mitdb, vfdb", "methods": "zero-shot"})
    assert (config.seeds, config.databases) == ([0, 1, 2], ["mitdb", "vfdb"])
    assert build_config({"seeds": 3}).seeds == [3]


def test_the_hash_follows_what_changes_figures_and_nothing_else():
    plain = build_config({})
    assert build_config({"out": "elsewhere", "workers": 1}).hash() == plain.hash()
    assert build_config({"meta": {"inner_lr": 0.01}}).hash() != plain.hash()


def test_what_changes_no_figure_is_no_part_of_the_hash():
    other = {"out": "a", "cache": "b", "workers": 7, "data": "c", "keep_jobs": True}
    other["tracking"] = {"enabled": False}
    assert set(other) == NO_FIGURE
    for name, value in other.items():
        assert build_config({name: value}).hash() == build_config({}).hash(), name


def test_an_augmentation_that_is_off_leaves_hash_and_values_as_before_there_was_one():
    plain = build_config({})
    for off in ({"probability": 0.5}, {"noise": 0.2, "probability": 0.0}):
        config = build_config({"augment": off})
        assert config.augment.is_off
        assert config.hash() == plain.hash()
    fields = {"workers", "data"}
    assert plain.values(without=fields) == plain.model_dump(
        mode="json", exclude=fields | {"augment", "ensemble", "shots"}
    )


def test_the_size_of_an_ensemble_belongs_to_the_hash_unless_it_is_the_usual_one():
    config, plain = build_config({"ensemble": {"n_members": 5}}), build_config({})
    assert build_config({"ensemble": {"n_members": 3}}).hash() == plain.hash()
    assert config.hash() != plain.hash()
    assert config.values(without=set())["ensemble"] == {"n_members": 5}


@pytest.mark.parametrize("name", ["gain", "polarity", "baseline", "noise", "time_warp"])
def test_an_augmentation_belongs_to_the_hash(name):
    config, plain = build_config({"augment": {name: 0.2}}), build_config({})
    assert not config.augment.is_off
    assert config.hash() != plain.hash()
    assert config.values(without=set())["augment"][name] == 0.2


def test_every_field_is_documented():
    def check(section, prefix=""):
        for name, info in section.model_fields.items():
            if hasattr(info.annotation, "model_fields"):
                check(info.annotation, f"{prefix}{name}.")
            else:
                assert info.description, f"{prefix}{name} has no docstring"

    check(VAConfig)
    assert "meta.inner_lr" in field_names()


def test_the_choices_of_the_configuration_are_those_of_the_library():
    from typing import get_args

    from metaecg.experiments.config import CurriculumConfig, MetaConfig
    from metaecg.meta.algorithms import ALGORITHMS
    from metaecg.meta.engine import ENGINES
    from metaecg.models.registry import NETWORKS
    from metaecg.tasks.curriculum import DIFFICULTIES, PACINGS

    names = set(get_args(NetworkConfig.model_fields["name"].annotation))
    assert names == set(NETWORKS) - OF_BEATS
    fields = CurriculumConfig.model_fields
    assert set(get_args(fields["difficulty"].annotation)) == set(DIFFICULTIES)
    assert set(get_args(fields["pacing"].annotation)) == set(PACINGS)
    assert get_args(MetaConfig.model_fields["algorithm"].annotation) == ALGORITHMS
    assert get_args(MetaConfig.model_fields["engine"].annotation) == ENGINES


def test_a_file_that_is_not_yaml_or_holds_no_fields_is_refused(tmp_path):
    broken, listed = tmp_path / "a.yaml", tmp_path / "b.yaml"
    broken.write_text("folds: [1")
    listed.write_text("- 1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_yaml(broken)
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_yaml(listed)
    with pytest.raises(ConfigError, match="can't be read"):
        load_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    assert isinstance(build_config(load_yaml(path)), VAConfig)


def test_there_are_shipped_configurations():
    assert CONFIGS
