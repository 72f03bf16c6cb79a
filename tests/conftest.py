"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

REAL = ("mitdb", "vfdb", "cudb")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings; skips, saying why, where METAECG_DATA names none."""
    named = os.environ.get("METAECG_DATA")
    if not named:
        pytest.skip("METAECG_DATA is not set: real recordings are not tested")
    missing = [slug for slug in REAL if not (Path(named) / slug).is_dir()]
    if missing:
        pytest.skip(f"METAECG_DATA={named} lacks {', '.join(missing)}")
    return Path(named)
