"""The application in the test's own process: no port, and a way to its parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from serve_cases import RHYTHM, make_base
from starlette.testclient import TestClient

from metaecg.serve.app import create_app
from metaecg.serve.settings import Settings
from metaecg.serve.state import Services, open_services


@dataclass
class InProcess:
    """The application in the test's own process, and a way to its parts."""

    client: TestClient
    """Sends requests with the token of the organisation ``clinic``."""
    services: Services
    other: TestClient
    """The same for another organisation."""


@contextmanager
def app_in_process(folder: Path, base=None, **settings) -> Iterator[InProcess]:
    """Open the application with a store in `folder`; no port, and no job runs by itself.

    Parameters
    ----------
    folder
        Gets the store.
    base
        A `BaseModel`, by default a small one with random weights for windows of a second at 100 Hz.
    settings
        Of `Settings`.
    """
    (base or make_base(rhythm=RHYTHM)).save(folder / "base")
    given = {"job_workers": 0, "model": f"{folder}/base", "store": f"sqlite:///{folder}/metaecg.db"}
    services = open_services(Settings(**{**given, **settings}))
    app = create_app(services=services)
    with TestClient(app, headers=_token_of(services, "clinic")) as client:
        # The other one shares the application that runs; only one may start it.
        other = TestClient(app, headers=_token_of(services, "other"))
        other.portal = client.portal
        yield InProcess(client=client, services=services, other=other)


def _token_of(services: Services, name: str) -> dict[str, str]:
    orgs = {org.name: org for org in services.store.list_orgs()}
    org = orgs.get(name) or services.store.create_org(name)
    _, secret = services.store.create_token(org.org_id, "test")
    return {"Authorization": f"Bearer {secret}"}


def small_recording(n_seconds: int = 60, *, seed: int = 0, gap: slice | None = None) -> dict:
    """Return noise at 100 Hz as the body of an upload, not measured in `gap` (samples)."""
    signal = np.random.default_rng(seed).normal(size=100 * n_seconds).round(4).tolist()
    if gap is not None:
        signal[gap] = [None] * len(signal[gap])
    return {"fs_hz": 100.0, "unit": "mV", "lead_names": ["II"], "signal": [signal]}
