"""The server's threads share a few arenas of memory."""

import json
import os
import subprocess
import sys

import pytest

from metaecg.serve import memory

MANY_THREADS = """
import ctypes, json, os, re, sys, threading
from metaecg.serve.memory import limit_arenas
done = limit_arenas() if sys.argv[1] == "few" else False
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
gate = threading.Barrier(12)

def take():
    libc.malloc(1000)
    gate.wait()

threads = [threading.Thread(target=take) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
n = len(re.findall("<heap ", open(sys.argv[2]).read()))
print(json.dumps({"done": done, "n_arenas": n}))
"""


def arenas(way: str, tmp_path, **environment) -> dict:
    """Return what a fresh process with twelve threads says of its arenas."""
    command = [sys.executable, "-c", MANY_THREADS, way, str(tmp_path / "malloc.xml")]
    kept = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    ran = subprocess.run(command, check=True, capture_output=True, env=kept | environment)
    return json.loads(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")
def test_twelve_threads_share_two_arenas(tmp_path):
    assert arenas("few", tmp_path) == {"done": True, "n_arenas": 2}
    assert arenas("many", tmp_path)["n_arenas"] > 2


@pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")
def test_what_the_environment_says_of_arenas_holds(tmp_path):
    found = arenas("few", tmp_path, MALLOC_ARENA_MAX="5")
    assert not found["done"] and found["n_arenas"] > 2


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.limit_arenas() is False
