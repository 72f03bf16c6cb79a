"""A tree of clusters over the beats of one recording: Ward's, with spans instead of member lists."""

import numpy as np
from scipy.cluster.hierarchy import linkage

MAX_LEAVES = 3000
"""A tree over more beats starts from so many groups of like beats, since its time and memory grow
with the square: 3,000 take a second."""


class BeatTree:
    """Clusters within clusters; a node's beats stand side by side in `order`.

    Nodes are whole numbers, the root is the last. A node without parts is one beat, or one group of
    like beats where there are more than `MAX_LEAVES`.

    Parameters
    ----------
    features
        Shape ``(n_beats, n_features)``, at least one beat.
    """

    def __init__(self, features: np.ndarray) -> None:
        leaf_of, centres = _leaves(features)
        n_leaves = len(centres)
        merges = linkage(centres, "ward") if n_leaves > 1 else np.zeros((0, 4))
        self._parts = merges[:, :2].astype(np.int64)
        self._height = np.concatenate([np.zeros(n_leaves), merges[:, 2]])
        self._n_leaves = n_leaves
        self._size, self._start = self._spans(np.bincount(leaf_of, minlength=n_leaves))
        self.order = np.argsort(self._start[leaf_of], kind="stable")
        """Row of `features` at each place."""
        self._features = features[self.order]

    def parts(self, node: int) -> list[int]:
        """Return the two parts of a node, none of a leaf."""
        return self._parts[node - self._n_leaves].tolist() if node >= self._n_leaves else []

    def height(self, node: int) -> float:
        """Return how far apart the parts of a node are, 0 for a leaf."""
        return float(self._height[node])

    def size(self, node: int) -> int:
        """Return how many beats a node has."""
        return int(self._size[node])

    def span(self, node: int) -> slice:
        """Return the places of a node's beats."""
        return slice(int(self._start[node]), int(self._start[node] + self._size[node]))

    def in_order(self, values: np.ndarray) -> np.ndarray:
        """Return a copy of one value per row of `features`, by place."""
        return values[self.order]

    def cut(self, n_clusters: int) -> list[int]:
        """Return the nodes that split all beats into `n_clusters`, fewer if there are no more."""
        clusters = [len(self._size) - 1]
        while len(clusters) < n_clusters:
            widest = max(clusters, key=self.height)
            if not self.parts(widest):
                break
            clusters.remove(widest)
            clusters += self.parts(widest)
        return clusters

    def middle(self, node: int, is_allowed: np.ndarray) -> int:
        """Return the allowed place of a node that is nearest to its mean.

        `is_allowed` has one value per place, and holds for at least one of the node.
        """
        span = self.span(node)
        places = span.start + np.flatnonzero(is_allowed[span])
        away = self._features[places] - self._features[span].mean(axis=0)
        return int(places[np.argmin((away**2).sum(axis=1))])

    def _spans(self, n_in_leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return every node's number of beats and its first place."""
        size = np.concatenate([n_in_leaf, np.zeros(len(self._parts), dtype=np.int64)])
        for i, (left, right) in enumerate(self._parts):
            size[self._n_leaves + i] = size[left] + size[right]
        start = np.zeros(len(size), dtype=np.int64)
        for i in range(len(self._parts) - 1, -1, -1):
            left, right = self._parts[i]
            start[left] = start[self._n_leaves + i]
            start[right] = start[left] + size[left]
        return size, start


def _leaves(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the leaf of every beat and the centres of the leaves."""
    if len(features) <= MAX_LEAVES:
        return np.arange(len(features)), features
    from sklearn.cluster import MiniBatchKMeans

    groups = MiniBatchKMeans(MAX_LEAVES, random_state=0, n_init=1).fit_predict(features)
    _, leaf_of = np.unique(groups, return_inverse=True)  # a group may have stayed empty
    total = np.zeros((leaf_of.max() + 1, features.shape[1]))
    np.add.at(total, leaf_of, features)
    return leaf_of, total / np.bincount(leaf_of)[:, None]
