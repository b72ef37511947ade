"""Terms in targets: copied by stand-ins, placed by alignment, reported if they are missing."""

import dataclasses
import math

import pytest

import mlx_transformer as mt
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference import required_terms
from mlx_transformer.inference.required_terms import LineWithTerms, keep_terms, with_stand_ins
from mlx_transformer.inference.scoring import Score
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.inference.term_insertion import insert_terms, replacements
from mlx_transformer.inference.terminology import Term, Terminology


def hypothesis(text, **changes):
    return Hypothesis(**{"ids": [1], "score": -1.0, "finish_reason": "stop", "text": text} | changes)


def scores(pairs, best=None):
    """Return an `align` that aligns all targets alike, and prefers the targets in `best`, in order."""

    def align(lines, targets):
        return [
            Score(-(best or targets).index(text) - 1.0, [1, 2], [-1.0] * 2, alignment=list(pairs)) for text in targets
        ]

    return align


class TestReplacements:
    SOURCE, TARGET = SourceLine("I see my dog now."), "Je vois mon chien maintenant."
    TERM = Term(9, 12, "toutou")

    def replace(self, pairs, target=TARGET, term=TERM, source=SOURCE):
        return replacements(source, target, term, pairs)

    def test_aligned_words_are_replaced_alone_or_together(self):
        assert self.replace([(0, 0), (3, 3), (4, 4)]) == ["Je vois mon toutou maintenant."]
        assert self.replace([(3, 2), (3, 3)]) == [
            "Je vois toutou chien maintenant.",
            "Je vois toutou maintenant.",
            "Je vois mon toutou maintenant.",
        ]

    def test_punctuation_stays(self):
        assert self.replace([(3, 3)], "Je vois mon (chien).") == ["Je vois mon (toutou)."]
        assert self.replace([(3, 3)], "Je vois mon !") == []

    def test_articles_are_elided_as_the_term_needs(self):
        term = Term(9, 12, "fric")
        assert [text[8:] for text in self.replace([(3, 2)], "Je vois l'argent", term)] == [
            "le fric",
            "la fric",
            "lo fric",
        ]
        assert self.replace([(3, 0)], "L'ARGENT", Term(9, 12, "FRIC"))[0] == "LE FRIC"
        animal = Term(9, 12, "animal")
        assert self.replace([(3, 3)], "Je vois le chien", animal) == ["Je vois le animal", "Je vois l'animal"]
        assert self.replace([(3, 2)], "Je vois l'ours", animal) == ["Je vois l'animal"]
        assert self.replace([(0, 0)], "Aujourd'hui", Term(0, 1, "jour")) == ["Jour"]

    def test_a_term_at_the_beginning_has_a_capital(self):
        assert self.replace([(3, 0)], "Chien !") == ["Toutou !"]
        assert self.replace([(3, 0)], "Chien !", self.TERM._replace(is_copy=True)) == ["toutou !"]

    def test_unaligned_copies_are_inserted_and_other_terms_not(self):
        copy = Term(9, 12, "%s", is_copy=True)
        assert self.replace([(0, 0), (2, 2), (4, 4)], term=copy) == ["Je vois mon %s chien maintenant."]
        assert self.replace([(0, 0), (2, 2), (4, 4)]) == []

    def test_names_and_numbers_of_the_source_stay(self):
        source = SourceLine("My dog's name is Rex 9.")
        assert self.replace([(1, 2), (1, 3)], "Je m'appelle Rex 9.", Term(3, 6, "clebs"), source) == []
        assert self.replace([(1, 2), (1, 1)], "Je suis Rex 9.", Term(3, 6, "clebs"), source) == ["Je clebs Rex 9."]

    def test_target_prefixes_stay(self):
        source = self.SOURCE._replace(target_prefix="Je vois mon chien")
        assert self.replace([(3, 3)], source=source) == []

    def test_whole_texts_of_scripts_without_spaces_are_not_replaced(self):
        assert self.replace([(3, 0)], "我现在看到我的狗。") == []


class TestKeeping:
    """Terms of the glossary replace words; copies return in place of their stand-ins."""

    SOURCE = SourceLine("The cat sees the dog.", "en", "fr")
    TARGET = "Le chat voit le chien."
    PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4))

    def keep(self, glossary, source=SOURCE, target=TARGET, search=None, pairs=PAIRS, constrain=None, **changes):
        """Return the hypothesis and the lines that were searched again: with stand-ins, or required phrases."""
        searched = []

        def generate_with_phrases(lines):
            searched.extend(lines)
            yield from (
                [hypothesis(text) for text in constrain(line.required_phrases)]
                if constrain
                else [hypothesis("", error="No hypothesis")]
                for line in lines
            )

        def generate(lines):
            searched.extend(lines)
            yield from ([hypothesis(search(line.text), score=-len(searched[0].text), **changes)] for line in lines)

        terms = Terminology(glossary).find(source.text)
        lines = [LineWithTerms(source, [hypothesis(target, **changes)], terms)]
        (result,) = keep_terms(lines, generate, generate_with_phrases, scores(pairs))
        return result, searched

    def test_terms_replace_what_is_aligned_with_them_without_a_search(self):
        result, searched = self.keep({"dog": "toutou", "cat": "minet"})
        assert result.text == "Le minet voit le toutou." and result.missing_terms == () and not searched

    def test_nothing_changes_if_all_terms_are_there(self):
        assert self.keep({"dog": "chien", "cat": "chat"})[0] == hypothesis(self.TARGET)

    def test_the_replacement_with_the_best_score_is_taken(self):
        terms = Terminology({"cat": "minet"}).find(self.SOURCE.text)
        align = scores(
            [(1, 0), (1, 1)],
            [self.TARGET, "Le minet voit le chien.", "Minet voit le chien.", "Minet chat voit le chien."],
        )
        assert insert_terms(self.SOURCE, self.TARGET, terms, align) == "Le minet voit le chien."

    def test_terms_that_cannot_be_placed_are_reported(self):
        result, _ = self.keep({"dog": "toutou", "cat": "minet"}, pairs=[(1, 1)])
        assert result.text == "Le minet voit le chien." and result.missing_terms == ("toutou",)

    def test_terms_that_cannot_be_placed_are_required_of_a_search_in_every_order(self):
        def constrain(phrases):
            return ["Rien.", f"Voir {' et '.join(phrases)}."]

        result, searched = self.keep({"dog": "toutou", "cat": "minet"}, pairs=[(1, 1)], constrain=constrain)
        orders = ("minet", "toutou"), ("toutou", "minet"), ("Minet", "toutou"), ("Toutou", "minet")
        assert [line.required_phrases for line in searched] == list(orders)
        assert {line._replace(required_phrases=()) for line in searched} == {self.SOURCE}
        assert result.text == "Voir minet et toutou." and result.missing_terms == ()

    def test_a_target_begins_with_a_capital_of_its_first_term(self):
        order = scores([], ["Toutou dort.", "Mon Toutou dort.", "Mon toutou dort.", "Le chien."])

        def generate(lines):
            texts = {"toutou": ["Mon toutou dort."], "Toutou": ["Mon Toutou dort.", "Toutou dort."]}
            yield from ([hypothesis(text) for text in texts[line.required_phrases[0]]] for line in lines)

        terms = Terminology({"dog": "toutou"}).find("The dog sleeps.")
        assert required_terms.search_phrases(SourceLine("The dog sleeps."), terms, generate, order) == "Toutou dort."

    def test_many_terms_are_required_in_the_order_of_the_source(self):
        _, searched = self.keep({"dog": "b", "cat": "c", "sees": "a"}, pairs=[], constrain=" ".join)
        assert [line.required_phrases for line in searched] == [("c", "a", "b"), ("C", "a", "b")]

    def test_a_search_that_gives_no_more_terms_changes_nothing(self):
        result, searched = self.keep(
            {"dog": "toutou", "cat": "minet"}, pairs=[(1, 1)], constrain=lambda _: ["Le toutou."]
        )
        assert searched and (result.text, result.missing_terms) == ("Le minet voit le chien.", ("toutou",))

    COPIES = SourceLine("See {a} and {b}, cat.", "en", "fr")

    def test_copies_return_where_their_stand_ins_are(self):
        result, searched = self.keep({}, self.COPIES, "Voir.", lambda text: " ".join(["Voir", *text.split()[3:0:-2]]))
        assert searched[0][:3] == ("See 26 and Boston, cat.", "en", "fr")
        assert result.text == "Voir {b}, {a}" and result.missing_terms == ()

    def test_of_stand_ins_that_are_each_there_once_the_best_score_decides(self):
        """The first has the best score here; "26" is lost, and "47" doubled."""
        searches = {"26": "Voir.", "Boston": "Voir Boston.", "47": "Voir 47, 47."}
        source = SourceLine("See {a}.")
        result, searched = self.keep({}, source, "Voir.", lambda text: searches[text[4:-1]])
        assert [line.text for line in searched] == ["See 26.", "See Boston.", "See 47."]
        assert result.text == "Voir {a}."
        assert self.keep({}, source, "Voir.", lambda text: f"{text[4:-1]} : voir.")[0].text == "{a} : voir."

    def test_stand_ins_are_no_words_of_the_source(self):
        _, searched = self.keep({}, SourceLine("26 boston {a}"), "", lambda text: text)
        assert [line.text for line in searched] == ["26 boston 47", "26 boston Tom", "26 boston 1998"]

    def test_stand_ins_are_no_words_of_the_terms(self):
        _, searched = self.keep({"cat": "Boston Mary"}, SourceLine("The cat {a}"), "", lambda text: text)
        assert [line.text for line in searched[:3]] == ["The cat 26", "The cat 47", "The cat Tom"]

    def test_stand_ins_of_a_line_in_capitals_are_in_capitals(self):
        result, searched = self.keep({}, SourceLine("SEE {a} OR {b} NOW"), "", str.upper)
        assert searched[0].text == "SEE 26 OR BOSTON NOW" and result.text == "SEE {a} OR {b} NOW"

    def test_copies_replace_aligned_words_if_no_stand_in_is_copied(self):
        result, searched = self.keep({}, SourceLine("The {a} sees it."), "Le mot voit.", lambda text: "Rien.")
        assert len(searched) == 3 and result.text == "Le {a} voit."

    def test_too_many_copies_have_no_stand_ins(self):
        text = " ".join(f"{{{n}}}" for n in range(7))
        assert with_stand_ins(SourceLine(text), Terminology().find(text)) == []

    @pytest.mark.parametrize(
        ("source", "target", "pairs", "expected"),
        [
            ("<b>A cat</b>, here.", "Un chat, ici.", [(0, 0), (1, 1), (2, 2)], "<b>Un chat</b>, ici."),
            ("<p>A <b><i>cat</i></b>.</p>", "Un chat.", [(0, 0), (1, 1)], "<p>Un <b><i>chat</i></b>.</p>"),
            ("a <i>red</i> car", "une voiture rouge", [(0, 0), (1, 2), (2, 1)], "une voiture <i>rouge</i>"),
            ("<a> a </a> <b> b </b>", "b a", [(0, 1), (1, 0)], "<b>b</b> <a>a</a>"),
            ("the <b>hotel</b>", "l'hôtel", [(1, 0)], "l'<b>hôtel</b>"),
            ("12{unit} of tea", "12 de thé", [(0, 0)], "12{unit} de thé"),
            ("a <b>c</b>", "un", [(0, 0)], "un"),
        ],
    )
    def test_markup_is_left_out_and_stands_beside_aligned_words(self, source, target, pairs, expected):
        line, terms = SourceLine(source), Terminology(None, ("tags", "placeholders")).find(source)
        (result,) = keep_terms(
            [LineWithTerms(line, [hypothesis("")], terms)],
            lambda lines: ([hypothesis(target)] for _ in lines),
            None,
            scores(pairs),
        )
        assert result.text == expected
        assert result.missing_terms == (("<b>", "</b>") if "<" not in expected and "{" not in expected else ())

    def test_terms_of_the_glossary_are_placed_beside_stand_ins(self):
        result, _ = self.keep(
            {"cat": "minet"}, SourceLine("The cat sees {name}."), "Le chat.", lambda text: f"Le chat voit {text[13:]}"
        )
        assert result.text == "Le minet voit {name}."


def require(generate):
    """All targets have the same score; their first word is aligned with that of the source."""
    fake = scores([(0, 0)])

    def score_lines(*lines, **options):
        return iter(fake(*lines))

    return required_terms.require_terms(generate, score_lines, Terminology(), search=SearchConfig())


def test_only_lines_with_missing_terms_are_searched_again():
    """Order is kept, options reach all searches, and scores and alignments are those of the new text."""
    seen = []

    def generate(lines, **options):
        for line in lines:
            seen.append((line.text, options["first_line"], options["return_errors"]))
            yield [hypothesis(line.text.replace("{b}", ""), token_scores=[-3.0])]

    run = require(generate)
    rows = list(run(map(SourceLine, ["a", "see {b}", "c"]), first_line=7, return_errors=True))
    assert [row[0].text for row in rows] == ["a", "see {b}", "c"]
    assert seen[3] == ("see 26", 8, True) and len(seen) == 6
    changed = rows[1][0]
    assert (changed.ids, changed.score, changed.token_scores, changed.alignment) == ([1], -0.5, [-1.0] * 2, [(0, 0)])


def test_lines_wait_only_for_a_few_others():
    def lines():
        for number in range(1000):
            taken.append(number)
            yield SourceLine("a {b}" if number == 3 else "a")

    taken = []
    run = require(lambda lines, **_: ([hypothesis("a")] for _ in lines))
    results = run(lines())
    for needed in (1, 2, 3, 131, 131):
        next(results)
        assert len(taken) == needed


@pytest.mark.parametrize(("count", "batches"), [(3, 1), (16, 1), (17, 2), (40, 3)])
def test_lines_that_lack_copies_are_searched_together(count, batches):
    searched = []

    def generate(lines, **options):
        lines = list(lines)
        searched.append(len(lines))
        yield from ([hypothesis(line.text.replace("{b}", ""))] for line in lines)

    run = require(generate)
    texts = [f"{n} sees {{b}}" if n % 2 else f"{n} sleeps" for n in range(2 * count)]
    assert [row[0].text for row in run(map(SourceLine, texts))] == texts
    assert searched[0] == 2 * count and len(searched) == 1 + batches and sum(searched[1:]) == 3 * count


def test_failed_lines_stay_failed():
    failed = hypothesis("", error="broken", finish_reason="error")

    run = require(lambda lines, **_: ([failed] for _ in lines))
    assert list(run([SourceLine("{a}")])) == [[failed]]


@pytest.fixture(scope="module")
def bundled():
    return mt.load()

    @pytest.mark.parametrize(
        ("source", "target", "pairs", "expected"),
        [
            ("♪ A cat ♪", "Un chat", [(0, 0), (1, 1)], "♪ Un chat ♪"),
            ("• A cat", "Un chat", [], "• Un chat"),
            ("A → cat 😀", "Un chat", [(0, 0), (1, 1)], "Un → chat 😀"),
            ("A cat© sees", "Un chat voit", [(0, 0), (1, 1), (2, 2)], "Un chat© voit"),
            ("A © cat", "Un", [(0, 0)], "Un"),
            ("A cat 😀.", "Un chat.", [(0, 0), (1, 1)], "Un chat 😀."),
            ("A cat 😀!", "Un chat\u202f!", [], "Un chat 😀\u202f!"),
            ("A cat. 😀", "Un chat.", [], "Un chat. 😀"),
        ],
    )
    def test_symbols_keep_their_spaces_and_the_ends_of_a_text(self, source, target, pairs, expected):
        line, terms = SourceLine(source), Terminology(None, ("symbols",)).find(source)
        lines = [LineWithTerms(line, [hypothesis("")], terms)]
        (result,) = keep_terms(lines, lambda lines: ([hypothesis(target)] for _ in lines), None, scores(pairs))
        assert result.text == expected


class TestHypotheses:
    TEXTS = ("Do you like my dog?", "Hello {name}!", "I love you.")
    LONG = ("machin " * 40).strip()  # has too many tokens for a constrained search
    GLOSSARY = {"dog": "toutou", "like": LONG}

    def test_they_name_the_terms_that_they_lack(self, bundled, monkeypatch):
        monkeypatch.setattr(required_terms, "insert_terms", lambda line, target, *_: target)
        rows = list(mt.generate_hypotheses(*bundled, self.TEXTS, glossary=self.GLOSSARY, protect=["placeholders"]))
        assert [len(row) for row in rows] == [1, 1, 1]
        first, second, third = (row[0] for row in rows)
        assert "toutou" in first.text and first.missing_terms == (self.LONG,)
        assert "{name}" in second.text and second.missing_terms == third.missing_terms == ()
        assert [row[0].text for row in rows] == mt.generate(*bundled, list(self.TEXTS), glossary=self.GLOSSARY)

    def test_models_that_translate_copy_more_by_default(self, bundled):
        model, tokenizer = bundled
        text = "♪ I love you ♪"
        assert mt.generate(model, tokenizer, text) == "♪ Je t'aime ♪"
        no_pair = mt.Tokenizer(tokenizer.source, None, dataclasses.replace(tokenizer.config, language_pair=None))
        assert mt.generate(model, no_pair, text) == mt.generate(model, tokenizer, text, protect=()) != "♪ Je t'aime ♪"

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
        assert rows[0][0].error and "toutou" in rows[1][0].text

    @pytest.mark.parametrize("terms", [{"glossary": GLOSSARY}, {"protect": ["urls"]}])
    def test_several_are_refused(self, bundled, terms):
        (name,) = terms
        message = f"^{name} gives one text per line: num_hypotheses must be 1, not 3"
        with pytest.raises(ValueError, match=message):
            mt.generate_hypotheses(*bundled, "I sleep.", num_hypotheses=3, **terms)
        if name == "glossary":
            with pytest.raises(ValueError, match=message):
                mt.generate(*bundled, "I sleep.", num_hypotheses=3, **terms)


def test_scores_are_left_out_where_they_are_not_asked_for():
    model, tokenizer = mt.load()
    options = {"protect": ("placeholders",), "glossary": {"cat": "minou"}}
    texts = ["The cat sleeps.", "I am tired."]
    rows = mt.generate_hypotheses(model, tokenizer, texts, scores=False, **options)
    assert all(math.isnan(row[0].score) for row in rows)
    rows = mt.generate_hypotheses(model, tokenizer, texts, **options)
    assert all(math.isfinite(row[0].score) for row in rows)
