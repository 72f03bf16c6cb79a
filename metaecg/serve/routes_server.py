"""The server itself: health, metrics, the model in use, the page."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from metaecg import __version__
from metaecg.adapt.methods import METHODS
from metaecg.errors import MetaECGError
from metaecg.serve.api_errors import not_found
from metaecg.serve.auth import OrgId
from metaecg.serve.personalizing import DEFAULT_METHOD
from metaecg.serve.proposals import N_SHOTS
from metaecg.serve.routes_common import problems
from metaecg.serve.schemas import Health, Limits, ModelFacts, Ready
from metaecg.serve.segment_probabilities import (
    default_rhythm_of,
    positive_class,
    rhythms_of,
    threshold_of,
)
from metaecg.serve.state import Parts

router = APIRouter()
PAGES = Path(__file__).parent / "pages"
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


@router.get("/health", tags=["server"])
async def health() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@router.get("/ready", tags=["server"], responses=problems())
def ready(services: Parts) -> Ready:
    """Tell whether the server can do its work: its base is loaded and its store answers."""
    services.store.ping()
    return Ready(status="ready")


@router.get("/metrics", tags=["server"], response_class=PlainTextResponse)
def metrics(services: Parts) -> Response:
    """Get figures for Prometheus; they name no patient and no organisation."""
    try:
        counts = {f"store_{name}": n for name, n in services.store.counts().items()}
        counts["store_up"] = 1
    except MetaECGError:
        counts = {"store_up": 0}
    counts |= {
        "detector_cache_bytes": services.detectors.n_bytes,
        "detector_cache_adapters": services.detectors.n_adapters,
        "detector_cache_hits": services.detectors.n_hits,
        "detector_cache_misses": services.detectors.n_misses,
        "prediction_cache_bytes": services.probabilities.n_bytes,
        "windows_waiting": services.batcher.n_waiting,
    }
    return Response(services.metrics.text(counts), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/model", tags=["server"], responses=problems(401, 413, 415, 422))
def get_model(org_id: OrgId, services: Parts) -> ModelFacts:
    """Look at the base model and at what it allows."""
    base, settings = services.base, services.settings
    rhythms = rhythms_of(base)
    return ModelFacts(
        name=Path(settings.model).name,  # where a folder lies on the server is nobody's business
        kind=services.segmentation.kind,
        classes=list(base.classes),
        positive=positive_class(base),
        fs_hz=base.preprocessing.fs_hz,
        window_s=base.preprocessing.window_s,
        n_shots=N_SHOTS,
        methods=list(METHODS),
        default_method=DEFAULT_METHOD,
        rhythms=list(rhythms),
        default_rhythm=default_rhythm_of(base),
        thresholds={rhythm: threshold_of(base, rhythm) for rhythm in rhythms},
        segmentation=services.segmentation.name,
        fingerprint=base.fingerprint,
        metaecg_version=__version__,
        limits=Limits(
            upload_bytes=settings.upload_bytes,
            json_bytes=settings.json_bytes,
            duration_s=settings.duration_s,
            n_leads=settings.n_leads,
        ),
    )


@router.get("/", include_in_schema=False)
def page() -> Response:
    """Show the page."""
    return _page_file("index.html")


@router.get("/pages/{name}", include_in_schema=False)
def page_file(name: str) -> Response:
    """Give a script or a style of the page."""
    return _page_file(name)


def _page_file(name: str) -> Response:
    # Only names that are there: nothing of the address is ever joined to a path.
    there = {path.name: path for path in PAGES.iterdir()} if PAGES.is_dir() else {}
    path = there.get(name)
    if path is None or path.suffix not in MEDIA_TYPES:
        raise not_found("page", name[:80])
    headers = {"Cache-Control": "no-cache"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=headers)
