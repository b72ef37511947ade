"""Terms in targets: found in sources, placed by alignment, inserted by a target prefix, counted if they are missing."""

import time

import pytest

import mlx_transformer as mt
from mlx_transformer.config.terminology import PROTECTED_PATTERNS
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference import terminology
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.inference.terminology import Term, Terminology, add_terms, find_place, missing_terms


def found(text, glossary=None, protect=tuple(PROTECTED_PATTERNS)):
    return [(text[term.start : term.end], term.target) for term in Terminology(glossary, protect).find(text)]


def hypothesis(text, **changes):
    return Hypothesis(**{"ids": [1], "score": -1.0, "finish_reason": "stop", "text": text} | changes)


class TestFinding:
    @pytest.mark.parametrize(
        ("kind", "text", "expected"),
        [
            ("urls", "See https://a.example/b?c=1, or www.a.example.", ["https://a.example/b?c=1", "www.a.example"]),
            ("urls", "SEE HTTPS://A.EXAMPLE/B OR WWW.A.EXAMPLE.", ["HTTPS://A.EXAMPLE/B", "WWW.A.EXAMPLE"]),
            ("addresses", "Ask jo.doe+x@mail.example.org.", ["jo.doe+x@mail.example.org"]),
            (
                "placeholders",
                "{name}, {{x}} ${y} %s %(n)d %1$s 50% done {}",
                "{name} {{x}} ${y} %s %(n)d %1$s {}".split(),
            ),
            ("tags", 'A <b class="x">word</b> < 3 and > 2', ['<b class="x">', "</b>"]),
            ("numbers", "12.50 and 555-1234, at 18:30 in A4.", ["12.50", "555-1234", "18:30"]),
        ],
    )
    def test_protected_text_is_copied(self, kind, text, expected):
        assert found(text, protect=(kind,)) == [(part, part) for part in expected]

    def test_terms_of_a_glossary_are_whole_words_in_any_case(self):
        glossary = {"cat": "minet", "New York": "NYC", "york": "York", " C++ ": "C++ "}
        text = "Cats, a CAT in new york, York; C++."
        assert found(text, glossary) == [("CAT", "minet"), ("new york", "NYC"), ("York", "York"), ("C++", "C++")]

    def test_abbreviations_in_capitals_are_no_other_words(self):
        glossary = {"US": "États-Unis", "IT": "informatique", "it": "cela"}
        assert found("Tell us, it is an IT firm of the US.", glossary) == [
            ("it", "cela"),
            ("IT", "informatique"),
            ("US", "États-Unis"),
        ]

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
            ("none", "Known ones are urls, addresses, placeholders, tags, numbers."),
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

    @pytest.mark.parametrize("part", ["a", "a.", "a@", "1.", "<a", "{", "%(a", "http://"])
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


class TestPlace:
    SOURCE, TARGET = "I see my dog now.", "Je vois mon chien maintenant."

    def test_at_the_first_aligned_word(self):
        term = Term(9, 12, "toutou")
        assert self.TARGET[find_place(self.SOURCE, self.TARGET, term, [(0, 0), (3, 3), (3, 2), (4, 4)]) :][:3] == "mon"

    def test_after_what_precedes_an_unaligned_term(self):
        term = Term(9, 12, "toutou")
        assert self.TARGET[: find_place(self.SOURCE, self.TARGET, term, [(0, 0), (2, 2), (4, 4)])] == "Je vois mon"
        assert find_place(self.SOURCE, self.TARGET, term, [(4, 4)]) == 0


class TestAdding:
    """A fake search that knows a sentence and continues each target prefix with what follows in it."""

    SOURCE = SourceLine("The cat sees the dog.", "en", "fr")
    TARGET = "Le chat voit le chien."
    PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4))

    def add(self, glossary, generate=None, pairs=PAIRS, best=None):
        searched = []

        def continue_prefix(lines):
            for line in lines:
                searched.append(line)
                rest = self.TARGET.split()[len(line.target_prefix.split()) :]
                yield [hypothesis(" ".join([line.target_prefix, *rest]))]

        terms = Terminology(glossary).find(self.SOURCE.text)
        result = add_terms(
            self.SOURCE, best or hypothesis(self.TARGET), terms, generate or continue_prefix, lambda line, text: pairs
        )
        return result.text, result.missing_terms, [line.target_prefix for line in searched], searched

    def test_terms_replace_what_is_aligned_with_them(self):
        text, missing, prefixes, lines = self.add({"dog": "toutou", "cat": "minet"})
        assert text == "Le minet voit le toutou" and missing == ()
        assert prefixes == ["Le minet", "Le minet voit le toutou"]
        assert all(line[:3] == self.SOURCE[:3] for line in lines)

    def test_nothing_is_searched_if_all_terms_are_there(self):
        assert self.add({"dog": "chien", "cat": "chat"}) == (self.TARGET, (), [], [])

    def test_terms_in_another_order_follow_the_prefix(self):
        crossed = ((1, 4), (4, 1))
        assert self.add({"dog": "toutou", "cat": "minet"}, pairs=crossed)[2] == ["Le toutou", "Le toutou voit le minet"]
        same = ((1, 1), (4, 1))
        text, missing, *_ = self.add({"dog": "toutou", "cat": "minet"}, pairs=same)
        assert text.startswith("Le minet toutou") and missing == ()

    def test_of_several_hypotheses_the_first_with_most_terms_counts(self):
        def generate(lines):
            (line,) = lines
            yield [hypothesis(f"{line.target_prefix}{end}") for end in ("ier", " est là.", ".")]

        assert self.add({"cat": "minet"}, generate)[:2] == ("Le minet est là.", ())

    def test_terms_that_no_search_keeps_are_reported(self):
        def generate(lines):
            yield [hypothesis("Rien.") for _ in lines]

        assert self.add({"cat": "minet", "dog": "chien"}, generate, pairs=())[:2] == (self.TARGET, ("minet",))

    def test_an_error_leaves_the_best_result(self):
        def generate(lines):
            yield [hypothesis("", error="too long", finish_reason="error") for _ in lines]

        assert self.add({"cat": "minet"}, generate)[:2] == (self.TARGET, ("minet",))

    def test_each_term_is_inserted_once(self):
        """A term that never comes back as it is must not keep the others out, and a worse text is not taken."""

        def generate(lines):
            (line,) = lines
            prefixes.append(line.target_prefix)
            yield [hypothesis(line.target_prefix.replace("minet", "mi-net") + " voit le chien.")]

        prefixes = []
        assert self.add({"cat": "minet", "dog": "toutou"}, generate)[1] == ("minet",)
        assert [prefix.count("minet") + prefix.count("mi-net") for prefix in prefixes] == [1, 1]

    def test_errors_end_the_search(self):
        failed = hypothesis("", error="broken", finish_reason="error")
        assert self.add({"cat": "minet"}, best=failed)[2] == []


def test_only_lines_with_terms_are_searched_again(monkeypatch):
    """Order is kept, and options reach all searches."""
    seen = []

    def generate(lines, **options):
        for line in lines:
            seen.append((line.text, line.target_prefix, options["first_line"], "search" in options))
            yield [hypothesis(f"{line.target_prefix or line.text}")]

    class Model:
        class search_defaults:
            beam_size = 2

    monkeypatch.setattr(terminology, "score", lambda *a, **o: iter([type("Score", (), {"alignment": [(0, 0)]})]))
    monkeypatch.setattr(terminology, "replace", lambda value, **changes: terminology_replace(value, changes))
    run = terminology.require_terms(generate, Model, None, Terminology({"b": "x"}, ()))
    rows = list(run(map(SourceLine, "a b c".split()), first_line=7))
    assert [row[0].text for row in rows] == ["a", "x", "c"]
    assert [entry for entry in seen if entry[1]] == [("b", "x", 8, True)]


def terminology_replace(value, changes):
    return hypothesis(value.text, **changes) if isinstance(value, Hypothesis) else value


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


class TestHypotheses:
    TEXTS = ("My dog is at the station.", "Hello {name}!", "I love you.")
    GLOSSARY = {"station": "gare routière", "dog": "tou\u00adtou"}  # the tokenizer drops the soft hyphen

    def test_they_name_the_terms_that_they_lack(self, bundled):
        rows = list(mt.generate_hypotheses(*bundled, self.TEXTS, glossary=self.GLOSSARY, protect=["placeholders"]))
        assert [len(row) for row in rows] == [1, 1, 1]
        first, second, third = (row[0] for row in rows)
        assert "gare routière" in first.text and first.missing_terms == ("tou\u00adtou",)
        assert "{name}" in second.text and second.missing_terms == third.missing_terms == ()
        assert [row[0].text for row in rows] == mt.generate(*bundled, list(self.TEXTS), glossary=self.GLOSSARY)

    def test_nothing_is_required_by_default(self, bundled):
        plain = [h.text for h, *_ in mt.generate_hypotheses(*bundled, self.TEXTS)]
        assert plain == mt.generate(*bundled, list(self.TEXTS), protect=())
        assert "{name}" not in plain[1]

    def test_errors_and_alignments_are_those_of_their_lines(self, bundled):
        options = {"glossary": self.GLOSSARY, "first_line": 4, "alignment": mt.AlignmentConfig()}
        results = mt.generate_hypotheses(*bundled, [self.TEXTS[0], None], **options)
        assert next(results)[0].alignment
        with pytest.raises(ValueError, match="^Line 6: The text must be a string, not None"):
            next(results)
        rows = list(mt.generate_hypotheses(*bundled, [None, self.TEXTS[0]], return_errors=True, **options))
        assert rows[0][0].error and "gare routière" in rows[1][0].text

    @pytest.mark.parametrize("terms", [{"glossary": GLOSSARY}, {"protect": ["urls"]}])
    def test_several_are_refused(self, bundled, terms):
        (name,) = terms
        message = f"^{name} gives one text per line: num_hypotheses must be 1, not 3"
        with pytest.raises(ValueError, match=message):
            mt.generate_hypotheses(*bundled, "I sleep.", num_hypotheses=3, **terms)
        if name == "glossary":
            with pytest.raises(ValueError, match=message):
                mt.generate(*bundled, "I sleep.", num_hypotheses=3, **terms)
