"""Subtitles, .srt and .vtt: the lines of each cue are translated; times, settings, notes and styles stay.

The files are split at blank lines here, because pysubs2 drops the notes, styles and cue settings of WebVTT.
"""

import html
import re
from collections.abc import Callable, Iterator

from mlx_transformer.documents.content import LINE_BREAK, Closing, Content, Inline, Opening, nest, plain_text, write
from mlx_transformer.documents.translator import Translator

LINE_LENGTH = 42  # characters, as most guidelines for subtitles ask for
MAX_LINES = 2
TIMES = re.compile(r"\s*(?:\d+:)?\d+:\d+[.,]\d+\s*-->")
TAG = re.compile(r"(<(/?)([A-Za-z]\w*)[^<>]*>|<[\d:.]+>|\{\\[^{}]*\})")  # the last one as in ASS, such as {\an8}
# A line of another speaker begins with a dash, with >>, with a name in capitals or with both: "- MARY: On the table."
NAME = r"[A-ZÀ-ÖØ-Þ][A-ZÀ-ÖØ-Þ\d .'’#-]*:\s+"
SPEAKER = re.compile(rf"\s*(?:(?:[-–—]|(?:>|&gt;){{2,}})\s*(?:{NAME})?|{NAME})(?=\S)")
VOICE = re.compile(r"\s*<v[.\s]")  # a tag of WebVTT with the name of a speaker
SOUND = re.compile(r"\s*(?:\[[^\]]*\]|\([^)]*\))\s*")  # what is heard beside speech, on a line of its own


def translate_srt(text: str, name: str, translator: Translator) -> str:
    """Translate the cues of a SubRip file."""
    return _translate_cues(text, name, translator, str, str)


def translate_vtt(text: str, name: str, translator: Translator) -> str:
    """Translate the cues of a WebVTT file."""
    if not text.startswith("WEBVTT"):
        raise ValueError(f"{name} must be WebVTT, which begins with WEBVTT: check the file's ending.")
    return _translate_cues(text, name, translator, html.unescape, lambda part: html.escape(part, quote=False))


def _translate_cues(
    text: str, name: str, translator: Translator, unescape: Callable[[str], str], escape: Callable[[str], str]
) -> str:
    line_end = "\r\n" if "\r\n" in text else "\n"
    lines = text.replace("\r\n", "\n").split("\n")
    cues = list(_find_cues(lines))
    if not cues and text.strip() and not text.startswith("WEBVTT"):
        raise ValueError(f"{name} must have subtitles with times such as 00:00:01,000 --> 00:00:02,000: it has none.")
    parts = [[_split_edges(part) for part in _sentences_of(lines[start:end])] for start, end in cues]
    sentences = [[parse_tags(part, unescape) for _, part, _ in cue] for cue in parts]
    translated = iter(translator.translate_contents(part for cue in sentences for part in cue))
    output, position = [], 0
    for (start, end), cue, edges in zip(cues, sentences, parts, strict=True):
        targets = [next(translated) for _ in cue]
        texts = [first + write(each, escape) + last for (first, _, last), each in zip(edges, targets, strict=True)]
        new = [line for target in texts for line in wrap(target, LINE_LENGTH)]
        new = lines[start:end] if targets == cue else new
        too_long = any(len(plain_text(parse_tags(line, unescape))) > LINE_LENGTH for line in new)
        translator.report.long_cues += targets != cue and (too_long or len(new) > MAX_LINES)
        output += [*lines[position:start], *new]
        position = end
    return line_end.join([*output, *lines[position:]])


def _find_cues(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the first line of each cue's text, and the line behind its last."""
    position = 0
    while position < len(lines):
        position += 1
        if TIMES.match(lines[position - 1]):
            start = position
            while position < len(lines) and lines[position].strip() and not _begins_cue(lines[position : position + 2]):
                position += 1
            if position > start:
                yield start, position


def _begins_cue(lines: list[str]) -> bool:
    """Whether a line and the one behind it begin a cue, before which a blank line is missing."""
    first, *following = lines
    return TIMES.match(first) is not None or (first.strip().isdigit() and any(map(TIMES.match, following)))


def _sentences_of(lines: list[str]) -> list[str]:
    """Join the lines of a cue, except where another speaker begins, and around sounds in brackets."""
    sentences: list[str] = []
    starts = True
    for line in lines:
        is_sound = SOUND.fullmatch(line) is not None
        if starts or is_sound or SPEAKER.match(line) or VOICE.match(line):
            sentences.append(line.strip())
        else:
            sentences[-1] += f" {line.strip()}"
        starts = is_sound
    return sentences


def _split_edges(text: str) -> tuple[str, str, str]:
    """Split off the dash or name at the beginning of a text, with its space, or the brackets around a sound."""
    if SOUND.fullmatch(text):
        return text[0], text[1:-1], text[-1]
    match = SPEAKER.match(text)
    return (match[0], text[match.end() :], "") if match else ("", text, "")


def parse_tags(text: str, unescape: Callable[[str], str] = str) -> Content:
    """Return a text with tags such as <i> and </i> as content."""
    pieces: list[str | Inline | Opening | Closing] = []
    position = 0
    for match in TAG.finditer(text):
        pieces.append(unescape(text[position : match.start()]))
        markup, slash, name = match[0], match[2], match[3]
        if LINE_BREAK.fullmatch(markup):
            pieces.append(Inline((markup, ""), is_break=True))
        elif not name or markup.endswith("/>"):
            pieces.append(Inline((markup, "")))
        else:
            pieces.append(Closing(name, markup) if slash else Opening(name, markup))
        position = match.end()
    return nest([*pieces, unescape(text[position:])])


def wrap(text: str, width: int) -> list[str]:
    """Break a text at spaces into as few lines of similar length as its width allows; tags have no width."""
    words = re.findall(r"(?:<[^<>]*>|\{\\[^{}]*\}|\S)+", text)
    lengths = [len(TAG.sub("", word)) for word in words]
    num_lines = max(len(_fill(words, lengths, width)), 1)
    tries = (_fill(words, lengths, limit) for limit in range(1, width + 1))
    return next(lines for lines in tries if len(lines) <= num_lines) or [""]


def _fill(words: list[str], lengths: list[int], limit: int) -> list[str]:
    """Put as many words on each line as fit."""
    lines: list[str] = []
    room = -1
    for word, length in zip(words, lengths, strict=True):
        if lines and length < room:
            lines[-1] += f" {word}"
            room -= length + 1
        else:
            lines.append(word)
            room = limit - length
    return lines
