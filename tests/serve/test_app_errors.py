"""From errors to answers: the table is complete, and what fails for a while recovers by itself."""

import importlib
import pkgutil

import pytest
from inside_cases import app_in_process, small_recording

from metaecg import errors, serve
from metaecg.serve import api_errors, store_errors
from metaecg.serve.store_errors import StoreUnavailableError


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("errors"), memory_of_tokens_s=0.0) as found:
        yield found


def all_below(kind: type) -> set[type]:
    found = set(kind.__subclasses__())
    return found.union(*(all_below(each) for each in found))


def test_every_error_of_the_library_has_a_code_and_a_status():
    for module in pkgutil.iter_modules(serve.__path__):
        if not module.name.startswith("__") and not module.ispkg:
            importlib.import_module(f"metaecg.serve.{module.name}")
    places = (errors.__name__, "metaecg.serve")
    mine = {e for e in all_below(errors.MetaECGError) if e.__module__.startswith(places)}
    assert {kind.__name__ for kind in mine - set(api_errors.ERRORS)} == set()
    assert store_errors.NotFoundError in mine


def test_codes_and_statuses_go_together():
    for code, status in api_errors.ERRORS.values():
        assert api_errors.STATUS_OF[code] == status, code


def test_an_error_of_a_class_that_comes_later_is_answered_as_its_parent():
    class LaterError(errors.DataError):
        """Not in the table."""

    assert api_errors.code_and_status(LaterError("x")) == ("data_error", 422)


def test_a_bug_says_nothing_of_itself():
    body = api_errors.error_body(ZeroDivisionError("secret"))
    assert body["code"] == "internal" and "secret" not in str(body)


def test_while_the_database_is_away_the_answer_is_503_and_afterwards_it_works(app, monkeypatch):
    def away(*_, **__):
        raise StoreUnavailableError("the database doesn't answer.")

    app.client.post("/v1/patients", json={"subject_id": "s"})
    with monkeypatch.context() as patch:
        patch.setattr(type(app.services.store), "_read", away)
        patch.setattr(type(app.services.store), "_write", away)
        for method, path in (
            ("GET", "/v1/patients"),
            ("GET", "/v1/patients/s"),
            ("DELETE", "/v1/patients/s"),
            ("GET", "/ready"),
        ):
            answer = app.client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), path
            assert answer.headers["Retry-After"] == "2"
        assert app.client.get("/health").status_code == 200
        assert "metaecg_store_up 0.0" in app.client.get("/metrics").text
    assert app.client.get("/ready").status_code == 200
    assert app.client.get("/v1/patients/s").status_code == 200


def test_a_full_disk_is_503_and_leaves_no_half_recording(app):
    app.client.post("/v1/patients", json={"subject_id": "full"})
    engine = app.services.store.engine
    with engine.connect() as connection:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    engine.dispose()

    def small(connection, _record):
        connection.execute(f"PRAGMA max_page_count = {n_pages + 5}")

    from sqlalchemy import event

    event.listen(engine, "connect", small)
    body = small_recording(600)
    answer = app.client.post("/v1/patients/full/recordings", json=body)
    event.remove(engine, "connect", small)
    engine.dispose()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert app.client.get("/v1/patients/full/recordings").json() == {"recordings": []}
    assert app.client.post("/v1/patients/full/recordings", json=body).status_code == 201


def test_unknown_addresses_and_methods_have_the_same_form_of_answer(app):
    nowhere = app.client.get("/v1/nothing")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")
    method = app.client.patch("/v1/patients")
    assert (method.status_code, method.json()["code"]) == (405, "method_not_allowed")
    assert set(method.headers["Allow"].replace(" ", "").split(",")) >= {"GET", "POST"}


def test_a_parameter_that_is_misspelt_is_refused_with_the_nearest_name(app):
    answer = app.client.get("/v1/patients?limmit=3")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert "'limmit'" in answer.json()["message"] and "Did you mean 'limit'" in answer.text
    assert app.client.get("/v1/model?x=1").status_code == 422
    assert app.client.get("/?x=1").status_code == 200


def test_what_is_no_json_and_what_is_no_form_is_invalid(app):
    headers = {"Content-Type": "application/json"}
    for text in (b"{", b"", b"[]", b"\xff", b"null", b"1"):
        answer = app.client.post("/v1/patients", content=text, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), text
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    app.client.post("/v1/patients", json={"subject_id": "s"})
    for content in (b"x", b"--x\r\n", b""):
        answer = app.client.post("/v1/patients/s/recordings/files", content=content, headers=form)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), content
