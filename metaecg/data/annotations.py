"""Unpack MIT-format annotation files quickly; anything unusual is left to wfdb.

A file is a row of 16-bit words: a code in the upper 6 bits, in the lower 10 the samples since the
mark before [1]_. Most words are marks and can be unpacked together; the few special ones are taken
one by one. wfdb's reader takes every word in a Python loop, which no second thread can share.

References
----------
.. [1] G. B. Moody, "WFDB Applications Guide", annot(5), MIT format.
"""

import numpy as np

from metaecg.data.records import Annotations

SYMBOLS = dict(enumerate(' NLRaVFJASEj/Q~.|.sT*D"=pB^t+u?![]en@xf()r'))
"""Symbol of each code [1]_; 15 and 17 are not in use."""
UNUSED = (0, 15, 17)
SKIP, NUM, SUB, CHN, AUX = 59, 60, 61, 62, 63
DEFINITIONS = "## "
"""A note that starts so, at sample 0, defines a rate or symbols of the file's own."""


def unpack_annotations(data: bytes) -> Annotations | None:
    """Return the marks of a plain MIT-format file, or None if there is anything unusual in it.

    Unusual are: no end mark or bytes after it, codes that WFDB does not define, definitions of the
    file's own, a note that is not text, no mark at all.
    """
    if len(data) % 2 or len(data) < 4 or data[-2:] != b"\0\0":
        return None
    words = np.frombuffer(data, dtype="<u2")
    codes, low = words >> 10, (words & 0x3FF).astype(np.int64)
    is_mark = codes < SKIP
    steps = np.where(is_mark, low, 0)
    notes, free = {}, 0
    for at in np.flatnonzero((codes >= SKIP) | (words == 0)).tolist():
        if at < free:  # inside the payload of the special word before
            continue
        if words[at] == 0:
            if at != len(words) - 1:
                return None
            is_mark[at] = False
        elif codes[at] == SKIP:
            free = at + 3
            if free > len(words):
                return None
            steps[at] = np.uint32((int(words[at + 1]) << 16) | int(words[at + 2])).astype(np.int32)
        elif codes[at] == AUX:
            free = at + 1 + (int(low[at]) + 1) // 2
            if free > len(words) - 1:
                return None
            notes[at] = data[2 * (at + 1) : 2 * (at + 1) + int(low[at])]
        is_mark[at + 1 : free] = False
        steps[at + 1 : free] = 0
    return _assemble(codes, is_mark, np.cumsum(steps), notes)


def _assemble(codes, is_mark, times, notes: dict[int, bytes]) -> Annotations | None:
    places = np.flatnonzero(is_mark)
    found = codes[places].tolist()
    if not found or any(code in UNUSED or code not in SYMBOLS for code in set(found)):
        return None
    texts = [""] * len(places)
    for at, content in notes.items():
        mark = int(np.searchsorted(places, at)) - 1
        try:
            text = content.decode("ascii").strip("\x00 \t")
        except UnicodeDecodeError:
            return None
        if mark < 0 or (text.startswith(DEFINITIONS) and times[places[mark]] == 0):
            return None
        texts[mark] = text
    symbols = tuple([SYMBOLS[code] for code in found])
    return Annotations(sample=times[places], symbol=symbols, note=tuple(texts))
