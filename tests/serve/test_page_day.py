"""A day of ECG on the page: detail is loaded as needed, and nothing grows while one scrolls."""

from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import wfdb
from app_cases import FS_HZ, recording_of, running_server
from page_cases import ask, open_patient, opened_page, press, running_browser

DAY_S = 86400
MAX_POINTS = 2000
STEPS = 50
BYTES_PER_REQUEST = 2 * 4 * 1750  # time and value of seven seconds at 250 Hz
LEAST_SCROLLED_S = 0.8 * DAY_S
GROWN_BYTES = 1_000_000  # less than what is loaded on the way


def upload_day(server, folder):
    """Upload ten minutes of a generated patient, 144 times one after the other, as WFDB."""
    signal_mv = np.tile(recording_of(0, duration_s=600.0)["signal"][0], DAY_S // 600)
    wfdb.wrsamp(
        "day",
        fs=FS_HZ,
        units=["mV"],
        sig_name=["II"],
        d_signal=np.round(signal_mv * 200).astype(np.int64)[:, None],
        fmt=["16"],
        adc_gain=[200.0],
        baseline=[0],
        write_dir=str(folder),
    )
    ask(server, "POST", "patients", {"subject_id": "day"})
    files = [("files", (name, (folder / name).read_bytes())) for name in ("day.hea", "day.dat")]
    with server.session() as api:
        answer = api.post(
            "/v1/patients/day/recordings/files", data={"format": "wfdb"}, files=files, timeout=300
        )
    assert answer.status_code == 201, answer.text
    assert answer.json()["duration_s"] == DAY_S


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("day")
    with running_browser() as browser, running_server(folder) as server:
        upload_day(server, folder)
        with opened_page(browser, server) as found:
            found.set_default_timeout(300_000)  # forty thousand windows are judged first
            open_patient(found, "day")
            found.set_default_timeout(60_000)
            yield found
            assert found.seen["errors"] == []


def signal_requests(page):
    urls = [urlsplit(url) for url in page.seen["urls"]]
    return [parse_qs(url.query) for url in urls if url.path.endswith("/signal")]


def measured(page):
    """Return (bytes of objects and arrays after a collection, elements of the document)."""
    tools = page.context.new_cdp_session(page)
    for _ in range(2):
        tools.send("HeapProfiler.collectGarbage")
    found = tools.send("Runtime.getHeapUsage")
    tools.detach()
    return found["usedSize"] + found["backingStorageSize"], page.locator("*").count()


def scroll_through(page, offset):
    """Drag the view through the whole day, with the wheel at every stop and a zoom at some.

    Another `offset`, between 0 and 1, stops at other places.
    """
    box = page.locator("#overview").bounding_box()
    for step in range(STEPS):
        share = 0.01 + 0.98 * (step + offset) / STEPS
        page.mouse.click(box["x"] + box["width"] * share, box["y"] + 25)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 200)
        page.mouse.wheel(0, 900)
        if step % 10 == 5:
            page.focus("#strip")
            press(page, "-", "-", "-", "PageDown", "0")
        page.wait_for_timeout(60)
    page.wait_for_load_state("networkidle")


@pytest.mark.slow
def test_scrolling_through_a_day_asks_for_few_points_at_a_time_and_nothing_grows(page):
    scroll_through(page, 0.0)
    heap, nodes = measured(page)
    n_asked = len(signal_requests(page))
    scroll_through(page, 0.5)
    grown, nodes_then = measured(page)
    asked = signal_requests(page)
    assert len(asked) > n_asked > STEPS  # detail came as it was needed
    assert {one["max_points"][0] for one in asked} == {str(MAX_POINTS)}
    starts = [float(one["start_s"][0]) for one in asked]
    assert max(starts) - min(starts) > LEAST_SCROLLED_S
    detailed = [float(one["stop_s"][0]) - float(one["start_s"][0]) for one in asked]
    assert min(detailed) * FS_HZ <= MAX_POINTS  # every sample of what is looked at closely
    assert nodes_then == nodes
    assert (len(asked) - n_asked) * BYTES_PER_REQUEST > 2 * GROWN_BYTES  # so growth would be seen
    assert grown - heap < GROWN_BYTES


@pytest.mark.slow
def test_a_far_view_of_a_day_is_drawn_from_a_few_envelopes(page):
    before = len(signal_requests(page))
    page.focus("#strip")
    press(page, "w")
    page.locator("#scale-line", has_text="24 h on screen").wait_for()
    page.wait_for_timeout(500)
    assert 1 <= len(signal_requests(page)) - before <= 6
    press(page, "0", "e")
    page.locator("#status", has_text="Episode ").wait_for()
