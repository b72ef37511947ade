"""All kinds of vocabulary: round trips, ids without a token, saving and loading, damaged files."""

import json

import pytest
import tokenizers
from support.texts import CORPUS, TEXTS, random_texts
from support.tiny_sentencepiece_tokenizers import train_sentencepiece

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.tokenization.tokenizer import MAX_VOCAB_SIZE, VOCABULARY_KINDS, Tokenizer
from mlx_transformer.tokenization.vocabulary import AddedTokenSplitter, ByteVocabulary, WordVocabulary

ALL_TEXTS = TEXTS + random_texts(300)
SPECIALS = {"<pad>": 0, "</s>": 1, "<unk>": 2}
CONFIG = TokenizerConfig(start_id=0)


def sentencepiece_model(**options):
    """Train a SentencePiece model that encodes any text, with bytes if necessary."""
    return train_sentencepiece(**{"byte_fallback": True, "normalization_rule_name": "identity"} | options)


def sentencepiece_vocabulary(**fields):
    model = sentencepiece_model()
    processor = load_sentencepiece(model)
    ids = dict(SPECIALS)
    for i in range(3, processor.get_piece_size()):
        ids.setdefault(processor.id_to_piece(i), len(ids))
    return SentencePieceVocabulary(**{"ids": ids, "unknown_id": 2, "added": SPECIALS, "model": model} | fields)


def trained_vocabulary():
    return Tokenizer.train(CORPUS, [], 400).source


VOCABULARIES = {
    "tokenizers": trained_vocabulary,
    "sentencepiece": lambda: sentencepiece_vocabulary(strip={"<pad>": "both"}),
    "bytes": lambda: ByteVocabulary(SPECIALS | {"<extra>": 260}, {"</s>": "left"}),
    "words": lambda: WordVocabulary(SPECIALS | {"this": 3, "is": 4, "a": 5}, 2),
}


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request):
    return VOCABULARIES[request.param]()


def test_saved_vocabulary_loads_unchanged(vocabulary, tmp_path):
    other = WordVocabulary({"x": 4, "a": 0}, 1, "subwords")
    saved = Tokenizer(vocabulary, other, TokenizerConfig(start_id=0, languages={"en": 3}, target_language="first"))
    saved.save(tmp_path / "folder")
    loaded = Tokenizer.load(tmp_path / "folder")
    assert loaded.config == saved.config
    assert type(loaded.source) is type(vocabulary) and loaded.target == other
    assert loaded.source.size == vocabulary.size
    assert loaded.encode_batch(ALL_TEXTS) == saved.encode_batch(ALL_TEXTS)
    rows = vocabulary.encode_batch(ALL_TEXTS)
    assert [loaded.source.decode(row) for row in rows] == [vocabulary.decode(row) for row in rows]
    assert [loaded.source.id_to_token(i) for i in range(vocabulary.size)] == [
        vocabulary.id_to_token(i) for i in range(vocabulary.size)
    ]


def test_saved_shared_vocabulary_loads_shared(vocabulary, tmp_path):
    Tokenizer(vocabulary, VOCABULARIES["words"](), CONFIG).save(tmp_path)
    Tokenizer(vocabulary, None, CONFIG).save(tmp_path)
    assert Tokenizer.load(tmp_path).shared


def test_tokens_map_to_ids_and_back(vocabulary):
    mapped = [
        i
        for i in range(vocabulary.size)
        if vocabulary.id_to_token(i) and vocabulary.token_to_id(vocabulary.id_to_token(i)) == i
    ]
    assert len(mapped) >= min(vocabulary.size, 4) and mapped[-1] == vocabulary.size - 1
    assert vocabulary.token_to_id("no such piece") is None
    assert vocabulary.id_to_token(vocabulary.size) == "" == vocabulary.id_to_token(10**6)


def test_ids_without_a_token_do_not_raise(vocabulary):
    for ids in ([vocabulary.size], [vocabulary.size + 7] * 3, list(range(vocabulary.size + 3))):
        assert isinstance(vocabulary.decode(ids), str)
    assert vocabulary.decode([]) == ""
    assert vocabulary.encode("") == []


def test_bytes_round_trip():
    vocabulary = ByteVocabulary({})
    for text in ALL_TEXTS:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode("aé") == [100, 198, 172]
    assert vocabulary.id_to_token(100) == "<0x61>"
    assert vocabulary.decode([100, 198]) == "a"


def test_sentencepiece_round_trip():
    vocabulary = sentencepiece_vocabulary(added={}, model=sentencepiece_model(remove_extra_whitespaces=False))
    assert "<0xE4>" in vocabulary.ids
    for text in ALL_TEXTS:
        # Leading and trailing spaces are removed, and the space symbol is decoded as a space.
        assert vocabulary.decode(vocabulary.encode(text)) == text.replace("\u2581", " ").strip()


def test_decoding_with_another_sentencepiece_model(tmp_path):
    without_bytes = sentencepiece_vocabulary(decoder=sentencepiece_model(byte_fallback=False))
    ids = sentencepiece_vocabulary().encode("the 龍")
    assert sentencepiece_vocabulary().decode(ids) == "the 龍"
    assert without_bytes.decode(ids) == "the <0xE9><0xBE><0x8D>"
    Tokenizer(without_bytes, None, CONFIG).save(tmp_path)
    assert Tokenizer.load(tmp_path).source == without_bytes


@pytest.mark.parametrize(
    ("join", "words", "text"),
    [
        ("words", ["a", "b@@", "\u2581c"], "a b@@ \u2581c"),
        ("subwords", ["a", "b@@", "c@@", "d", "e@@"], "a bcd e"),
        ("subwords", ["@@a", "b"], "@@a b"),
        ("joiner", ["a", "\uffed,", "\uffed(\uffed", "b", "c\uffed", "d"], "a,(b cd"),
        ("sentencepiece", ["\u2581a", "b", "\u2581c"], "ab c"),
    ],
)
def test_joining_of_words(join, words, text):
    vocabulary = WordVocabulary({word: i for i, word in enumerate(words)}, 0, join)
    assert vocabulary.decode(range(len(words))) == text
    assert vocabulary.encode(" ".join(words) + " other") == [*range(len(words)), 0]


def test_characters():
    vocabulary = WordVocabulary({"a": 0, " ": 1, "b": 2, "<pad>": 3}, None, "characters")
    assert vocabulary.encode("ab  a") == [0, 2, 1, 1, 0] and vocabulary.decode([0, 2, 1, 1, 9, 0]) == "ab  a"


def test_unknown_words_are_split_at_punctuation():
    words = ["<unk>", "go", ".", "e.g.", "'", "l", "_x1"]
    ids = {word: i for i, word in enumerate(words)}
    split, plain = WordVocabulary(ids, 0, split_punctuation=True), WordVocabulary(ids, 0)
    assert [words[i] for i in split.encode("go. e.g. l'go _x1 (go)")] == [
        *("go", ".", "e.g.", "l", "'", "go", "_x1", "<unk>", "go", "<unk>")
    ]
    assert plain.encode("go. e.g. l'go") == [0, 3, 0]


def test_unknown_words_without_an_unknown_token_are_reported_once(caplog):
    vocabulary = WordVocabulary({"go": 0, "on": 1}, None)
    assert vocabulary.encode_batch(["go off on", "off", "out off"]) == [[0, 1], [], []]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["'off'.", "'out'."]
    assert vocabulary.size == 2 and vocabulary.token_to_id("off") is None


def test_added_tokens_split_a_text():
    splitter = AddedTokenSplitter({"<a>": 1, "<a><b>": 2, "a>": 3, "[": 4}, {"<a>": "both", "[": "right"})
    assert list(splitter.split("x <a> y[ z[<a>  <a> <a><b> a>")) == ["x", 1, "y", 4, "z", 4, 1, 1, 2, " ", 3]
    assert list(splitter.split("")) == []
    assert list(splitter.split(" <a> ")) == [1]
    assert list(AddedTokenSplitter({}, {}).split("<a>")) == ["<a>"]


def test_added_token_beyond_the_pieces():
    vocabulary = sentencepiece_vocabulary(added=SPECIALS | {"<new>": 50}, unknown_id=2)
    assert vocabulary.encode("<new>") == [50] and vocabulary.id_to_token(50) == vocabulary.decode([50]) == "<new>"


def test_special_tokens_truncation_and_padding_of_a_tokenizer_json_are_off():
    tokenizer = trained_vocabulary().tokenizer
    plain = [encoding.ids for encoding in tokenizer.encode_batch(CORPUS[:3])]
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    assert HFVocabulary(tokenizers.Tokenizer.from_str(tokenizer.to_str())).encode_batch(CORPUS[:3]) == plain


def test_vocabulary_larger_or_smaller_than_the_model():
    words = WordVocabulary({"<pad>": 0, "</s>": 1, "<s>": 2, "a": 3, "<mask>": 4}, 3)
    fits = Tokenizer(words, None, TokenizerConfig(start_id=0, skip_ids=(0, 1, 4), source_vocab_size=4))
    assert fits.encode("a <mask> a") == [3, 3, 1]
    assert fits.encode_target("a <mask>") == [3, 4, 1]
    with pytest.raises(ValueError, match="must fit its model: '<mask>' has the id 4, but the model only 4 ids"):
        Tokenizer(words, None, TokenizerConfig(start_id=0, target_vocab_size=4))
    padded = Tokenizer(words, None, TokenizerConfig(start_id=0, source_vocab_size=9, target_vocab_size=8))
    assert (padded.source_vocab_size, padded.target_vocab_size) == (9, 8)
    assert padded.decode([3, 7, 3]) == "a a" and padded.tokens([7, 3]) == ["", "a"]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.7: got 8"):
        padded.decode([8])
    with pytest.raises(ValueError, match=f"must be below {MAX_VOCAB_SIZE}: the highest is {MAX_VOCAB_SIZE}"):
        Tokenizer(WordVocabulary({"a": MAX_VOCAB_SIZE}, 0), None, CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"before_source": (9,)}, "uses id 9, but the model has only 5 ids"),
        ({"after_source": (5,)}, "uses id 5, but the model has only 5 ids"),
        ({"before_target": (9,)}, "uses id 9, but the model has only 6 ids"),
        ({"after_target": (6,)}, "uses id 6, but the model has only 6 ids"),
        ({"start_id": 6}, "uses id 6, but the model has only 6 ids"),
        ({"eos_id": 5}, "uses id 5, but the model has only 5 ids"),
        ({"pad_id": 5}, "uses id 5, but the model has only 5 ids"),
        ({"languages": {"en": 5}, "source_language": "before"}, "uses id 5, but the model has only 5 ids"),
        ({"languages": {"en": 5}, "target_language": "source"}, "uses id 5, but the model has only 5 ids"),
        ({"languages": {"en": 6}, "target_language": "start"}, "uses id 6, but the model has only 6 ids"),
        ({"languages": {"en": 6}, "target_language": "first"}, "uses id 6, but the model has only 6 ids"),
    ],
)
def test_special_ids_beyond_the_model_are_refused(fields, message):
    source, target = (WordVocabulary({word: i for i, word in enumerate(words)}, 0) for words in ("abcde", "abcdef"))
    with pytest.raises(ValueError, match=message):
        Tokenizer(source, target, TokenizerConfig(**fields))


def save_separate(path, kind):
    """Save a tokenizer with a vocabulary of this kind on each side."""
    Tokenizer(VOCABULARIES[kind](), VOCABULARIES[kind](), CONFIG).save(path)
    return path


def test_every_kind_is_tested():
    assert VOCABULARY_KINDS.keys() == VOCABULARIES.keys() | {"merges"}  # "merges": test_bpe_vocabulary.py


@pytest.mark.parametrize("name", ["sentencepiece.model", "target_sentencepiece.model"])
def test_damaged_or_missing_sentencepiece_model(tmp_path, name, capfd):
    folder = save_separate(tmp_path, "sentencepiece")
    content = (folder / name).read_bytes()
    for damaged in (b"", b"x", b"\x00" * 100, content[: len(content) // 2], content[:-1]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"[\\/]{name} must be a sentencepiece model: its {len(damaged)} bytes are not one"
        ):
            Tokenizer.load(folder)
    assert capfd.readouterr() == ("", "")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no .*[\\/]{name}; copy the folder again"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"config": {}, "source": {}, "more": 1}', "\udcff", "[" * 10**5]
)
def test_damaged_vocabulary_file(tmp_path, text):
    folder = save_separate(tmp_path, "words")
    (folder / "vocabulary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match=r"vocabulary\.json must (be JSON|have the keys config, source and optionally target)"
    ) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("words", {"kind": "wordz"}, "kind must be tokenizers, .*, not 'wordz'"),
        ("words", {"kind": ["words"]}, "kind must be tokenizers"),
        ("words", {"ids": {"a": "b"}}, "words: ids must be dict"),
        ("words", {"ids": {"a": -1}}, "words: Ids of a vocabulary must not be below 0"),
        ("words", {"unknown_id": -1}, "words: Ids of a vocabulary must not be below 0"),
        ("words", {"unknown_id": 1.5}, "words: unknown_id must be int"),
        ("words", {"join": "glue"}, "words: join must be"),
        ("words", {"more": 1}, "words has unknown fields: more"),
        ("bytes", {"added": {"": 1}}, "bytes: Added tokens must not be empty"),
        ("bytes", {"added": {"<x>": -4}}, "bytes: Ids of a vocabulary must not be below 0"),
        ("bytes", {"strip": {"</s>": "middle"}}, "bytes: strip must be dict"),
        ("sentencepiece", {"tags": 1}, "sentencepiece: tags must be bool"),
        ("sentencepiece", {"added": {"": 1}}, "sentencepiece: Added tokens must not be empty"),
        ("sentencepiece", {"ids": {"a": -1}}, "sentencepiece: Ids of a vocabulary must not be below 0"),
        ("sentencepiece", {"decoder": "other"}, "sentencepiece: decoder must be"),
        ("sentencepiece", {"has_decoder": True}, "there is no .*sentencepiece_decoder.model"),
    ],
)
def test_invalid_field_of_a_vocabulary(tmp_path, kind, changes, message):
    folder = save_separate(tmp_path, kind)
    data = json.loads((folder / "vocabulary.json").read_text())
    data["source"] |= changes
    (folder / "vocabulary.json").write_text(json.dumps(data))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Tokenizer.load(folder)
    assert len(str(caught.value)) < 500


def test_invalid_config_names_its_file(tmp_path):
    folder = save_separate(tmp_path, "words")
    data = json.loads((folder / "vocabulary.json").read_text())
    (folder / "vocabulary.json").write_text(json.dumps(data | {"config": data["config"] | {"skip_ids": [-1]}}))
    with pytest.raises(ValueError, match=r"vocabulary\.json: config: Ids of a tokenizer's config must not be below 0"):
        Tokenizer.load(folder)


def test_a_sentencepiece_model_that_makes_texts_long_is_refused(tmp_path):
    (tmp_path / "rules.tsv").write_text("71\t" + " ".join(["62"] * 300) + "\n")  # q -> b, 300 times
    model = train_sentencepiece(normalization_rule_tsv=str(tmp_path / "rules.tsv"))
    with pytest.raises(ValueError, match="must be a usable sentencepiece model: .* no text more than 200 times longer"):
        load_sentencepiece(model)
