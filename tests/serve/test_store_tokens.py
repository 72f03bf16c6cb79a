"""Organisations and tokens: shown once, hashed at rest, revoked, expired."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_cases import Clock, dump

from metaecg.errors import DataError
from metaecg.serve.store import Store
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.tokens import SECRET, digest_of, new_secret


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(store_url, clock):
    """A store whose clock a test moves on."""
    store = Store(store_url, clock=clock)
    yield store
    store.close()


def test_a_secret_opens_its_own_organisation_only(store):
    one, two = store.create_org("one"), store.create_org("two")
    _, first = store.create_token(one.org_id, "laptop")
    _, second = store.create_token(two.org_id, "laptop")
    assert (store.org_of_token(first), store.org_of_token(second)) == (one, two)
    assert store.list_orgs() == [one, two]
    assert [token.name for token in store.list_tokens(one.org_id)] == ["laptop"]


def test_a_secret_has_256_random_bits_behind_a_prefix_that_scanners_know():
    assert re.fullmatch(r"metaecg_[A-Za-z0-9_-]{43}", new_secret())
    assert len({new_secret() for _ in range(100)}) == 100
    assert SECRET.fullmatch(new_secret())


def test_a_secret_is_nowhere_in_the_store(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    org = store.create_org("clinic")
    info, secret = store.create_token(org.org_id, "laptop")
    store.org_of_token(secret)
    path = Path(store.engine.url.database)
    kept = path.read_bytes() + Path(f"{path}-wal").read_bytes()
    assert digest_of(secret).encode() in kept
    assert secret.encode() not in kept
    assert secret.removeprefix("metaecg_").encode() not in kept
    assert secret not in repr(info) and secret not in repr(dump(store))
    store.close()


@pytest.mark.parametrize(
    "secret",
    ["", "metaecg_", "metaecg_" + "A" * 43, "A" * 51, "metaecg_" + "é" * 43, "\ud800", None, b"x"],
)
def test_what_is_no_secret_opens_nothing(store, secret):
    store.create_token(store.create_org("clinic").org_id, "laptop")
    assert store.org_of_token(secret) is None


def test_a_digest_is_no_secret(store):
    _, secret = store.create_token(store.create_org("clinic").org_id, "laptop")
    assert store.org_of_token(digest_of(secret)) is None
    assert store.org_of_token("metaecg_" + digest_of(secret)[:43]) is None


def test_a_revoked_token_opens_nothing_and_keeps_the_time_of_the_first_revoking(timed, clock):
    org = timed.create_org("clinic")
    info, secret = timed.create_token(org.org_id, "laptop")
    _, other = timed.create_token(org.org_id, "server")
    timed.revoke_token(org.org_id, info.token_id)
    revoked_at = clock.now
    clock.go_on(60)
    timed.revoke_token(org.org_id, info.token_id)
    assert timed.org_of_token(secret) is None
    assert timed.org_of_token(other) == org
    assert [token.revoked_at for token in timed.list_tokens(org.org_id)] == [revoked_at, None]


def test_an_expired_token_opens_nothing_from_that_moment_on(timed, clock):
    org = timed.create_org("clinic")
    expires_at = clock.now + timedelta(hours=1)
    info, secret = timed.create_token(org.org_id, "laptop", expires_at)
    clock.go_on(3599)
    assert timed.org_of_token(secret) == org
    clock.go_on(1)
    assert timed.org_of_token(secret) is None
    assert info.expires_at == timed.list_tokens(org.org_id)[0].expires_at == expires_at


def test_a_time_without_a_zone_is_refused(store):
    org_id = store.create_org("clinic").org_id
    with pytest.raises(DataError, match="has no zone"):
        store.create_token(org_id, "laptop", datetime(2030, 1, 1))
    with pytest.raises(DataError, match="has no zone"):
        store.create_token(org_id, "laptop", "2030-01-01")
    zoned = datetime(2030, 1, 1, 2, tzinfo=UTC).astimezone()
    assert store.create_token(org_id, "laptop", zoned)[0].expires_at == zoned


def test_the_last_use_is_written_once_an_hour_not_at_every_request(timed, clock):
    org = timed.create_org("clinic")
    _, secret = timed.create_token(org.org_id, "laptop")
    written = []

    def count(_connection, _cursor, statement, *_arguments):
        written.extend([statement] if statement.startswith("UPDATE tokens") else [])

    sa.event.listen(timed.engine, "before_cursor_execute", count)
    first = clock.now
    for _ in range(50):
        clock.go_on(60)
        assert timed.org_of_token(secret) == org
    assert len(written) == 1
    (token,) = timed.list_tokens(org.org_id)
    assert token.last_used_at - first == timedelta(minutes=1)
    clock.go_on(3600)
    timed.org_of_token(secret)
    assert len(written) == 2


def test_an_organisation_of_the_same_name_is_a_conflict(store):
    store.create_org("clinic")
    with pytest.raises(ConflictError, match="an organisation 'clinic' already"):
        store.create_org("clinic")
    assert len(store.list_orgs()) == 1


@pytest.mark.parametrize("token_id", [2, 0, -1, 2**40, 2**70, "1", None])
def test_a_token_that_is_not_there_cannot_be_revoked(store, token_id):
    org_id = store.create_org("clinic").org_id
    assert store.create_token(org_id, "laptop")[0].token_id == 1
    with pytest.raises(NotFoundError, match="there is no token"):
        store.revoke_token(org_id, token_id)


@pytest.mark.parametrize("name", ["", "a" * 256, "nul\x00", "half\ud800"])
def test_a_name_that_no_database_can_hold_is_refused(store, name):
    with pytest.raises(DataError, match="name"):
        store.create_org(name)
    org_id = store.create_org("clinic").org_id
    with pytest.raises(DataError, match="name"):
        store.create_token(org_id, name)
