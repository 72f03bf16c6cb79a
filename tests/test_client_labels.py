"""Many labels go to the server in parts, and the server takes as many at once as it says."""

import json
from types import SimpleNamespace

import pytest

from metaecg.client import UnavailableError
from metaecg.client import patients as patients_module
from metaecg.client.patients import AbstractPatients
from metaecg.serve.limits import BodyDoor
from metaecg.serve.schemas_recordings import MAX_LABELS, NewLabels


class Noting:
    """Stands for the connection: notes the labels of each request, and fails at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.parts, self.fails_at = [], fails_at

    def ask(self, method, path, *, repeat, json):
        if len(self.parts) == self.fails_at:
            raise UnavailableError("away")
        self.parts.append(json["labels"])
        counts = {"n_shots": 10, "counts": {"N": sum(map(len, self.parts))}}
        return SimpleNamespace(json=lambda: counts)


def client_of(http: Noting) -> AbstractPatients:
    client = AbstractPatients()
    client._http = http
    return client


def test_a_day_of_beats_goes_in_parts_and_the_last_answer_counts():
    http, n = Noting(), 115_200
    assert client_of(http).put_labels("s", "r", dict.fromkeys(range(n), "N")).counts == {"N": n}
    assert max(map(len, http.parts)) == patients_module.MAX_LABELS <= MAX_LABELS
    assert [int(key) for part in http.parts for key in part] == list(range(n))


def test_parts_before_one_that_fails_stay_and_all_can_be_put_again(monkeypatch):
    monkeypatch.setattr(patients_module, "MAX_LABELS", 2)
    http = Noting(fails_at=1)
    labels = {3: "N", 1: "V", 2: None}
    with pytest.raises(UnavailableError):
        client_of(http).put_labels("s", "r", labels)
    assert http.parts == [{"3": "N", "1": "V"}]
    http.fails_at = None
    client_of(http).put_labels("s", "r", labels)
    assert http.parts[1:] == [{"3": "N", "1": "V"}, {"2": None}]


def test_no_label_at_all_asks_for_the_counts():
    http = Noting()
    client_of(http).put_labels("s", "r", {})
    assert http.parts == [{}]


def test_as_many_labels_as_the_description_allows_fit_into_the_body():
    labels = {str(2**31 - 1 - i): "x" * 64 for i in range(MAX_LABELS)}
    body = json.dumps({"labels": labels})
    door = BodyDoor(None, upload_bytes=0, json_bytes=0)
    assert len(body) <= door.expected("PUT", "/v1/patients/s/recordings/r/labels")[1]
    assert len(NewLabels.model_validate_json(body).labels) == MAX_LABELS
