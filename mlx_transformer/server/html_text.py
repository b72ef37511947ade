"""The text of HTML between its tags, which stay as they are, character for character."""

import re
from html.parser import HTMLParser

UNTRANSLATED = {"script", "style", "code", "pre", "kbd", "samp", "textarea", "svg", "math", "template"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class _TextFinder(HTMLParser):
    """Records where text and markup begin."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.starts: list[tuple[int, bool]] = []  # position, whether text begins there that may be translated
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._skipped: list[str] = []  # the untranslated element, and those of the same name inside it
        self.feed(text)
        self.close()

    def _record(self, is_text: bool) -> None:
        line, column = self.getpos()
        self.starts.append((self._line_starts[line - 1] + column, is_text and not self._skipped))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._record(False)
        opted_out = ("translate", "no") in attrs or "notranslate" in (dict(attrs).get("class") or "").split()
        if tag == self._skipped[0] if self._skipped else (tag in UNTRANSLATED or opted_out) and tag not in VOID:
            self._skipped.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._record(False)

    def handle_endtag(self, tag: str) -> None:
        self._record(False)
        if self._skipped and tag == self._skipped[0]:
            self._skipped.pop()

    def handle_data(self, data: str) -> None:
        self._record(True)

    def handle_charref(self, name: str) -> None:
        self._record(True)

    def handle_entityref(self, name: str) -> None:
        self._record(True)

    def handle_comment(self, data: str) -> None:
        self._record(False)

    def handle_decl(self, decl: str) -> None:
        self._record(False)

    def handle_pi(self, data: str) -> None:
        self._record(False)

    def unknown_decl(self, data: str) -> None:
        self._record(False)


def split_html(text: str) -> list[tuple[str, bool]]:
    """Split HTML into pieces that are either markup or text to translate; joined, they are the HTML.

    Text of UNTRANSLATED elements, and of elements with translate="no" or the class notranslate, counts as markup.
    """
    pieces: list[tuple[str, bool]] = []
    starts = [(0, False), *_TextFinder(text).starts, (len(text), False)]
    for (start, is_text), (end, _) in zip(starts, starts[1:], strict=False):
        if start == end:
            continue
        if pieces and pieces[-1][1] == is_text:
            pieces[-1] = (pieces[-1][0] + text[start:end], is_text)
        else:
            pieces.append((text[start:end], is_text))
    return pieces
