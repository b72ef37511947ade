"""Texts for testing tokenizers: scripts, whitespace, controls, text that looks like special tokens, random text."""

import random

SCRIPTS = [
    "The quick brown fox jumps over the lazy dog.",
    "L'été dernier, où étais-tu ? Çà et là, naïveté.",
    "Größe, Straße, Übermut: ÄÖÜ äöü ß ẞ",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "İstanbul'da ışık, ığdır; ŞĞÇ",
    "Tiếng Việt có dấu: ngữ, ượng, ệ",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΣΟΦΟΣ σοφός",
    "هذا نصٌّ عربيٌّ مُشَكَّل، وهذا رقم ١٢٣؟",
    "می‌خواهم به خانه بروم.",
    "עִבְרִית עם ניקוד, ובלי.",
    "मैं हिन्दी में लिखता हूँ। क्षत्रिय ज्ञान १२३",
    "বাংলা ভাষা, தமிழ் மொழி, తెలుగు",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "ལྷ་ས། မြန်မာ ភាសាខ្មែរ ລາວ",
    "我能吞下玻璃而不伤身体。「你好」，世界！",
    "私はガラスを食べられます。カタカナ、ﾊﾝｶｸ、ー。",
    "나는 유리를 먹을 수 있어요. 한국어",
    "ქართული, Հայերեն, አማርኛ, ⵜⴰⵎⴰⵣⵉⵖⵜ",
    "Ünïcödé mixed with русский и 中文 and العربية.",
]
EMOJI = [
    "👍🏽 👨‍👩‍👧‍👦 ❤️ 🏳️‍🌈 🇫🇷🇩🇪 1️⃣",
    "I ❤ NY 😀😀😀",
    "☎️☎︎ ♥♥️",
]
FORMS = [
    "e\u0301 é A\u030a Å o\u0302\u0323 ộ",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３！",
    "ﬁnal ﬂow ﬀ ǆ ĳ ℌ ① ² ½ ㎏ ™ … ‥ ﷺ",
    "ÅΩK ſ",
    "a\u0300\u0301\u0302\u0303\u0304 \u0301alone",
    "“curly” ‘quotes’ «guillemets» – — ― − ‐ ‑",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffmark",
    "soft\u00adhyphen",
    "\u202eright to left\u202c \u2066isolate\u2069",
]
SPACES = [
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    " leading",
    "trailing ",
    "  two  leading and  trailing  ",
    "a  b   c    d",
    "tab\tbetween\t\twords",
    "line\nbreak\n\nbreaks",
    "carriage\rreturn\r\nboth",
    "\nstarts and ends\n",
    "no\u00a0break\u00a0space \u202f narrow",
    "em\u2003quad\u2001thin\u2009hair\u200aideographic\u3000ogham\u1680math\u205f",
    "vertical\x0btab form\x0cfeed next\x85line sep\u2028para\u2029",
    "\u2581meta\u2581space \u2581 \u2581\u2581",
    " . , ; : ! ? ' \" ( ) ",
    "do n't ca n't I 'm you 're we 've it 's he 'll",
]
CONTROLS = [
    "nul\x00bell\x07escape\x1bdelete\x7f",
    "\x01\x02\x03",
    "c1\x80\x9f",
    "object\ufffcreplacement\ufffd",
    "private\ue000 \U000f0000 noncharacter \ufffe\uffff",
    "math 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜 𝟘 gothic 𐌰𐌱 cuneiform 𒀀 rare 𠮷",
]
SPECIALS = [
    "<s> </s> <pad> <unk> <mask>",
    "</s>",
    "a</s>b",
    "before <s>inside</s> after",
    " <mask> and <mask>",
    "x<mask>y  <mask>  z",
    "<extra_id_0> and <extra_id_99> or <extra_id_100>",
    "<extra_id_1>glued<extra_id_2>",
    ">>fra<< Hello",
    ">>fra<<Hello >>deu<<",
    "en_XX fr_XX de_DE eng_Latn fra_Latn",
    "__en__ __fr__ __java__ __start__ __end__ __unk__",
    "<2de> Hello",
    "<mask_1> <mask_2> <unk_2> <unk_102> <n> new<n>line",
    "<0x41> <0xFF>",
    "@@ continued@@ @@ joined",
    "[CLS] [SEP] [MASK] <|endoftext|>",
    "<S> </S> <PAD>",
    "< s > < /s >",
    "fullwidth ＜mask＞ and ＜/s＞",
]
PLAIN = [
    "Numbers 1 22 333 4444 3.14159 1,000,000 -5 +7 50% $3 €4 £5 ¥6",
    "CamelCase snake_case kebab-case UPPER lower",
    "https://example.org/path?query=a&b=c#part user@example.org",
    "if (x[i] == 0) { y += 1; } // comment",
    "abc" * 40,
    "!!!???...---___***",
    "a",
    "é",
    "的",
    "Hello , world .",
    "aa aaa aaaa aaaaa",
]
LONG = [
    "a long line of words " * 300,
    "長" * 2000,
    "x" * 3000,
    " " * 500 + "end",
]

TEXTS = [*SCRIPTS, *EMOJI, *FORMS, *SPACES, *CONTROLS, *SPECIALS, *PLAIN, *LONG]

# Training text of a small model: enough of each script to learn pieces longer than one character.
CORPUS = [text for text in (*SCRIPTS, *PLAIN, *FORMS, *EMOJI) if len(text) < 200] * 6 + [
    "this is a translation of the text into another language",
    "there is nothing better than a good translation",
    "ceci est une traduction du texte dans une autre langue",
    "dies ist eine Übersetzung des Textes in eine andere Sprache",
    "это перевод текста на другой язык",
] * 6

# Code point ranges of random texts.
BLOCKS = [(0x00, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F)]
BLOCKS += [(0x1E00, 0x1FFF), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x4EFF), (0xAC00, 0xACFF)]
BLOCKS += [(0xFE00, 0xFFEF), (0x1F300, 0x1F6FF), (0x20, 0x20), (0x20, 0x20), (0x61, 0x7A)]


def random_texts(count: int, seed: int = 0, max_length: int = 30) -> list[str]:
    """Return texts of random code points: a tenth from all of Unicode, the others from BLOCKS; no surrogates."""
    generator = random.Random(seed)

    def character() -> str:
        low, high = (0, 0x10FFFF) if generator.random() < 0.1 else generator.choice(BLOCKS)
        code = generator.randint(low, high)
        return chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd"

    return ["".join(character() for _ in range(generator.randint(1, max_length))) for _ in range(count)]


# Sentences of a small vocabulary, to train a tokenizer on.
ENGLISH = [f"the {animal} don't see {count} dogs." for animal in ("cat", "dog", "bird") for count in range(40)]
FRENCH = [f"l'{animal} n'a vu que {count} chiens !" for animal in ("oiseau", "âne", "ours") for count in range(40)]


def random_unicode(count: int) -> list[str]:
    """Return texts of random code points, mostly from outside the common scripts; no surrogates."""
    generator = random.Random(0)
    ranges = [(0, 0x7F), (0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x206F), (0xE000, 0x10FFFF)]
    ranges += [(0, 0xD7FF), (0x1F300, 0x1FAFF), (0x20, 0x20), (0x61, 0x7A)]

    def character() -> str:
        return chr(generator.randint(*generator.choice(ranges)))

    return ["".join(character() for _ in range(generator.randint(1, 20))) for _ in range(count)]
