"""Terms: found in sources, and counted in targets."""

import time
from pathlib import Path

import pytest

from mlx_transformer.config.terminology import PROTECTED_PATTERNS
from mlx_transformer.inference.terminology import Term, Terminology, missing_terms


def found(text, glossary=None, protect=tuple(PROTECTED_PATTERNS)):
    return [(text[term.start : term.end], term.target) for term in Terminology(glossary, protect).find(text)]


class TestFinding:
    @pytest.mark.parametrize(
        ("kind", "text", "expected"),
        [
            ("urls", "See https://a.example/b?c=1, or www.a.example.", ["https://a.example/b?c=1", "www.a.example"]),
            ("urls", "SEE HTTPS://A.EXAMPLE/B OR WWW.A.EXAMPLE.", ["HTTPS://A.EXAMPLE/B", "WWW.A.EXAMPLE"]),
            ("addresses", "Ask jo.doe+x@mail.example.org.", ["jo.doe+x@mail.example.org"]),
            (
                "placeholders",
                "{name}, {{x}} ${y} %{z} #{r} %s %(n)d %1$s 50% done 5%% {}",
                "{name} {{x}} ${y} %{z} #{r} %s %(n)d %1$s %% {}".split(),
            ),
            ("tags", 'A <b class="x">word</b> < 3 and > 2', ['<b class="x">', "</b>"]),
            (
                "urls",
                "Get ftp://a.example/x.zip, git+ssh://b.example.",
                ["ftp://a.example/x.zip", "git+ssh://b.example"],
            ),
            ("tags", "If x <y and z> w, <br/> </p>", ["<br/>", "</p>"]),
            ("paths", "See /usr/local/bin, ~/notes.txt and ./run.", ["/usr/local/bin", "~/notes.txt", "./run"]),
            ("paths", r"Open C:\Users\x.txt now, and/or 1/2/3; he/she.", [r"C:\Users\x.txt"]),
            ("handles", "Ask @tom about #MLX, not a@b.example, #1 or C#.", ["@tom", "#MLX"]),
            ("symbols", "20°C, 5 ° and #1: ♪ © → 😀👍🏽 a < b", ["20°C", "5 °", "#1", "♪", "©", "→", "😀👍🏽", "<"]),
            ("symbols", "& 50% + 3 * (2/1) at 5 - ok?", []),
            ("symbols", "# 5 for €5, $1,250.50 or 3.20 € each", ["# 5", "€5", "$1,250.50", "3.20 €"]),
            ("numbers", "12.50 and 555-1234, at 18:30 in A4: -5.", ["12.50", "555-1234", "18:30", "-5"]),
        ],
    )
    def test_protected_text_is_copied(self, kind, text, expected):
        assert found(text, protect=(kind,)) == [(part, part) for part in expected]

    def test_terms_of_a_glossary_are_whole_words_in_any_case(self):
        glossary = {"cat": "minet", "New York": "NYC", "york": "York", " C++ ": "C++ "}
        text = "Cats, a CAT in new york, York; C++."
        assert found(text, glossary) == [("CAT", "minet"), ("new york", "NYC"), ("York", "York"), ("C++", "C++")]

    def test_a_term_with_two_targets_is_an_error(self):
        with pytest.raises(ValueError, match="A term of a glossary must have one target, but 'dog' has two"):
            Terminology({"Dog": "chien", "dog": "toutou"})
        assert Terminology({"Dog": "chien", "dog": "chien"}).targets == {"dog": "chien"}

    def test_abbreviations_in_capitals_are_no_other_words(self):
        glossary = {"US": "États-Unis", "IT": "informatique", "it": "cela"}
        assert found("Tell us, it is an IT firm of the US.", glossary) == [
            ("it", "cela"),
            ("IT", "informatique"),
            ("US", "États-Unis"),
        ]

    def test_abbreviations_are_no_terms_of_a_text_in_capitals(self):
        glossary = {"US": "États-Unis", "IT": "informatique", "it": "cela"}
        assert found("CALL US NOW, IT RINGS", glossary) == [("IT", "CELA")]
        assert found("CALL US AT {name}", glossary, ()) == []

    def test_a_glossary_is_a_mapping(self):
        for glossary in ("g.tsv", Path("g.tsv"), [("a", "b")]):
            with pytest.raises(TypeError, match="glossary must be a mapping .* read a file of terms into a dict first"):
                Terminology(glossary)

    def test_terms_of_a_text_in_capitals_are_in_capitals(self):
        assert found("A Cat", {"cat": "minet"}) == [("Cat", "minet")]
        assert found("A BIG CAT", {"cat": "minet"}) == [("CAT", "MINET")]

    def test_protected_text_is_no_term(self):
        assert found("cat@cat.example cat", {"cat": "minet"}) == [("cat@cat.example",) * 2, ("cat", "minet")]

    def test_own_patterns(self):
        assert found("AB-12 and (CD-34)", protect=(r"([A-Z]{2})-\d+",)) == [("AB-12",) * 2, ("CD-34",) * 2]
        assert found("anything", protect=()) == []
        with pytest.raises(ValueError, match=r"protect must be any of urls, .* regular expression: '\(' has "):
            Terminology(protect=("(",))

    @pytest.mark.parametrize(
        ("name", "remedy"),
        [
            ("nubmers", "Similar ones are numbers."),
            ("urls,numbers", "Similar ones are numbers."),
            ("none", "Known ones are urls, addresses, placeholders, tags, paths, handles, symbols, numbers."),
        ],
    )
    def test_misspelt_kinds_are_refused(self, name, remedy):
        with pytest.raises(ValueError, match=f"^protect must be a kind of .*, not the word '{name}'. {remedy}$"):
            Terminology(protect=["urls", name])

    def test_one_kind_may_be_given_as_text(self):
        assert found("12 and a@b.example", protect="numbers") == [("12", "12")]

    def test_letters_that_change_their_length_with_case(self):
        assert found("İstanbul, ıstanbul, Straße", {"istanbul": "I", "Straße": "rue"}) == [("Straße", "rue")]

    def test_patterns_need_not_fit_together(self):
        assert found("a1 foo FOO", protect=["(?i)foo", r"(\w)(?P<x>1)", r"(?P<x>z)"]) == [
            ("a1",) * 2,
            ("foo",) * 2,
            ("FOO",) * 2,
        ]

    def test_scripts_without_spaces(self):
        assert found("詳細はhttps://a.example/bを参照、info@a.exampleへ") == [
            ("https://a.example/b",) * 2,
            ("info@a.example",) * 2,
        ]
        assert found("这份合同很长", {"合同": "contract"}) == [("合同", "contract")]
        url = [Term(0, 19, "https://a.example/b", is_copy=True)]
        assert missing_terms(url, "请访问https://a.example/b。") == []

    @pytest.mark.parametrize("glossary", [{"a": " "}, {" ": "a"}, {"a": 1}])
    def test_blank_terms_are_refused(self, glossary):
        with pytest.raises(ValueError, match="Terms of a glossary must be texts that are not blank"):
            Terminology(glossary)

    @pytest.mark.parametrize(
        "part", ["a", "a.", "a@", "1.", "<a", "{", "%(a", "http://", "/a", "~/", "<a a=", "#a", "1°", "C:\\"]
    )
    def test_finding_takes_linear_time(self, part):
        start = time.perf_counter()
        found(part * 50_000)
        assert time.perf_counter() - start < 2


class TestMissing:
    def test_terms_are_counted_as_whole_words(self):
        terms = [Term(0, 1, "art"), Term(2, 3, "art"), Term(4, 5, "%s")]
        assert missing_terms(terms, "Un Art, un article : %s.") == [terms[1]]
        assert missing_terms(terms, "") == terms
        assert missing_terms([Term(0, 6, "{name}", is_copy=True)], "{Name}") != []
        address = [Term(0, 3, "a@b.example")]
        for text, missing in (("a@b.example.", []), ("a@b.example.example", address), ("x-a@b.example", address)):
            assert missing_terms(address, text) == missing
        assert missing_terms(terms, "art article%s") == terms[1:2]

    def test_a_word_counts_for_one_term_only(self):
        terms = [Term(0, 1, "gare"), Term(2, 3, "gare routière")]
        assert missing_terms(terms, "la gare routière") == terms[:1]
        assert missing_terms(terms, "la gare et la gare routière") == []

    def test_counting_takes_linear_time(self):
        terms = [Term(i, i + 2, "%s", is_copy=True) for i in range(20_000)]
        start = time.perf_counter()
        assert missing_terms(terms, "%s " * 20_000) == []
        assert time.perf_counter() - start < 2
