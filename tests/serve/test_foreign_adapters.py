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
