"""What a network sees of a beat: its signal, and numbers that set it against the beats before.

Everything comes from the beat and from the beats before it, so a live stream gives the same; only
the RR intervals of a set cut with ``use_next_rr`` know the beat after it.
"""

import numpy as np

from metaecg.data.beats import BeatSet
from metaecg.errors import DataError

ROWS = ("beat", "numbers")
"""Rows of an input. The signal is divided by the height of the patient's usual beat so far; the last
row starts with the numbers of `number_names` and is zero behind them."""

N_MEMORY = 30
"""The usual beat is a mean over about so many beats before."""
USUAL_RR = (0.85, 1.25)
"""A beat whose interval is within these ratios of the median before counts fully for the usual beat,
another one with `EARLY_WEIGHT`: premature beats are rarely the usual ones."""
EARLY_WEIGHT = 0.1
QRS_S = (0.14, 0.18)
"""Before and after the R peak: where beats are compared."""
FORM_S = (0.2, 0.35)
"""Before and after the R peak: what says whether two beats are of a kind."""
MIN_HEIGHT_MV = 0.1
"""A usual beat flatter than this is scaled as if it had this height: noise isn't blown up."""
SIGNAL_SCALE = 4.0
"""A usual beat then has a spread of about 1."""

FORM_NAMES = ("likeness", "height", "area", "difference", "width", "width_to_usual")
"""Of the QRS complex against the usual one: correlation; logarithms of the ratios of heights, areas,
and of the difference to the usual one's size; of the width in seconds, and its ratio."""
CHANGE_NAMES = ("difference_change", "width_change", "likeness_change")
"""The same numbers minus their own running mean: how unusual for this patient."""
RR_LIMITS = (0.1, 5.0)
_RR_SCALE = 2.0
_FORM_SCALES = np.array([2, 1, 1, 1, 3, 3], dtype=np.float32)
_CHANGE_SCALES = np.array([1, 3, 2], dtype=np.float32)


def number_names(rr_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the numbers in the last row, for a set with these RR features."""
    return (*rr_names, *FORM_NAMES, *CHANGE_NAMES)


def beat_inputs(beats: BeatSet, *, lead: int = 0) -> np.ndarray:
    """Return the inputs of a network for one lead of the beats.

    Parameters
    ----------
    beats
        All beats of whole recordings, of each in the order of time: what came before a beat counts.
    lead
        Which lead of the windows.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_beats, 2, n_samples)``, float32, rows as in `ROWS`. Row `i` depends on beats of
        the same recording up to `i` alone.

    Raises
    ------
    DataError
        The beats have no such lead, or those of a recording are not in the order of time.

    Notes
    -----
    Dividing by the height of the usual beat, not of the beat itself, keeps that a ventricular beat
    is often larger. The first beat of a recording is its own usual beat.
    """
    n_beats, n_leads, n_samples = beats.windows.shape
    if not 0 <= lead < n_leads:
        raise DataError(f"lead is {lead}; the beats have {n_leads} leads, numbered from 0.")
    inputs = np.zeros((n_beats, len(ROWS), n_samples), dtype=np.float32)
    for record_id in dict.fromkeys(beats.record_ids.tolist()):
        rows = np.flatnonzero(beats.record_ids == record_id)
        if (np.diff(beats.start_s[rows]) <= 0).any():
            raise DataError(
                f"the beats of {record_id!r} are not in the order of time; give whole recordings as "
                "they were cut."
            )
        inputs[rows] = _inputs_of_record(beats.select(rows), lead)
    return inputs


def beat_forms(inputs: np.ndarray, beats: BeatSet) -> np.ndarray:
    """Return what tells the beats of one patient apart, shape ``(n_beats, n_features)``, float32.

    QRS complex and ST segment in heights of the usual beat, and the logarithms of the RR ratios:
    Euclidean distances between rows say how alike beats are. `inputs` are the `beat_inputs` of
    `beats`.
    """
    at = round(beats.before_s * beats.fs_hz)
    first, last = (round(s * beats.fs_hz) for s in FORM_S)
    form = inputs[:, 0, max(at - first, 0) : at + last] / SIGNAL_SCALE
    ratios = [i for i, name in enumerate(beats.rr_names) if name.endswith("rr_to_median")]
    return np.concatenate([form, inputs[:, 1, ratios] / _RR_SCALE], axis=1)


def _inputs_of_record(beats: BeatSet, lead: int) -> np.ndarray:
    windows = np.asarray(beats.windows[:, lead], dtype=np.float32)
    ratio = beats.rr[:, beats.rr_names.index("rr_to_median")]
    is_usual = (ratio > USUAL_RR[0]) & (ratio < USUAL_RR[1])
    weights = np.where(is_usual, 1.0, EARLY_WEIGHT)
    usual = running_mean(windows, weights)
    height = np.maximum(np.ptp(usual, axis=1), MIN_HEIGHT_MV)[:, None]
    found = np.zeros((len(windows), len(ROWS), windows.shape[1]), dtype=np.float32)
    found[:, 0] = SIGNAL_SCALE * windows / height
    numbers = _numbers(beats, windows, usual, weights)
    found[:, 1, : numbers.shape[1]] = numbers
    return found


def running_mean(
    values: np.ndarray, weights: np.ndarray, *, n_memory: int = N_MEMORY
) -> np.ndarray:
    """Return the weighted mean of what came before each row, with a fading memory.

    Parameters
    ----------
    values
        Shape ``(n, ...)``, in the order of time.
    weights
        Shape ``(n,)``, above 0: how much each row counts for those after it.
    n_memory
        The mean is over all rows so far until their weights add up to this, then older ones fade.

    Returns
    -------
    numpy.ndarray
        Shape of `values`; the first row has itself.

    Examples
    --------
    >>> running_mean(np.array([1.0, 3.0, 5.0]), np.ones(3)).tolist()
    [1.0, 1.0, 2.0]
    """
    found = np.empty_like(values)
    if not len(values):
        return found
    total = np.minimum(np.cumsum(weights), n_memory)
    steps = (weights / np.maximum(total, weights)).tolist()
    mean = values[0].copy()
    for i, step in enumerate(steps):
        found[i] = mean
        mean = mean + (values[i] - mean) * step
    return found


def _numbers(
    beats: BeatSet, windows: np.ndarray, usual: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return intervals and likenesses, shape ``(n_beats, n_numbers)``."""
    at = round(beats.before_s * beats.fs_hz)
    first, last = (round(s * beats.fs_hz) for s in QRS_S)
    qrs = slice(max(at - first, 0), at + last)
    form = _form(windows[:, qrs], usual[:, qrs], fs_hz=beats.fs_hz)
    likeness, difference, width = form[:, 0], form[:, 3], form[:, 4]
    changing = np.stack([difference, width, likeness], axis=1)
    change = changing - running_mean(changing, weights)
    rr = _RR_SCALE * np.log(np.clip(beats.rr, *RR_LIMITS))
    return np.concatenate([rr, form * _FORM_SCALES, change * _CHANGE_SCALES], axis=1)


def _form(qrs: np.ndarray, usual: np.ndarray, *, fs_hz: float) -> np.ndarray:
    """Return `FORM_NAMES` of QRS complexes, both of shape ``(n_beats, n_samples)``."""
    mine = qrs - qrs.mean(axis=1, keepdims=True)
    its = usual - usual.mean(axis=1, keepdims=True)
    sizes = np.sqrt((mine**2).sum(axis=1) * (its**2).sum(axis=1) + 1e-9)
    height = np.maximum(np.ptp(mine, axis=1), 0.02) / np.maximum(np.ptp(its, axis=1), 0.02)
    area = (np.abs(mine).mean(axis=1) + 0.005) / (np.abs(its).mean(axis=1) + 0.005)
    difference = np.sqrt(((mine - its) ** 2).mean(axis=1))
    difference /= np.sqrt((its**2).mean(axis=1)) + 0.01
    width, usual_width = _width_s(mine, fs_hz), _width_s(its, fs_hz)
    return np.stack(
        [
            (mine * its).sum(axis=1) / sizes,
            np.log(height),
            np.log(area),
            np.log(difference + 0.02),
            np.log(width),
            np.log(width / usual_width),
        ],
        axis=1,
    ).astype(np.float32)


def _width_s(qrs: np.ndarray, fs_hz: float) -> np.ndarray:
    """Return the spread in time of the slopes of each complex, seconds."""
    power = np.diff(qrs, axis=1) ** 2
    time_s = np.arange(power.shape[1]) / fs_hz
    total = power.sum(axis=1) + 1e-9
    middle = (power * time_s).sum(axis=1) / total
    spread = (power * (time_s - middle[:, None]) ** 2).sum(axis=1) / total
    return np.sqrt(np.maximum(spread, 1e-6))
