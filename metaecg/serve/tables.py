"""The tables of the store. A change here needs a migration beside it (tested)."""

from datetime import UTC, datetime

import sqlalchemy as sa

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraints are named, so that a later migration can name what it changes."""

SUBJECT_CHARACTERS, ID_CHARACTERS, NAME_CHARACTERS = 64, 32, 255

metadata = sa.MetaData(naming_convention=NAMES)


class UTCDateTime(sa.types.TypeDecorator):
    """A time with its zone, always UTC: SQLite would forget the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse a time without a zone; hand SQLite the bare UTC time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the time {value} has no zone; expected one, such as UTC.")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Say that what comes back is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def sorted_text(length: int) -> sa.String:
    """Return a text type that sorts by code point in every database, whatever its locale."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def long_integer() -> sa.types.TypeEngine:
    """Return a 64-bit integer; SQLite numbers rows by itself only in a plain INTEGER column."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def key(name: str) -> sa.Column:
    """Return the internal number of a row, which never leaves the store."""
    return sa.Column(name, long_integer(), primary_key=True, autoincrement=True)


def owner(table: str, name: str, **options) -> sa.Column:
    """Return the column that says what a row belongs to, and goes with."""
    target = sa.ForeignKey(f"{table}.{name}", ondelete="CASCADE")
    return sa.Column(name, long_integer(), target, nullable=False, **options)


def moment(name: str, *, nullable: bool = False) -> sa.Column:
    """Return a column of times."""
    return sa.Column(name, UTCDateTime(), nullable=nullable)


organisations = sa.Table(
    "organisations",
    metadata,
    key("org_id"),
    sa.Column("name", sa.String(NAME_CHARACTERS), nullable=False, unique=True),
    moment("created_at"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    key("token_id"),
    owner("organisations", "org_id", index=True),
    sa.Column("name", sa.String(NAME_CHARACTERS), nullable=False),
    # SHA-256 of the secret, in hex: the secret itself is kept nowhere.
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    moment("created_at"),
    moment("expires_at", nullable=True),
    moment("revoked_at", nullable=True),
    moment("last_used_at", nullable=True),
)

patients = sa.Table(
    "patients",
    metadata,
    key("patient_key"),
    owner("organisations", "org_id"),
    sa.Column("subject_id", sorted_text(SUBJECT_CHARACTERS), nullable=False),
    sa.Column("note", sa.Text(), nullable=False),
    sa.Column("active_version", sa.Integer(), nullable=False),
    moment("created_at"),
    sa.UniqueConstraint("org_id", "subject_id"),
)

recordings = sa.Table(
    "recordings",
    metadata,
    key("recording_key"),
    owner("patients", "patient_key", index=True),
    sa.Column("recording_id", sa.String(ID_CHARACTERS), nullable=False, unique=True),
    sa.Column("name", sa.String(NAME_CHARACTERS), nullable=False),
    sa.Column("fs_hz", sa.Double(), nullable=False),
    sa.Column("lead_names", sa.JSON(), nullable=False),
    sa.Column("lead", sa.Integer(), nullable=False),
    sa.Column("n_samples", sa.BigInteger(), nullable=False),
    sa.Column("chunk_samples", sa.Integer(), nullable=False),
    sa.Column("source_format", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(128), nullable=False),
    moment("created_at"),
)

signal_chunks = sa.Table(
    "signal_chunks",
    metadata,
    owner("recordings", "recording_key", primary_key=True),
    sa.Column("lead", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
    # The overview stands before the samples: SQLite reads a row from its beginning.
    sa.Column("overview", sa.LargeBinary(), nullable=False),
    sa.Column("samples", sa.LargeBinary(), nullable=False),
)

beat_peaks = sa.Table(
    "beat_peaks",
    metadata,
    owner("recordings", "recording_key", primary_key=True),
    sa.Column("segmentation", sa.String(NAME_CHARACTERS), primary_key=True),
    sa.Column("peaks", sa.LargeBinary(), nullable=False),
)

labels = sa.Table(
    "labels",
    metadata,
    owner("recordings", "recording_key", primary_key=True),
    sa.Column("segmentation", sa.String(NAME_CHARACTERS), primary_key=True),
    sa.Column("segment_index", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("label", sa.String(NAME_CHARACTERS), nullable=False),
    moment("updated_at"),
)

detectors = sa.Table(
    "detectors",
    metadata,
    owner("patients", "patient_key", primary_key=True),
    sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("base_fingerprint", sa.String(NAME_CHARACTERS), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("n_bytes", sa.BigInteger(), nullable=False),
    sa.Column("facts", sa.JSON(), nullable=False),
    moment("created_at"),
    sa.Column("adapter", sa.LargeBinary(), nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    key("job_key"),
    owner("patients", "patient_key", index=True),
    sa.Column("job_id", sa.String(ID_CHARACTERS), nullable=False, unique=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("progress", sa.Double(), nullable=False),
    sa.Column("request", sa.JSON(), nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("is_cancel_requested", sa.Boolean(), nullable=False),
    sa.Column("attempts", sa.Integer(), nullable=False),
    moment("created_at"),
    moment("started_at", nullable=True),
    moment("heartbeat_at", nullable=True),
    moment("finished_at", nullable=True),
)

streams = sa.Table(
    "streams",
    metadata,
    sa.Column("stream_id", sa.String(ID_CHARACTERS), primary_key=True),
    owner("patients", "patient_key", index=True),
    sa.Column("next_sequence", sa.BigInteger(), nullable=False),
    sa.Column("answers", sa.JSON(), nullable=False),
    sa.Column("state", sa.LargeBinary(), nullable=False),
    moment("created_at"),
    sa.Column("updated_at", UTCDateTime(), nullable=False, index=True),
)
