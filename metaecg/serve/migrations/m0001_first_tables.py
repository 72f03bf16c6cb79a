"""The first tables: as they were then, whatever `tables` says later."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    _organisations()
    _recordings()
    _detectors()
    _streams()


def _organisations() -> None:
    _table(
        "organisations",
        _key("org_id"),
        sa.Column("name", sa.String(255), nullable=False),
        _moment("created_at"),
        _unique("organisations", "name"),
    )
    _table(
        "tokens",
        _key("token_id"),
        *_owner("tokens", "organisations", "org_id"),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        _moment("created_at"),
        _moment("expires_at", nullable=True),
        _moment("revoked_at", nullable=True),
        _moment("last_used_at", nullable=True),
        _unique("tokens", "digest"),
    )
    _index("tokens", "org_id")
    subject_id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
    _table(
        "patients",
        _key("patient_key"),
        *_owner("patients", "organisations", "org_id"),
        sa.Column("subject_id", subject_id, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("active_version", sa.Integer(), nullable=False),
        _moment("created_at"),
        _unique("patients", "org_id", "subject_id"),
    )


def _recordings() -> None:
    _table(
        "recordings",
        _key("recording_key"),
        *_owner("recordings", "patients", "patient_key"),
        sa.Column("recording_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("fs_hz", sa.Double(), nullable=False),
        sa.Column("lead_names", sa.JSON(), nullable=False),
        sa.Column("lead", sa.Integer(), nullable=False),
        sa.Column("n_samples", sa.BigInteger(), nullable=False),
        sa.Column("chunk_samples", sa.Integer(), nullable=False),
        sa.Column("source_format", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(128), nullable=False),
        _moment("created_at"),
        _unique("recordings", "recording_id"),
    )
    _index("recordings", "patient_key")
    _table(
        "signal_chunks",
        *_owner("signal_chunks", "recordings", "recording_key", is_key=True),
        _number("lead"),
        _number("number"),
        sa.Column("overview", sa.LargeBinary(), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
    )
    _table(
        "beat_peaks",
        *_owner("beat_peaks", "recordings", "recording_key", is_key=True),
        sa.Column("segmentation", sa.String(255), primary_key=True),
        sa.Column("peaks", sa.LargeBinary(), nullable=False),
    )
    _table(
        "labels",
        *_owner("labels", "recordings", "recording_key", is_key=True),
        sa.Column("segmentation", sa.String(255), primary_key=True),
        _number("segment_index"),
        sa.Column("label", sa.String(255), nullable=False),
        _moment("updated_at"),
    )


def _detectors() -> None:
    _table(
        "detectors",
        *_owner("detectors", "patients", "patient_key", is_key=True),
        _number("version"),
        sa.Column("base_fingerprint", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        _moment("created_at"),
        sa.Column("adapter", sa.LargeBinary(), nullable=False),
    )
    _table(
        "jobs",
        _key("job_key"),
        *_owner("jobs", "patients", "patient_key"),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("is_cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _moment("created_at"),
        _moment("started_at", nullable=True),
        _moment("heartbeat_at", nullable=True),
        _moment("finished_at", nullable=True),
        _unique("jobs", "job_id"),
    )
    _index("jobs", "patient_key")
    _index("jobs", "state")


def _streams() -> None:
    _table(
        "streams",
        sa.Column("stream_id", sa.String(32), primary_key=True),
        *_owner("streams", "patients", "patient_key"),
        sa.Column("next_sequence", sa.BigInteger(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
    )
    _index("streams", "patient_key")
    _index("streams", "updated_at")


def _table(name: str, *parts) -> None:
    keys = [part.name for part in parts if isinstance(part, sa.Column) and part.primary_key]
    op.create_table(name, *parts, sa.PrimaryKeyConstraint(*keys, name=op.f(f"pk_{name}")))


def _long() -> sa.types.TypeEngine:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _key(name: str) -> sa.Column:
    return sa.Column(name, _long(), primary_key=True, autoincrement=True)


def _number(name: str) -> sa.Column:
    return sa.Column(name, sa.Integer(), primary_key=True, autoincrement=False)


def _moment(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _owner(table: str, target: str, name: str, *, is_key: bool = False) -> tuple:
    column = sa.Column(name, _long(), primary_key=is_key, autoincrement=False, nullable=False)
    constraint = sa.ForeignKeyConstraint(
        [name], [f"{target}.{name}"], name=op.f(f"fk_{table}_{name}_{target}"), ondelete="CASCADE"
    )
    return column, constraint


def _unique(table: str, *names: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*names, name=op.f(f"uq_{table}_{'_'.join(names)}"))


def _index(table: str, name: str) -> None:
    op.create_index(op.f(f"ix_{table}_{name}"), table, [name])
