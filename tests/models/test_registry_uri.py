"""Addresses are shown without what could be a password in them."""

import pytest

from metaecg.models.registry_uri import without_password


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:p@ss@host:5000 is down", "http://***@host:5000 is down"),
        ("postgresql://me:pa/ss@db/x", "postgresql://***@db/x"),
        ("postgresql://me:p@/s:s@db:5432/x", "postgresql://***@db:5432/x"),
        ("postgresql://me:p?s#s@db/x", "postgresql://***@db/x"),
        ("https://me@corp.example:secret@host/x", "https://***@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("redis://:secret@host", "redis://***@host"),
        ("http://a:b@one http://c:d@two", "http://***@one http://***@two"),
        ("postgresql://db/x?password=pa/s@s&user=me", "postgresql://db/x?password=***&user=me"),
        ("postgresql://db/x?user=me&sslPassword=s", "postgresql://db/x?user=me&sslPassword=***"),
        ("host=db password=secret user=me", "host=db password=*** user=me"),
    ],
)
def test_a_password_is_hidden_whatever_is_in_it(address, shown):
    assert without_password(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///a.db:va",
        "sqlite:////home/me@work/a.db",
        "http://host:5000/#/experiments/1",
        "http://host/models/va@champion",
        "models:/va@champion",
    ],
)
def test_an_address_without_a_password_stays_as_it_is(address):
    assert without_password(address) == address
