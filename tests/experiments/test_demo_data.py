"""Settings of the generated patients are never ignored, and what a user's folder holds is never lost."""

import pytest

from metaecg.data.demo import write_demo_database
from metaecg.errors import ConfigError
from metaecg.experiments import va_fewshot, veb_fewshot
from metaecg.experiments.config import DemoConfig
from metaecg.experiments.demo_data import provide_demo


@pytest.fixture
def data(tmp_path):
    return write_demo_database(tmp_path / "data", n_subjects=8, duration_s=180.0).parent


def provide(data, cache=None, **settings) -> None:
    provide_demo(DemoConfig(**settings), data=data, databases=["demo"], cache=cache)


@pytest.mark.parametrize("recipe", [va_fewshot, veb_fewshot])
def test_other_patients_than_those_that_lie_there_are_refused(tmp_path, data, capsys, recipe):
    places = ["--data", str(data), "--databases", "demo", "--out", str(tmp_path / "out")]
    places += ["--cache", str(tmp_path / "cache"), "tracking.enabled=false"]
    assert recipe.main([*places, "demo.n_subjects=9", "demo.duration_s=200"]) == 2
    text = capsys.readouterr().err
    assert "demo.n_subjects is 9" in text and "generated with 8" in text
    assert "demo.duration_s is 200.0" in text and "--data" in text


def test_the_patients_that_lie_there_are_kept(data):
    before = {p.name: p.stat().st_mtime_ns for p in (data / "demo").iterdir()}
    provide(data)
    provide(data, n_subjects=8, duration_s=180.0)
    with pytest.raises(ConfigError):
        provide(data, n_subjects=9)
    assert {p.name: p.stat().st_mtime_ns for p in (data / "demo").iterdir()} == before


def test_recordings_of_the_users_own_in_a_folder_demo_are_as_they_are(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.hea").write_text("mine 1 250 500\n")
    provide(tmp_path, n_subjects=9)
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["mine.hea"]


def test_in_the_cache_other_settings_generate_other_patients(tmp_path):
    for n in (8, 9):
        provide(tmp_path / "demo-data", cache=tmp_path, n_subjects=n, duration_s=180.0)
        assert len(list((tmp_path / "demo-data" / "demo").glob("*.hea"))) == n
