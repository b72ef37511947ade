"""The page in headless Chromium: typing, languages, alternatives, alignments, the keyboard, layouts and colours."""

import dataclasses
import json
import runpy
from types import SimpleNamespace

import pytest
from support.browser import CHROMIUM, open_browser
from support.http_server import hold_batches, serve
from support.paths import ROOT
from support.tiny_models import config, random_model

import mlx_transformer as mt

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

TIRED = "I am very tired today."
TRANSLATED = "Je suis très fatigué aujourd'hui."
WORDS = "[...document.querySelectorAll('#target [role=button]')]"
FRESH = "!document.querySelector('.stale')"
FOCUSED = "document.activeElement"
OPTIONS = "[...document.querySelectorAll('#alternatives:not([hidden]) li')].map(option => option.textContent)"
MARKED = (
    "['#mirror', '#target'].map(id => [...document.querySelectorAll(`${id} .aligned`)].map(word => word.textContent))"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, client):
    open_page(browser, client)
    return browser


def open_page(browser, client, **options):
    browser.open(f"{client.url}/", **options)
    browser.wait(FRESH)


def type_text(page, text):
    page.evaluate("document.querySelector('#source').focus()")
    page.type(text)
    assert not page.evaluate(FRESH)
    page.wait(FRESH)


def text_of(page, selector="#target"):
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def word(number):
    return f"{WORDS}[{number}]"


def requests(page, client):
    return [url for url in page.urls() if url == f"{client.url}/page/translate"]


def test_typed_text_is_translated_and_nothing_comes_from_other_hosts(page, client, bundled):
    text = "Good morning!\nI love you."
    page.evaluate(f"""(async () => {{
        for (const character of {json.dumps(text)}) {{
            source.value += character;
            source.dispatchEvent(new Event("input"));
            await new Promise((resolve) => setTimeout(resolve, 20));
        }}
    }})()""")
    page.wait(FRESH)
    assert text_of(page) == "\n".join(mt.generate(*bundled, ["Good morning!", "I love you."]))
    assert 1 <= len(requests(page, client)) < len(text) / 4  # it waits for a pause
    assert page.problems() == []
    assert {url.split("/")[2] for url in page.urls()} == {client.url.split("/")[2]}


def test_the_last_text_wins(page, client, bundled):
    page.evaluate("""{
        const send = fetch;
        let delay = 1000;
        window.fetch = async (...options) => {
            await new Promise((resolve) => setTimeout(resolve, delay));
            delay = 0;
            return send(...options);
        };
        const change = (text) => { source.value = text; source.dispatchEvent(new Event("input")); };
        change("Good morning!");
        setTimeout(() => { delay = 0; change("I love you."); }, 500);
        new Promise((resolve) => setTimeout(resolve, 1700));
    }""")
    page.wait(FRESH)
    assert text_of(page) == mt.generate(*bundled, "I love you.")


def test_an_empty_text_has_no_result(page):
    type_text(page, TIRED)
    assert not page.evaluate("copy.disabled")
    page.evaluate("source.value = ' '; source.dispatchEvent(new Event('input'))")
    page.wait(FRESH)
    assert text_of(page) == "" and page.evaluate("copy.disabled")


def test_text_is_never_html(page):
    text = "<img src=x onerror=alert(1)> <b>I love you.</b> &amp; <script>alert(2)</script>"
    type_text(page, text)
    assert text_of(page, "#mirror") == text + "\n"
    assert page.evaluate("document.querySelectorAll('main :is(img, b, script)').length") == 0
    assert page.problems() == []


def test_aligned_words_are_marked_from_both_sides(page):
    type_text(page, f"Good morning!\n{TIRED}")
    page.point(word(5))
    assert page.evaluate(MARKED) == [["tired"], ["fatigué"]]
    page.point("[...mirror.querySelectorAll('span')][4]")  # it lies under the text field
    assert page.evaluate(MARKED) == [["very"], ["très"]]
    page.point("document.querySelector('h1')")
    assert page.evaluate(MARKED) == [[], []]


def test_the_word_at_the_caret_is_marked(page):
    type_text(page, TIRED)
    page.press("ArrowLeft", "ArrowLeft")
    assert page.evaluate(MARKED) == [["today."], ["aujourd'hui."]]


def test_an_alternative_is_chosen_by_clicks_and_kept(page, client):
    type_text(page, f"{TIRED}\nGood morning!")
    page.point(word(2), click=True)
    options = page.wait(f"{OPTIONS}.length && {OPTIONS}")
    assert "fort fatigué aujourd'hui." in options and len(options) == len(set(options))
    assert "très fatigué aujourd'hui." not in options
    assert page.evaluate(MARKED) == [["very"], ["très"]]  # also while the list is open
    page.point(
        f"[...alternatives.children][{options.index('vraiment très fatigué aujourd' + chr(39) + 'hui.')}]", click=True
    )
    chosen = "Je suis vraiment très fatigué aujourd'hui."
    assert text_of(page).split("\n")[0] == chosen
    page.point(word(4))
    assert page.evaluate(MARKED) == [["tired"], ["fatigué"]]  # the alternative brought its alignment
    type_text(page, " I love you.")
    assert text_of(page).split("\n")[0] == chosen


def test_everything_works_by_the_keyboard(page):
    assert page.evaluate(f"{FOCUSED}.id") == "source"
    type_text(page, TIRED)
    page.press("Tab")
    assert page.evaluate(f"{FOCUSED}.id") == "copy"
    page.press("Tab")
    assert page.evaluate(f"{FOCUSED}.textContent") == "Je"
    page.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert page.evaluate(MARKED) == [["very"], ["très"]]
    page.press("Enter")
    options = page.wait(f"{OPTIONS}.length && {OPTIONS}")
    assert page.evaluate(f"{FOCUSED}.textContent") == options[0]
    page.press("Escape")
    assert page.evaluate(OPTIONS) == [] and page.evaluate(f"{FOCUSED}.textContent") == "très"
    page.press(" ")
    page.wait(f"{OPTIONS}.length")
    page.press("ArrowDown", "ArrowDown", "ArrowUp", "Enter")
    assert text_of(page) == f"Je suis {options[1]}" != TRANSLATED
    assert page.evaluate(f"{WORDS}.indexOf({FOCUSED})") == 2
    page.press("Tab")
    assert page.evaluate(f"{WORDS}.indexOf({FOCUSED})") == -1  # the words are one stop


def test_keys_with_modifiers_belong_to_the_browser(page):
    type_text(page, TIRED)
    page.press("Tab", "Tab")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", modifiers=2)  # Control
    assert page.evaluate(f"{FOCUSED}.textContent") == "Je"


def test_text_from_right_to_left_is_marked_where_it_stands(page):
    type_text(page, "שלום עולם\nGood morning!")
    hebrew, english = (f"mirror.querySelectorAll('span')[{number}].getBoundingClientRect()" for number in (0, 2))
    assert page.evaluate(f"innerWidth / 2 - {hebrew}.right") < 50  # the first word is at the right of its pane
    assert page.evaluate(f"{english}.left") < 50
    styles = "['direction', 'unicodeBidi', 'textAlign'].map(name => getComputedStyle(pane)[name])"
    source, mirror = page.evaluate(f"[source, mirror].map(pane => {styles})")
    assert source == mirror == ["rtl", "plaintext", "start"]


def test_arrow_keys_follow_the_direction_of_the_text(page):
    type_text(page, TIRED)
    page.evaluate("target.dir = 'rtl'")
    page.press("Tab", "Tab", "ArrowLeft")
    assert page.evaluate(f"{FOCUSED}.textContent") == "suis"
    page.press("ArrowRight")
    assert page.evaluate(f"{FOCUSED}.textContent") == "Je"


def test_a_slow_server_is_waited_for_visibly(page, client):
    status = "document.querySelector('#status').textContent"
    with hold_batches(client):
        page.type(TIRED)
        page.wait(f"{status} == 'Translating …'")
    page.wait(FRESH)
    assert page.evaluate(status) == ""


def test_the_result_is_copied(page, browser, client):
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    type_text(page, f"Good morning!\n{TIRED}")
    page.point("copy", click=True)
    page.wait("document.querySelector('#status').textContent == 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == text_of(page)


def test_the_result_is_copied_where_the_clipboard_is_closed(page):
    """As to pages of plain HTTP from other machines."""
    type_text(page, TIRED)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.point("copy", click=True)
    page.wait("document.querySelector('#status').textContent == 'Copied.'")
    page.evaluate("source.select(), source.focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="v", commands=["paste"])
    assert page.evaluate("source.value") == TRANSLATED


def test_controls_have_names(page):
    type_text(page, TIRED)
    page.point(word(2), click=True)
    page.wait(f"{OPTIONS}.length")
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    names = {(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node}
    expected = {
        ("textbox", "Text to translate"),
        ("button", "Copy"),
        ("group", "Translation"),
        ("listbox", "Alternatives"),
    }
    assert expected <= names
    assert {("button", "très"), ("option", "fort fatigué aujourd'hui."), ("region", "English")} <= names
    controls = {"textbox", "button", "option", "combobox", "listbox", "group"}
    assert not [role for role, name in names if role in controls and not name]


def test_one_pair_of_languages_is_named_and_several_are_chosen(browser, bundled):
    with serve(lambda name: bundled, ("en-fr=a", "en-de=b", "fr-en=c")) as client:
        open_page(browser, client)
        choices = "[...document.querySelectorAll('select:not([hidden])')].map(s => [...s.options].map(o => o.text))"
        assert browser.evaluate(choices) == [["English", "French"], ["French", "German"]]
        type_text(browser, TIRED)
        browser.evaluate("selects = document.querySelectorAll('select'); selects[0].value = 'fr'")
        browser.evaluate("selects[0].dispatchEvent(new Event('change'))")
        browser.wait(FRESH)
        assert browser.evaluate(choices) == [["English", "French"]]
        assert text_of(browser, "#target-title") == "English"
        assert browser.evaluate("[source.lang, target.lang]") == ["fr", "en"]
    model, tokenizer = bundled
    without = mt.Tokenizer(tokenizer.source, None, dataclasses.replace(tokenizer.config, language_pair=None))
    with serve(lambda name: (model, without), ("a",)) as client:
        open_page(browser, client)
        assert browser.evaluate(choices) == [] and text_of(browser, "#source-title") == "Text"
        type_text(browser, TIRED)
        assert text_of(browser) == TRANSLATED


def test_chosen_languages_are_remembered(browser, bundled):
    with serve(lambda name: bundled, ("en-fr=a", "en-de=b", "fr-en=c")) as client:
        open_page(browser, client)
        values = "[...document.querySelectorAll('select')].map(select => select.value)"
        assert browser.evaluate(values) == ["en", "fr"]
        target = "document.querySelector('#target-language')"
        browser.evaluate(f"{target}.value = 'de', {target}.dispatchEvent(new Event('change'))")
        open_page(browser, client)
        assert browser.evaluate(values) == ["en", "de"]


def test_the_first_target_is_the_language_of_the_browser(browser, bundled):
    with serve(lambda name: bundled, ("en-fr=a", "de-fr=b", "de-en=c", "en-de=d")) as client:
        values = "[...document.querySelectorAll('select')].map(select => select.value)"
        for agent, expected in (("de-AT,fr", ["en", "de"]), ("en-US", ["en", "fr"]), ("fr", ["en", "fr"])):
            browser.call("Emulation.setUserAgentOverride", userAgent="", acceptLanguage=agent)
            open_page(browser, client)
            assert browser.evaluate(values) == expected
        browser.call("Emulation.setUserAgentOverride", userAgent="", acceptLanguage="en")


def test_the_languages_of_a_multilingual_model_are_listed_once(browser):
    codes = ["eng_Latn", "fra_Latn", "zho_Hans", "zho_Hant", "pt_XX", "sw_KE"]
    tokenizer = mt.Tokenizer.train(["a b c"], ["a b c"], 320, source_languages=codes, target_languages=codes)
    size = tokenizer.source_vocab_size
    model = random_model(config(source_vocab_size=size, target_vocab_size=size))
    with serve(lambda name: (model, tokenizer), ["many"]) as client:
        open_page(browser, client)
        names = browser.evaluate("[...document.querySelectorAll('#source-language option')].map(o => o.text)")
        assert names == ["Chinese (simplified)", "Chinese (traditional)", "English", "French", "Portuguese", "Swahili"]
        browser.type("a b c")
        browser.wait(f"{FRESH} || document.querySelector('#status').textContent.length > 0")
        assert browser.evaluate("document.querySelector('#status').textContent") == ""


def test_errors_are_shown_and_a_key_is_asked_for(browser, bundled):
    with serve(lambda name: bundled, api_keys=("secret",), max_characters=30) as client:
        open_page(browser, client)
        status = "document.querySelector('#status.error')?.textContent"
        browser.type(TIRED)
        assert browser.wait(status) == "This server needs an API key."
        browser.evaluate("key.focus()")
        browser.type("secret")
        browser.press("Tab")
        browser.wait(FRESH)
        assert text_of(browser) == TRANSLATED and not browser.evaluate(status)
        browser.evaluate("source.focus()")
        browser.type(TIRED)
        assert "at most 30 characters" in browser.wait(status)
    browser.type(TIRED)
    browser.wait(f"{status} == 'The server does not answer.'")


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1), (320, 1)])
def test_the_layout_fits_the_screen(browser, client, width, columns):
    open_page(browser, client, width=width, height=800)
    type_text(browser, f"{'x' * 60}\n" + f"{TIRED}\n" * 6)
    browser.point(word(4), click=True)
    browser.wait(f"{OPTIONS}.length")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("new Set([...document.querySelectorAll('section')].map(s => s.offsetLeft)).size") == columns
    assert browser.evaluate("source.scrollHeight <= source.clientHeight")  # the text field is as high as its text
    right = browser.evaluate("alternatives.getBoundingClientRect().right")
    assert 0 < right <= width


def test_the_picture_of_the_page_is_drawn_from_it(browser, client, tmp_path):
    """Fonts differ between machines, so that only its size and kind are those of the picture in the documentation."""
    draw_page = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "images" / "draw_page.py")))
    draw_page.draw(browser, f"{client.url}/", tmp_path / "page.png")
    stored, drawn = ((folder / "page.png").read_bytes() for folder in (ROOT / "docs" / "images", tmp_path))
    assert stored[:24] == drawn[:24]  # the header of a PNG, with width and height


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_colour_schemes(browser, client, dark):
    open_page(browser, client, dark=dark)
    colours = browser.evaluate("""(() => {
        const canvas = document.createElement("canvas").getContext("2d");
        const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(["ground", "pane", "text", "quiet", "mark", "error", "accent"].map((name) => {
            canvas.fillStyle = style.getPropertyValue(`--${name}`);
            canvas.fillRect(0, 0, 1, 1);
            return [name, [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)];
        }));
    })()""")
    assert (luminance(colours["pane"]) < 0.1) is dark
    pairs = [("text", "ground"), ("text", "pane"), ("text", "mark"), ("quiet", "ground"), ("error", "ground")]
    for text, ground in pairs:
        low, high = sorted(luminance(colours[name]) for name in (text, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, level AA


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
