"""Downloads from a small server on this machine that cuts, lies, changes and refuses on demand."""

import contextlib
import errno
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from metaecg.data import __main__ as cli
from metaecg.data import transfer
from metaecg.data.databases import get_database
from metaecg.data.download import download, files_of, make_session, parse_sums
from metaecg.errors import CacheError, ConfigError, DataError

PREFIX = "/files/vfdb/1.0.0/"


class Mirror:
    """Two records under ``/files/vfdb/1.0.0/``, and the switches for what goes wrong."""

    def __init__(self):
        self.files = {"RECORDS": b"418\n419\n"}
        for i, name in enumerate(("418.hea", "418.dat", "418.atr", "419.hea", "419.dat")):
            self.files[name] = bytes(range(256)) * 40 + bytes([i])
        self.files["418.hea-"] = b"superseded"
        self.sums = "".join(f"{_sha(body)}  {name}\n" for name, body in self.files.items())
        self.sums += f"{'0' * 64}  old/418.atr\n"
        self.cut = {}  # name -> lengths of the bodies to send, one for each request
        self.status = {}  # name -> list of status codes to answer first
        self.ranges = True
        self.etag, self.last_modified = '"one"', None
        self.shift = 0  # how far before the asked byte a partial answer begins
        self.slow = None  # name of the file to send in small pieces
        self.requests = []  # (name, Range, If-Range)

    @property
    def counts(self):
        return Counter(name for name, _, _ in self.requests)

    def body(self, name):
        return self.sums.encode() if name == "SHA256SUMS.txt" else self.files.get(name)


def _sha(body):
    return hashlib.sha256(body).hexdigest()


def _handler(mirror):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix(PREFIX)
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            mirror.requests.append((name, asked, condition))
            if mirror.status.get(name):
                return self._send(mirror.status[name].pop(0), b"")
            body = mirror.body(name)
            if body is None:
                return self._send(404, b"")
            valid = condition in (None, mirror.etag, mirror.last_modified)
            if asked and mirror.ranges and valid:
                start = int(re.match(r"bytes=(\d+)-", asked)[1]) - mirror.shift
                if start >= len(body):
                    return self._send(416, b"")
                extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
                return self._send(206, body[start:], name, extra)
            return self._send(200, body, name)

        def _send(self, status, body, name=None, extra=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if mirror.etag:
                self.send_header("ETag", mirror.etag)
            if mirror.last_modified:
                self.send_header("Last-Modified", mirror.last_modified)
            for key, value in (extra or {}).items():
                self.send_header(key, value)
            self.end_headers()
            cuts = mirror.cut.get(name, [])
            body = body[: cuts.pop(0)] if cuts else body
            self.close_connection = True
            if name is None or name != mirror.slow:
                self.wfile.write(body)
                return
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                for start in range(0, len(body), 100_000):
                    self.wfile.write(body[start : start + 100_000])
                    time.sleep(0.01)

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirror = Mirror()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_port}/files/"
    yield mirror
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def session():
    with make_session() as session:
        retries = Retry(total=3, backoff_factor=0, status_forcelist=[429, 503])
        session.mount("http://", HTTPAdapter(max_retries=retries))
        yield session


@pytest.fixture
def get(mirror, session, tmp_path):
    def get(**kwargs):
        return download("vfdb", tmp_path, base_url=mirror.url, session=session, **kwargs)

    return get


def _assert_whole(mirror, folder):
    wanted = {"RECORDS", "418.hea", "418.dat", "418.atr", "419.hea", "419.dat"}
    found = {path.name for path in folder.iterdir()} - {".download.lock", "SHA256SUMS.txt"}
    assert found == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == mirror.files[name]


def test_a_fresh_download_brings_every_file_and_leaves_no_part(mirror, get, tmp_path):
    assert get() == [tmp_path / "vfdb"]
    _assert_whole(mirror, tmp_path / "vfdb")


def test_superseded_and_unlisted_files_are_not_fetched(mirror, get):
    get()
    assert mirror.counts["418.hea-"] == mirror.counts["old/418.atr"] == 0


def test_whole_files_are_kept_and_not_fetched_again(mirror, get, tmp_path):
    get()
    mirror.requests.clear()
    get()
    assert set(mirror.counts) == {"SHA256SUMS.txt"}
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_body_that_ends_early_is_resumed_where_it_ended(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000, 2000]
    get()
    _assert_whole(mirror, tmp_path / "vfdb")
    asked = [request[1:] for request in mirror.requests if request[0] == "418.dat"]
    assert asked == [(None, None), ("bytes=1000-", '"one"'), ("bytes=3000-", '"one"')]


def test_a_later_call_resumes_what_an_earlier_one_left(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000, 0, 0, 0]
    with pytest.raises(DataError, match="418.dat: the connection was lost.*after 1000 bytes"):
        get()
    assert not (tmp_path / "vfdb" / "418.dat").exists()
    assert not (tmp_path / "vfdb" / "RECORDS").exists()
    mirror.requests.clear()
    get()
    assert ("418.dat", "bytes=1000-", '"one"') in mirror.requests
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_server_that_ignores_ranges_is_asked_for_the_whole_file(mirror, get, tmp_path):
    mirror.ranges = False
    mirror.cut["418.dat"] = [1000]
    get()
    _assert_whole(mirror, tmp_path / "vfdb")
    assert mirror.counts["418.dat"] == 2


def test_a_server_that_always_cuts_and_ignores_ranges_is_given_up(mirror, get):
    mirror.ranges = False
    mirror.cut["418.dat"] = [1000] * 50
    with pytest.raises(DataError, match="lost again and again"):
        get()
    assert mirror.counts["418.dat"] <= 5


def test_a_file_that_changed_meanwhile_is_not_spliced(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000, 0, 0, 0]
    with pytest.raises(DataError, match="lost again"):
        get()
    mirror.etag = '"two"'
    mirror.requests.clear()
    get()
    assert [request[1] for request in mirror.requests if request[0] == "418.dat"] == ["bytes=1000-"]
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_part_of_other_content_is_fetched_again_from_zero(mirror, get, tmp_path):
    mirror.etag = None  # nothing that could tell the server's file from another
    mirror.cut["418.dat"] = [1000, 0, 0, 0]
    with pytest.raises(DataError, match="lost again"):
        get()
    part = tmp_path / "vfdb" / "418.dat.part"
    part.write_bytes(b"x" * part.stat().st_size)
    get()
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_part_of_an_older_release_is_not_continued(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000, 0, 0, 0]
    with pytest.raises(DataError, match="lost again"):
        get()
    old, new = mirror.files["418.dat"], b"new release" * 1000
    mirror.files["418.dat"], mirror.sums = new, mirror.sums.replace(_sha(old), _sha(new))
    mirror.requests.clear()
    get()
    assert [request for request in mirror.requests if request[0] == "418.dat"] == [
        ("418.dat", None, None)
    ]
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_partial_answer_that_begins_elsewhere_is_not_appended(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000]
    mirror.shift = 10
    get()
    _assert_whole(mirror, tmp_path / "vfdb")
    asked = [request[1] for request in mirror.requests if request[0] == "418.dat"]
    assert asked == [None, "bytes=1000-", None]


def test_a_weak_etag_gives_way_to_the_date(mirror, get, tmp_path):
    mirror.etag, mirror.last_modified = 'W/"one"', "Tue, 03 Aug 1999 00:00:00 GMT"
    mirror.cut["418.dat"] = [1000]
    get()
    assert ("418.dat", "bytes=1000-", mirror.last_modified) in mirror.requests
    _assert_whole(mirror, tmp_path / "vfdb")


def test_the_first_failure_stops_the_other_files_which_keep_what_they_have(mirror, get, tmp_path):
    body = bytes(20_000_000)
    mirror.sums = mirror.sums.replace(_sha(mirror.files["418.hea"]), _sha(body))
    mirror.files["418.hea"] = body
    mirror.slow = "418.hea"
    del mirror.files["418.dat"]
    with pytest.raises(DataError, match="418.dat: the server answers 404"):
        get(n_workers=2)
    assert (tmp_path / "vfdb" / "418.hea.part").stat().st_size < len(body)
    assert mirror.counts["419.dat"] == 0


def test_a_part_longer_than_the_file_is_dropped(mirror, get, tmp_path):
    mirror.cut["418.dat"] = [1000, 0, 0, 0]
    with pytest.raises(DataError, match="lost again"):
        get()
    (tmp_path / "vfdb" / "418.dat.part").write_bytes(b"x" * 20_000)  # answered with 416
    get()
    _assert_whole(mirror, tmp_path / "vfdb")


def test_a_part_that_is_whole_already_is_used_without_a_request(mirror, get, tmp_path):
    (tmp_path / "vfdb").mkdir()
    (tmp_path / "vfdb" / "418.dat.part").write_bytes(mirror.files["418.dat"])
    get()
    assert mirror.counts["418.dat"] == 0
    _assert_whole(mirror, tmp_path / "vfdb")


def test_content_with_another_checksum_is_refused_and_nothing_is_kept(mirror, get, tmp_path):
    published = _sha(mirror.files["418.dat"])
    mirror.files["418.dat"] = b"something else"
    with pytest.raises(DataError, match=f"418.dat.*{_sha(b'something else')}.*{published}"):
        get()
    assert not list((tmp_path / "vfdb").glob("418.dat*"))


def test_a_damaged_file_is_replaced(mirror, get, tmp_path):
    get()
    (tmp_path / "vfdb" / "418.dat").write_bytes(b"damaged")
    get()
    _assert_whole(mirror, tmp_path / "vfdb")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil", "a\x07b"]
)
def test_a_listed_name_that_leaves_the_folder_is_refused(mirror, get, tmp_path, name):
    mirror.sums += f"{'0' * 64}  {name}\n"
    with pytest.raises(DataError, match="would leave the database's folder"):
        get()
    assert [path.name for path in tmp_path.iterdir()] == ["vfdb"]


@pytest.mark.parametrize("record", ["../../evil", "/etc/evil", ".hidden", "a/b", "-x"])
def test_a_record_name_that_leaves_the_folder_is_refused(record):
    with pytest.raises(DataError, match="isn't a plain record name"):
        files_of(get_database("vfdb"), [record], {f"{record}.hea": "0"}, where="")


def test_a_record_without_a_published_header_is_refused(mirror, get):
    mirror.sums = mirror.sums.replace("  418.hea\n", "  other.hea\n")
    with pytest.raises(DataError, match="no checksum of 418.hea"):
        get()


def test_a_page_instead_of_checksums_is_refused_with_its_line():
    with pytest.raises(DataError, match="line 1: '<html>'.*isn't a SHA-256"):
        parse_sums("<html>", where="here")


def test_checksums_may_have_stars_dots_and_empty_lines():
    text = f"\n{'A' * 64} *./418.dat\r\n"
    assert parse_sums(text, where="here") == {"418.dat": "a" * 64}


def test_a_missing_file_is_named_with_the_status(mirror, get, tmp_path):
    del mirror.files["419.dat"]
    with pytest.raises(DataError, match="419.dat: the server answers 404"):
        get()
    assert not (tmp_path / "vfdb" / "RECORDS").exists()


def test_a_busy_server_is_asked_again(mirror, get, tmp_path):
    mirror.status = {"418.dat": [503, 429], "SHA256SUMS.txt": [503]}
    get()
    _assert_whole(mirror, tmp_path / "vfdb")
    assert mirror.counts["418.dat"] == 3


def test_a_server_that_stays_busy_is_a_data_error(mirror, get):
    mirror.status = {"418.dat": [503] * 50}
    with pytest.raises(DataError, match="418.dat can't be fetched.*503"):
        get()


def test_a_full_disk_is_a_cache_error_that_says_what_to_do(mirror, get, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", full)
    with pytest.raises(CacheError, match="the disk is full. Free some space"):
        get()


def test_a_folder_that_cannot_be_made_is_a_cache_error(mirror, session, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="can't be written.*another root"):
        download(["vfdb"], tmp_path / "file", base_url=mirror.url, session=session)


def test_an_address_that_is_not_of_the_web_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="'file:///x'.*https://"):
        download(["vfdb"], tmp_path, base_url="file:///x")


def test_two_downloads_at_once_both_end_with_whole_files(mirror, get, tmp_path):
    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _assert_whole(mirror, tmp_path / "vfdb")
    assert mirror.counts["418.dat"] == 1


def test_progress_ends_with_every_file_and_every_byte(mirror, get):
    states = []
    get(progress=states.append)
    n_bytes = sum(len(mirror.files[name]) for name in mirror.files if name[0] == "4")
    assert states[-1].n_done == states[-1].n_files == 6
    assert states[-1].n_bytes == n_bytes - len(mirror.files["418.hea-"])


def test_an_interrupt_keeps_what_has_arrived_and_passes_on(mirror, get, tmp_path):
    def interrupt(state):
        if state.n_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(progress=interrupt, n_workers=1)
    assert not (tmp_path / "vfdb" / "RECORDS").exists()
    get()
    _assert_whole(mirror, tmp_path / "vfdb")


def test_the_command_downloads_prints_the_folder_and_what_to_cite(mirror, tmp_path, capsys):
    code = cli.main(["download", "vfdb", "--root", str(tmp_path), "--base-url", mirror.url])
    printed = capsys.readouterr()
    assert code == 0
    assert str(tmp_path / "vfdb") in printed.out
    assert "Greenwald SD. Development" in printed.out and "Goldberger" in printed.out
    assert printed.err == ""  # no bar where stderr isn't a terminal


def test_the_command_exits_2_for_an_unknown_database(capsys):
    assert cli.main(["download", "vfbd"]) == 2
    assert "error: the database is 'vfbd'" in (err := capsys.readouterr().err)
    assert "Did you mean 'vfdb'?" in err


def test_the_command_exits_2_for_an_address_that_is_none(tmp_path, capsys):
    assert cli.main(["download", "vfdb", "--root", str(tmp_path), "--base-url", "here"]) == 2
    assert "error: base_url is 'here'" in capsys.readouterr().err


def test_the_command_exits_3_for_a_missing_file(mirror, tmp_path, capsys):
    del mirror.files["419.dat"]
    code = cli.main(["download", "vfdb", "--root", str(tmp_path), "--base-url", mirror.url])
    assert code == 3
    assert re.match(r"error: .*404", capsys.readouterr().err)


def test_the_command_exits_130_on_ctrl_c_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("metaecg.data.download.download", interrupted)
    assert cli.main(["download", "vfdb"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_the_list_has_one_line_for_each_database(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert any(re.match(r"mitdb +1\.0\.0 +48 +360 +ODC-By", line) for line in lines)


def test_help_answers_without_loading_the_downloader():
    code = "import sys; from metaecg.data.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: pass\n"
    code += "assert not {'requests', 'rich', 'torch', 'wfdb'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "download" in done.stdout
