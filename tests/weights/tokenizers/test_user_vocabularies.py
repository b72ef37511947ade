"""Vocabularies that a user gives: the converted folder writes the same text as a tutorial's program in torch."""

import dataclasses
import json
import re

import mlx.core as mx
import pytest
import sentencepiece
import tokenizers
from click.testing import CliRunner
from support.paths import ROOT
from support.texts import CORPUS
from support.tiny_checkpoints import t5
from support.tiny_families import BART, torch_model
from support.tiny_sentencepiece_tokenizers import train_sentencepiece

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.convert import load

torch = pytest.importorskip("torch")
from support.tutorial_model import TutorialModel  # noqa: E402 (needs torch)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:enable_nested_tensor")]
SPECIALS = ["<unk>", "<pad>", "<bos>", "<eos>"]
TEXTS = ["a dog runs in the park .", "two men", "the park is green , and a dog runs .", "a child plays"]
ENGLISH = sorted({word for text in TEXTS for word in text.split()})
GERMAN = "ein hund läuft im park . zwei männer kinder spielen das ist grün und , am".split()
MAX_TOKENS = 12


@pytest.fixture(autouse=True)
def uncompiled():
    """Run MLX without compilation, which takes seconds for every model."""
    mx.disable_compile()
    yield
    mx.enable_compile()


class Program:
    """What a program around a tutorial's model does: text to ids, and ids to text.

    Attributes:
        encode: Text -> ids, without special tokens.
        decode: Ids without special tokens -> text.
        options: The TokenizerOptions that describe the files.
    """

    def __init__(self, sizes, special_ids, encode, decode, **options):
        self.encode, self.decode, self.options = encode, decode, options
        self.model = TutorialModel(sizes, special_ids).fit(list(map(encode, TEXTS)))

    def translate(self, text, kind="both"):
        return self.decode(self.model.translate_ids(self.encode(text), MAX_TOKENS, kind))


def with_tokenizer_json(folder):
    """One tokenizer.json for both sides, which decodes without its special tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    special = ["[UNK]", "[PAD]", "[SOS]", "[EOS]"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()

    def encode(text):
        return tokenizer.encode(text).ids

    return Program((size, size), [(1, 2, 3)] * 2, encode, tokenizer.decode, source="tokenizer.json")


def with_word_lists(folder, source_tokens=(), target_tokens=()):
    """Two vocabularies of words, one a line."""
    source, target = source_tokens or SPECIALS + ENGLISH, target_tokens or SPECIALS + GERMAN
    for name, tokens in (("src.txt", source), ("trg.txt", target)):
        (folder / name).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    special = [tuple(tokens.index(name) for name in SPECIALS[1:]) for tokens in (source, target)]

    def encode(text):
        return [source.index(word) if word in source else source.index("<unk>") for word in text.split()]

    def decode(ids):
        return " ".join(target[i] for i in ids)

    return Program((len(source), len(target)), special, encode, decode, source="src.txt", target="trg.txt")


def with_characters(folder):
    """Source and target characters, as JSON: a list, and a dict from tokens to ids."""
    source = ["<pad>", "<sos>", "<eos>", "<unk>", *sorted(set("".join(TEXTS)))]
    target = ["<PAD>", "<SOS>", "<EOS>", *sorted(set("".join(GERMAN)) | {" "})]
    (folder / "source.json").write_text(json.dumps(source))
    (folder / "target.json").write_text(json.dumps({token: i for i, token in enumerate(target)}))
    return Program(
        (len(source), len(target)),
        [(0, 1, 2)] * 2,
        lambda text: [source.index(character) for character in text],
        lambda ids: "".join(target[i] for i in ids),
        source="source.json",
        target="target.json",
    )


def with_sentencepiece(folder):
    """One sentencepiece model for both sides."""
    content = train_sentencepiece(pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    (folder / "spm.model").write_bytes(content)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    size = model.get_piece_size()
    return Program((size, size), [(0, 2, 3)] * 2, model.encode, model.decode, source="spm.model")


PROGRAMS = {
    "tokenizer.json": with_tokenizer_json,
    "words": with_word_lists,
    "characters": with_characters,
    "sentencepiece": with_sentencepiece,
}


def convert(program, folder, **options):
    """Save a program's model and convert it with its vocabularies; return the converted model and tokenizer."""
    torch.save(program.model.state_dict(), folder / "model.pt")
    files = {name: folder / file for name, file in program.options.items()}
    mt.convert(folder / "model.pt", folder / "out", tokenizer=mt.TokenizerOptions(**files, **options), force=True)
    return mt.load(folder / "out")


def generate(model, tokenizer, texts):
    return list(mt.generate(model, tokenizer, texts, SearchConfig(max_tokens=MAX_TOKENS)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_text_is_that_of_the_program(name, tmp_path):
    program = PROGRAMS[name](tmp_path)
    model, tokenizer = convert(program, tmp_path)
    expected = [program.translate(text) for text in TEXTS]
    assert generate(model, tokenizer, TEXTS) == expected
    others = [program.translate(text, kind) for text in TEXTS for kind in ("start", "end", "none")]
    assert len({*expected, *others}) == 4 * len(TEXTS)


def test_the_config_of_the_documentation(tmp_path):
    """The tokenizer that docs/converting.md builds in Python for a folder without one is that of the conversion."""
    page = (ROOT / "docs" / "converting.md").read_text()
    code = page.split("HFVocabulary(tokenizers", 1)[1].split("\n", 1)[1].split("mt.save", 1)[0]
    namespace = {"TokenizerConfig": TokenizerConfig}
    exec(code, namespace)
    _, tokenizer = convert(with_tokenizer_json(tmp_path), tmp_path)
    sizes = {"source_vocab_size": tokenizer.source.size, "target_vocab_size": tokenizer.target.size}
    assert tokenizer.config == dataclasses.replace(namespace["config"], **sizes)


@pytest.mark.parametrize("kind", ["start", "end", "none"])
def test_special_tokens_around_sources(kind, tmp_path):
    program = with_word_lists(tmp_path)
    model, tokenizer = convert(program, tmp_path, source_specials=kind)
    assert generate(model, tokenizer, TEXTS) == [program.translate(text, kind) for text in TEXTS]


@pytest.mark.parametrize("where", ["source", "target"])
def test_padding_that_differs_between_the_sides(where, tmp_path):
    """A sorted vocabulary has its special tokens at other ids."""
    tokens = {where: sorted({"source": SPECIALS + ENGLISH, "target": SPECIALS + GERMAN}[where])}
    program = with_word_lists(tmp_path, tokens.get("source", ()), tokens.get("target", ()))
    model, tokenizer = convert(program, tmp_path)
    pads = [special[0] for special in program.model.special_ids]
    assert pads[0] != pads[1] == model.config.pad_id == tokenizer.source.token_to_id("<pad>")
    assert generate(model, tokenizer, TEXTS) == [program.translate(text) for text in TEXTS]


def test_padding_is_exchanged_in_memory_too(tmp_path):
    program = with_word_lists(tmp_path, sorted(SPECIALS + ENGLISH))
    torch.save(program.model.state_dict(), tmp_path / "model.pt")
    options = mt.TokenizerOptions(*(tmp_path / name for name in ("src.txt", "trg.txt")))
    model, tokenizer = load(tmp_path / "model.pt", tokenizer=options)
    assert generate(model, tokenizer, TEXTS) == [program.translate(text) for text in TEXTS]


def untrained(folder, source_tokens=SPECIALS, target_tokens=None, rows=8, **vocabularies):
    """Write an untrained model and lists of tokens; return the model's path and the options."""
    torch.save(TutorialModel((rows, rows), [(1, 2, 3)] * 2).state_dict(), folder / "model.pt")
    for name, tokens in (("src.txt", source_tokens), ("trg.txt", target_tokens)):
        if tokens is not None:
            (folder / name).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    target = None if target_tokens is None else folder / "trg.txt"
    return folder / "model.pt", mt.TokenizerOptions(folder / "src.txt", target, **vocabularies)


def test_ids_come_from_the_vocabulary(tmp_path):
    tokens = ["<eos>", "a", "<unk>", "<s>", "[PAD]", "bb"]
    path, options = untrained(tmp_path, tokens)
    model, tokenizer = load(path, tokenizer=options)
    config = model.config
    assert (config.pad_id, config.start_id, config.eos_id) == (4, 3, 0)
    assert tokenizer.encode("a c bb") == [3, 1, 2, 5, 0] and tokenizer.encode_target("bb") == [5, 0]
    assert tokenizer.decode([3, 5, 4, 2, 1, 7, 0]) == "bb <unk> a"
    assert (tokenizer.source_vocab_size, tokenizer.target_vocab_size) == (8, 8)


def test_a_path_is_the_vocabulary_of_both_sides(tmp_path):
    path, options = untrained(tmp_path)
    tokenizers_ = [load(path, tokenizer=value)[1] for value in (options, options.source, str(options.source))]
    assert all(tokenizer.config == tokenizers_[0].config and tokenizer.shared for tokenizer in tokenizers_)


def test_a_vocabulary_with_much_fewer_tokens_than_rows_warns(tmp_path, caplog):
    path, options = untrained(tmp_path, [*SPECIALS, "A", "B"], rows=6)
    load(path, tokenizer=options)
    assert "source embedding" not in caplog.text
    path, options = untrained(tmp_path, [*SPECIALS, "A", "B"], rows=8)
    load(path, tokenizer=options)
    assert "src.txt has ids up to 5, but the source embedding 8 rows: is it" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "word"}, "level must be one of 'pieces', 'words', 'characters', not 'word'"),
        ({"source_specials": "all"}, "source_specials must be one of 'both', .*, not 'all'"),
        ({"lowercase": 1}, "lowercase must be bool, not 1"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError, match=message):
        mt.TokenizerOptions("vocabulary.txt", **fields)


def test_settings_that_contradict_the_vocabulary(tmp_path):
    path, options = untrained(tmp_path, [*SPECIALS, "<en>", "a"])
    with pytest.raises(ValueError, match=r"pad_id must be that .* set to 0, but <pad> has the id 1 in .*src\.txt"):
        mt.convert(path, tmp_path / "out", tokenizer=options, settings={"pad_id": 0})
    with pytest.raises(ValueError, match="start_id must be that .* set to 5, but <bos> has the id 2"):
        mt.convert(path, tmp_path / "out", tokenizer=options, settings={"start_id": 5})
    assert not (tmp_path / "out").exists()
    model, tokenizer = load(path, tokenizer=options, settings={"pad_id": 1, "start_id": 4})
    assert model.config.start_id == 4 and tokenizer.encode("a") == [2, 5, 3]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (["<pad>", "<s>", "</s>", *"abcdef"], None, r"src\.txt has ids up to 8, but the source embedding only 8 rows"),
        (
            ["<s>", "</s>", "a"],
            None,
            r"src\.txt has none for pad_id, such as <pad>: give the id .* by convert --set pad_id=N",
        ),
        (["<pad>", "a"], None, "none for eos_id, such as <eos>: give the id .* by convert --set eos_id=N"),
        (["<pad>", "</s>"], SPECIALS, "Sources of this model need the start token, but .*src.txt"),
        (["a", "b", "<s>", "</s>"], SPECIALS, "the same padding: id 1 is b in .*src.txt"),
        (["<pad>", "<s>", "</s>", "\u0120a", "b"], None, "BPE needs its merges.*give the tokenizer.json"),
        (["<pad>", "<s>", "</s>", "a", "b</w>"], None, "BPE needs its merges.*give the tokenizer.json"),
        (["<pad>", "<s>", "</s>", "a", "a"], None, "has 'a' twice"),
    ],
)
def test_vocabularies_that_do_not_fit(source, target, message, tmp_path):
    path, options = untrained(tmp_path, source, target)
    with pytest.raises(ValueError, match=message) as caught:
        mt.convert(path, tmp_path / "out", tokenizer=options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_special_tokens_of_other_names_are_set(tmp_path):
    path, options = untrained(tmp_path, ["nothing", "a", "begin", "stop", "b"])
    model, tokenizer = load(path, tokenizer=options, settings={"pad_id": 0, "start_id": 2, "eos_id": 3})
    assert tokenizer.encode("a b") == [2, 1, 4, 3] and tokenizer.decode([2, 4, 0, 3]) == "b"


LEVELS = {
    "words": (["dog", "isn't", "."], None, "a dog. isn't dog.dog", ["<unk>", "dog", ".", "isn't", "dog", ".", "dog"]),
    "a single character": (["a", "b", "cc"], None, "a b", ["a", "b"]),
    "characters": (["a", "b", " "], None, "ab ac", ["a", "b", " ", "a", "<unk>"]),
    "words of one letter": (["a", "b", " "], "words", "ab b", ["<unk>", "b"]),
    "characters among others": (["a", "b", "ch"], "characters", "ch b", ["<unk>", "<unk>", "<unk>", "b"]),
    "subword-nmt": (["a", "b@@", "c@@"], None, "b@@ a c.", ["b@@", "a", "<unk>"]),
    "WordPiece": (["a", "##b", "c"], None, "ab c", ["a", "##b", "c"]),
    "words with a mark": (["a", "b@@", *(f"w{i}" for i in range(30))], None, "a w3", ["a", "w3"]),
}


@pytest.mark.parametrize(("tokens", "level", "text", "expected"), LEVELS.values(), ids=LEVELS)
def test_levels(tokens, level, text, expected, tmp_path):
    path, options = untrained(tmp_path, [*SPECIALS, *tokens], rows=40, level=level)
    mt.convert(path, tmp_path / "out", tokenizer=options)
    _, tokenizer = mt.load(tmp_path / "out")
    assert [tokenizer.source.id_to_token(i) for i in tokenizer.encode(text)] == ["<bos>", *expected, "<eos>"]


def test_what_is_recognised_is_reported(tmp_path):
    path, options = untrained(tmp_path, [*SPECIALS, "a", "b"], [*SPECIALS, "aa"])
    report = mt.convert(path, tokenizer=options, dry_run=True)
    expected = [("source_specials", "both"), ("level", "characters"), ("level", "words")]
    assert [assumption[:2] for assumption in report.assumptions[-3:]] == expected
    chosen = dataclasses.replace(options, level="words", source_specials="end")
    settings = {assumption.setting for assumption in mt.convert(path, tokenizer=chosen, dry_run=True).assumptions}
    assert not settings & {"source_specials", "level"}


def test_texts_of_each_level_are_joined_again(tmp_path):
    for tokens, text in ((["a", "b", " "], "ab a"), (["a", "b@@", "c"], "bc a"), (["a", "##b", "c"], "ab c")):
        path, options = untrained(tmp_path, [*SPECIALS, *tokens])
        _, tokenizer = load(path, tokenizer=options)
        split = {"bc a": "b@@ c a"}.get(text, text)
        assert tokenizer.decode(tokenizer.encode_target(split)) == text


def test_texts_are_lower_cased(tmp_path, caplog):
    path, options = untrained(tmp_path, [*SPECIALS, "über", "ab"], lowercase=True)
    mt.convert(path, tmp_path / "out", tokenizer=options)
    assert "capital" not in caplog.text
    _, tokenizer = mt.load(tmp_path / "out")
    assert tokenizer.encode("ÜBER Ab") == [2, 4, 5, 3] and tokenizer.encode_target("AB") == [5, 3]
    _, plain = load(path, tokenizer=dataclasses.replace(options, lowercase=False))
    assert plain.encode("ÜBER ab") == [2, 0, 5, 3]
    assert re.search(r"No token of .*src\.txt has a capital letter: add --lowercase", caplog.text)


def test_a_vocabulary_without_an_unknown_token_leaves_words_out(tmp_path, caplog):
    path, options = untrained(tmp_path, ["<pad>", "<s>", "</s>", "aa"])
    _, tokenizer = load(path, tokenizer=options)
    assert [tokenizer.encode("b aa c"), tokenizer.encode("b")] == [[1, 3, 2], [1, 2]]
    assert caplog.text.count("Left out, because the vocabulary has no unknown token: 'b', 'c'.") == 1
    assert caplog.text.count("Left out") == 1


def test_vocabularies_that_differ_in_padding_must_not_share_an_embedding(tmp_path):
    path, options = untrained(tmp_path, ["<pad>", "<unk>", "<bos>", "<eos>"], SPECIALS)
    state = torch.load(path)
    state["tgt_tok_emb.weight"] = state["src_tok_emb.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="must have the same padding: id 1 is <unk>"):
        load(path, tokenizer=options)


def test_a_vocabulary_takes_the_place_of_a_checkpoint_s_own(tmp_path):
    """The special ids of a model of transformers stay those of its config.json."""
    t5(tmp_path)
    model, own = load(tmp_path)
    (tmp_path / "spiece.model").rename(tmp_path / "other.model")
    same, tokenizer = load(tmp_path, tokenizer=mt.TokenizerOptions(tmp_path / "other.model"))
    assert same.config == model.config and model.config.start_id == model.config.pad_id
    assert tokenizer.encode_batch(TEXTS) == own.encode_batch(TEXTS)
    assert tokenizer.encode_target_batch(TEXTS) == own.encode_target_batch(TEXTS)


def test_the_template_of_a_tokenizer_json(tmp_path):
    """A tokenizer.json beside BART's weights or given by name: the same tokens around sources and targets."""
    trainer = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, show_progress=False)
    trainer._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer.save(str(tmp_path / "tokenizer.json"))
    size = trainer.get_vocab_size()
    torch_model("bart", settings={**BART, "vocab_size": size}).save_pretrained(tmp_path)
    model, own = load(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    same, tokenizer = load(tmp_path, tokenizer=tmp_path / "other.json")
    assert same.config == model.config and tokenizer.config == own.config
    assert tokenizer.encode_target_batch(TEXTS) == own.encode_target_batch(TEXTS)


def test_words_where_a_framework_has_special_tokens(tmp_path):
    """The dictionaries of fairseq leave out special tokens, which come before their words."""
    t5(tmp_path)
    (tmp_path / "dict.txt").write_text("the 90\ndog 80\nruns 7\n")
    with pytest.raises(
        ValueError, match="the special tokens of its model, whose pad_id is 0: .*dict.txt has 'the' there"
    ):
        load(tmp_path, tokenizer=tmp_path / "dict.txt")


def test_a_level_is_for_lists_of_tokens(tmp_path):
    program = with_tokenizer_json(tmp_path)
    with pytest.raises(ValueError, match="Only lists of tokens have a level: .*tokenizer.json"):
        convert(program, tmp_path, level="words")


def test_a_model_folder_takes_no_vocabulary(tmp_path):
    path, options = untrained(tmp_path)
    mt.convert(path, tmp_path / "out", tokenizer=options)
    with pytest.raises(ValueError, match="is a model folder .*: leave out tokenizer"):
        mt.convert(tmp_path / "out", tmp_path / "again", tokenizer=options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--source-vocab src.txt", "--source-vocab and --target-vocab must be given together"),
        ("--target-vocab src.txt", "--source-vocab and --target-vocab must be given together"),
        ("--tokenizer src.txt --source-vocab src.txt --target-vocab src.txt", "--tokenizer is the vocabulary of both"),
        ("--lowercase", "--lowercase needs a vocabulary: add --tokenizer FILE"),
        ("--source-specials end", "--source-specials needs a vocabulary"),
    ],
)
def test_options_of_the_command_that_do_not_go_together(arguments, message, tmp_path):
    result = CliRunner().invoke(main, ["convert", "model.pt", str(tmp_path / "out"), *arguments.split()])
    assert result.exit_code == 2 and message in result.output and not (tmp_path / "out").exists()


def test_a_model_without_a_vocabulary_names_the_option(tmp_path):
    path, _ = untrained(tmp_path)
    result = CliRunner().invoke(main, ["generate", "--model", str(path), "text"])
    assert result.exit_code == 1 and "has none: convert the checkpoint by convert --tokenizer FILE" in result.output


def test_the_command(tmp_path):
    path, _ = untrained(tmp_path, [*SPECIALS, "a", "b"], [*SPECIALS, "c", "d"])
    sides = ["--source-vocab", tmp_path / "src.txt", "--target-vocab", tmp_path / "trg.txt"]
    options = ["--lowercase", "--level", "characters", "--source-specials", "end"]
    result = CliRunner().invoke(main, ["convert", *map(str, (path, tmp_path / "out", *sides, *options))])
    assert result.exit_code == 0, result.output
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.encode("AB") == [4, 5, 3] and tokenizer.decode([4, 5]) == "cd"
