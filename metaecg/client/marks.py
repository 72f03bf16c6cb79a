"""Stretches that a person marked become labels of the segments inside them."""

from collections.abc import Mapping

from metaecg.client.results import Segments
from metaecg.errors import DataError

_TINY_S = 1e-6  # times come as decimal text


def labels_of_mark(segments: Segments, mark: tuple[float, float, str]) -> dict[int, str]:
    """Return index -> class for the segments that lie wholly inside a mark.

    Raises
    ------
    DataError
        There is none.

    Examples
    --------
    >>> labels_of_mark(two_second_windows, (100.0, 104.0, "va"))  # doctest: +SKIP
    {50: 'va', 51: 'va'}
    """
    start_s, stop_s, label = mark
    is_inside = (segments.start_s >= start_s - _TINY_S) & (segments.stop_s <= stop_s + _TINY_S)
    if not is_inside.any():
        raise DataError(
            f"no segment lies wholly between {start_s:g} s and {stop_s:g} s, which was marked "
            f"{label!r}; mark a longer stretch, inside the recording and without gaps."
        )
    return {int(index): label for index in segments.index[is_inside]}


def joined(labels: Mapping[int, str], more: Mapping[int, str]) -> dict[int, str]:
    """Return both; a segment with two classes is a DataError."""
    twice = [index for index in more if labels.get(index, more[index]) != more[index]]
    if twice:
        raise DataError(
            f"segment {twice[0]} is marked {labels[twice[0]]!r} and {more[twice[0]]!r}; one class was "
            "expected. Marks of different classes must not overlap."
        )
    return {**labels, **more}
