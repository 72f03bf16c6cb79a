"""Malformed uploads, format by format: headers that lie, tables and documents of impossible shapes.

Importing it registers its mutations in `upload_fuzz_cases`.
"""

import json
from dataclasses import replace

import numpy as np
from upload_files import GAIN, Upload
from upload_fuzz_cases import PATHS, Mutation, may_pass, pick, refuse, with_file

# WFDB: the header


def _edited(upload: Upload, line: int, column: int, value: str) -> Upload:
    lines = upload.files["rec.hea"].decode().splitlines()
    fields = lines[line].split()
    fields[column] = value
    lines[line] = " ".join(fields)
    return with_file(upload, "rec.hea", "\n".join(lines).encode("utf-8", "surrogatepass"))


def _field(line: int, column: int, values: tuple[str, ...]) -> Mutation:
    def mutation(upload: Upload, rng: np.random.Generator) -> Upload:
        return _edited(upload, line, column, pick(rng, values))

    return mutation


_WFDB_FIELDS = (
    (0, 0, ("rec/3", "../rec/2", "rec/0", "/etc/passwd/1")),
    (0, 1, ("0", "-1", "1000000000", "99999999999999999999", "x", "1.5", "nan", "0x2", "7")),
    (0, 2, ("0", "-250", "nan", "inf", "1e9", "1e-9", "250Hz", "0/250", "99999999", "0.001", "\u0663\u0660\u0660")),
    (0, 3, ("0", "-5", "1000000000000", "1e3", "x", "nan", "99999999999999999999999", "3", "10:00:00")),
    (1, 0, tuple(path.replace(" ", "_") for path in PATHS if "\u2028" not in path) + ("other.dat", "rec.hea")),
    (1, 1, ("0", "1", "61", "508", "516", "524", "999", "x", "16x0", "16x1000000", "16:999999999", "16+999999999", "24", "16x-1", "1e1", "")),
    (1, 2, ("-200", "nan", "inf", "1e400", "1e-300", "2,5", "200(99999999999)/mV", "200(x)/mV", "200/mmHg",
            "200/", "200/\u00b5\u00b5V", "0", "0/mV", "1e-9/mV", "1e200/mV", "200(/mV", "0x10", "1" * 5000)),
    (1, 3, ("x", "1e3", "99999999999", "nan")),
    (1, 5, ("1.5", "--1", "0x5")),
    (1, 6, ("99999999999999999999", "x", "1234567890")),
)  # fmt: skip
for _line, _column, _values in _WFDB_FIELDS:
    refuse("wfdb")(_field(_line, _column, _values))


@refuse("wfdb")
def lines_lost_or_doubled(upload: Upload, rng: np.random.Generator) -> Upload:
    lines = upload.files["rec.hea"].decode().splitlines()
    lines = pick(
        rng, (lines[:1], lines[1:], lines[:2] + lines[1:], lines + ["x.dat 16"], ["#"] * 9)
    )
    return with_file(upload, "rec.hea", "\n".join(lines).encode())


@refuse("wfdb")
def a_header_of_any_size(upload: Upload, rng: np.random.Generator) -> Upload:
    header = upload.files["rec.hea"]
    bombs = (
        header + b"#" * 300_000, header + b"# x\n" * 100_000, header + b" " * 300_000,
        b"rec " + b" " * 250_000 + b"x", b"a" * 250_000, b"\n" * 250_000, b"rec 1 250 10\n" + b"9" * 250_000,
        header.replace(b"200/mV", b"1" * 200_000),
        b"rec 256 250 10\n" + b"rec.dat 16 200/mV\n" * 256,
        b"rec 65000 250 10\n" + b"a 1\n" * 60_000,
    )  # fmt: skip
    return with_file(upload, "rec.hea", pick(rng, bombs))


@refuse("wfdb")
def files_that_don_t_fit(upload: Upload, rng: np.random.Generator) -> Upload:
    header, data = upload.files["rec.hea"], upload.files["rec.dat"]
    odd = (
        {"rec.hea": header}, {"rec.dat": data}, {"rec.hea": header, "a.hea": header, "rec.dat": data},
        {"rec.hea": header, "rec.dat": data + b"\0" * 8}, {"rec.hea": header, "rec.dat": data[:-8]},
        {"rec.hea": header, "REC.DAT": data}, {"rec.hea": header, "rec.dat": data, "rec.atr": b"\0\0"},
        {"rec.hea": header, "rec.dat": b"RIFF" + data[4:-8]},
    )  # fmt: skip
    return replace(upload, files=pick(rng, odd))


@refuse("wfdb")
def mixed_formats_in_a_file(upload: Upload, rng: np.random.Generator) -> Upload:
    n_samples = upload.files["rec.hea"].split(b"\n")[0].split()[3].decode()
    other = pick(rng, ("212", "80", "16+4", "24"))
    header = f"rec 2 250 {n_samples}\nrec.dat 16 200/mV\nrec.dat {other} 200/mV\n"
    return with_file(upload, "rec.hea", header.encode())


@may_pass("wfdb")
def equal_or_odd_lead_names(upload: Upload, rng: np.random.Generator) -> Upload:
    name = pick(rng, (b"II", b"../../x", b"\xff\xfe", b"a b c", b"<script>", b"~", b"x" * 3000))
    header = upload.files["rec.hea"]
    for old in (b"MLII", b"V5"):
        header = header.replace(old, name)
    return with_file(upload, "rec.hea", header)


# EDF: the header, fields of fixed width

_EDF_MAIN = (
    (0, 8, ("1", "-1", "\xffBIOSEMI", "nan", "")),
    (184, 8, ("0", "-1", "256", "99999999", "x", "1e3", "512.0", "")),
    (192, 44, ("EDF+D", "edf+d")),
    (236, 8, ("-1", "0", "99999999", "x", "1.5", "nan", "1e7", "")),
    (244, 8, ("0", "-1", "nan", "inf", "1e-300", "1e300", "x", "1_0", "")),
    (252, 4, ("0", "-1", "9999", "x", "1e1", "257", "")),
)
_EDF_OF_SIGNAL = (
    (96, 8, ("mmHg", "", "%", "bpm", "\xb5\xb5V", "k\0V")),
    (104, 8, ("nan", "inf", "1e400", "x", "160", "", "1,5", "0x10", "-1e30")),
    (112, 8, ("nan", "-inf", "x", "-160", "", "1e999", "1e30")),
    (120, 8, ("nan", "32000", "99999", "1.5", "x", "", "-32769")),
    (128, 8, ("-32000", "99999", "x", "", "1e3", "32768")),
    (216, 8, ("0", "-1", "99999999", "x", "nan", "1e2", "1.5", "")),
)
"""Places within a signal's 256 bytes if the file had only that one, in the order of the format."""


def _edf_edited(upload: Upload, place: int, width: int, value: str) -> Upload:
    content = upload.files["rec.edf"]
    new = value.encode("latin-1")[:width].ljust(width)
    return with_file(upload, "rec.edf", content[:place] + new + content[place + width :])


@refuse("edf")
def a_main_field_that_lies(upload: Upload, rng: np.random.Generator) -> Upload:
    place, width, values = pick(rng, _EDF_MAIN)
    new = pick(rng, values)
    is_true = new == "256" and upload.files["rec.edf"][252:256].strip() == b"0"
    return _edf_edited(upload, place, width, "x" if is_true else new)


@refuse("edf")
def a_signal_field_that_lies(upload: Upload, rng: np.random.Generator) -> Upload:
    n_signals = int(upload.files["rec.edf"][252:256])
    place, width, values = pick(rng, _EDF_OF_SIGNAL)
    return _edf_edited(upload, 256 + place * n_signals, width, pick(rng, values))


@refuse("edf")
def sizes_that_lie(upload: Upload, rng: np.random.Generator) -> Upload:
    content = upload.files["rec.edf"]
    odd = (
        content[:-2],
        content + b"\0\0",
        content[:255],
        content[:256],
        content[:300],
        content * 2,
    )
    return with_file(upload, "rec.edf", pick(rng, odd))


@may_pass("edf")
def odd_labels(upload: Upload, rng: np.random.Generator) -> Upload:
    labels = (
        "",
        "\xff\xfe",
        "EDF Annotations",
        " EDF Annotations",
        "../../etc",
        "a\0b",
        "V5",
        "\x01",
    )
    return _edf_edited(upload, 256, 16, pick(rng, labels))


@may_pass("edf")
def non_ascii_people(upload: Upload, rng: np.random.Generator) -> Upload:
    return with_file(
        upload,
        "rec.edf",
        upload.files["rec.edf"][:8] + rng.bytes(160) + upload.files["rec.edf"][168:],
    )


# CSV: the table


@refuse("csv")
def a_field_that_is_no_number(upload: Upload, rng: np.random.Generator) -> Upload:
    lines = upload.files["rec.csv"].split(b"\n")
    odd = (b"x", b"inf", b"-Infinity", b"1e999", b"0x1p3", b"1_0", b'"', b"1,5;2", b"1;2", b"1\t2", b"1 2",
           b"\xff", b"\xd9\xa3", b"1+2j", b"True", b"--1", b"1e", b".", b"0" * 70_000, b"1" * 60_000 + b"x",
           b'"1\n2"', b"=1+1", b"1e9", b"-10001", b",,,,", b"99,99,99,99,99")  # fmt: skip
    place = int(rng.integers(1, len(lines) - 1))
    lines[place] = pick(rng, odd)
    return with_file(upload, "rec.csv", b"\n".join(lines))


@refuse("csv")
def a_ragged_row(upload: Upload, rng: np.random.Generator) -> Upload:
    lines = upload.files["rec.csv"].split(b"\n")
    place = int(rng.integers(1, len(lines) - 2))
    lines[place] = pick(
        rng, (lines[place] + b",1", lines[place] + b",", b"", lines[place] + b",1" * 3000)
    )
    return with_file(upload, "rec.csv", b"\n".join(lines))


@refuse("csv")
def a_table_of_any_shape(upload: Upload, rng: np.random.Generator) -> Upload:
    content = upload.files["rec.csv"]
    bombs = (
        b"1," * 1_000_000, b"," * 1_000_000, b"\n" * 1_000_000, b'"' * 200_000, b"a," * 300 + b"\n1",
        b"II\n" + b"1," * 1_000_000, b"II\n1\n" + b'"' + b"1\n" * 200_000, b"1" * 3_000_000,
        b"II\n" + b"1" * 3_000_000, content.replace(b"\n", b"\n\n"), b"II\n", b"time,II\n1,2\n", b",II\n0,1\n",
        content.decode().encode("utf-16"), content + b"\0", b"1,II\n1,2\n", b"II;V5\n1,5;2,5\n",
        b"II,II\n1,2\n", b"II\tV5\n1\t2\n", b"II\n" + b"nan\n" * 100, b"\xff\xfe\n1\n", b"PK\3\4" + b"\0" * 99,
        b"\x1f\x8b\x08" + bytes(range(200)), b"1" * 60_000 + b"x\n1\n",
    )  # fmt: skip
    return with_file(upload, "rec.csv", pick(rng, bombs))


@refuse("csv")
def facts_missing(upload: Upload, rng: np.random.Generator) -> Upload:
    facts = dict(upload.facts)
    facts.pop(pick(rng, ("fs_hz", "unit")))
    return replace(upload, facts=facts)


@may_pass("csv")
def other_line_ends(upload: Upload, rng: np.random.Generator) -> Upload:
    content = upload.files["rec.csv"]
    odd = (content.replace(b"\n", b"\r"), content.replace(b"\n", b"\r\n"), content.replace(b",", b" , "),
           content.replace(b".", b","), content.replace(b",", b";"), b"\xef\xbb\xbf" + content,
           content.replace(b",", b'","'), content.replace(b"nan", b""), content + b"\n\n")  # fmt: skip
    return with_file(upload, "rec.csv", pick(rng, odd))


# JSON: the document


def _json_edited(upload: Upload, key: str, text: str) -> Upload:
    document = json.loads(upload.files["rec.json"])
    document[key] = "@@"
    return with_file(
        upload,
        "rec.json",
        json.dumps(document).replace('"@@"', text).encode("utf-8", "surrogatepass"),
    )


_JSON_VALUES = {
    "fs_hz": ("null", "0", "-250", "NaN", "Infinity", "1e999", '"250"', "true", "[250]", "{}", "9" * 5000),
    "unit": ("null", '"mmHg"', '""', "1", '["mV"]', '"\\u0000"', '"\\ud800"', "true"),
    "lead_names": ("null", "[]", '"II"', '["II","II","II"]', "[1]", "[null]", '["a","b","c","d","e"]', '["\\u0000"]',
                   "[[]]", '["' + "x" * 9000 + '"]', '["\\ud800"]', "{}"),
    "signal": ("null", "[]", "[[]]", "[1,2]", '[["1"]]', "[[true]]", "[[NaN]]", "[[1e999]]", "[[null],[1,2]]", "{}", '"x"',
               "[[[1]]]", "[" * 100_000, "[" * 900 + "]" * 900, "[[1],[2],[3],[4],[5]]", "[[" + "9" * 5000 + "]]",
               "[[Infinity]]", "[[-Infinity,1]]", "[[1e9]]", "[[" + "null," * 99 + "null]]", "[[1,2,{}]]"),
    "extra": ("1", '"x"', "[]"),
    "lead": ("-1", "1.5", '"0"', "true", "99", "1e999", "[]"),
    "name": ("1", "[]", "{}", "true"),
}  # fmt: skip


@refuse("json")
def a_value_of_the_wrong_kind(upload: Upload, rng: np.random.Generator) -> Upload:
    key = pick(rng, sorted(_JSON_VALUES))
    return _json_edited(upload, key, pick(rng, _JSON_VALUES[key]))


@refuse("json")
def a_document_of_any_shape(upload: Upload, rng: np.random.Generator) -> Upload:
    content = upload.files["rec.json"]
    half = content[: len(content) // 2]
    bombs = (
        b"[" * 1_000_000, b'{"a":' * 200_000, b"[]", b"null", b"1", b'"x"', b"{}", b"nan", half, content + b"x",
        b'{"fs_hz":250,' + content[1:], content[:-1] + b',"signal":[[1]]}', content.decode().encode("utf-16"),
        b"9" * 1_000_000, b'"' + b"\\u0000" * 100_000, content.replace(b'"', b"'"), b"\xff" + content,
        b"{" + b",".join(b'"k%d":1' % i for i in range(50_000)) + b',"k1":1}',
    )  # fmt: skip
    return with_file(upload, "rec.json", pick(rng, bombs))


@refuse("json")
def a_key_missing(upload: Upload, rng: np.random.Generator) -> Upload:
    document = json.loads(upload.files["rec.json"])
    document.pop(pick(rng, ("fs_hz", "unit", "lead_names", "signal")))
    return with_file(upload, "rec.json", json.dumps(document).encode())


@may_pass("json")
def another_spelling(upload: Upload, rng: np.random.Generator) -> Upload:
    document = json.loads(upload.files["rec.json"])
    odd = (
        b"\xef\xbb\xbf" + upload.files["rec.json"], json.dumps(document, indent=3).encode(),
        json.dumps({**document, "unit": "\u03bcV"}).encode(), json.dumps({**document, "name": "../../x"}).encode(),
        json.dumps({**document, "fs_hz": float(GAIN)}).encode(),
    )  # fmt: skip
    return with_file(upload, "rec.json", pick(rng, odd))
