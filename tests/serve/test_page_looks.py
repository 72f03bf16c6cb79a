"""The page in both themes: contrast, sizes, names for screen readers, nothing in colour alone."""

import pytest
from app_cases import running_server
from page_cases import open_patient, opened_page, personalized, press, running_browser

SIZES = ((1440, 900), (900, 700))
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text of ordinary size
LEAST_OF_LINES = 3.0  # 1.4.11, for lines that carry meaning

# Every visible element with text of its own: its colour against the nearest painted ground.
CONTRASTS = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own && !["INPUT", "SELECT"].includes(element.tagName)) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [rgba(getComputedStyle(element).color), ground(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = element.id || element.className || element.textContent.trim().slice(0, 30);
    found.push([`${element.tagName} ${name}`, ratio]);
  }
  return found;
}"""

# Pairs that the canvases draw on each other, by their names in theme.css.
PAIRS = """(pairs) => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(`--${name}`).trim();
    return [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16) / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  };
  return pairs.map(([one, other]) => {
    const [a, b] = [light(one), light(other)];
    return [`${one} on ${other}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""
TEXT_PAIRS = [
    ["axis", "raised"],
    ["soft", "paper"],
    ["soft", "gap"],
    ["accent", "paper"],
    ["on-positive-soft", "positive-soft"],
    ["trace", "ecg-paper"],
    ["trace", "positive-soft"],
    *([f"class-{n}-ink", f"class-{n}-soft"] for n in range(4)),
]
LINE_PAIRS = [
    ["positive", "positive-soft"],
    ["positive", "paper"],
    ["trace-far", "ecg-paper"],
    ["trace-far", "positive-soft"],
    ["cursor", "ecg-paper"],
    ["field", "paper"],
    ["field", "raised"],
    ["focus", "paper"],
    ["focus", "raised"],
    *([f"class-{n}", f"class-{n}-soft"] for n in range(4)),
]


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    with running_server(tmp_path_factory.mktemp("looks")) as found:
        personalized(found, "known")
        yield found


@pytest.fixture(scope="module", params=["light", "dark"])
def themed(request, browser, server):
    """The page with the known patient open, in one theme."""
    with opened_page(browser, server, color_scheme=request.param) as page:
        open_patient(page, "known")
        press(page, "e")
        yield page


def too_faint(found, least):
    return {name: round(ratio, 2) for name, ratio in found if ratio < least}


def test_all_text_has_enough_contrast(themed):
    found = themed.evaluate(CONTRASTS)
    assert len(found) > 60
    assert too_faint(found, LEAST_CONTRAST) == {}


@pytest.mark.parametrize("opener", ["#help-open", "#token-open", "#upload-open", "#patient-delete"])
def test_the_text_of_every_dialog_has_enough_contrast(themed, opener):
    themed.click(opener)
    assert themed.locator("dialog[open]").count() == 1
    found = themed.evaluate(CONTRASTS)
    press(themed, "Escape")
    assert too_faint(found, LEAST_CONTRAST) == {}


def test_what_the_canvases_draw_has_enough_contrast(themed):
    assert too_faint(themed.evaluate(PAIRS, TEXT_PAIRS), LEAST_CONTRAST) == {}
    assert too_faint(themed.evaluate(PAIRS, LINE_PAIRS), LEAST_OF_LINES) == {}


def test_the_two_themes_are_drawn_differently(browser, server, tmp_path):
    shots = {}
    for scheme in ("light", "dark"):
        with opened_page(browser, server, color_scheme=scheme) as page:
            open_patient(page, "known")
            shots[scheme] = page.locator("#strip").screenshot(path=tmp_path / f"{scheme}.png")
            # The canvases follow a change of theme without a reload.
            page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
            page.wait_for_timeout(200)
            assert page.locator("#strip").screenshot() != shots[scheme]
    assert shots["light"] != shots["dark"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_nothing_reaches_over_the_side_of_the_screen(browser, server, size):
    viewport = {"width": size[0], "height": size[1]}
    with opened_page(browser, server, viewport=viewport) as page:
        open_patient(page, "known")
        wide = page.evaluate(
            """(width) => [...document.querySelectorAll('body *')]
                 .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > width + 1)
                 .map((e) => `${e.tagName} ${e.id}`)""",
            size[0],
        )
        assert wide == []
        box = page.locator("#strip").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1]


def test_every_control_has_a_name_and_the_page_its_landmarks(themed):
    unnamed = themed.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role=slider], [role=application]')]
             .filter((e) => e.checkVisibility())
             .filter((e) => !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.getAttribute('aria-label')
                            && !e.getAttribute('aria-labelledby') && !(e.labels && e.labels.length))
             .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    assert themed.locator("main").count() == themed.locator("nav").count() == 1
    assert themed.locator("html[lang=en]").count() == 1
    assert themed.inner_text("footer") == "Research use only. Not a medical device."


def test_what_changes_is_told_in_live_regions(themed):
    live = themed.locator(
        "#cursor-line[aria-live=polite], #status[role=status], #trouble[role=alert]"
    )
    assert live.count() == 3
    assert "25 mm/s, 10 mm/mV: a small square is 0.04 s by 0.1 mV" in themed.inner_text(
        "#scale-line"
    )


def test_the_focus_is_seen_wherever_tab_leads(themed):
    themed.locator("#patient-id").focus()
    unseen = []
    for _ in range(45):
        themed.keyboard.press("Tab")
        unseen += themed.evaluate(
            """() => {
                 const e = document.activeElement;
                 const s = getComputedStyle(e);
                 const seen = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
                 return e === document.body || seen ? [] : [e.outerHTML.slice(0, 80)];
               }"""
        )
    assert unseen == []


def test_positive_is_hatched_not_only_coloured(themed):
    name, n_stripes = themed.evaluate(
        """() => {
             const canvas = document.getElementById('before-canvas');
             const hex = getComputedStyle(document.documentElement).getPropertyValue('--positive').trim();
             const wanted = [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
             const { data } = canvas.getContext('2d').getImageData(0, canvas.height - 5, canvas.width, 1);
             const is = (n) => wanted.every((value, c) => Math.abs(data[n + c] - value) < 60);
             let stripes = 0;
             for (let n = 4; n < data.length; n += 4) stripes += is(n) && !is(n - 4) ? 1 : 0;
             return [document.getElementById('cursor-line').textContent, stripes];
           }"""
    )
    assert "Before: va" in name  # the episode that E went to
    assert n_stripes > 15  # a plain fill would be one stripe for each window
