"""Vocabularies that a user gives: the converted folder writes the same text as a tutorial's program in torch."""

import json

import mlx.core as mx
import pytest
import sentencepiece
import tokenizers
from support.texts import CORPUS
from support.tiny_sentencepiece_tokenizers import train_sentencepiece

import mlx_transformer as mt
from mlx_transformer.config.search import SearchConfig

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
    tokenizer.train_from_iterator([*CORPUS, *TEXTS], trainer)
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
