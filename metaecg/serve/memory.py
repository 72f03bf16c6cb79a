"""Keep the memory of a long-running server from growing by what its threads leave behind."""

import ctypes
import os

M_ARENA_MAX = -8
"""Of `mallopt` in glibc's ``malloc.h``."""
N_ARENAS = 2


def limit_arenas(n_arenas: int = N_ARENAS) -> bool:
    """Let all threads share a few of glibc's memory arenas; return whether it was done.

    By default glibc makes up to eight arenas per core, one for each new thread, and gives little of
    them back. A server whose threads handle signals of some megabytes then grows for as long as
    there is an arena left to fragment: 45 MB in eight minutes, 3 MB with two arenas
    (docs/results/serve.md). ``MALLOC_ARENA_MAX`` in the environment is respected, and another C
    library is left alone. To be called before threads are started.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, n_arenas))
    except (OSError, AttributeError):  # not glibc: macOS, musl
        return False
