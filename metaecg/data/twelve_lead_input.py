"""How a short 12-lead recording becomes a network's input: rate, band, scale, length."""

from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from scipy import signal

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

ORDER = 3
"""Order of the Butterworth band-pass [1]_; run forwards and backwards it acts twice."""


@dataclass(frozen=True, kw_only=True)
class TwelveLeadInput:
    """Everything that has to agree between training and use of a network on whole recordings.

    `metaecg.data.preprocessing.Preprocessing` is for windows of a stream and looks 1.25 s ahead at
    most; this one filters a recording as a whole, as the work it follows does, and so belongs to
    recordings of about ten seconds that are there from beginning to end.

    Parameters
    ----------
    fs_hz
        Sampling rate of the input in hertz; recordings are resampled to it. It has no default:
        `PAPER_INPUT` takes 500 Hz as published. 100 Hz holds the same band, costs a fifth, and
        adds nothing where the recordings themselves have 100 Hz; figures of the two aren't
        comparable, since a network sees five times as much time in each of its kernels.
    n_samples
        Length of the input. A longer recording keeps its first `n_samples`; a shorter one is
        followed by zeros, which is each lead's mean once it is normalised.
    lowcut_hz, highcut_hz
        The -3 dB points of the filter in one direction, -6 dB in both, in hertz.
    normalize
        ``"lead"``: each lead of a recording to mean 0 and standard deviation 1; a lead without any
        spread becomes zeros. ``"none"``: the recording's own unit.

    References
    ----------
    .. [1] R. Zhou, X. Zhang, Y. Dong, "H-Tuning: toward low-cost and efficient ECG-based
       cardiovascular disease detection with pre-trained models", ICML, PMLR 267:79548-79569, 2025.

    Examples
    --------
    >>> at_100_hz = TwelveLeadInput(fs_hz=100.0, n_samples=1024)
    >>> at_100_hz.prepare(np.eye(12, 1000), fs_hz=100.0).shape
    (12, 1024)
    """

    fs_hz: float
    n_samples: int
    lowcut_hz: float = 1.0
    highcut_hz: float = 47.0
    normalize: str = "lead"

    def __post_init__(self) -> None:
        check_positive("fs_hz", self.fs_hz)
        check_positive("n_samples", self.n_samples)
        check_option("normalize", self.normalize, ("lead", "none"))
        if not 0 < self.lowcut_hz < self.highcut_hz < self.fs_hz / 2:
            raise ValueError(
                f"the band-pass is {self.lowcut_hz} to {self.highcut_hz} Hz at {self.fs_hz} Hz; "
                f"expected 0 < lowcut_hz < highcut_hz < {self.fs_hz / 2:g}. Lower highcut_hz or "
                "raise fs_hz."
            )

    def to_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)

    def prepare(self, signals: np.ndarray, *, fs_hz: float) -> np.ndarray:
        """Resample, filter, normalise, then crop or pad.

        Parameters
        ----------
        signals
            Shape ``(..., n_leads, n)``, finite, any unit.
        fs_hz
            Their sampling rate in hertz.

        Returns
        -------
        numpy.ndarray
            Shape ``(..., n_leads, n_samples)``, float32.

        Raises
        ------
        DataError
            A sample isn't finite, the recording is too short to filter, or the rates have no
            ratio of small whole numbers.
        """
        signals = _resampled(_checked(signals), check_positive("fs_hz", fs_hz), self.fs_hz)
        filtered = self._filter(signals)
        if self.normalize == "lead":
            filtered = _scaled(filtered)
        return fit_length(filtered, self.n_samples).astype(np.float32)

    def _filter(self, signals: np.ndarray) -> np.ndarray:
        band = (self.lowcut_hz, self.highcut_hz)
        sections = signal.butter(ORDER, band, btype="bandpass", fs=self.fs_hz, output="sos")
        n_edge = 3 * (2 * ORDER + 1)  # what scipy.signal.filtfilt takes with the same filter
        if signals.shape[-1] <= n_edge:
            raise DataError(
                f"a recording has {signals.shape[-1]} samples at {self.fs_hz:g} Hz; the filter "
                f"needs more than {n_edge}. Leave the recording out."
            )
        return signal.sosfiltfilt(sections, signals, axis=-1, padlen=n_edge)


PAPER_INPUT = TwelveLeadInput(fs_hz=500.0, n_samples=6144)
"""12 leads, 12.288 s at 500 Hz, 1 to 47 Hz, each lead by its own spread, as published for H-Tuning."""


def fit_length(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Return the first `n_samples` of the last axis, with zeros behind where there are fewer."""
    missing = max(n_samples - signals.shape[-1], 0)
    padding = [(0, 0)] * (signals.ndim - 1) + [(0, missing)]
    return np.pad(signals[..., :n_samples], padding)


def _checked(signals: np.ndarray) -> np.ndarray:
    signals = np.asarray(signals, dtype=np.float64)
    if signals.ndim < 2:
        raise DataError(f"signals has shape {signals.shape}; expected (..., n_leads, n_samples).")
    if not np.isfinite(signals).all():
        n_bad = int((~np.isfinite(signals)).sum())
        raise DataError(
            f"signals holds {n_bad} samples that are NaN or infinite; a filter would spread them "
            "over the whole recording. Leave the recording out."
        )
    return signals


def _resampled(signals: np.ndarray, fs_in_hz: float, fs_hz: float) -> np.ndarray:
    ratio = Fraction(fs_hz / fs_in_hz).limit_denominator(1000)
    if abs(float(ratio) * fs_in_hz - fs_hz) > 1e-6 * fs_hz:
        raise DataError(
            f"{fs_in_hz} Hz can't be resampled to {fs_hz} Hz by a ratio of whole numbers up to "
            "1000. Choose another fs_hz."
        )
    if ratio == 1:
        return signals
    up, down = ratio.numerator, ratio.denominator
    # The band-pass removes the mean anyway; left in, it would come back as a ripple, since the
    # kernel's phases differ a little in gain. Beyond the ends the signal goes on along a line.
    centred = signals - signals.mean(axis=-1, keepdims=True)
    return signal.resample_poly(centred, up, down, axis=-1, padtype="line")


def _scaled(signals: np.ndarray) -> np.ndarray:
    """Return every lead with mean 0 and spread 1; one whose spread is rounding alone as zeros."""
    centred = signals - signals.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    is_flat = spread <= 1e-9 * np.maximum(np.abs(signals).max(axis=-1, keepdims=True), 1.0)
    return np.where(is_flat, 0.0, centred / np.where(is_flat, 1.0, spread))
