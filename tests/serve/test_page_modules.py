"""The page's modules by themselves: times, zoom, levels of the signal, lanes, keys."""

import pytest
from app_cases import running_server
from page_cases import opened_page, running_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with (
        running_browser() as browser,
        running_server(tmp_path_factory.mktemp("modules")) as server,
        opened_page(browser, server) as found,
    ):
        yield found


def run(page, module, code, value=None):
    """Import a module as `m` and return what `code`, a JavaScript expression, gives for `v`."""
    script = f"async (v) => {{ const m = await import('/pages/{module}'); return {code}; }}"
    return page.evaluate(script, value)


@pytest.mark.parametrize(
    ("seconds", "decimals", "shown"),
    [
        (0, 0, "0:00"),
        (59.96, 1, "1:00.0"),
        (61.25, 1, "1:01.3"),
        (3599.99, 0, "1:00:00"),
        (86399, 0, "23:59:59"),
    ],
)
def test_a_time_is_shown_in_hours_minutes_and_seconds(page, seconds, decimals, shown):
    assert run(page, "words.js", "m.clock(v[0], v[1])", [seconds, decimals]) == shown


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [("90", 90), ("1:30", 90), ("1:00:00.5", 3600.5), ("1,5", 1.5), ("", None), ("1:x", None)],
)
def test_a_typed_time_is_read_or_refused(page, typed, seconds):
    assert run(page, "words.js", "m.secondsOf(v)", typed) == seconds


def test_text_of_others_never_becomes_markup(page):
    made = run(page, "words.js", "m.make('p', { text: '<b>x</b>' }).outerHTML")
    assert made == "<p>&lt;b&gt;x&lt;/b&gt;</p>"


def view(page, steps):
    """Return [start, span] of a view of a day on 1000 pixels after some steps."""
    code = """(() => {
      const view = new m.View(() => {});
      view.resize(1000);
      view.open(86400);
      for (const [name, ...values] of v) view[name](...values);
      return [view.startS, view.spanS];
    })()"""
    return run(page, "view.js", code, steps)


def test_the_view_never_leaves_the_recording(page):
    span = 1000 / (25 * 96 / 25.4)
    assert view(page, [["moveBy", -50]]) == [0, pytest.approx(span)]
    assert view(page, [["moveTo", 1e9]]) == pytest.approx([86400 - span, span])
    assert view(page, [["zoom", 1e-9, 500]]) == [0, 86400]


def test_zooming_keeps_what_is_under_the_pointer_there(page):
    start, span = view(page, [["moveTo", 1000], ["zoom", 0.5, 250]])
    before = 1000 + 250 / (25 * 96 / 25.4)
    assert start + span / 4 == pytest.approx(before)


def test_a_span_is_revealed_by_the_shortest_move_with_its_neighbours(page):
    span = 1000 / (25 * 96 / 25.4)
    assert view(page, [["moveTo", 1000], ["reveal", 1004, 1006]])[0] == 1000
    assert view(page, [["moveTo", 1000], ["reveal", 1010, 1012]])[0] == pytest.approx(
        1012 + 1.5 - span
    )


FINEST = "new m.SignalTiles(null, { fsHz: v, durationS: 86400 }).spanOf(0)"


def test_no_level_of_the_signal_asks_for_more_points_than_agreed(page):
    code = """(() => {
      const asked = [];
      const fetchSpan = async (query) => { asked.push(query); return { kind: "samples", time_s: [], value_mv: [] }; };
      const tiles = new m.SignalTiles(fetchSpan, { fsHz: v, durationS: 86400, onLoaded() {} });
      const found = [];
      for (let scale = 400; scale > 0.01; scale /= 2) {
        const level = tiles.levelFor(scale);
        found.push([scale, level, tiles.spanOf(level), 0.95 * m.MAX_POINTS / tiles.spanOf(level)]);
        tiles.between(1000, 1000 + 1400 / scale, scale);
      }
      return [m.MAX_POINTS, found, asked];
    })()"""
    for fs_hz in (100, 250, 360, 1000, 5000):
        most, levels, asked = run(page, "tiles.js", code, fs_hz)
        assert most == 2000
        assert asked
        assert {query["max_points"] for query in asked} == {2000}
        assert all(query["stop_s"] <= 86400 for query in asked)
        assert run(page, "tiles.js", FINEST, fs_hz) * fs_hz <= most  # it shows every sample
        assert all(density >= scale for scale, level, _, density in levels if level > 0)


LANES = """(() => {
  const answer = (labels, episodes) => ({ version: 0, threshold: 0.5, rhythm: "none", classes: ["other", "va"],
    episodes, index: [0, 1, 3, 4], start_s: [0, 2, 6, 8], stop_s: [2, 4, 8, 10],
    probability: labels.map((n) => n * 0.9), label: labels.map((n) => ["other", "va"][n]) });
  const a = new m.Lane(answer([0, 1, 1, 0], [{ start_s: 2, stop_s: 8 }]), "va");
  const b = new m.Lane(answer([0, 0, 1, 1], [{ start_s: 6, stop_s: 10 }]), "va");
  return v(a, b);
})()"""


def lanes(page, expression):
    """Return what an expression gives for two lanes of four segments, 2 being a gap."""
    return run(page, "predictions.js", LANES.replace("v(a, b)", expression))


def test_a_lane_finds_segments_by_time_and_by_index(page):
    assert lanes(page, "a.range(3, 6)") == [1, 2]
    assert lanes(page, "a.range(4, 6)") == [2, 2]  # the gap
    assert lanes(page, "[a.placeOf(3), a.placeOf(2)]") == [2, -1]
    assert lanes(page, "a.nPositive") == 2


def test_episodes_and_differences_are_found_in_both_directions(page):
    assert lanes(
        page, "[a.episode(-1, 1)?.start_s, a.episode(2, 1), a.episode(9, -1)?.start_s]"
    ) == [
        2,
        None,
        2,
    ]
    assert lanes(page, "[a.change(b, -1, 1), a.change(b, 1, 1), a.change(b, 4, 1)]") == [1, 3, -1]
    assert lanes(page, "[a.change(b, 4, -1), a.change(b, 1, -1)]") == [1, -1]
    assert lanes(page, "a.changes(b)") == 2


def test_the_letter_of_a_class_never_takes_a_command_away(page):
    found = run(page, "keys.js", "m.classKeys(v)", ["N", "S", "V", "F", "Q", "sinus"])
    assert [one["letter"] for one in found] == [None, "s", "v", "f", "q", None]
    assert [one["digit"] for one in found] == ["1", "2", "3", "4", "5", "6"]


def test_keys_mean_nothing_while_somebody_types(page):
    code = """['INPUT', 'DIV'].map((tagName) => m.actionOf({ key: 'v', target: { tagName } }, ['other', 'va']))"""
    assert run(page, "keys.js", code) == [None, {"label": "va"}]
    shifted = "m.actionOf({ key: 'E', shiftKey: true, target: { tagName: 'DIV' } }, [])"
    assert run(page, "keys.js", shifted)["name"] == "previous-episode"
