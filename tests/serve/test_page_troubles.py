"""What the page says and does when something is wrong: words, patience, and nothing lost."""

import sqlite3
from urllib.parse import urlsplit

import pytest
from app_cases import running_server, start_server
from page_cases import (
    ask,
    cursor_at,
    open_patient,
    opened_page,
    press,
    running_browser,
    saved_counts,
    upload,
)


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    with running_server(tmp_path_factory.mktemp("troubles")) as found:
        upload(found, "known")
        yield found


@pytest.fixture
def page(browser, server):
    with opened_page(browser, server) as found:
        yield found
        assert found.seen["errors"] == []


def test_a_token_that_is_not_known_is_asked_for_again(browser, server):
    with opened_page(browser, server, url=f"{server.url}/#token=metaecg_wrong") as page:
        page.locator("#token-dialog[open]").wait_for()
        press(page, "Escape")  # leads nowhere, so it asks again
        page.locator("#token-dialog[open]").wait_for()
        page.fill("#token", "metaecg_wrong_too")
        press(page, "Enter")
        page.locator("#token-dialog[open]").wait_for()
        page.fill("#token", server.token)
        press(page, "Enter")
        page.locator("#patients button", has_text="known").wait_for()
        assert page.locator("#token-dialog[open]").count() == 0
        assert server.token not in page.content()


def test_another_token_can_be_left_out_again(page):
    page.locator("#patients button").first.wait_for()
    page.click("#token-open")
    press(page, "Escape")
    assert page.locator("#token-dialog[open]").count() == 0


def test_an_upload_that_is_refused_says_why_and_keeps_what_was_typed(page, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text("0.1\n0.2\nnot a number\n")
    page.locator("#patients button", has_text="known").click()
    page.click("#upload-open")
    page.set_input_files("#upload-files", file)
    assert page.input_value("#upload-format") == "csv"
    page.fill("#upload-fs", "250")
    page.select_option("#upload-unit", "mV")
    page.fill("#upload-leads", "II")
    page.click("#upload-send")
    page.locator("#upload-error", has_text="line 3 is no number").wait_for()
    assert page.input_value("#upload-fs") == "250"
    page.fill("#upload-lead", "0")
    page.click("#upload-send")
    page.locator("#upload-error", has_text="1 is the first lead").wait_for()


def test_a_patient_that_somebody_else_deleted_is_told_in_words(page, server):
    ask(server, "POST", "patients", {"subject_id": "gone"})
    page.reload()
    page.locator("#patients button", has_text="gone").wait_for()
    ask(server, "DELETE", "patients/gone")
    page.locator("#patients button", has_text="gone").click()
    page.locator("#trouble-text", has_text="gone").wait_for()
    page.click("#trouble-close")
    assert not page.locator("#trouble").is_visible()


def test_a_name_with_markup_is_shown_as_it_is(page, server):
    ask(server, "POST", "patients", {"subject_id": "markup"})
    name = "<img src=x onerror=alert(1)>"
    body = {"name": name, "fs_hz": 250.0, "unit": "mV", "lead_names": ["II"]}
    ask(server, "POST", "patients/markup/recordings", body | {"signal": [[0.0, 0.1] * 1000]})
    page.reload()
    page.locator("#patients button", has_text="markup").click()
    page.locator("#recordings", has_text=name).wait_for()
    assert page.locator("#recordings img").count() == 0


def test_a_time_beyond_the_recording_is_refused_in_words(page):
    open_patient(page, "known")
    page.fill("#go-time", "99:00:00")
    press(page, "Enter")
    page.locator("#trouble-text", has_text="no time of this recording").wait_for()
    page.fill("#go-time", "0:21")
    page.locator("#go-time").press("Enter")
    cursor_at(page, 10)
    assert not page.locator("#trouble").is_visible()


def test_while_the_store_is_busy_the_page_says_so_and_saves_later(page, server):
    open_patient(page, "known")
    other = sqlite3.connect(server.folder / "metaecg.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # another program writes and takes its time
    try:
        press(page, "1")
        page.locator("#trouble-text", has_text="Trying again in").wait_for()
        assert "Saving 1 label" in page.inner_text("#saved-line")
    finally:
        other.execute("ROLLBACK")
        other.close()
    saved_counts(page, other=1)
    assert not page.locator("#trouble").is_visible()
    press(page, "u")
    saved_counts(page, other=0)


def test_labels_that_are_set_while_the_server_is_away_arrive_when_it_is_back(browser, tmp_path):
    server = start_server(tmp_path)
    try:
        at = upload(server, "known")
        with opened_page(browser, server) as page:
            open_patient(page, "known")
            server.kill()
            press(page, "2", "ArrowRight", "1")
            page.locator("#trouble-text", has_text="can't be reached").wait_for()
            assert "Saving 2 labels" in page.inner_text("#saved-line")
            port = str(urlsplit(server.url).port)
            server = start_server(tmp_path, "--port", port, token=server.token)
            saved_counts(page, va=1, other=1)
            assert not page.locator("#trouble").is_visible()
            assert ask(server, "GET", f"{at}/labels")["labels"] == {"0": "va", "1": "other"}
    finally:
        server.terminate()


def test_beats_are_labelled_like_windows(browser, tmp_path):
    with running_server(tmp_path, "--model", "veb-base") as server:
        at = upload(server, "known")
        with opened_page(browser, server) as page:
            open_patient(page, "known")
            page.locator("#cursor-line", has_text="Beat 0,").wait_for()
            press(page, "v", "ArrowRight")
            page.locator("#cursor-line", has_text="Beat 1,").wait_for()
            press(page, "o")
            saved_counts(page, V=1, other=1)
            assert ask(server, "GET", f"{at}/labels")["labels"] == {"0": "V", "1": "other"}
            assert page.seen["errors"] == []
