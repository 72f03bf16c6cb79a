"""Malformed uploads: what is done to good files, and whether the result may still be a recording.

A mutation takes a good upload and returns a worse one. Those in `MUST_BE_REFUSED` can't be anything
but refused; after those in `MAY_PASS` and `DAMAGE` the files may still hold a recording, such as
after a bit of a sample was turned over.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from upload_files import Upload

Mutation = Callable[[Upload, np.random.Generator], Upload]
MUST_BE_REFUSED: dict[str, list[Mutation]] = {name: [] for name in ("wfdb", "edf", "csv", "json")}
MAY_PASS: dict[str, list[Mutation]] = {name: [] for name in MUST_BE_REFUSED}
DAMAGE: list[Mutation] = []

PATHS = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "~", "~root/x", "-", "C:\\boot.ini", "..\\x.dat",
    "file:///etc/passwd", "http://127.0.0.1:9/x.dat", "s3://bucket/x.dat", "a\0b.dat", "/dev/zero",
    "/dev/stdin", "/proc/self/environ", "con:", "rec.dat/", "./rec.dat", "x" * 5000 + ".dat",
    "{decoy}", "../{decoy_name}", "rec.dat\u2028x", ".hidden", " rec.dat",
)  # fmt: skip
"""``{decoy}`` stands for the path of a good signal file outside the private folder."""


def refuse(*formats: str):
    """Register a mutation after which an upload has to be refused."""
    return _register(MUST_BE_REFUSED, formats)


def may_pass(*formats: str):
    """Register a mutation after which an upload may still be a recording."""
    return _register(MAY_PASS, formats)


def damage(mutation: Mutation) -> Mutation:
    """Register a mutation of bytes, whatever they mean: an upload may survive it."""
    DAMAGE.append(mutation)
    return mutation


def _register(table: dict[str, list[Mutation]], formats: tuple[str, ...]):
    def add(mutation: Mutation) -> Mutation:
        for name in formats or tuple(table):
            table[name].append(mutation)
        return mutation

    return add


def pick(rng: np.random.Generator, options):
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def some_file(upload: Upload, rng: np.random.Generator) -> str:
    """Return the name of one of the files."""
    return pick(rng, sorted(upload.files))


def with_file(upload: Upload, name: str, content: bytes) -> Upload:
    """Return the upload with another content of one file."""
    return replace(upload, files={**upload.files, name: content})


# Any format: bytes


@damage
def cut_short(upload: Upload, rng: np.random.Generator) -> Upload:
    name = some_file(upload, rng)
    content = upload.files[name]
    return with_file(upload, name, content[: int(rng.integers(0, len(content)))])


@damage
def bits_turned(upload: Upload, rng: np.random.Generator) -> Upload:
    name = some_file(upload, rng)
    content = bytearray(upload.files[name])
    for place in rng.integers(0, len(content), int(rng.integers(1, 20))).tolist():
        content[place] ^= 1 << int(rng.integers(8))
    return with_file(upload, name, bytes(content))


@damage
def bytes_put_in(upload: Upload, rng: np.random.Generator) -> Upload:
    name = some_file(upload, rng)
    content = upload.files[name]
    place = int(rng.integers(0, len(content) + 1))
    odd = (
        b"\0",
        b"\n",
        b"\r",
        b",",
        b'"',
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"e",
        b"-",
        b"9" * 400,
        b"{",
    )
    new = pick(rng, (*odd, rng.bytes(int(rng.integers(1, 300)))))
    return with_file(upload, name, content[:place] + new + content[place:])


@damage
def a_piece_gone_or_twice(upload: Upload, rng: np.random.Generator) -> Upload:
    name = some_file(upload, rng)
    content = upload.files[name]
    start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    middle = content[start:stop] * int(rng.choice([0, 2]))
    return with_file(upload, name, content[:start] + middle + content[stop:])


@damage
def a_number_replaced(upload: Upload, rng: np.random.Generator) -> Upload:
    name = some_file(upload, rng)
    content = upload.files[name]
    digits = np.flatnonzero(
        np.isin(np.frombuffer(content, np.uint8), np.frombuffer(b"0123456789", np.uint8))
    )
    if not len(digits):
        return with_file(upload, name, content + b"1")
    place = int(digits[rng.integers(len(digits))])
    new = pick(
        rng,
        (
            b"nan",
            b"inf",
            b"-inf",
            b"1e999",
            b"-1",
            b"0",
            b"1e-320",
            b"0x1f",
            b"1_0",
            b"",
            b"\xd9\xa3",
            b"1" * 5000,
        ),
    )
    return with_file(upload, name, content[:place] + new + content[place + 1 :])


@refuse()
def nothing_at_all(upload: Upload, rng: np.random.Generator) -> Upload:
    return pick(rng, (replace(upload, files={}), with_file(upload, some_file(upload, rng), b"")))


@refuse()
def noise_instead(upload: Upload, rng: np.random.Generator) -> Upload:
    name = "rec.hea" if upload.format == "wfdb" else some_file(upload, rng)
    return with_file(upload, name, b"\0" + rng.bytes(int(rng.integers(1, 5000))))


@refuse()
def a_path_for_a_name(upload: Upload, rng: np.random.Generator) -> Upload:
    name, path = some_file(upload, rng), pick(rng, PATHS)
    files = {(path if k == name else k): v for k, v in upload.files.items()}
    return replace(upload, files=files)


@refuse()
def a_file_too_many(upload: Upload, rng: np.random.Generator) -> Upload:
    return replace(upload, files={**upload.files, "other.dat": rng.bytes(100)})


@refuse()
def absurd_facts(upload: Upload, rng: np.random.Generator) -> Upload:
    absurd = (
        {"fs_hz": 0.0}, {"fs_hz": -250.0}, {"fs_hz": float("nan")}, {"fs_hz": float("inf")},
        {"fs_hz": 1e300}, {"fs_hz": 1e-300}, {"fs_hz": True}, {"fs_hz": "250"},
        {"unit": "mmHg"}, {"unit": ""}, {"unit": "m\0V"}, {"unit": "\ud800"}, {"unit": "kV" * 9000},
        {"lead_names": ()}, {"lead_names": ("", "")}, {"lead_names": ("II",) * 3},
        {"lead_names": ("../../etc/passwd",)}, {"lead_names": ("x" * 10000,)},
        {"lead_names": tuple(str(i) for i in range(5000))}, {"lead_names": (7,)},
        {"lead": -1}, {"lead": 10**30}, {"lead": True}, {"lead": "0"}, {"lead": 0.0},
        {"fs_hz": 1e-9}, {"name": "a\nb"}, {"name": "x" * 10000}, {"name": "\0"},
    )  # fmt: skip
    return replace(upload, facts={**upload.facts, **pick(rng, absurd)})
