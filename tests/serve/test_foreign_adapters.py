"""Detectors that this server's base can't use: refused where they come in, named where they are met."""

import numpy as np
import pytest
from inside_cases import app_in_process
from serve_cases import RHYTHM, make_base, personal_of

from metaecg.serve.adapter_file import adapter_bytes, packed, unpacked


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("foreign")) as found:
        yield found


@pytest.fixture
def patient(app, request):
    """The name of a patient of this test's own."""
    name = f"s-{abs(hash(request.node.name))}"
    app.client.post("/v1/patients", json={"subject_id": name})
    return name


@pytest.fixture(scope="module")
def adapter(app):
    """An adapter of the server's base, apart: its tensors and its document."""
    return unpacked(adapter_bytes(personal_of(app.services.base, rhythm="causal")))


def keep_foreign(app, patient, *, activate) -> str:
    """Keep a detector of another base, as another server on the same store does."""
    other = make_base(rhythm=RHYTHM, seed=7)
    app.services.store.add_detector(
        app.services.store.list_orgs()[0].org_id,
        patient,
        adapter=adapter_bytes(personal_of(other)),
        facts={},
        base_fingerprint=other.fingerprint,
        activate=activate,
    )
    return other.fingerprint


def sent(app, patient, tensors, document):
    return app.client.post(
        f"/v1/patients/{patient}/detectors",
        content=packed(tensors, document),
        headers={"Content-Type": "application/octet-stream"},
    )


def judged(app, *patients):
    window = np.zeros(100).tolist()
    items = [{"subject_id": name, "signal": window} for name in patients]
    return app.client.post("/v1/predict", json={"fs_hz": 100.0, "unit": "mV", "items": items})


def test_among_many_patients_the_one_whose_detector_is_of_another_base_is_named(app, patient):
    app.client.post("/v1/patients", json={"subject_id": "beside"})
    keep_foreign(app, patient, activate=True)
    answer = judged(app, "beside", patient)
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint_error")
    assert f"patient {patient!r}" in answer.json()["message"]
    assert judged(app, "beside").status_code == 200


@pytest.mark.parametrize(
    "n_support",
    [
        {"other": None},
        {"other": "abc"},
        {"other": 2.5},
        {"other": True},
        {"other": -1},
        {"nobody's": 3},
        [["other", 3]],
    ],
)
def test_a_support_that_counts_nothing_is_refused_in_words(app, patient, adapter, n_support):
    tensors, document = adapter
    answer = sent(app, patient, tensors, {**document, "n_support": n_support})
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint_error")
    assert "n_support" in answer.json()["message"]
    assert app.client.get(f"/v1/patients/{patient}/detectors").json()["detectors"] == []


@pytest.mark.parametrize("params", [{}, {"method": "head"}])
def test_parameters_of_another_method_than_the_adapters_are_refused(app, patient, adapter, params):
    tensors, document = adapter
    answer = sent(app, patient, tensors, {**document, "params": params})
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint_error")


def replaced(document, path, value):
    """Return a copy of a document with one value replaced."""
    if not path:
        return value
    return {**document, path[0]: replaced(document[path[0]], path[1:], value)}


def paths_in(document):
    for name, value in document.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in paths_in(value))


@pytest.mark.parametrize("value", [None, "abc", [], {}, -1])
def test_a_document_with_any_value_replaced_is_refused_or_can_be_used(app, patient, adapter, value):
    tensors, document = adapter
    n_kept = 0
    for path in paths_in(document):
        answer = sent(app, patient, tensors, replaced(document, path, value))
        assert answer.status_code in (201, 422), (path, answer.text)
        if answer.status_code == 201:
            n_kept += 1
            assert judged(app, patient).status_code == 200, path
            listed = app.client.get(f"/v1/patients/{patient}/detectors").json()
            assert listed["active_version"] == n_kept


def test_a_version_of_another_base_cant_come_into_use_and_the_list_says_of_which_it_is(
    app, patient, adapter
):
    assert sent(app, patient, *adapter).status_code == 201
    foreign = keep_foreign(app, patient, activate=False)
    answer = app.client.post(f"/v1/patients/{patient}/detectors/2/activate")
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint_error")
    assert foreign in answer.json()["message"]
    assert app.services.base.fingerprint in answer.json()["message"]
    listed = app.client.get(f"/v1/patients/{patient}/detectors").json()
    assert listed["active_version"] == 1
    found = [detector["base_fingerprint"] for detector in listed["detectors"]]
    assert found == [app.services.base.fingerprint, foreign]


def test_the_base_can_always_be_gone_back_to(app, patient):
    keep_foreign(app, patient, activate=True)
    answer = app.client.post(f"/v1/patients/{patient}/detectors/0/activate")
    assert (answer.status_code, answer.json()["active_version"]) == (200, 0)
    assert judged(app, patient).status_code == 200
