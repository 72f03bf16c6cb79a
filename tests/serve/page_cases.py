"""What the tests of the page share: a real browser, a real server, a generated patient.

A test that drives the page does what a person does, by keys or by mouse, and reads what a person
reads. What it asks the API directly is only there to compare with.
"""

import re
import shutil
from contextlib import contextmanager

import pytest
from app_cases import Server, ended_job, recording_of, truth_of
from playwright.sync_api import Page, TimeoutError, sync_playwright

WINDOW_S = 2.0
DURATION_S = 240.0
PIXELS_PER_S = 25 * 96 / 25.4  # 25 mm/s
WAIT_MS = 60_000  # a busy machine is no failure


@contextmanager
def running_browser():
    """Run Debian's Chromium; skip where no Chromium is on the machine."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium is on this machine: the page is not tested in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--js-flags=--expose-gc"]
        )
        yield browser
        browser.close()


def ask(server: Server, method: str, path: str, body: object = None):
    """Ask the API itself; return the parsed answer."""
    with server.session() as api:
        answer = api.request(method, f"/v1/{path}", json=body)
    answer.raise_for_status()
    return answer.json() if answer.content else None


@contextmanager
def opened_page(browser, server: Server, *, url: str | None = None, **context):
    """Open the page in a fresh context; its requests and errors are kept in ``page.seen``."""
    opened = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
    page = opened.new_page()
    page.set_default_timeout(WAIT_MS)
    page.seen = {"urls": [], "errors": []}
    page.on("request", lambda request: page.seen["urls"].append(request.url))
    page.on("pageerror", lambda error: page.seen["errors"].append(str(error)))
    page.on("console", lambda said: _keep_error(page, said))
    page.goto(url or f"{server.url}/#token={server.token}")
    try:
        yield page
    finally:
        opened.close()


def _keep_error(page: Page, said) -> None:
    # A refused request stands in the console whatever the page makes of it.
    if said.type == "error" and "Failed to load resource" not in said.text:
        page.seen["errors"].append(said.text)


def signal_mv() -> list[float]:
    """Return the signal of the generated patient that the tests use: tachycardia now and then."""
    return recording_of(0, duration_s=DURATION_S)["signal"][0]


def windows_of(name: str) -> list[int]:
    """Return the windows of that patient that are wholly of a class, in the order of time."""
    truth = truth_of(0, duration_s=DURATION_S)
    return sorted(index for index, label in truth.items() if label == name)


def upload(server: Server, subject_id: str) -> str:
    """Create a patient with that recording over the API; return its address below /v1."""
    ask(server, "POST", "patients", {"subject_id": subject_id})
    body = recording_of(0, duration_s=DURATION_S) | {"name": "generated"}
    found = ask(server, "POST", f"patients/{subject_id}/recordings", body)
    return f"patients/{subject_id}/recordings/{found['recording_id']}"


def personalized(server: Server, subject_id: str) -> str:
    """As `upload`, with ten labels of each class and a version of the patient's own."""
    at = upload(server, subject_id)
    labels = {str(i): name for name in ("va", "other") for i in windows_of(name)[:10]}
    ask(server, "PUT", f"{at}/labels", {"labels": labels})
    job = ask(server, "POST", f"patients/{subject_id}/personalizations", {})
    with server.session() as api:
        assert ended_job(api, job["job_id"])["state"] == "done"
    return at


def open_patient(page: Page, subject_id: str) -> None:
    """Open a patient with one recording, and wait until both lanes have been judged."""
    page.locator("#patients button", has_text=subject_id).click()
    wait_for_recording(page)


def wait_for_recording(page: Page) -> None:
    """Wait until a recording is open and judged, and put the focus on the strip."""
    page.wait_for_selector("#reader:visible")
    page.locator("#cursor-line", has_text="Before: ").wait_for()
    page.focus("#strip")


def press(page: Page, *keys: str) -> None:
    """Press keys one after the other."""
    for key in keys:
        page.keyboard.press(key)


def chosen_by_enter(page: Page):
    """Press Enter on a file field until the browser asks for a file, as a person would."""
    for _ in range(6):
        try:
            with page.expect_file_chooser(timeout=WAIT_MS / 6) as chooser:
                page.keyboard.press("Enter")
            return chooser.value
        except TimeoutError:
            continue
    raise AssertionError("Enter on the file field opens no chooser")


def tab_to(page: Page, selector: str, *, key: str = "Tab", most: int = 80) -> None:
    """Press Tab until the focus is on `selector`: a person without a mouse must get there."""
    for _ in range(most):
        if page.locator(f"{selector}:focus").count():
            return
        page.keyboard.press(key)
    raise AssertionError(f"{most} times {key} do not lead to {selector}")


def cursor_at(page: Page, index: int) -> str:
    """Wait until the cursor is on a window; return what the page says of it."""
    page.locator("#cursor-line", has_text=re.compile(rf"^\s*Window {index},")).wait_for()
    return page.inner_text("#cursor-line")


def saved_counts(page: Page, **counts: int) -> None:
    """Wait until the page shows these numbers of labels, all of them saved."""
    for name, number in counts.items():
        page.locator("#counts li", has_text=re.compile(rf"^{number} of 10 {name}")).wait_for()
    page.locator("#saved-line", has_text="All labels are saved").wait_for()
