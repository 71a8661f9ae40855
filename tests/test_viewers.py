"""The viewers: what they refuse, what they write, and what a reader sees and hears of a hand-made pattern or lens."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from playwright.sync_api import Page, expect

from interp_edu.features import Dashboard, Example
from interp_edu.viewers.attention import attention_viewer
from interp_edu.viewers.dashboard import dashboard_viewer, save_page
from interp_edu.viewers.lens import lens_viewer
from tests import test_site

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


@pytest.fixture
def untyped() -> Iterator[None]:
    """What a reader meets: only test runs check shapes by type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
def test_refuses(untyped, arguments, message):
    with pytest.raises(ValueError, match=message):
        viewer(**arguments)


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


# The logit lens: what it refuses and what it writes


VOCAB = ["<|endoftext|>", "Mary", " the", "</script>", "\n", "to"]
READ = ["<|endoftext|>", "Mary", "</script>", "to"]
EARLY, SURE = [0.6, 0.2, 0.1, 0.06, 0.0396, 0.0004], [0.9, 0.05, 0.03, 0.01, 0.006, 0.004]
# The probabilities of each layer at each position: that list, turned so that it begins with this token.
CELLS = [[(EARLY, 0)] * 4, [(SURE, 0), (SURE, 1), (SURE, 2), (SURE, 3)], [(EARLY, 1), (SURE, 3), (SURE, 5), (EARLY, 2)]]


def turned(p: list[float], first: int) -> list[float]:
    return p[-first:] + p[:-first]


def lens() -> torch.Tensor:
    return torch.tensor([[turned(*cell) for cell in row] for row in CELLS]).log()


def looking(log_probs=None, words=READ, vocab=VOCAB, label="Lens", alt="What comes next", **more) -> str:
    return lens_viewer(lens() if log_probs is None else log_probs, words, vocab, label=label, alt=alt, **more)


def lens_with(entry: tuple[int, ...], value: float) -> torch.Tensor:
    log_probs = lens()
    log_probs[entry] = value
    return log_probs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_probs": lens()[0]}, r"log_probs must be \[layer, pos, d_vocab\].*got \[4, 6\]"),
        ({"log_probs": lens()[:, None]}, r"log_probs must be \[layer.*got \[3, 1, 4, 6\]"),
        ({"log_probs": lens()[:0]}, r"none of them 0: got \[0, 4, 6\]"),
        ({"log_probs": lens()[:, :0], "words": []}, r"none of them 0: got \[3, 0, 6\]"),
        ({"log_probs": lens_with((1, 2, 3), float("nan"))}, "log_probs must be finite"),
        ({"log_probs": lens_with((1, 2, 3), -float("inf"))}, "log_probs must be finite"),
        ({"log_probs": lens().exp()}, "exponentials sum to 1: they are off by"),
        ({"log_probs": lens_with((2, 3, 2), math.log(0.602))}, "off by 0.002"),
        ({"log_probs": lens_with((2, 3, 2), math.log(0.598))}, "off by 0.002"),
        ({"words": READ[:-1]}, r"words must be 4 for log_probs \[3, 4, 6\]: got 3"),
        ({"vocab": [*VOCAB, "more"]}, "vocab must be 6 .*got 7"),
        ({"layers": ["before", "after"]}, "layers must be 3 .*got 2"),
        ({"top": 0}, "top must be from 1 to 6, the size of the vocabulary: got 0"),
        ({"top": 7}, "got 7"),
        ({"select": (3, 0)}, r"of 3 layers, 4 words: got \(3, 0\)"),
        ({"select": (0, 4)}, "select"),
        ({"select": (-1, 0)}, "select"),
        ({"select": (0, -1)}, "select"),
        ({"words": [*READ[:-1], "nowhere"]}, "must be in vocab once: 'nowhere' is 0 times"),
        ({"vocab": ["Mary", *VOCAB[1:]]}, "must be in vocab once: 'Mary' is 2 times"),
    ],
)
def test_the_lens_refuses(untyped, arguments, message):
    with pytest.raises(ValueError, match=message):
        looking(**arguments)


def lens_data(html: str) -> dict:
    return json.loads(re.search(r"data = ({.*}), root", html)[1])


def test_the_data_of_the_lens():
    data = lens_data(looking(top=3))
    assert (data["words"], data["layers"]) == (READ, ["before 0", "before 1", "end"])
    assert (data["first"], data["most"]) == ([2, 3], 1.79)  # log(6)
    cells = [cell for row in CELLS for cell in row]
    likeliest = [[VOCAB[(first + k) % 6] for k in range(3)] for _, first in cells]
    assert [[data["tokens"][i] for i in three] for three in data["top"]] == likeliest
    assert data["percent"] == [[60, 20, 10] if p is EARLY else [90, 5, 3] for p, _ in cells]
    assert data["entropy"] == [1.16 if p is EARLY else 0.45 for p, _ in cells]
    assert data["entropy"][0] == round(-sum(x * math.log(x) for x in EARLY), 2)
    kl = [sum(x * math.log(x / y) for x, y in zip(turned(*CELLS[2][i % 4]), turned(*cells[i]), strict=True)) for i in range(12)]  # fmt: skip
    assert data["kl"] == [round(x, 2) for x in kl]
    assert data["kl"][8:] == [0, 0, 0, 0]
    assert data["rank"] == [[1, 3, 5], [1, 2, 3], [0, 0, 0]]


def test_only_the_tokens_that_are_shown_are_written():
    html = looking(torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()[None], ["a"], ["a", "b", "hidden", "unseen"], top=2)
    assert lens_data(html)["tokens"] == ["a", "b"]
    assert "hidden" not in html.split("data = ")[1].split("\n")[0]
    assert lens_data(looking(top=6, select=(0, 1), layers=["a", "b", "c"]))["first"] == [0, 1]


def test_percentages_have_a_decimal_below_ten_and_other_kinds_of_floats():
    p = torch.tensor([0.7449, 0.0997, 0.0994, 0.0556, 0.0003, 0.0001])
    for kind in (torch.float32, torch.float64):
        html = looking(p.to(kind).log().expand(2, 4, 6).clone().requires_grad_(), top=6)
        assert lens_data(html)["percent"][0] == [74, 10, 9.9, 5.6, 0, 0]
    for kind in (torch.bfloat16, torch.float16):
        html = looking(torch.zeros(1, 1, 1, dtype=kind), ["to"], ["to"], top=1)
        assert lens_data(html)["percent"] == [[100]]
        assert '"entropy":[0.0],"kl":[0.0]' in html, "not -0.0"


def test_the_same_lens_gives_the_same_html_and_another_one_another_id():
    others = [
        looking(),
        looking(lens().flip(0)),
        looking(label="Another"),
        looking(alt="Another"),
        looking(select=(1, 2)),
        looking(top=4),
        looking(layers=["a", "b", "c"]),
        looking(words=["", *READ[1:]]),
    ]
    assert looking() == others[0]
    assert len({re.search(r'id="(ie-\w{8})"', html)[1] for html in others}) == len(others)


def test_size_of_a_lens():
    log_probs = torch.randn(5, 15, 400, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    vocab = [f"token {i}" for i in range(400)]
    assert 10_000 < len(looking(log_probs, vocab[:15], vocab).encode()) < 20_000


def test_nothing_in_the_tokens_ends_the_script_of_the_lens():
    vocab = ["</script>", "<!--", "<script>", "$id", "a&amp;b", "</SCRIPT >"]
    html = looking(
        words=vocab[:4], vocab=vocab, layers=["</script>", "<!--", "c"], top=6, label="a < b", alt='a "lens"'
    )
    assert html.lower().count("</script") == html.count("<script>") == 1
    assert html.count("<!--") == 1  # the template's own
    assert "a &lt; b" in html
    assert 'aria-label="a &quot;lens&quot;"' in html


# What a reader sees and hears of the lens


@pytest.fixture
def lens_page(show) -> Page:
    return show(looking(top=3))


def cell(page: Page, layer: int, pos: int):
    """Layers are counted from 0, from below."""
    return (
        page.get_by_role("row").filter(has=page.get_by_role("gridcell")).nth(2 - layer).get_by_role("gridcell").nth(pos)
    )


def depth(page: Page) -> list[float]:
    """How deep the colour of each cell is, the uppermost row first."""
    found = page.get_by_role("gridcell").evaluate_all(
        "l => l.map(e => getComputedStyle(e).backgroundColor.split(', ')[3])"
    )
    return [float(alpha.rstrip(")")) for alpha in found]


def test_the_lens_starts_with_the_last_cell(lens_page):
    assert said(lens_page).split("\n") == [
        'end, position 3, after "to":',
        '" the" 60 %, "</script>" 20 %, "↵" 10 %',
        "entropy 1.16 nats, KL to the end 0.00 nats",
    ]
    assert cell(lens_page, 2, 3).get_attribute("aria-selected") == "true"
    assert lens_page.locator("td[tabindex='0']").count() == lens_page.locator("td[aria-selected=true]").count() == 1
    assert lens_page.locator(".ie-shown").count() == 1


def test_the_lens_has_the_end_on_top_and_the_words_below(lens_page):
    assert lens_page.get_by_role("grid").count() == 1
    assert lens_page.get_by_role("rowheader").all_text_contents() == ["end", "before 1", "before 0"]
    assert lens_page.get_by_role("columnheader").all_text_contents() == ["Layer", *READ]
    names = ["Mary", "</script>", "to", "the", "<|endoftext|>", "Mary", "the", "</script>", *["<|endoftext|>"] * 4]
    assert lens_page.get_by_role("gridcell").all_text_contents() == names
    right = lens_page.get_by_role("gridcell").evaluate_all("l => l.map(e => getComputedStyle(e).fontWeight === '700')")
    assert right == [True] * 3 + [False] * 9, "bold where the word does come next"

    middle = "l => l.map(e => { const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })"
    cells = lens_page.get_by_role("gridcell").evaluate_all(middle)
    words = lens_page.get_by_role("columnheader").evaluate_all(middle)[1:]
    layers = lens_page.locator(".ie-layers span").evaluate_all(middle)
    assert lens_page.locator(".ie-layers span").all_text_contents() == ["end", "before 1", "before 0"]
    assert [x for x, _ in words] == pytest.approx([x for x, _ in cells[:4]], abs=1)
    assert [y for _, y in layers] == pytest.approx([y for _, y in cells[::4]], abs=3)
    assert words[0][1] > cells[8][1] > cells[4][1] > cells[0][1]


def test_every_cell_of_the_lens_by_keyboard(lens_page):
    press = lens_page.keyboard.press
    press("Tab")
    assert focused(lens_page) == "percent"
    press("Tab")
    assert said(lens_page).startswith("end, position 3,")
    steps = [
        ("ArrowUp", "end, position 3"),
        ("ArrowRight", "end, position 3"),
        ("ArrowDown", "before 1, position 3"),
        ("ArrowLeft", "before 1, position 2"),
        ("Home", "before 1, position 0"),
        ("ArrowLeft", "before 1, position 0"),
        ("ArrowDown", "before 0, position 0"),
        ("ArrowDown", "before 0, position 0"),
        ("ArrowRight", "before 0, position 1"),
        ("End", "before 0, position 3"),
        ("Control+Home", "before 0, position 3"),
        ("ArrowUp", "before 1, position 3"),
        ("ArrowRight", "before 1, position 3"),
    ]
    for key, place in steps:
        press(key)
        assert said(lens_page).startswith(place + ", "), key
        assert lens_page.evaluate("document.activeElement.matches('td[aria-selected=true][tabindex=\"0\"]')"), key
    assert lens_page.locator(":focus").evaluate("e => getComputedStyle(e).outline").endswith("solid 3px")
    press("Tab")
    assert lens_page.evaluate("document.activeElement.closest('.ie-viewer')") is None, "one stop for all cells"
    press("Shift+Tab")
    assert lens_page.evaluate("document.activeElement.matches('td[aria-selected=true]')")


@pytest.mark.parametrize(
    ("layer", "pos", "text"),
    [
        (0, 0, 'before 0, position 0, after "<|endoftext|>":\n"<|endoftext|>" 60 %, "Mary" 20 %, " the" 10 %\n'
               'entropy 1.16 nats, KL to the end 1.05 nats; next comes "Mary", here ranked 2nd'),
        (0, 1, 'KL to the end 2.50 nats; next comes "</script>", here ranked 4th'),
        (0, 2, 'next comes "to", here ranked 6th'),
        (1, 1, 'before 1, position 1, after "Mary":\n"Mary" 90 %, " the" 5 %, "</script>" 3 %\n'
               'entropy 0.45 nats, KL to the end 3.16 nats; next comes "</script>", here ranked 3rd'),
        (2, 2, 'KL to the end 0.00 nats; next comes "to", here ranked 1st'),
    ],
)  # fmt: skip
def test_what_the_lens_says_of_a_cell(lens_page, layer, pos, text):
    cell(lens_page, layer, pos).click()
    assert text in said(lens_page)


def test_ordinals_and_small_probabilities(show):
    p = torch.tensor([0.3, *(0.7 - 0.004 * i for i in range(1, 140))])
    p = torch.cat([p[:1], 0.7 * p[1:] / p[1:].sum()])
    vocab = [f"t{i}" for i in range(140)]
    for rank, name in {
        10: "11th",
        11: "12th",
        12: "13th",
        20: "21st",
        101: "102nd",
        110: "111th",
        122: "123rd",
    }.items():
        page = show(looking(p.log().expand(1, 2, 140), ["t0", f"t{rank}"], vocab, select=(0, 0)))
        assert said(page).endswith(f'next comes "t{rank}", here ranked {name}')
        page.close()
    page = show(looking(top=6, select=(0, 3)))
    assert said(page).split("\n")[1].endswith('"</script>" 6 %, "↵" 4 %, "to" <\u200a0.1 %')


def test_what_the_colour_of_the_lens_shows(lens_page):
    legend = lens_page.locator(".ie-legend span")
    assert legend.all_text_contents() == ["0 %", "", "100 %"]
    # Each up to 60 %, of 1, of log(6), and of the furthest.
    assert depth(lens_page) == pytest.approx([0.36, 0.54, 0.54, 0.36, *[0.54] * 4, *[0.36] * 4], abs=0.003)
    lens_page.get_by_label("entropy").check()
    assert legend.all_text_contents() == ["0 nats, sure", "", "1.79 nats, all tokens alike"]
    much, little = 0.6 * 1.16 / 1.79, 0.6 * 0.45 / 1.79
    assert depth(lens_page) == pytest.approx([much, little, little, much, *[little] * 4, *[much] * 4], abs=0.003)
    lens_page.get_by_label("KL to the end").check()
    kl = lens_data(looking(top=3))["kl"]
    assert legend.all_text_contents() == ["KL(end ‖ row): 0", "", f"{max(kl):.2f} nats, most here"]
    assert depth(lens_page) == pytest.approx([0.6 * x / max(kl) for x in kl[8:] + kl[4:8] + kl[:4]], abs=0.003)
    assert max(depth(lens_page)) == pytest.approx(0.6, abs=0.003)


def test_a_lens_of_one_layer_of_one_word(show):
    page = show(looking(lens()[2:, :1], ["x"], top=1))
    page.get_by_label("KL to the end").check()
    assert depth(page) == [0]
    assert said(page) == 'end, position 0, after "x":\n"Mary" 60 %\nentropy 1.16 nats, KL to the end 0.00 nats'


def test_the_mouse_looks_at_the_lens_and_a_click_or_a_tap_chooses(lens_page):
    cell(lens_page, 0, 1).hover()
    assert said(lens_page).startswith("before 0, position 1")
    lens_page.mouse.move(1, 1)
    assert said(lens_page).startswith("end, position 3")
    cell(lens_page, 1, 2).click()
    lens_page.mouse.move(1, 1)
    assert said(lens_page).startswith("before 1, position 2")
    cell(lens_page, 0, 0).hover()
    lens_page.keyboard.press("ArrowUp")
    assert said(lens_page).startswith("end, position 2"), "the keyboard wins over a mouse that lies still"
    cell(lens_page, 0, 3).tap()
    assert said(lens_page).startswith("before 0, position 3")


def test_two_lenses_on_a_page_do_not_disturb_each_other(show):
    page = show(looking() + looking(select=(1, 0)))
    first, second = page.locator(".ie-viewer").all()
    first.get_by_label("entropy").check()
    first.get_by_role("gridcell").first.click()
    assert first.locator("output").inner_text().startswith("end, position 0")
    assert second.locator("output").inner_text().startswith("before 1, position 0")
    expect(second.get_by_label("probability of the top token")).to_be_checked()


def test_awkward_tokens_of_a_lens_are_shown_as_they_are(show):
    vocab = ["<b>", " the", "\n", " ", "$id", '"&amp;\\\u2028x']
    page = show(looking(lens()[:, [0, 1, 2, 3, 3, 3]], vocab, vocab, layers=["<i>", "$id", '"'], top=6, label='a < b & "c"', select=(1, 5)))  # fmt: skip
    assert page.get_by_role("columnheader").all_text_contents()[1:] == ["<b>", "the", "↵", "␣", "$id", vocab[-1]]
    assert page.get_by_role("rowheader").all_text_contents() == ['"', "$id", "<i>"]
    texts = page.locator("output b").all_text_contents()
    assert texts == [f'"{w}"' for w in [vocab[5], " ", "$id", vocab[5], "<b>", " the", "↵"]]
    assert page.locator(".ie-title").inner_text() == 'a < b & "c"'


def extremes(n_layers: int, words: list[str]) -> str:
    """A lens that is sure of one token in the last layer, and of none in the first."""
    sure = torch.full((n_layers, len(words), len(words)), -20.0)
    sure.diagonal(dim1=1, dim2=2).fill_(20)
    sure[0] = 0
    return looking(sure.log_softmax(dim=-1), words, words)


@pytest.mark.parametrize("state", ["percent", "entropy", "kl", "hovered"])
def test_the_lens_is_accessible(show, axe, state):
    page = show(extremes(3, [f"word {i}" for i in range(25)]))  # so many that the table scrolls
    assert page.locator(".ie-box").evaluate("e => e.scrollWidth > e.clientWidth")
    page.keyboard.press("Tab")
    if state == "hovered":
        cell(page, 0, 24).hover()
    else:
        page.locator(f"input[value={state}]").check()
        assert max(depth(page)) == pytest.approx(0.6, abs=0.003), "the deepest of colours"
    page.set_viewport_size({"width": 1400, "height": 700})
    page.locator(".ie-viewer").evaluate("e => { e.style.maxWidth = 'none'; }")
    page.evaluate(axe)
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 700})
        violations = page.evaluate(test_site.AXE)
        assert not violations, "\n".join(violations)
        if width == 1400:
            legible = (
                "axe.run({runOnly: ['color-contrast']}).then(r => r.passes.flatMap(p => p.nodes.map(n => n.html)))"
            )
            assert sum(html.startswith("<td") for html in page.evaluate(legible)) == 75, "axe has not judged every cell"


def test_the_lens_fits_a_phone(show):
    words = ["antidisestablishmentarianism" * 3, *(f"word {i}" for i in range(20))]
    page = show(extremes(5, words))
    page.set_viewport_size(test_site.PHONE)
    page.locator("td").first.click()
    assert page.locator(".ie-box").evaluate("e => e.scrollWidth > 2 * e.clientWidth && e.scrollLeft === 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= test_site.PHONE["width"]
    assert page.evaluate(test_site.STICKING_OUT) == []
    page.keyboard.press("End")
    inside = "e => { const b = e.getBoundingClientRect(); return b.left > 0 && b.right <= innerWidth; }"
    assert page.locator(":focus").evaluate(inside)
    page.locator("td").nth(20).hover()
    page.keyboard.press("Home")
    page.wait_for_timeout(100)
    assert said(page).startswith("end, position 0,"), "the table has scrolled under a mouse that lies still"
    sizes = "list => list.filter(e => Math.min(e.offsetWidth, e.offsetHeight) < 22).length"
    assert page.locator("td, label").evaluate_all(sizes) == 0, "too small for a finger"


def test_the_selected_cell_is_in_sight_on_a_phone(show):
    words = [f"word {i}" for i in range(21)]
    page = show('<script>document.querySelector("main").style.width = "370px"</script>' + extremes(2, words))
    assert page.locator(".ie-box").evaluate("e => e.scrollLeft + e.clientWidth >= e.scrollWidth - 2")
    assert page.evaluate("scrollY") == 0


# Dashboards of latents: what they refuse and what they write


MARY = Dashboard(
    latent=7,
    rate=0.0125,
    histogram=(4, 0, 1, 1000),
    largest=8.0,
    examples=(
        Example(("a", "book", "to", "</b>"), (0.0, 2.0, 8.0, 0.0), at=2),
        Example(("\n", "Mary", "<|endoftext|>"), (1.0, 0.0, 0.004), at=0),
    ),
    raises=(("Mary", 1.74), ("<i>", 0.5)),
    lowers=(("John", -0.31), ("t-shirt", -0.2)),
)
SILENT = Dashboard(3, 0.0, (0, 0, 0, 0), 0.0, (), (("a", 0.1),), (("b", -0.1),))
OTHER = dataclasses.replace(MARY, latent=12, examples=(Example(("to", "Lima"), (0.0, 4.0), at=1),))


def board(dashboards=(MARY, SILENT, OTHER), label="Latents", alt="Dashboards of some latents", **more) -> str:
    return dashboard_viewer(dashboards, label=label, alt=alt, **more)


def like_mary(**changed) -> dict:
    return {"dashboards": (SILENT, dataclasses.replace(MARY, **changed))}


def saying(words: tuple[str, ...], activations: tuple[float, ...], at: int = 0) -> dict:
    return like_mary(examples=(*MARY.examples, Example(words, activations, at)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dashboards": ()}, "no latent to show: give at least one"),
        ({"titles": ["one"]}, "titles must be 3, one for each latent: got 1"),
        ({"notes": ["one"] * 4}, "notes must be 3.*got 4"),
        (saying(("a",), (1.0, 2.0)), "latent 7: one activation for each word: got 2 for 1 words"),
        (saying((), ()), "at must be from 0 to -1 in a text of 0 words"),
        (saying(("a", "b"), (1.0, 0.0), 2), "at must be from 0 to 1 in a text of 2 words: got 2"),
        (saying(("a", "b"), (1.0, 0.0), -1), "at must be"),
        (saying(("a",), (math.nan,)), "latent 7: all numbers must be finite"),
        (saying(("a",), (math.inf,)), "finite"),
        (like_mary(largest=math.inf), "finite"),
        (like_mary(rate=math.nan), "finite"),
        (like_mary(raises=(("x", math.nan),)), "finite"),
        (like_mary(lowers=(("x", -math.inf),)), "finite"),
        (like_mary(rate=1.25), "rate must be a share, from 0 to 1: got 1.25"),
        (like_mary(histogram=(3, -1)), r"counts, none below 0: got \[3, -1\]"),
        (like_mary(largest=7.5), "largest must be that of all texts, here at least 8: got 7.5"),
        (saying(("a",), (-0.5,)), "activations must be 0 or more, as a latent's are: got -0.5"),
    ],
)
def test_the_dashboard_refuses(untyped, arguments, message):
    with pytest.raises(ValueError, match=message):
        board(**arguments)


def test_what_the_dashboard_writes():
    text = board(titles=["Mary < all", "silence", "other"], notes=["F1 > 0.8", "", ""])
    assert text.count("Mary &lt; all") == 3  # at the choice, as the region's name, and above it
    assert "<p>F1 &gt; 0.8</p>" in text
    assert "On at 1.2 % of the tokens." in text
    assert "Never on in these texts." in text
    assert "Mary\u00a0+1.74, &lt;i&gt;\u00a0+0.50" in text
    assert "John\u00a0\u22120.31, t-shirt\u00a0\u22120.20" in text
    assert '<span class="ie-at" title="8.00" style="--on:1.00">to</span> <span>&lt;/b&gt;</span>' in text
    assert '<span>a</span> <span title="2.00" style="--on:0.25">book</span>' in text
    assert '<span class="ie-at" title="1.00" style="--on:0.12">\u21b5</span>' in text
    assert '<span title="0.004" style="--on:0.00">&lt;|endoftext|&gt;</span>' in text, "0.00 would be off"
    assert text.count("<svg ") == 2  # the silent one has no histogram
    assert text.count("<rect ") == 2 * 3
    assert text.count("<script") == text.count("</script>") == 1
    assert "latent 12" in board()


@pytest.mark.parametrize(
    ("rate", "told"),
    [(1.0, "100 %"), (0.999, "more than 99 %"), (0.994, "99 %"), (0.0996, "10 %"), (0.0994, "9.9 %"), (0.0123, "1.2 %"),
     (0.0004, "0.04 %"), (1e-6, "less than 0.01 %")],
)  # fmt: skip
def test_how_often_a_latent_is_on(rate, told):
    assert f"On at {told} of the tokens." in board([dataclasses.replace(MARY, rate=rate)])


def test_tokens_that_bring_their_spaces_are_put_together_again():
    examples = (Example((" un", "believ", "able", ".", " Then"), (0.0,) * 5, at=1),)
    text = board([dataclasses.replace(MARY, examples=examples)])
    assert '<span>un</span><span class="ie-at">believ</span><span>able</span><span>.</span> <span>Then</span>' in text


def test_anything_with_these_attributes_will_do_and_a_latent_that_does_nothing():
    lists = SimpleNamespace(
        **{**vars(MARY), "examples": [SimpleNamespace(words=["a"], activations=[1.0], at=0)], "histogram": [1, 2]}
    )
    assert board([lists]) == board([SimpleNamespace(**vars(lists))]), "not the address in memory makes the id"
    assert "<rect " not in board([dataclasses.replace(MARY, histogram=(0, 0))])
    assert "<dt>" not in board([dataclasses.replace(SILENT, raises=(), lowers=())])


def test_the_same_dashboards_give_the_same_html_and_others_another_id():
    others = [
        board(),
        board((MARY,)),
        board(label="x"),
        board(alt="x"),
        board(titles=["a", "b", "c"]),
        board(notes=["a", "b", "c"]),
        board(**like_mary(largest=9.0)),
    ]
    assert board() == board()
    assert len({re.search(r'id="(ie-\w{8})"', html)[1] for html in others}) == len(others)


def large(n: int) -> list[Dashboard]:
    """As many as these, as large as chapter 11's: ten texts of thirteen words, four of which the latent is on."""
    text = Example(tuple(f"word{i}" for i in range(13)), (0.0, 0.5, 8.0, 2.0) + (0.0,) * 8 + (1.0,), at=2)
    told = tuple((f"word{i}", 1.0) for i in range(8))
    return [dataclasses.replace(MARY, latent=i, examples=(text,) * 10, raises=told, lowers=told, histogram=(5,) * 20) for i in range(n)]  # fmt: skip


def test_size_of_dashboards():
    assert 20_000 < len(board(large(6)).encode()) < 55_000


# What a reader sees and hears of dashboards


@pytest.fixture
def boards_page(show) -> Page:
    return show(board())


def told(page: Page) -> str:
    return page.locator("section:visible .ie-said").inner_text()


def test_one_latent_at_a_time_by_mouse_and_keyboard(boards_page):
    regions = [boards_page.get_by_role("region", name=f"latent {i}", exact=True) for i in (7, 3, 12)]

    def visible() -> list[bool]:
        return [region.is_visible() for region in regions]

    assert visible() == [True, False, False]
    boards_page.get_by_role("radio", name="latent 3").click()
    assert visible() == [False, True, False]
    boards_page.keyboard.press("ArrowRight")
    assert visible() == [False, False, True]
    assert told(boards_page) == '"Lima": 4.00, 50 % of the latent’s largest, 8.00'
    boards_page.keyboard.press("ArrowRight")
    assert visible() == [True, False, False]
    expect(boards_page.get_by_role("group", name="Dashboards of some latents")).to_be_visible()


def test_the_histogram_in_words_and_bars(boards_page):
    drawing = boards_page.get_by_role("img")
    assert drawing.count() == 1, "of the chosen latent alone"
    assert drawing.get_attribute("aria-label") == (
        "Histogram of 1005 activations above 0, most common near 7.00. Counts in 4 equal bins up to 8.00: 4, 0, 1, 1000"
    )
    bars = drawing.locator("rect").evaluate_all("list => list.map(e => [e.x.baseVal.value, e.height.baseVal.value])")
    assert bars == [pytest.approx(bar) for bar in ([0, 0.6], [50, 0.6], [75, 30])], "few are seen, none is not there"
    assert boards_page.locator("figcaption:visible span").all_inner_texts() == [
        "0",
        "1,005 activations above 0",
        "8.00",
    ]


def test_what_the_colours_of_a_text_show(boards_page):
    words = boards_page.get_by_role("gridcell")
    assert words.all_inner_texts() == ["a", "book", "to", "</b>", "↵", "Mary", "<|endoftext|>"]
    style = "list => list.map(e => { const s = getComputedStyle(e); return [s.backgroundColor, s.boxShadow, s.fontWeight]; })"
    colours, lines, weights = zip(*words.evaluate_all(style), strict=True)
    alphas = [float(c.split(", ")[3].rstrip(")")) for c in colours]
    assert alphas == pytest.approx([0, 0.15, 0.6, 0, 0.072, 0, 0], abs=0.003)
    assert [line != "none" for line in lines] == [False, True, True, False, True, False, True], "underlined if on"
    assert [weight == "700" for weight in weights] == [False, False, True, False, True, False, False]


def test_every_word_of_a_text_is_heard_with_its_activation(boards_page):
    assert boards_page.get_by_role("grid").count() == 1
    assert [row.get_attribute("aria-label") for row in boards_page.get_by_role("rowheader").all()] == [
        "8.00 at to",
        "1.00 at ↵",
    ]
    names = boards_page.get_by_role("gridcell").evaluate_all("list => list.map(e => e.getAttribute('aria-label'))")
    assert names == ["a, off", "book, 2.00", "to, 8.00", "</b>, off", "↵, 1.00", "Mary, off", "<|endoftext|>, 0.004"]


def test_every_word_of_a_text_by_keyboard(boards_page):
    press = boards_page.keyboard.press
    assert told(boards_page) == '"to": 8.00, 100 % of the latent’s largest, 8.00'
    press("Tab")
    press("Tab")
    assert focused(boards_page) == "to, 8.00"
    steps = [
        ("ArrowUp", '"to": 8.00'),
        ("ArrowRight", '"</b>": the latent is off'),
        ("ArrowRight", '"</b>": the latent is off'),
        ("Home", '"a": the latent is off'),
        ("ArrowLeft", '"a": the latent is off'),
        ("ArrowDown", '"↵": 1.00, 12 % of'),
        ("ArrowDown", '"↵": 1.00, 12 % of'),
        ("End", '"<|endoftext|>": 0.004, under 1 % of'),
        ("Control+Home", '"<|endoftext|>": 0.004'),
        ("ArrowUp", '"to": 8.00'),
        ("ArrowLeft", '"book": 2.00, 25 % of'),
    ]
    for key, text in steps:
        press(key)
        assert told(boards_page).startswith(text), key
        chosen = "document.activeElement.matches('[role=gridcell][aria-selected=true][tabindex=\"0\"].ie-shown')"
        assert boards_page.evaluate(chosen), key
    assert boards_page.locator(":focus").evaluate("e => getComputedStyle(e).outline").endswith("solid 3px")
    assert boards_page.locator("section:visible [tabindex='0']").count() == 1
    press("Tab")
    assert boards_page.evaluate("document.activeElement.closest('.ie-viewer')") is None, "one stop for all words"


def test_the_mouse_looks_at_a_word_and_a_click_or_a_tap_chooses(boards_page):
    def word(name: str):
        return boards_page.get_by_role("gridcell", name=name)

    word("book").hover()
    assert told(boards_page).startswith('"book": 2.00')
    boards_page.mouse.move(1, 1)
    assert told(boards_page).startswith('"to": 8.00')
    word("Mary").click()
    boards_page.mouse.move(1, 1)
    assert told(boards_page) == '"Mary": the latent is off'
    word("book").hover()
    boards_page.keyboard.press("ArrowLeft")
    assert told(boards_page).startswith('"↵": 1.00'), "the keyboard wins over a mouse that lies still"
    word("book").tap()
    assert told(boards_page).startswith('"book": 2.00')


def test_two_boards_on_a_page_do_not_disturb_each_other(show):
    page = show(board() + board(label="Other"))
    page.get_by_role("radio", name="latent 3").nth(1).click()
    assert page.get_by_role("region", name="latent 7", exact=True).count() == 1
    assert page.get_by_role("region", name="latent 3", exact=True).count() == 1


def test_awkward_words_of_a_dashboard_are_shown_as_they_are(show):
    words = ("<b>", "the", "\n", " ", "$id", '"&amp;\\\u2028x', "</script>", "<!--")
    examples = (Example(words, (1.0,) * len(words), at=5),)
    shown = dataclasses.replace(MARY, examples=examples, raises=((words[5], 1.0),))
    page = show(board([shown], titles=['a < b & "c"'], notes=["$id </p>"], label='l < "m"', alt='so-called "latents"'))
    seen = page.get_by_role("gridcell").evaluate_all("list => list.map(e => e.textContent)")
    assert seen == ["<b>", "the", "↵", "␣", "$id", words[5], "</script>", "<!--"]
    assert told(page).startswith('""&amp;\\')
    assert page.get_by_role("region", name='a < b & "c"').count() == 1
    assert page.get_by_role("radio", name='a < b & "c"').count() == 1
    assert page.locator(".ie-title").inner_text() == 'l < "m"'
    assert page.locator(".ie-viewer").get_attribute("aria-label") == 'so-called "latents"'
    assert page.get_by_text("$id </p>").count() == 1


@pytest.mark.parametrize("state", ["at rest", "hovered", "silent"])
def test_the_dashboard_is_accessible(show, axe, state):
    words = tuple(f"word{i}" for i in range(10))
    deep = dataclasses.replace(MARY, examples=(Example(words, (8.0,) * 5 + (0.0,) * 5, at=0),))
    page = show(board((deep, SILENT), notes=["A note", ""]))
    page.keyboard.press("Tab")
    if state == "hovered":
        page.get_by_role("gridcell").nth(3).hover()
    if state == "silent":
        page.keyboard.press("ArrowRight")
    page.evaluate(axe)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        violations = page.evaluate(test_site.AXE)
        assert not violations, "\n".join(violations)
    if state != "silent":
        legible = "axe.run({runOnly: ['color-contrast']}).then(r => r.passes.flatMap(p => p.nodes.map(n => n.html)))"
        judged = [html for html in page.evaluate(legible) if 'role="gridcell"' in html]
        assert len(judged) == len(words), "axe has not judged every word"


def test_dashboards_fit_a_phone(show):
    long = "antidisestablishmentarianism" * 3
    text = Example((long, "to", *(f"word{i}" for i in range(20))), (4.0,) * 22, at=0)
    shown = dataclasses.replace(MARY, examples=(text,) * 3, raises=((long, 1.0),) * 3)
    page = show(board([shown] * 12, titles=[f"latent {i}" for i in range(11)] + [long], notes=[long] * 12))
    page.set_viewport_size(test_site.PHONE)
    for radio in ("latent 0", long):
        page.get_by_role("radio", name=radio, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= test_site.PHONE["width"]
        figure, lists = (page.locator(f"section:visible {tag}").bounding_box() for tag in ("figure", "dl"))
        assert lists["y"] > figure["y"] + figure["height"], "the lists stand below the histogram"
        assert page.evaluate(test_site.STICKING_OUT) == []
    sizes = "list => list.filter(e => Math.min(e.offsetWidth, e.offsetHeight) < 22).length"
    assert page.locator("label").evaluate_all(sizes) == 0, "too small for a finger"


def test_without_scripts_all_latents_stand_below_each_other(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(board())
    assert [region.is_visible() for region in page.get_by_role("region").all()] == [True] * 3
    assert page.get_by_title("2.00").first.inner_text() == "book"
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_its_own(browser, axe, tmp_path, scheme):
    save_page(tmp_path / "latents.html", board(notes=["≥ ½", "", ""]), "Latents < all")
    context = browser.new_context(color_scheme=scheme, viewport=test_site.PHONE)
    page = context.new_page()
    page.goto((tmp_path / "latents.html").as_uri())
    expect(page).to_have_title("Latents < all")
    expect(page.get_by_role("region", name="latent 7")).to_be_visible()
    expect(page.get_by_text("≥ ½")).to_be_visible()
    ink = page.locator(".ie-title").evaluate("e => getComputedStyle(e).color")
    assert ink == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") <= test_site.PHONE["width"]
    page.evaluate(axe)
    violations = page.evaluate(test_site.AXE)
    context.close()
    assert not violations, "\n".join(violations)
