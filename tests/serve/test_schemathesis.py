"""Requests made out of the API's own description, right and wrong ones: every answer is as described.

METAECG_SCHEMATHESIS=N tries N requests of every endpoint and kind instead of a few.
"""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from inside_cases import app_in_process, small_recording
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation import GenerationMode
from serve_cases import personal_of

from metaecg.serve.adapter_file import adapter_bytes
from metaecg.serve.app import ROUTERS

N_EXAMPLES = int(os.environ.get("METAECG_SCHEMATHESIS", "4"))
LIMITED = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    derandomize="METAECG_SCHEMATHESIS" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
EXCLUDED = [
    # 422 is also the answer to data that fits its description and yet is none: a signal without a
    # whole window, a class that the model doesn't have.
    positive_data_acceptance
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An application that holds one of everything."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with app_in_process(folder, max_jobs_per_patient=3) as found:
        found.names = filled(found)
        yield found


@pytest.fixture(scope="module")
def description(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app.client.app)


def filled(app) -> dict[str, str]:
    client, patient = app.client, "/v1/patients/s-1"
    client.post("/v1/patients", json={"subject_id": "s-1"})
    recording = client.post(f"{patient}/recordings", json=small_recording()).json()["recording_id"]
    labels = {"labels": {"1": "va", "2": "other"}}
    client.put(f"{patient}/recordings/{recording}/labels", json=labels)
    data = adapter_bytes(personal_of(app.services.base, "head"))
    kind = {"Content-Type": "application/octet-stream"}
    client.post(f"{patient}/detectors", content=data, headers=kind)
    stream = client.post(
        f"{patient}/streams", json={"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    ).json()["stream_id"]
    job = client.post(f"{patient}/personalizations", json={}).json()["job_id"]
    return {"subject_id": "s-1", "recording_id": recording, "stream_id": stream, "job_id": job}


OPERATIONS = [route for router in ROUTERS for route in router.routes if route.include_in_schema]
CASES = [(route.name, GenerationMode.POSITIVE) for route in OPERATIONS]
CASES += [  # nothing can be wrong with a request that takes nothing
    (route.name, GenerationMode.NEGATIVE) for route in OPERATIONS if route.path.startswith("/v1")
]


@pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{n}-{m.value}" for n, m in CASES])
def test_every_answer_is_as_described(app, description, name, mode):
    operation = description.find_operation_by_id(name)
    headers = {"Authorization": app.client.headers["Authorization"]}

    @LIMITED
    @given(operation.as_strategy(generation_mode=mode))
    def answers(case):
        if mode.is_positive and not name.startswith("delete"):
            # What fits the description gets as far as it can: the names are those of something.
            for part in case.path_parameters or {}:
                case.path_parameters[part] = app.names.get(part, case.path_parameters[part])
        case.call_and_validate(headers=headers, excluded_checks=EXCLUDED)

    answers()
