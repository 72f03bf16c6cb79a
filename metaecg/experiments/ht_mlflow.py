"""The base of `h_tuning` as an MLflow model, and what MLflow is told of its data.

MLflow imports this module to load such a model (it is the ``loader_module`` in its ``MLmodel``).
"""

from pathlib import Path

import numpy as np

from metaecg.data.twelve_lead import CHALLENGE_2021, PTB_XL
from metaecg.errors import DataError
from metaecg.experiments.ht_base import N_LEADS, TwelveLeadBase, load_twelve_lead_base
from metaecg.experiments.ht_data import Cohort
from metaecg.experiments.tracking_facts import dataset_facts
from metaecg.models.mlflow_model import REQUIREMENTS

DATABASES = {"ptbxl_subset": PTB_XL, "cinc2021_sample": CHALLENGE_2021}
"""Folder to the database that it is a part of."""


def pyfunc_facts(base: TwelveLeadBase) -> dict:
    """Return what describes the base to MLflow, as plain JSON values."""
    classes = list(base.class_names)
    return {
        "loader_module": __name__,
        "n_leads": N_LEADS,
        "n_samples": base.input.n_samples,
        "fs_hz": base.input.fs_hz,
        "classes": classes,
        "metadata": {
            "input": "prepared recordings, (n_records, 12, n_samples)",
            "output": "probabilities, each class by itself, (n_records, n_classes)",
            "classes": classes,
            "preparation": base.input.to_dict(),
            "fingerprint": base.fingerprint,
        },
        "requirements": [*REQUIREMENTS, "pydantic"],
    }


def datasets_of(cohorts: dict[str, Cohort]) -> list[dict[str, str]]:
    """Return the facts of each database that is fine-tuned on."""
    return [
        dataset_facts(
            name,
            database=DATABASES.get(name),
            digest=found.sha256,
            n_records=len(found.records),
            n_subjects=len(set(found.records.subject_ids.tolist())),
        )
        for name, found in cohorts.items()
    ]


class PyfuncTwelveLeadBase:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, base: TwelveLeadBase) -> None:
        self.base = base

    def predict(self, model_input: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Return the probability of every statement, ``(n_records, n_classes)`` float64.

        Parameters
        ----------
        model_input
            Shape ``(n_records, 12, n_samples)``, prepared as the model's metadata say.
        params
            MLflow's inference parameters; there are none.
        """
        from metaecg.experiments.ht_training import probabilities

        signals = np.asarray(model_input, dtype=np.float32)
        expected = (N_LEADS, self.base.input.n_samples)
        if signals.shape[1:] != expected:
            raise DataError(
                f"model_input has shape {signals.shape}; expected (n_records, {expected[0]}, "
                f"{expected[1]}). Prepare recordings with TwelveLeadInput as the metadata say."
            )
        return probabilities(self.base.network, signals, len(self.base.class_names))


def _load_pyfunc(path: str) -> PyfuncTwelveLeadBase:
    """Load the base in the folder `path`; the name is the one that MLflow calls."""
    return PyfuncTwelveLeadBase(load_twelve_lead_base(Path(path)))
