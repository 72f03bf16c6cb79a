"""Organisations and their API tokens. A secret is shown once and kept nowhere."""

import hashlib
import re
import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import MAX_INTEGER, check_text, check_time
from metaecg.serve.store_errors import ConflictError, NotFoundError, StoreUnavailableError
from metaecg.serve.store_rows import Org, TokenInfo

PREFIX = "metaecg_"
"""What every secret begins with, so that scanners of leaked secrets can know it."""
SECRET_BYTES = 32
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
USED_EVERY = timedelta(hours=1)
"""How exact `last_used_at` is; a write per request would cost more than the request."""


def new_secret() -> str:
    """Return a secret of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: str) -> str:
    """Return what is kept of a secret: SHA-256, in hex.

    A secret has 256 random bits, so that neither salt nor a slow hash would add anything: nobody
    can try them all, and an index can find the digest without a time that depends on the secret.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenStore(StoreBase):
    """Part of the store: organisations and tokens."""

    def create_org(self, name: str) -> Org:
        """Make an organisation; ConflictError if the name is taken."""
        check_text("name", name, longest=tables.NAME_CHARACTERS)
        row = {"name": name, "created_at": self._clock()}
        with self._write() as connection:
            try:
                done = connection.execute(tables.organisations.insert().values(row))
            except sa.exc.IntegrityError as error:
                raise ConflictError(
                    f"there is an organisation {name!r} already. Choose another name."
                ) from error
        return Org(org_id=done.inserted_primary_key[0], **row)

    def list_orgs(self) -> list[Org]:
        """Return all organisations, the oldest first."""
        table = tables.organisations
        with self._read() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.org_id)).mappings()
            return [Org(**row) for row in rows]

    def create_token(
        self, org_id: int, name: str, expires_at: datetime | None = None
    ) -> tuple[TokenInfo, str]:
        """Make a token of an organisation; return it and its secret, which is never shown again."""
        check_text("name", name, longest=tables.NAME_CHARACTERS)
        check_time("expires_at", expires_at)
        secret = new_secret()
        row = {"org_id": org_id, "name": name, "expires_at": expires_at}
        row |= {"created_at": self._clock(), "revoked_at": None, "last_used_at": None}
        with self._write() as connection:
            table = tables.organisations
            if connection.scalar(sa.select(table.c.org_id).where(table.c.org_id == org_id)) is None:
                raise NotFoundError("organisation", org_id)
            done = connection.execute(
                tables.tokens.insert().values(digest=digest_of(secret), **row)
            )
        return TokenInfo(token_id=done.inserted_primary_key[0], **row), secret

    def org_of_token(self, secret: str) -> Org | None:
        """Return the organisation that a secret belongs to; None if unknown, revoked or expired."""
        if not (isinstance(secret, str) and SECRET.fullmatch(secret)):
            return None
        now, orgs, token = self._clock(), tables.organisations, tables.tokens
        with self._read() as connection:
            row = connection.execute(
                sa.select(orgs, token.c.token_id, token.c.last_used_at)
                .join(token, token.c.org_id == orgs.c.org_id)
                .where(
                    token.c.digest == digest_of(secret),
                    token.c.revoked_at.is_(None),
                    token.c.expires_at.is_(None) | (token.c.expires_at > now),
                )
            ).one_or_none()
        if row is None:
            return None
        if row.last_used_at is None or now - row.last_used_at >= USED_EVERY:
            self._note_use(row.token_id, now)
        return Org(org_id=row.org_id, name=row.name, created_at=row.created_at)

    def _note_use(self, token_id: int, now: datetime) -> None:
        table = tables.tokens
        try:
            with self._write() as connection:
                connection.execute(
                    table.update().where(table.c.token_id == token_id).values(last_used_at=now)
                )
        except StoreUnavailableError:
            # A full disk must not lock out those who only read.
            return

    def list_tokens(self, org_id: int) -> list[TokenInfo]:
        """Return an organisation's tokens, the oldest first; revoked and expired ones too."""
        table = tables.tokens
        columns = [column for column in table.c if column is not table.c.digest]
        query = sa.select(*columns).where(table.c.org_id == org_id).order_by(table.c.token_id)
        with self._read() as connection:
            return [TokenInfo(**row) for row in connection.execute(query).mappings()]

    def revoke_token(self, org_id: int, token_id: int) -> None:
        """End a token for good; NotFoundError if the organisation has none of this number."""
        table = tables.tokens
        of_org = (table.c.org_id == org_id) & (table.c.token_id == token_id)
        with self._write() as connection:
            is_number = isinstance(token_id, int) and 0 < token_id <= MAX_INTEGER
            query = sa.select(table.c.token_id).where(of_org)
            if not is_number or connection.scalar(query) is None:
                raise NotFoundError("token", token_id)
            connection.execute(
                table.update()
                .where(of_org, table.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
