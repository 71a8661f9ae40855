"""The attention viewer: what it refuses, what it writes, and what a reader sees and hears of a hand-made pattern."""

import json
import re
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from playwright.sync_api import Page, expect

from interp_edu.viewers.attention import attention_viewer
from tests import test_site

browser, axe = test_site.browser, test_site.axe  # fixtures: skipped where there is no browser, failing in CI

WORDS = ["<|endoftext|>", "Mary", "John", "</script>", "to"]
HEAD = torch.tensor(
    [
        [1.00, 0.00, 0.00, 0.00, 0.00],
        [0.30, 0.70, 0.00, 0.00, 0.00],
        [0.20, 0.30, 0.50, 0.00, 0.00],
        [0.00, 0.10, 0.10, 0.80, 0.00],
        [0.05, 0.52, 0.41, 0.02, 0.00],
    ]
)
LENGTHS = torch.tensor([0.4, 2.0, 4.0, 2.0, 2.0])  # of the values' outputs: the most that HEAD moves is 4 * 0.5 = 2


def patterns() -> torch.Tensor:
    """Two layers of three heads: L1H2 is HEAD, the others look at the word itself."""
    heads = torch.eye(5).expand(2, 3, 5, 5).clone()
    heads[1, 2] = HEAD
    return heads


def viewer(heads=None, words=WORDS, label="Attention", alt="Where each head looks", **more) -> str:
    return attention_viewer(patterns() if heads is None else heads, words, label=label, alt=alt, **more)


# What it refuses and what it writes


def changed(entry: tuple[int, ...], value: float) -> torch.Tensor:
    heads = patterns()
    heads[entry] = value
    return heads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": patterns()[0]}, r"patterns must be \[layer, head, query, key\].*got \[3, 5, 5\]"),
        ({"heads": patterns()[..., :4]}, r"as many queries as keys: got \[2, 3, 5, 4\]"),
        ({"words": WORDS[:-1]}, "got 4 words for 5 positions"),
        ({"heads": torch.zeros(1, 1, 0, 0), "words": []}, "at least one: got 0 words"),
        ({"select": (2, 0)}, r"of 2 layers of 3 heads: got \(2, 0\)"),
        ({"select": (0, 3)}, "select"),
        ({"select": (0, -1)}, "select"),
        ({"heads": changed((0, 0, 1, 0), float("nan"))}, "patterns must be finite"),
        ({"heads": changed((0, 0, 1, 0), -0.1)}, "nowhere negative"),
        ({"heads": changed((0, 0, 1, 2), 0.1)}, "must be 0 where the key comes after the query"),
        ({"heads": changed((0, 0, 1, 0), 1.5)}, "at most 1"),
        ({"values": patterns()[:1]}, r"values must have the shape of patterns \[2, 3, 5, 5\]: got \[1, 3, 5, 5\]"),
        ({"values": patterns()[0]}, r"values must be \[layer"),
        ({"values": changed((0, 0, 1, 0), float("inf"))}, "values must be finite"),
        ({"values": changed((0, 0, 1, 2), 0.1)}, "values must be 0 where"),
    ],
)
def test_refuses(arguments, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # what a reader meets: only test runs check shapes by type
    try:
        with pytest.raises(ValueError, match=message):
            viewer(**arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_the_data_are_hundredths_of_the_lower_triangles():
    data = json.loads(re.search(r"data = ({.*}), root", viewer(select=(1, 0), values=patterns() * LENGTHS))[1])
    assert data["words"] == WORDS
    assert (data["heads"], data["first"]) == (3, 3)
    weights, moved = data["views"]
    assert len(weights) == 6
    assert weights[5] == [100, 30, 70, 20, 30, 50, 0, 10, 10, 80, 5, 52, 41, 2, 0]
    assert moved[5] == [20, 6, 70, 4, 30, 100, 0, 10, 20, 80, 1, 52, 82, 2, 0]
    assert moved[0] == [10, 0, 50, 0, 0, 100, 0, 0, 0, 50, 0, 0, 0, 0, 50]


def test_a_head_that_moves_nothing_and_other_kinds_of_floats():
    assert viewer(values=torch.zeros(2, 3, 5, 5)).count(str([0] * 15).replace(" ", "")) == 6
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        assert "20,30,50,0,10,10,80" in viewer(patterns().to(kind).requires_grad_())


def test_the_same_arguments_give_the_same_html_and_others_another_id():
    def name(html: str) -> str:
        return re.search(r'id="(ie-\w{8})"', html)[1]

    assert viewer() == viewer()
    others = [
        viewer(),
        viewer(changed((0, 0, 4, 0), 0.5)),
        viewer(label="Another"),
        viewer(alt="Another"),
        viewer(select=(1, 2)),
        viewer(values=patterns()),
        viewer(words=["", *WORDS[1:]]),
    ]
    assert len({name(html) for html in others}) == len(others)


def test_size():
    heads = torch.rand(4, 6, 20, 20, generator=torch.Generator().manual_seed(0)).tril()
    html = viewer(heads / heads.sum(-1, keepdim=True), [f"word{i}" for i in range(20)])
    assert 10_000 < len(html.encode()) < 25_000


def test_nothing_in_the_words_ends_the_script():
    html = viewer(words=["</script>", "<!--", "<script>", "$id", "a&amp;b"], label="a < b", alt='so-called "heads"')
    assert html.count("</script>") == html.count("<script>") == 1
    assert html.count("<!--") == 1  # the template's own
    assert "a &lt; b" in html
    assert 'aria-label="so-called &quot;heads&quot;"' in html


# What a reader sees and hears


THEMES = {"light": "#fff; color: #222832; color-scheme: light", "dark": "#121212; color: #ced6dd; color-scheme: dark"}


@pytest.fixture(params=THEMES)
def show(request, browser) -> Iterator[Callable[..., Page]]:
    """Opens a viewer on a light and on a dark page. Whatever goes wrong there fails the test in the end."""
    wrong = []
    context = browser.new_context(viewport={"width": 800, "height": 700}, has_touch=True)
    context.set_default_timeout(5_000)

    def show(html: str) -> Page:
        page = context.new_page()
        page.on("request", lambda request: wrong.append(f"request: {request.url}"))
        page.on("console", lambda line: line.type == "error" and wrong.append(f"console: {line.text}"))
        page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
        page.set_content(
            '<!doctype html><html lang="en"><title>A viewer</title><meta name="viewport" content="width=device-width">'
            f'<body style="background: {THEMES[request.param]}"><main><h1>Page</h1>{html}</main></body></html>'
        )
        return page

    yield show
    context.close()
    assert not wrong


@pytest.fixture
def page(show) -> Page:
    return show(viewer(select=(1, 2), values=patterns() * LENGTHS))


def said(page: Page) -> str:
    return page.locator("output").inner_text()


def focused(page: Page) -> str:
    return page.evaluate("(e => e.getAttribute('aria-label') || e.value || e.innerText)(document.activeElement)")


def checked(page: Page, group: str) -> list[str]:
    """The names of the radios that are chosen, and of those that the Tab key reaches: the same, and one."""
    box = page.get_by_role("radiogroup", name=group)
    name = "list => list.map(e => e.getAttribute('aria-label') || e.firstChild.textContent)"
    chosen = box.locator("[role=radio][aria-checked=true]").evaluate_all(name)
    assert chosen == box.locator("[role=radio][tabindex='0']").evaluate_all(name)
    return chosen


def test_starts_with_the_selected_head_and_the_last_word(page):
    assert said(page) == 'L1H2, from "to": 52 % to Mary, 41 % to John, 5 % to the first token'
    assert checked(page, "Head") == ["L1H2"]
    assert checked(page, "Word") == ["to"]
    words = page.locator(".ie-word")
    assert words.evaluate_all("list => list.map(e => e.firstChild.textContent)") == WORDS
    assert words.evaluate_all("list => list.map(e => e.lastChild.textContent)") == ["", "52 %", "41 %", "", ""]
    ink = [w.evaluate("e => getComputedStyle(e).backgroundColor.split(', ')[3]") for w in words.all()]
    assert [float(alpha.rstrip(")")) for alpha in ink] == pytest.approx([0.03, 0.312, 0.246, 0.012, 0], abs=0.003)


def test_every_control_by_keyboard(page):
    page.keyboard.press("Tab")
    assert focused(page) == "L1H2"
    page.keyboard.press("Home")
    assert (focused(page), checked(page, "Head")) == ("L0H0", ["L0H0"])
    assert said(page) == 'L0H0, from "to": 100 % to itself'
    steps = "ArrowUp L0H0 ArrowLeft L0H0 ArrowDown L1H0 ArrowRight L1H1 ArrowUp L0H1 ArrowLeft L0H0".split()
    for key, head in zip(steps[::2], steps[1::2], strict=True):
        page.keyboard.press(key)
        assert (focused(page), checked(page, "Head")) == (head, [head])
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert focused(page) == "L1H2"

    page.keyboard.press("Tab")
    assert focused(page) == "from"
    page.keyboard.press("ArrowDown")
    assert said(page) == 'L1H2, to "to": nothing above 0 %'
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused(page).startswith("to")
    page.keyboard.press("ArrowLeft")
    assert said(page) == 'L1H2, from "</script>": 80 % to itself, 10 % to Mary, 10 % to John'
    assert checked(page, "Word") == ["</script>"]
    page.keyboard.press("Home")
    assert said(page) == 'L1H2, from "<|endoftext|>": 100 % to itself'
    page.keyboard.press("ArrowRight")
    assert said(page) == 'L1H2, from "Mary": 70 % to itself, 30 % to the first token'
    page.keyboard.press("End")
    assert said(page).startswith('L1H2, from "to": 52 % to Mary')
    assert page.locator(":focus").evaluate("e => getComputedStyle(e).outline").endswith("solid 3px")


def test_who_looks_at_the_word(page):
    page.get_by_label("to this word").check()
    page.get_by_role("radio", name="Mary").click()
    assert said(page) == 'L1H2, to "Mary": 70 % from itself, 52 % from to, 30 % from John'
    assert page.locator(".ie-share").all_inner_texts() == ["", "70 %", "30 %", "10 %", "52 %"]


def test_what_is_moved(page):
    page.get_by_label("weight by what is moved").check()
    most = " (100 % is the most this head moves in this text)"
    assert said(page) == f'L1H2, moved to "to": 82 % from John, 52 % from Mary, 2 % from </script>{most}'
    page.get_by_label("to this word").check()
    page.get_by_role("radio", name="John").click()
    assert said(page) == f'L1H2, moved from "John": 100 % to itself, 82 % to to, 20 % to </script>{most}'


def test_without_values_there_is_nothing_to_weight_by(show):
    expect(show(viewer()).get_by_label("weight by what is moved")).to_be_hidden()


def test_the_mouse_looks_and_a_click_or_a_tap_chooses(page):
    page.get_by_role("radio", name="John").hover()
    assert said(page) == 'L1H2, from "John": 50 % to itself, 30 % to Mary, 20 % to the first token'
    page.mouse.move(1, 1)
    assert said(page).startswith('L1H2, from "to"')
    page.get_by_role("radio", name="John").click()
    page.mouse.move(1, 1)
    assert said(page).startswith('L1H2, from "John"')
    page.get_by_role("radio", name="Mary").hover()
    page.keyboard.press("ArrowRight")
    assert said(page).startswith('L1H2, from "</script>"'), "the keyboard wins over a mouse that lies still"
    page.get_by_role("radio", name="Mary").tap()
    assert said(page).startswith('L1H2, from "Mary"')
    page.get_by_role("radio", name="L0H1").tap()
    assert said(page) == 'L0H1, from "Mary": 100 % to itself'


def test_thumbnails_show_queries_in_rows_and_keys_in_columns(page):
    pixel = "(e, [key, query]) => e.firstChild.getContext('2d').getImageData(key, query, 1, 1).data[3] / 255"
    head = page.get_by_role("radio", name="L1H2")
    assert head.evaluate(pixel, [1, 4]) == pytest.approx(0.52, abs=0.01)
    assert head.evaluate(pixel, [4, 1]) == 0
    page.get_by_label("weight by what is moved").check()
    assert head.evaluate(pixel, [2, 4]) == pytest.approx(0.82, abs=0.01)


def test_two_viewers_on_a_page_do_not_disturb_each_other(show):
    page = show(viewer() + viewer(select=(1, 2)))
    first, second = page.locator(".ie-viewer").all()
    first.get_by_label("to this word").check()
    assert first.locator("output").inner_text() == 'L0H0, to "to": 100 % from itself'
    assert second.locator("output").inner_text().startswith('L1H2, from "to": 52 %')
    expect(second.get_by_label("from this word")).to_be_checked()


def test_awkward_words_are_shown_as_they_are(show):
    words = ["<b>", " the", "\n", " ", "the", "$id", '"&amp;\\\u2028x']
    page = show(viewer(torch.eye(7).expand(2, 3, 7, 7), words, label='a < b & "c"', alt='a < b & "c"'))
    shown = page.locator(".ie-word").evaluate_all("list => list.map(e => e.firstChild.textContent)")
    assert shown == ["<b>", "the", "↵", "␣", "the", "$id", words[-1]]
    assert said(page).startswith('L0H0, from ""&amp;\\')
    page.get_by_role("radio", name="the").nth(1).click()
    assert said(page) == 'L0H0, from "the" (2 of 2): 100 % to itself'
    assert page.locator(".ie-title").inner_text() == 'a < b & "c"'
    assert page.locator(".ie-viewer").get_attribute("aria-label") == 'a < b & "c"'


@pytest.mark.parametrize("state", ["weights", "moved", "hovered"])
def test_accessible(page, axe, state):
    page.keyboard.press("Tab")
    if state == "moved":
        page.get_by_label("weight by what is moved").check()
    page.get_by_role("radio", name="<|endoftext|>").click()  # on the deepest of colours: 100 %
    if state == "hovered":
        page.get_by_role("radio", name="Mary").hover()
    page.evaluate(axe)
    violations = page.evaluate(test_site.AXE)
    assert not violations, "\n".join(violations)
    legible = "axe.run({runOnly: ['color-contrast']}).then(r => r.passes.flatMap(p => p.nodes.map(n => n.html)))"
    assert sum("ie-word" in html for html in page.evaluate(legible)) == len(WORDS), "axe has not judged every word"


@pytest.mark.parametrize("heads", [6, 12])
def test_fits_a_phone(show, heads):
    words = ["antidisestablishmentarianism" * 3, *WORDS * 4]
    page = show(viewer(torch.eye(21).expand(4, heads, 21, 21), words))
    page.set_viewport_size(test_site.PHONE)
    page.locator(".ie-word").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= test_site.PHONE["width"]
    assert page.evaluate(test_site.STICKING_OUT) == []
    small = page.locator("button").evaluate_all(
        "list => list.filter(e => Math.min(e.offsetWidth, e.offsetHeight) < 22).length"
    )
    assert small == 0, "too small for a finger"
