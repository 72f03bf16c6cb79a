"""The command line of the server: help, tokens, settings, what it says when it can't start."""

import re
import socket
import subprocess
import sys

import pytest
from app_cases import running_server

from metaecg.serve.__main__ import main
from metaecg.serve.settings import Settings
from metaecg.serve.store import Store

LOADED = """
import sys
from metaecg.serve.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    print("exit", error.code)
print("loaded", sorted({"torch", "fastapi", "sqlalchemy", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["tokens", "--help"], ["tokens", "create", "-h"]]
)
def test_help_loads_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "exit 0" in done.stdout and "loaded []" in done.stdout


def test_help_names_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description and " ".join(field.description.split())[:40] in text
    assert "(default: sqlite:///metaecg.db)" in text


def url_of(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/metaecg.db"


def test_tokens_are_made_listed_and_revoked(tmp_path, capsys):
    url = url_of(tmp_path)
    assert main(["tokens", "create", "--org", "clinic", "--store", url]) == 0
    secret = capsys.readouterr().out.strip()
    assert re.fullmatch(r"metaecg_[A-Za-z0-9_-]{43}", secret)
    store = Store(url)
    assert store.org_of_token(secret).name == "clinic"
    assert main(["tokens", "list", "--store", url]) == 0
    listed = capsys.readouterr().out
    assert "clinic" in listed and "valid" in listed and secret not in listed
    assert main(["tokens", "revoke", "1", "--store", url]) == 0
    assert store.org_of_token(secret) is None
    main(["tokens", "list", "--store", url])
    assert "revoked" in capsys.readouterr().out
    store.close()


def test_a_second_token_belongs_to_the_same_organisation(tmp_path, capsys):
    url = url_of(tmp_path)
    for _ in range(2):
        main(["tokens", "create", "--org", "clinic", "--days", "30", "--store", url])
    store = Store(url)
    assert [org.name for org in store.list_orgs()] == ["clinic"]
    assert len(store.list_tokens(1)) == 2
    assert all(token.expires_at is not None for token in store.list_tokens(1))
    store.close()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tokens", "revoke", "7"], 2, "no token 7"),
        (["tokens", "create", "--org", "x", "--days", "-1"], 2, "--days"),
        (["tokens", "list", "--store", "mysql://x"], 2, "mysql"),
        (["--port", "99999"], 2, "--port"),
        (["--store", "metaecg.db"], 2, "--store"),
        (["--log-level", "loud"], 2, "loud"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, code, words, tmp_path, capsys):
    if arguments[0] == "tokens" and "--store" not in arguments:
        arguments = [*arguments, "--store", url_of(tmp_path)]
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said


def test_a_model_that_isnt_there_and_a_port_that_is_taken_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("metaecg.serve.logs.set_up_logs", lambda level: None)
    assert main(["--model", "va-bace", "--store", url_of(tmp_path), "--port", "0"]) == 3
    assert "va-base" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--store", url_of(tmp_path), "--port", port]) == 3
    assert "another --port" in capsys.readouterr().err


def test_plain_postgresql_means_the_driver_that_is_installed():
    given = Settings(store="postgresql://u:p@h/d").store
    assert given == "postgresql+psycopg://u:p@h/d"


def test_a_server_says_its_address_with_a_token_once(tmp_path):
    with running_server(tmp_path) as server:
        said = (tmp_path / "server.out").read_text()
        assert f"{server.url}/#token={server.token}" in said
        assert server.session().get("/v1/patients").json() == {"patients": [], "next": None}
        assert server.terminate() == 0
    with running_server(tmp_path, "--model", "veb-base", token=server.token) as server:
        assert "token" not in (tmp_path / "server.out").read_text()
        assert server.session().get("/v1/model").json()["kind"] == "beats"
