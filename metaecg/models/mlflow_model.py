"""A base as an MLflow model of the pyfunc flavour: windows in, probabilities out.

MLflow imports this module to load such a model (it is the ``loader_module`` in its ``MLmodel``) and
gives it the base's folder. Nothing is unpickled, and nothing here imports mlflow.
"""

from pathlib import Path

import numpy as np

LOADER = __name__
REQUIREMENTS = ("metaecg", "torch", "numpy", "scipy", "safetensors")
"""What a serving environment needs; versions are those at hand when the model is logged."""


def pyfunc_facts(base) -> dict:
    """Return what describes a `BaseModel` to MLflow, as plain JSON values."""
    preprocessing = base.preprocessing
    return {
        "loader_module": LOADER,
        "n_leads": base.n_leads,
        "n_samples": preprocessing.n_samples,
        "classes": list(base.classes),
        "metadata": {
            "input": "filtered millivolts, (n_windows, n_leads, n_samples)",
            "output": "probabilities, (n_windows, n_classes)",
            "classes": list(base.classes),
            "fs_hz": preprocessing.fs_hz,
            "window_s": preprocessing.window_s,
            "fingerprint": base.fingerprint,
        },
        "fs_hz": preprocessing.fs_hz,
        "requirements": list(REQUIREMENTS),
    }


def example_windows(*, n_leads: int, n_samples: int, fs_hz: float) -> np.ndarray:
    """Return a made-up window, ``(1, n_leads, n_samples)`` float32 in millivolts: nobody's ECG.

    Beats of a millivolt, 60 ms wide, 75 a minute; it shows the format and has no other meaning.

    Examples
    --------
    >>> example_windows(n_leads=1, n_samples=400, fs_hz=200.0).shape
    (1, 1, 400)
    """
    time_s = np.arange(n_samples) / fs_hz
    from_beat_s = (time_s + 0.4) % 0.8 - 0.4
    beats = np.exp(-((from_beat_s / 0.025) ** 2)).round(3)
    return np.tile(beats, (1, n_leads, 1)).astype(np.float32)


class PyfuncBase:
    """What `mlflow.pyfunc.load_model` wraps: a base with MLflow's ``predict``."""

    def __init__(self, base) -> None:
        self.base = base

    def predict(self, model_input: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Return `BaseModel.predict_proba` of the windows.

        Parameters
        ----------
        model_input
            Shape ``(n_windows, n_leads, n_samples)``, filtered millivolts.
        params
            MLflow's inference parameters; there are none.
        """
        return self.base.predict_proba(np.asarray(model_input, dtype=np.float32))


def _load_pyfunc(path: str) -> PyfuncBase:
    """Load the base in the folder `path`; the name is the one that MLflow calls."""
    from metaecg.models.checkpoints import load_base

    return PyfuncBase(load_base(Path(path)))
