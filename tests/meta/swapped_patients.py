"""Generated patients on whom only a few windows of their own can help."""

import numpy as np

from metaecg.data.windows import WindowSet

N_SAMPLES = 8
TRAINING = ("a", "b", "c", "d")


def make_windows(subjects=TRAINING, *, n_per_class=20, seed=7) -> WindowSet:
    """Patients whose electrodes are swapped or not: a rising window is VA in one, not in the next.

    No detector can be right for both without having seen some of a patient's own windows.
    """
    rng = np.random.default_rng(seed)
    n = 2 * n_per_class
    labels = np.tile(np.array([0, 1]), n_per_class)
    parts = []
    for number, _ in enumerate(subjects):
        rises = (2 * labels - 1) * (-1) ** number
        shape = rises[:, None] * np.linspace(-1, 1, N_SAMPLES)
        parts.append(shape + 0.3 * rng.standard_normal((n, N_SAMPLES)))
    times = np.tile(2.0 * np.arange(n), len(subjects))
    names = np.repeat(np.array(subjects), n)
    return WindowSet(
        windows=np.concatenate(parts)[:, None].astype(np.float32),
        labels=np.tile(labels, len(subjects)),
        is_mixed=np.zeros(len(names), dtype=bool),
        subject_ids=names,
        record_ids=names,
        start_s=times,
        time_s=times,
        fs_hz=4.0,
        window_s=2.0,
    )
