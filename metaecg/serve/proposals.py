"""Which segments of a recording are worth a label: a mixture of three reasons, spread in time.

Among the ten labels per class that a detector needs, the rare class is what takes a person long to
find, so what the detector takes for it comes first. What the detector is unsure of tells it most,
and a kind of segment that has no label yet is what it may be wrong about without knowing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from metaecg.errors import DataError
from metaecg.serve.segments import Segments

N_SHOTS = 10
"""Labels per class that are advised, and collected before anything else: what the library's figures are
measured with."""
N_COMPONENTS = 8
N_KINDS = 12
"""Kinds of segment that a recording is divided into, and one more for every proposal."""
LEAST_OF_A_KIND = 3
APART_S = 20.0
"""What is proposed as uncertain or as probably of a class is at least so far from labelled segments and
other proposals, where the recording has room: what is next to a label looks like it."""
N_BANDS = 16
MAX_HZ_OF_BANDS = 0.2
"""Bands of equal width up to this part of the sampling rate say what a window looks like."""
UNCERTAIN, OTHER_KIND = "uncertain", "of a kind without a label"


def propose(
    inputs: np.ndarray,
    segments: Segments,
    labels: Mapping[int, str],
    probability: np.ndarray,
    n: int,
    *,
    classes: Sequence[str] | None = None,
) -> list[tuple[int, str]]:
    """Return up to `n` segments to label next and why, the most useful first, none labelled already.

    In turn: one that is probably of the class with the fewest labels, until every class has
    `N_SHOTS`; one that the detector is unsure of; one of a kind without a label. Nothing is
    random: the same labels give the same proposals.

    Parameters
    ----------
    inputs, segments
        What `Segmentation.inputs` gave; some of the recording's are enough.
    labels
        Number of a segment to the class that a person gave it.
    probability
        What the detector in use says of these segments, shape ``(n_segments, n_classes)``.
    n
        How many; fewer come back where fewer are without a label.
    classes
        Names of the columns of `probability`. Without them labels count for no class, and the
        rarest class is the one with the least probability over all.

    Returns
    -------
    list of (int, str)
        Number of the segment, and the reason: ``"probably NAME"``, ``"uncertain"`` or ``"of a kind
        without a label"``.

    Raises
    ------
    DataError
        The arrays don't line up, or a probability is not finite.

    Examples
    --------
    >>> three = np.arange(3)
    >>> segments = Segments(index=three, start_s=three * 60.0, stop_s=three * 60.0 + 2)
    >>> windows = np.random.default_rng(0).standard_normal((3, 1, 400)).astype(np.float32)
    >>> probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55]])
    >>> propose(windows, segments, {0: "other"}, probability, 2, classes=("other", "va"))
    [(1, 'probably va'), (2, 'uncertain')]
    """
    probability = _checked(inputs, segments, probability)
    is_open = ~np.isin(segments.index, np.fromiter(labels, dtype=np.int64, count=len(labels)))
    n = min(n, int(is_open.sum()))
    if n < 1:
        return []
    chooser = _Chooser(inputs, segments, is_open, probability, n)
    names = [str(k) for k in range(probability.shape[1])] if classes is None else list(classes)
    counts = Counter(labels.values())
    told = np.array([counts[name] for name in names])
    found: list[tuple[int, str]] = []
    for turn in range(3 * n + 3):
        if len(found) == n:
            break
        kind = turn % 3
        if kind == 0 and told.min() >= N_SHOTS:
            continue
        row, reason = _next(chooser, kind, told, probability, names)
        if row is not None:
            found.append((int(segments.index[row]), reason))
    return found


def _next(chooser: "_Chooser", kind: int, told: np.ndarray, probability: np.ndarray, names):
    """Return the row for one of the three reasons, and the reason; ``None`` where there is none."""
    if kind == 0:
        fewest = np.flatnonzero(told == told.min())
        column = int(fewest[np.argmin(probability[:, fewest].sum(axis=0))])
        told[column] += 1
        return chooser.best(probability[:, column]), f"probably {names[column]}"
    if kind == 1:
        ranked = np.sort(probability, axis=1)
        second = ranked[:, -2] if ranked.shape[1] > 1 else 0.0
        return chooser.best(second - ranked[:, -1]), UNCERTAIN
    return chooser.of_another_kind(), OTHER_KIND


class _Chooser:
    """Takes rows one by one: open ones, far in time or in kind from labels and from those taken."""

    def __init__(self, inputs, segments: Segments, is_open, probability, n: int) -> None:
        self._time_s = segments.start_s
        self._is_open = is_open.copy()
        self._taken_s = self._time_s[~is_open].tolist()
        span_s = float(np.ptp(self._time_s)) if len(segments) else 0.0
        self._apart_s = min(APART_S, span_s / (4 * (n + len(self._taken_s))))
        self._features = segment_features(inputs)
        self._kind = _kinds(self._features, N_KINDS + n)
        self._has_label = np.zeros(self._kind.max() + 1, dtype=bool)
        self._has_label[self._kind[~is_open]] = True

    def best(self, score: np.ndarray) -> int | None:
        """Take the open row with the highest score, far from the others if there is one."""
        if not self._is_open.any():
            return None
        allowed = self._is_open & self._is_far()
        allowed = allowed if allowed.any() else self._is_open
        return self._take(int(np.argmax(np.where(allowed, score, -np.inf))))

    def of_another_kind(self) -> int | None:
        """Take the middle of the kind that is least like all labelled and taken segments.

        Kinds of a few segments, artefacts mostly, come last; ``None`` if every kind has a label.
        """
        sizes = np.bincount(self._kind[self._is_open], minlength=len(self._has_label))
        sizes = np.where(self._has_label, 0, sizes)
        if not sizes.any():
            return None
        large = np.flatnonzero(sizes >= min(LEAST_OF_A_KIND, sizes.max()))
        centres = np.stack([self._features[self._kind == k].mean(axis=0) for k in large])
        known = self._features[~self._is_open]
        # The first of all is the usual kind.
        score = sizes[large] if not len(known) else cdist(centres, known).min(axis=1)
        best = int(np.argmax(score))
        away = ((self._features - centres[best]) ** 2).sum(axis=1)
        inside = (self._kind == large[best]) & self._is_open
        return self._take(int(np.argmin(np.where(inside, away, np.inf))))

    def _is_far(self) -> np.ndarray:
        if not self._taken_s:
            return np.ones(len(self._time_s), dtype=bool)
        taken_s = np.sort(self._taken_s)
        after = np.searchsorted(taken_s, self._time_s)
        to_next = np.append(taken_s, np.inf)[after] - self._time_s
        to_last = self._time_s - np.insert(taken_s, 0, -np.inf)[after]
        return np.minimum(to_next, to_last) >= self._apart_s

    def _take(self, row: int) -> int:
        self._is_open[row] = False
        self._taken_s.append(float(self._time_s[row]))
        self._has_label[self._kind[row]] = True
        return row


def segment_features(inputs: np.ndarray) -> np.ndarray:
    """Return what tells the segments of one recording apart, labels and detector left out.

    Parameters
    ----------
    inputs
        Of windows ``(n, 1, n_samples)`` in millivolts: size and spectrum count, for a window
        starts anywhere within a beat. Of beats ``(n, 2, n_samples)``, rows as in
        `metaecg.data.beat_input.ROWS`: form, intervals and likeness to the usual beat.

    Returns
    -------
    numpy.ndarray
        Shape ``(n, n_features)``, float64, up to `N_COMPONENTS` principal components.
    """
    from sklearn.decomposition import PCA

    inputs = np.asarray(inputs, dtype=np.float64)
    flat = _spectra(inputs[:, 0]) if inputs.shape[1] == 1 else inputs.reshape(len(inputs), -1)
    flat = flat - flat.mean(axis=0)
    n_components = min(N_COMPONENTS, *flat.shape)
    if flat.std() < 1e-9:  # one segment, or all alike
        return np.zeros((len(flat), n_components))
    return PCA(n_components, svd_solver="full").fit_transform(flat)


def _spectra(windows: np.ndarray) -> np.ndarray:
    """Return the logarithms of spread and of the power in `N_BANDS` bands, shape ``(n, N_BANDS + 1)``."""
    centred = windows - windows.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, axis=1))[:, 1:] ** 2
    top = max(int(MAX_HZ_OF_BANDS * windows.shape[1]), N_BANDS)
    bands = [part.sum(axis=1) for part in np.array_split(power[:, :top], N_BANDS, axis=1)]
    share = np.stack(bands, axis=1) / np.maximum(power.sum(axis=1, keepdims=True), 1e-12)
    spread = np.log(centred.std(axis=1) + 1e-3)
    return np.column_stack([np.log(share + 1e-3), spread])


def _kinds(features: np.ndarray, n_kinds: int) -> np.ndarray:
    """Return which kind each row is of, 0 to at most ``n_kinds - 1``."""
    from sklearn.cluster import KMeans

    # Rounded, for rows that differ by rounding alone are of one kind.
    features = np.round(features / max(float(features.std()), 1e-9), 6)
    n_kinds = min(n_kinds, len(np.unique(features, axis=0)))
    return KMeans(n_kinds, n_init=1, random_state=0).fit_predict(features)


def _checked(inputs, segments: Segments, probability: np.ndarray) -> np.ndarray:
    probability = np.asarray(probability, dtype=np.float64)
    if probability.ndim != 2 or not len(inputs) == len(segments) == len(probability):
        raise DataError(
            f"there are {len(inputs)} inputs, {len(segments)} segments and probabilities of shape "
            f"{probability.shape}; expected one row of each per segment."
        )
    if not np.isfinite(probability).all():
        raise DataError("a probability is not finite; expected numbers from 0 to 1.")
    return probability
