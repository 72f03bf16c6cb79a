"""The page in a real browser on a real server: the whole way, by keys alone and by mouse."""

import re

import pytest
from app_cases import running_server
from page_cases import (
    PIXELS_PER_S,
    WINDOW_S,
    ask,
    chosen_by_enter,
    cursor_at,
    open_patient,
    opened_page,
    personalized,
    press,
    running_browser,
    saved_counts,
    signal_mv,
    tab_to,
    wait_for_recording,
    windows_of,
)


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    with running_server(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "night.csv"
    path.write_text("\n".join(map(str, signal_mv())))
    return path


def go_by_keys(page, index):
    """Type a time into "Go to"; the focus comes back to the strip."""
    tab_to(page, "#go-time", key="Shift+Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type(f"0:{index * WINDOW_S + WINDOW_S / 2:04.1f}")
    page.keyboard.press("Enter")
    return cursor_at(page, index)


def label_by_keys(page, indices, key):
    """Label windows by their key, walking with the arrow where the next one is wanted."""
    for before, index in zip([None, *indices], indices, strict=False):
        if before is not None and index == before + 1:
            page.keyboard.press("ArrowRight")
            cursor_at(page, index)
        else:
            go_by_keys(page, index)
        page.keyboard.press(key)


def p_shown(page, side):
    """Return (class, probability) that the line of the cursor gives for "Before" or "After"."""
    page.locator("#cursor-line", has_text=f"{side}: ").wait_for()
    found = re.search(rf"{side}: (\w+), va ([\d.]+)\.", page.inner_text("#cursor-line"))
    return found[1], float(found[2])


def p_of_api(server, subject_id, version, index):
    """Return (class, probability) of a window, as the API has it."""
    at = f"patients/{subject_id}/recordings"
    recording = ask(server, "GET", at)["recordings"][0]["recording_id"]
    answer = ask(server, "GET", f"{at}/{recording}/predictions?version={version}")
    place = answer["index"].index(index)
    return answer["label"][place], round(answer["probability"][place], 2)


def test_from_upload_to_a_personalized_prediction_with_keys_alone(browser, server, csv_file):
    va, other = windows_of("va")[:10], windows_of("other")[:10]
    with opened_page(browser, server) as page:
        page.locator("#patients-empty").wait_for()
        tab_to(page, "#patient-id")
        page.keyboard.type("by-keys")
        page.keyboard.press("Enter")
        page.locator("#recordings-empty").wait_for()
        page.locator("#upload-open:focus").wait_for()
        page.keyboard.press("Enter")
        page.locator("#upload-files:focus").wait_for()
        chosen_by_enter(page).set_files(csv_file)
        for field, text in (("fs", "250"), ("unit", "mV"), ("leads", "II"), ("name", "night")):
            tab_to(page, f"#upload-{field}")
            page.keyboard.type(text)
        page.keyboard.press("Enter")
        wait_for_recording(page)
        label_by_keys(page, va, "v")
        label_by_keys(page, other, "1")
        saved_counts(page, va=10, other=10)
        tab_to(page, "#personalize-start")
        page.keyboard.press("Enter")
        page.locator("#job-result", has_text="Version 1").wait_for()
        assert "10 other, 10 va" in page.inner_text("#job-result")
        tab_to(page, "#strip", key="Shift+Tab")
        go_by_keys(page, va[0])
        assert p_shown(page, "Before") == pytest.approx(p_of_api(server, "by-keys", 0, va[0]))
        assert p_shown(page, "After") == pytest.approx(p_of_api(server, "by-keys", 1, va[0]))
        assert page.seen["errors"] == []


def click_window(page, index):
    """Bring a window into sight by its place in the overview, and click it in the signal."""
    box = page.locator("#overview").bounding_box()
    duration_s = float(page.get_attribute("#overview", "aria-valuemax"))
    at_s = (index + 0.5) * WINDOW_S
    page.mouse.click(box["x"] + box["width"] * at_s / duration_s, box["y"] + 20)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    signal = page.locator("#signal-canvas").bounding_box()
    start_s = float(page.get_attribute("#overview", "aria-valuenow"))
    x = signal["x"] + (at_s - start_s) * PIXELS_PER_S
    page.mouse.click(x, signal["y"] + 60)
    cursor_at(page, index)
    return x, signal


def drag_over(page, first, last):
    """Mark the windows from `first` to `last` by dragging in the signal."""
    x, signal = click_window(page, first)
    page.mouse.move(x, signal["y"] + 60)
    page.mouse.down()
    page.mouse.move(x + 20, signal["y"] + 60)
    page.mouse.move(x + (last - first) * WINDOW_S * PIXELS_PER_S, signal["y"] + 60)
    cursor_at(page, last)
    page.mouse.up()


def test_from_upload_to_a_roll_back_and_a_deletion_with_the_mouse(browser, server, csv_file):
    va, other = windows_of("va"), windows_of("other")
    with opened_page(browser, server) as page:
        page.fill("#patient-id", "by-mouse")
        page.click("text=Open or create")
        page.click("#upload-open")
        page.set_input_files("#upload-files", csv_file)
        page.click("#upload-send")
        assert "sampling rate" in page.inner_text("#upload-error")
        page.fill("#upload-fs", "250")
        page.select_option("#upload-unit", "mV")
        page.fill("#upload-leads", "II")
        page.click("#upload-send")
        wait_for_recording(page)
        drag_over(page, va[0], va[3])
        page.click("[data-label=va]")
        saved_counts(page, va=4, other=0)
        for index in other[:2]:
            click_window(page, index)
            page.click("[data-label=other]")
        saved_counts(page, va=4, other=2)
        page.click("[data-do=undo], #class-buttons >> text=Undo")
        saved_counts(page, va=4, other=1)
        page.click("#personalize-start")
        page.locator("#job-result", has_text="Version 1").wait_for()
        page.locator("#versions tbody tr", has_text="1").locator("text=in use").wait_for()
        page.click("#versions button[aria-label='Use the base']")
        page.locator("#status", has_text="The base is in use now").wait_for()
        assert ask(server, "GET", "patients/by-mouse")["active_version"] == 0
        page.click("#patient-delete")
        page.click("#confirm-dialog >> text=Keep")
        assert ask(server, "GET", "patients/by-mouse")["n_labels"] == 5
        page.click("#patient-delete")
        page.click("#confirm-yes")
        page.locator("#status", has_text="by-mouse is deleted").wait_for()
        assert "by-mouse" not in page.inner_text("#patients")
        assert page.seen["errors"] == []
        assert {url.split("/")[2] for url in page.seen["urls"]} == {server.url.split("/")[2]}


@pytest.fixture(scope="module")
def known(server):
    """A patient with one recording and ten labels of each class, personalized."""
    return personalized(server, "known")


@pytest.fixture
def page(browser, server, known):
    """The page with the known patient's recording open, and nothing that went wrong at the end."""
    with opened_page(browser, server) as found:
        open_patient(found, "known")
        found.locator("#cursor-line", has_text="After: ").wait_for()
        yield found
        assert found.seen["errors"] == []


def test_e_goes_through_the_detected_episodes_and_back(page, server, known):
    episodes = ask(server, "GET", f"{known}/predictions?version=1")["episodes"]
    starts = [round(one["start_s"] / WINDOW_S) for one in episodes]
    assert len(starts) > 1
    if starts[0] == 0:  # the cursor stands there already
        starts = starts[1:]
    for start in starts:
        press(page, "e")
        cursor_at(page, start)
    press(page, "e")
    page.locator("#status", has_text="No episode of va after the cursor").wait_for()
    for start in reversed(starts[:-1]):
        press(page, "Shift+E")
        cursor_at(page, start)


def test_d_goes_to_where_before_and_after_differ(page, server, known):
    before, after = (
        ask(server, "GET", f"{known}/predictions?version={version}&rhythm=none")
        for version in (0, 1)
    )
    pairs = zip(before["index"], before["label"], after["label"], strict=True)
    differ = [index for index, b, a in pairs if b != a]
    told = page.inner_text("#compare-line")
    assert f"They differ on {len(differ)} window" in told
    if not differ:
        press(page, "d")
        page.locator("#status", has_text="No difference after the cursor").wait_for()
    for index in [one for one in differ if one > 0][:3]:
        press(page, "d")
        cursor_at(page, index)


def test_delete_takes_a_label_away_and_undo_brings_it_back(page, server, known):
    index = windows_of("va")[0]
    go_by_keys(page, index)
    press(page, "Delete")
    saved_counts(page, va=9, other=10)
    assert "No label." in cursor_at(page, index)
    press(page, "u")
    saved_counts(page, va=10, other=10)
    press(page, "Control+y")
    saved_counts(page, va=9, other=10)
    press(page, "Control+z")
    saved_counts(page, va=10, other=10)
    assert ask(server, "GET", f"{known}/labels")["labels"][str(index)] == "va"


def test_shift_and_an_arrow_mark_a_run_that_is_labelled_at_once(page, server, known):
    others = windows_of("other")
    runs = [i for i in others[10:] if i + 1 in others and i + 2 in others]
    go_by_keys(page, runs[0])
    for step in (1, 2):
        press(page, "Shift+ArrowRight")
        cursor_at(page, runs[0] + step)
    press(page, "1")
    saved_counts(page, va=10, other=13)
    press(page, "u")
    saved_counts(page, va=10, other=10)


def test_n_goes_through_the_proposals_and_a_label_goes_on_to_the_next(page, server, known):
    press(page, "n")
    page.locator("#proposals [aria-current=true]").wait_for()
    proposed = [
        int(re.search(r"window (\d+)", text)[1])
        for text in page.locator("#proposals button").all_inner_texts()
    ]
    labelled = ask(server, "GET", f"{known}/labels")["labels"]
    assert proposed == sorted(proposed)
    assert not {str(index) for index in proposed} & set(labelled)
    assert "Proposed: " in cursor_at(page, proposed[0])
    press(page, "1")
    cursor_at(page, proposed[1])
    saved_counts(page, va=10, other=11)
    press(page, "u")
    saved_counts(page, va=10, other=10)
    cursor_at(page, proposed[0])


def test_a_reload_comes_back_to_the_same_recording_without_the_token_in_the_address(page):
    assert "token" not in page.url
    page.reload()
    wait_for_recording(page)
    assert page.inner_text("#reader-title") == "known · generated"


def test_the_help_lists_the_keys_and_gives_the_focus_back(page):
    press(page, "?")
    page.wait_for_selector("#help-dialog[open]")
    told = page.inner_text("#key-rows")
    assert "label what is marked as va" in told
    assert "next detected episode" in told
    press(page, "Escape")
    page.locator("#strip:focus").wait_for()


def test_a_second_personalization_can_be_cancelled_and_changes_nothing(page, server):
    page.select_option("#method", "full")
    page.click("#personalize-start")
    page.click("#job-cancel")
    page.locator("#job-result", has_text=re.compile("Cancelled|Version 2")).wait_for()
    told = page.inner_text("#job-result")
    active = ask(server, "GET", "patients/known/detectors")["active_version"]
    # The job may have ended before the button was reached; then it says so.
    assert active == (1 if "Cancelled" in told else 2)
    if active == 2:
        ask(server, "POST", "patients/known/detectors/1/activate")
