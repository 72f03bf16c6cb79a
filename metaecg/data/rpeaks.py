"""Find R peaks with a detector of NeuroKit2's, and match found beats with annotated ones.

The detector was chosen by measurement: docs/decisions/0009-r-peaks.md, `benchmarks/rpeaks.py`.
"""

import numpy as np
from scipy import signal

from metaecg.checks import check_positive
from metaecg.data.preprocessing import measured_segments
from metaecg.errors import DataError

TOLERANCE_S = 0.15
"""A detection at most this far from an annotated beat is that beat (ANSI/AAMI EC57:2012, the match
window of beat-by-beat comparison)."""
SHORTEST_S = 2.0
"""Shorter measured stretches give no beats: there is too little to tell a beat from noise."""
BRIDGED_S = 0.1
"""Shorter gaps, such as a lost packet, are bridged by a straight line for the detector alone: they
are too short to hold a QRS complex."""
CORE_S, MARGIN_S = 30.0, 3.0
"""The detector scales what it sees by the steepest slope in it, and its time grows with the square of
the number of beats. Piece by piece, a glitch of some volts spoils its own surroundings only. The
margin is what its running mean (2.5 s) needs."""
SETTLE_S = 0.06
"""The detector gives the middle of a burst of energy; the peak is looked for this far around it."""
MIN_SWING_MV = 0.05
"""A piece that moves less than this holds no beat. The detector has no threshold of its own: where
nothing beats, it finds peaks in the noise."""
MIN_FS_HZ = 100.0


def detect_r_peaks(signal_mv: np.ndarray, *, fs_hz: float) -> np.ndarray:
    """Return where the R peaks of one lead are, in samples.

    Each measured stretch is searched by itself. Stretches shorter than `SHORTEST_S` and flat ones
    hold no beats. No beat is ever in a gap. In noise and in ventricular fibrillation the detector
    finds something; telling that from beats is not its task. The position is where the lead, above
    1 Hz, is farthest from zero, upwards or downwards.

    Parameters
    ----------
    signal_mv
        One lead, shape ``(n_samples,)`` or ``(1, n_samples)``, millivolts; NaN where nothing was
        measured.
    fs_hz
        Sampling rate, hertz; at least `MIN_FS_HZ`.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_peaks,)``, int64, strictly increasing.

    Raises
    ------
    DataError
        `signal_mv` is not one lead.
    ValueError
        `fs_hz` is below `MIN_FS_HZ`.

    Notes
    -----
    Whether there is a peak depends on up to `CORE_S` + `MARGIN_S` seconds to either side, so this is
    for recordings, not for a live stream.

    References
    ----------
    .. [1] M. S. Manikandan and K. P. Soman, "A novel method for detecting R-peaks in
       electrocardiogram (ECG) signal", Biomed. Signal Process. Control 7(2):118-128, 2012; as in
       NeuroKit2, method ``manikandan2012``.

    Examples
    --------
    >>> places = np.zeros(2500)
    >>> places[100::200] = 1.0
    >>> signal_mv = np.convolve(places, np.hanning(25), mode="same")
    >>> detect_r_peaks(signal_mv, fs_hz=250.0)[:4].tolist()
    [100, 300, 500, 700]
    """
    lead = _one_lead(signal_mv)
    if check_positive("fs_hz", fs_hz) < MIN_FS_HZ:
        raise ValueError(
            f"fs_hz is {fs_hz:g}; the detector needs at least {MIN_FS_HZ:g}. Resample the signal, or "
            "check the rate."
        )
    is_measured = np.isfinite(lead)
    bridged = _bridge(lead, is_measured, longest=int(BRIDGED_S * fs_hz))
    found = [
        start + _search(bridged[start:stop].astype(np.float64), fs_hz)
        for start, stop in measured_segments(bridged[None])
        if stop - start >= SHORTEST_S * fs_hz
    ]
    peaks = np.concatenate([np.zeros(0, dtype=np.int64), *found])
    return peaks[is_measured[peaks]]


def match_beats(found_s: np.ndarray, annotated_s: np.ndarray) -> np.ndarray:
    """Return which annotated beat each found one is, or -1 where it is none.

    A pair is each other's nearest and at most `TOLERANCE_S` apart, so no beat is used twice.

    Parameters
    ----------
    found_s, annotated_s
        Positions in seconds, increasing, shapes ``(n_found,)`` and ``(n_annotated,)``.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_found,)``, int64, index into `annotated_s` or -1.

    Examples
    --------
    >>> match_beats(np.array([1.02, 1.1, 5.0]), np.array([1.0, 3.0])).tolist()
    [0, -1, -1]
    """
    found_s, annotated_s = np.asarray(found_s, dtype=float), np.asarray(annotated_s, dtype=float)
    if not len(found_s) or not len(annotated_s):
        return np.full(len(found_s), -1, dtype=np.int64)
    nearest = _nearest(found_s, annotated_s)
    is_mutual = _nearest(annotated_s, found_s)[nearest] == np.arange(len(found_s))
    is_near = np.abs(annotated_s[nearest] - found_s) <= TOLERANCE_S + 1e-9
    return np.where(is_mutual & is_near, nearest, -1)


def _one_lead(signal_mv: np.ndarray) -> np.ndarray:
    signal_mv = np.asarray(signal_mv)
    if signal_mv.ndim == 2 and len(signal_mv) == 1:
        return signal_mv[0]
    if signal_mv.ndim != 1:
        raise DataError(
            f"signal_mv has shape {signal_mv.shape}; expected one lead, (n_samples,). Choose a lead."
        )
    return signal_mv


def _bridge(lead: np.ndarray, is_measured: np.ndarray, *, longest: int) -> np.ndarray:
    """Return the lead with gaps of at most `longest` samples, inside the recording, filled."""
    gaps = measured_segments(np.where(is_measured, np.nan, 0.0)[None])
    short = [(a, b) for a, b in gaps if b - a <= longest and a > 0 and b < len(lead)]
    if not short:
        return lead
    lead = lead.copy()
    for start, stop in short:
        line = np.linspace(lead[start - 1], lead[stop], stop - start + 2)
        lead[start:stop] = line[1:-1]
    return lead


def _search(stretch: np.ndarray, fs_hz: float) -> np.ndarray:
    """Return the peaks of one measured stretch, piece by piece."""
    core, margin = round(CORE_S * fs_hz), round(MARGIN_S * fs_hz)
    padded = np.pad(stretch, margin, mode="reflect")
    found = [
        _search_piece(padded[first : first + core + 2 * margin], fs_hz, margin=margin) + first
        for first in range(0, len(stretch), core)
    ]
    return _settle(stretch, np.concatenate(found), fs_hz)


def _search_piece(piece: np.ndarray, fs_hz: float, *, margin: int) -> np.ndarray:
    """Return the peaks between the margins of a piece, counted from the end of the first one."""
    # Imported here: whoever works with annotated beats needs no detector.
    from neurokit2 import ecg_findpeaks

    if np.ptp(piece) < MIN_SWING_MV:
        return np.zeros(0, dtype=np.int64)
    # It fails on a beat within 75 ms of the end (NeuroKit issue 1058): end in a second of rest.
    rested = np.pad(piece, (0, round(fs_hz)), mode="edge")
    places = ecg_findpeaks(rested, sampling_rate=fs_hz, method="manikandan2012")["ECG_R_Peaks"]
    places = np.asarray(places, dtype=np.int64) - margin
    return places[(places >= 0) & (places < len(piece) - 2 * margin)]


def _settle(stretch: np.ndarray, places: np.ndarray, fs_hz: float) -> np.ndarray:
    """Move each place to the peak beside it."""
    if not len(places):
        return places
    band = signal.butter(2, (1.0, 40.0), "bandpass", fs=fs_hz, output="sos")
    height = np.abs(signal.sosfiltfilt(band, stretch))
    half = round(SETTLE_S * fs_hz)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(height, half), 2 * half + 1)
    peaks = places + around[places].argmax(axis=1)
    return np.unique(np.clip(peaks - half, 0, len(stretch) - 1))


def _nearest(places: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of `among` for each place; of two as near, the earlier."""
    right = np.clip(np.searchsorted(among, places), 0, len(among) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(places - among[left] <= np.abs(among[right] - places), left, right)
