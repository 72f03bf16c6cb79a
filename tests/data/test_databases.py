"""The registry: who is whom, which lead, which folder; checked against real headers if at hand."""

import os
from pathlib import Path

import pytest

from metaecg.data.databases import (
    DATABASES,
    choose_lead,
    default_data_root,
    get_database,
    subject_id,
)
from metaecg.errors import DataError


def test_a_misspelt_database_is_answered_with_the_nearest_name():
    with pytest.raises(DataError, match="'mitdbb'.*Did you mean 'mitdb'"):
        get_database("mitdbb")


def test_every_database_is_registered_under_its_own_slug_with_a_lead_and_a_rate():
    assert sorted(DATABASES) == [
        "afdb", "cudb", "incartdb", "ltafdb", "mitdb", "nsrdb", "svdb", "vfdb",
    ]  # fmt: skip
    for slug, database in DATABASES.items():
        assert database.slug == slug
        assert database.leads and database.fs_hz > 0 and database.n_records > 0
        assert database.url_path == f"{slug}/1.0.0/"


def test_the_records_201_and_202_of_mitdb_are_one_person():
    assert subject_id("mitdb", "201") == subject_id("mitdb", "202") == "mitdb/201"
    assert subject_id("mitdb", "203") == "mitdb/203"


def test_the_same_record_name_in_another_database_is_another_person():
    assert subject_id("svdb", "202") == "svdb/202"


@pytest.mark.parametrize("comment", ["patient 7", "# patient 7", " Patient  07 "])
def test_the_patient_of_incartdb_comes_from_the_header(comment):
    comments = ["<age>: 65 <sex>: F <diagnoses> patient 3 had AF", comment, "PVCs, noise"]
    assert subject_id("incartdb", "I02", comments) == "incartdb/patient-7"


def test_a_record_of_incartdb_without_a_patient_is_refused():
    with pytest.raises(DataError, match="'I02'.*names no patient"):
        subject_id("incartdb", "I02", ["PVCs, noise"])


def test_a_record_of_incartdb_with_two_patients_is_refused():
    with pytest.raises(DataError, match=r"names the patients \[1, 2\]"):
        subject_id("incartdb", "I02", ["patient 1", "patient 2"])


def test_a_lead_is_chosen_by_its_name_and_not_by_its_place():
    assert choose_lead("mitdb", ["MLII", "V5"]) == 0
    assert choose_lead("mitdb", ["V5", "MLII"]) == 1


def test_v5_stands_in_where_mlii_was_not_recorded():
    assert choose_lead("mitdb", ["V2", "V5"]) == 1


def test_of_two_channels_with_the_same_name_the_first_is_taken():
    assert choose_lead("vfdb", ["ECG", "ECG"]) == 0


def test_a_record_without_a_preferred_lead_is_refused_with_both_lists():
    with pytest.raises(DataError, match=r"\['V1', 'V2'\].*MLII, V5"):
        choose_lead("mitdb", ["V1", "V2"])


def test_the_data_root_is_metaecg_data_where_it_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("METAECG_DATA", str(tmp_path))
    assert default_data_root() == tmp_path


def test_the_data_root_is_in_the_users_cache_otherwise(monkeypatch):
    monkeypatch.setenv("METAECG_DATA", "")
    assert default_data_root().name == "data"
    assert "metaecg" in default_data_root().parts


@pytest.mark.real
@pytest.mark.parametrize("slug", ["mitdb", "vfdb", "cudb"])
def test_rates_and_leads_agree_with_the_headers_of_real_recordings(slug):
    root = os.environ.get("METAECG_DATA")
    if not root or not (Path(root) / slug).is_dir():
        pytest.skip(f"{slug} isn't in METAECG_DATA")
    database = DATABASES[slug]
    exceptions = {}
    for header in sorted((Path(root) / slug).glob("*.hea")):
        first, *rest = header.read_text().splitlines()
        leads = [line.split()[-1] for line in rest if line and not line.startswith("#")]
        assert float(first.split()[2].split("/")[0]) == database.fs_hz
        lead = leads[choose_lead(slug, leads)]
        if lead != database.leads[0]:
            exceptions[header.stem] = lead
    assert exceptions == database.lead_exceptions
