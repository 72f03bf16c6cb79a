"""metaecg: ten labelled windows per class from a new patient in, that patient's own detector out."""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "BaseModel": "metaecg.models.checkpoints",
    "Dataset": "metaecg.data.datasets",
    "Personalizer": "metaecg.adapt.personalize",
    "Preprocessing": "metaecg.data.preprocessing",
    "Record": "metaecg.data.records",
    "RhythmFilter": "metaecg.models.rhythm",
    "RhythmModel": "metaecg.models.rhythm",
    "Task": "metaecg.tasks.sampler",
    "TaskSampler": "metaecg.tasks.sampler",
    "WindowSet": "metaecg.data.windows",
    "WindowStream": "metaecg.data.stream",
    "build_network": "metaecg.models.registry",
    "cut_windows": "metaecg.data.windows",
    "fit_rhythm": "metaecg.models.rhythm_fit",
    "load_base": "metaecg.models.checkpoints",
    "prepare": "metaecg.data.datasets",
    "read_record": "metaecg.data.records",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - all are strings


def __getattr__(name: str):
    """Import a public name when it is first used: ``import metaecg`` alone loads nothing heavy."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'metaecg' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
