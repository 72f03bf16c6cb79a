"""Propose which beats of a recording a person should label: few labels, every kind of beat.

After Wiens and Guttag: cluster the beats, ask for the middle of each cluster, look closer where the
labels within a cluster disagree [1]_. Added here: once a kind of beat is known but rare among the
labels, more are asked for where it was found, until there are enough for a support.

References
----------
.. [1] J. Wiens and J. V. Guttag, "Active learning applied to patient-adaptive heartbeat
   classification", Advances in Neural Information Processing Systems 23, 2010.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from metaecg.data.beats import BeatSet
from metaecg.errors import DataError
from metaecg.tasks.beat_tree import BeatTree

N_COMPONENTS = 8
N_CLUSTERS = 6
"""Clusters that are asked for before anything else; on DS1, 4 or 10 make little difference
(docs/beats.md)."""

FREE, PENDING = -2, -1  # codes of beats that nobody has labelled; PENDING ones are being asked for


def beat_features(beats: BeatSet) -> np.ndarray:
    """Return what tells one person's beats apart, form and rhythm; labels play no part.

    Parameters
    ----------
    beats
        Beats of one subject; at least one.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_beats, n_features)``, float32: up to `N_COMPONENTS` principal components of the
        windows in millivolts, with a spread of 1 all together, and the logarithm of how early each
        beat is (its RR interval to the median of the ten before, and to the mean of all before),
        each with a spread of 1.

    Raises
    ------
    DataError
        There are no beats.
    """
    from sklearn.decomposition import PCA

    if not len(beats):
        raise DataError("there are no beats; expected at least one.")
    flat = np.asarray(beats.windows, dtype=np.float64).reshape(len(beats), -1)
    flat -= flat.mean(axis=0)
    n_components = min(N_COMPONENTS, *flat.shape)
    form = PCA(n_components, svd_solver="full").fit_transform(flat) if len(beats) > 1 else flat
    form /= max(np.sqrt(form.var(axis=0).sum()), 1e-9)
    ratios = beats.rr[:, [beats.rr_names.index(name) for name in ("rr_to_median", "rr_to_mean")]]
    rhythm = np.log(np.maximum(ratios.astype(np.float64), 1e-3))
    rhythm = (rhythm - rhythm.mean(axis=0)) / np.maximum(rhythm.std(axis=0), 1e-9)
    return np.concatenate([form, rhythm], axis=1).astype(np.float32)


def propose_beats(
    features: np.ndarray, *, n_total: int, pool: Sequence[int] | None = None
) -> np.ndarray:
    """Return `n_total` beats to label, in the order of labelling, when no answer can be had between.

    The middle of every cluster, larger clusters first, then of finer and finer ones. With answers
    in between, `ActiveLabeller` needs fewer labels.

    Parameters
    ----------
    features, pool
        As for `ActiveLabeller`.
    n_total
        How many; fewer come back from a smaller pool.

    Returns
    -------
    numpy.ndarray
        Shape ``(n,)``, int64, rows of `features`, none twice.

    Examples
    --------
    >>> features = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [9.0], [9.1], [9.2]])
    >>> propose_beats(features, n_total=2).tolist()
    [2, 6]
    """
    return ActiveLabeller(features, pool=pool, n_clusters=min(N_CLUSTERS, n_total)).next(n_total)


class ActiveLabeller:
    """Ask for beats, be told their labels, ask better.

    First the middle of each of `n_clusters` clusters. From then on, while some kind of beat that was
    found has fewer than `n_per_class` labels: the rarest kind is collected, from the largest part
    of its clusters in which nobody has looked. Once nothing is left to collect, new kinds are looked
    for in finer and finer clusters. A cluster with labels that disagree counts as its parts.

    Every beat that was told is a label spent, whatever it turned out to be: `n_told` is the budget
    used. Nothing is random: the same features and answers give the same questions.

    Parameters
    ----------
    features
        What tells the beats of one recording apart, such as `beat_features`; shape
        ``(n_beats, n_features)``, finite.
    pool
        Rows of `features` that may be asked for, such as those of the first five minutes; by
        default all. Clusters are made of the pool alone.
    n_per_class
        Labels wanted of every kind of beat that exists in the pool.
    n_clusters
        Clusters to begin with.

    Raises
    ------
    DataError
        The features are not finite numbers of that shape, or the pool is empty, names a row twice or
        one that doesn't exist.
    ValueError
        `n_per_class` or `n_clusters` is below 1.

    Examples
    --------
    >>> features = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [9.0], [9.1], [9.2]])
    >>> labeller = ActiveLabeller(features, n_per_class=3, n_clusters=2)
    >>> labeller.next(2).tolist()
    [2, 6]
    >>> labeller.tell([2, 6, 5], ["N", "V", "V"])
    >>> labeller.next(1).tolist()
    [0]
    """

    def __init__(
        self,
        features: np.ndarray,
        *,
        pool: Sequence[int] | None = None,
        n_per_class: int = 10,
        n_clusters: int = N_CLUSTERS,
    ) -> None:
        features = _checked_features(features)
        self._pool = _checked_pool(pool, len(features))
        for name, value in (("n_per_class", n_per_class), ("n_clusters", n_clusters)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        self._n_per_class, self._n_clusters = n_per_class, n_clusters
        self._tree = BeatTree(features[self._pool])
        self._row_of = {int(index): row for row, index in enumerate(self._pool)}
        self._codes = np.full(len(self._pool), FREE)  # by row of the pool
        self._kinds: list[Hashable] = []  # code -> label, in the order of finding

    @property
    def n_told(self) -> int:
        """How many beats have been told: the labels spent."""
        return int((self._codes >= 0).sum())

    @property
    def labels(self) -> dict[int, Hashable]:
        """Every told beat and its label, by row of `features`, in the order of rows of the pool."""
        told = np.flatnonzero(self._codes >= 0)
        return {int(self._pool[row]): self._kinds[self._codes[row]] for row in told}

    def tell(self, indices: Sequence[int], labels: Sequence[Hashable]) -> None:
        """Take in the labels of beats, asked for or not; the last word on a beat counts.

        Raises
        ------
        DataError
            There are not as many labels as beats, or a beat is not in the pool; nothing is taken in
            then.
        """
        indices, labels = np.asarray(indices, dtype=np.int64).tolist(), list(labels)
        if len(indices) != len(labels):
            raise DataError(
                f"{len(indices)} beats were told with {len(labels)} labels; expected one for each."
            )
        unknown = [index for index in indices if index not in self._row_of]
        if unknown:
            raise DataError(
                f"beat {unknown[0]} is not in the pool of {len(self._pool)} beats; tell beats of the "
                "pool, or make a labeller with a larger one."
            )
        for index, label in zip(indices, labels, strict=True):
            if label not in self._kinds:
                self._kinds.append(label)
            self._codes[self._row_of[index]] = self._kinds.index(label)

    def next(self, n: int = 1) -> np.ndarray:
        """Return up to `n` beats to label next, most useful first, none that was told.

        Asking changes nothing: asked again without an answer, it says the same.

        Returns
        -------
        numpy.ndarray
            Shape ``(n,)``, int64, rows of `features`; fewer when the pool has no more.
        """
        codes = self._tree.in_order(self._codes)
        counts = np.bincount(codes[codes >= 0], minlength=len(self._kinds))
        clusters = self._pure_clusters(codes)
        finer = list(clusters)
        chosen = []
        while len(chosen) < n and (codes == FREE).any():
            node = self._where_to_collect(codes, counts, clusters)
            if node is None:
                node = self._unseen(codes, finer)
            place = self._tree.middle(node, codes == FREE)
            codes[place] = PENDING
            chosen.append(self._pool[self._tree.order[place]])
        return np.array(chosen, dtype=np.int64)

    def _where_to_collect(
        self, codes: np.ndarray, counts: np.ndarray, clusters: list[int]
    ) -> int | None:
        """Return the node whose middle to ask for; what it will probably be is counted at once."""
        if (codes != FREE).sum() < self._n_clusters:
            return None
        for kind in np.argsort(counts, kind="stable").tolist():
            if 0 < counts[kind] < self._n_per_class:
                node = self._untouched_part(codes, clusters, kind)
                if node is not None:
                    counts[kind] += 1
                    return node
        return None

    def _pure_clusters(self, codes: np.ndarray) -> list[int]:
        """Return `n_clusters` clusters, those whose labels disagree split until they don't."""
        pure, left = [], self._tree.cut(self._n_clusters)
        while left:
            node = left.pop()
            if len(self._told_in(codes, node)) > 1 and self._tree.parts(node):
                left += self._tree.parts(node)
            else:
                pure.append(node)
        return pure

    def _untouched_part(self, codes: np.ndarray, clusters: list[int], kind: int) -> int | None:
        """Return the largest node without a label inside the clusters of one kind of beat.

        A group of like beats that can't be split counts as one while it has free beats.
        """
        left = [node for node in clusters if kind in self._told_in(codes, node)]
        found = []
        while left:
            node = left.pop()
            inside = codes[self._tree.span(node)]
            if (inside == FREE).all() or ((inside == FREE).any() and not self._tree.parts(node)):
                found.append(node)
            else:
                left += self._tree.parts(node)
        return max(found, key=lambda node: (self._tree.size(node), -node), default=None)

    def _unseen(self, codes: np.ndarray, clusters: list[int]) -> int:
        """Return the largest cluster without a label; where all have one, split the widest first.

        The splits are kept in `clusters`.
        """
        while True:
            unseen = [n for n in clusters if (codes[self._tree.span(n)] == FREE).all()]
            if unseen:
                return max(unseen, key=lambda node: (self._tree.size(node), -node))
            wide = [node for node in clusters if self._tree.parts(node)]
            if not wide:
                return max(clusters, key=lambda n: (codes[self._tree.span(n)] == FREE).sum())
            widest = max(wide, key=self._tree.height)
            clusters.remove(widest)
            clusters += self._tree.parts(widest)

    def _told_in(self, codes: np.ndarray, node: int) -> set[int]:
        inside = codes[self._tree.span(node)]
        return set(inside[inside >= 0].tolist())


def _checked_features(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(
            f"features has shape {features.shape}; expected finite numbers of shape (n_beats, "
            "n_features)."
        )
    return features


def _checked_pool(pool: Sequence[int] | None, n_beats: int) -> np.ndarray:
    rows = np.arange(n_beats) if pool is None else np.asarray(pool, dtype=np.int64)
    if not len(rows):
        raise DataError("the pool holds no beat; expected at least one.")
    if rows.min() < 0 or rows.max() >= n_beats or len(np.unique(rows)) < len(rows):
        raise DataError(
            f"the pool has {len(rows)} rows from {rows.min()} to {rows.max()}; expected rows of the "
            f"{n_beats} beats, each once."
        )
    return rows
