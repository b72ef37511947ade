"""Marian, M2M100 and PLBart: the source ids and the decoded text of transformers, of small models made here."""

import json
import random

import pytest
from support.texts import SCRIPTS, TEXTS, random_texts
from support.tiny_tokenizers import KINDS, m2m100, marian, plbart, write

import mlx_transformer as mt
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights import convert
from mlx_transformer.weights.tokenizers.sentencepiece_models import SENTENCEPIECE_READERS

pytestmark = pytest.mark.torch

ALL = TEXTS + random_texts(300)
CLASSES = {marian: "MarianTokenizer", m2m100: "M2M100Tokenizer", plbart: "PLBartTokenizer"}


def read(name, folder):
    source, target, fields = SENTENCEPIECE_READERS[name][1](folder)
    sizes = {"source_vocab_size": source.size, "target_vocab_size": (target or source).size}
    return Tokenizer(source, target, TokenizerConfig(**fields, **sizes))


def original_class(name):
    return getattr(pytest.importorskip("transformers"), name)


def original(name, folder, **options):
    return original_class(name).from_pretrained(folder, **options)


def check(ours, theirs, seed=0, source="", target="", last=None):
    """Ids of sources, and text of random ids, of cut ids of real texts, and of special ids among others."""
    found = ours.encode_batch(ALL, source or None, target or None)
    expected = [theirs(text)["input_ids"] for text in ALL]
    wrong = [(text, a, b) for text, a, b in zip(ALL, found, expected, strict=True) if a != b]
    assert not wrong, wrong[0]
    generator = random.Random(seed)
    size = ours.target_vocab_size if last is None else last
    rows = [[generator.randrange(size) for _ in range(generator.randrange(12))] for _ in range(500)]
    texts = SCRIPTS + random_texts(100, seed)
    if not isinstance(theirs, original_class("MarianTokenizer")):
        theirs.tgt_lang = theirs.src_lang
    theirs._switch_to_target_mode()
    targets = [theirs.convert_tokens_to_ids(theirs.tokenize(text)) for text in texts]
    theirs._switch_to_input_mode()
    rows += [row[generator.randrange(3) :] for row in targets]
    text = theirs.batch_decode(rows, skip_special_tokens=True)
    wrong = [(row, a, b) for row, a, b in zip(rows, ours.decode_batch(rows), text, strict=True) if a != b]
    assert not wrong, wrong[0]
    assert len(set(text)) > 300


@pytest.fixture(autouse=True)
def no_moses(monkeypatch):
    """Punctuation is not normalised, whether sacremoses is installed or not."""

    def plain(self):
        self.punc_normalizer = lambda text: text

    monkeypatch.setattr(original_class("MarianTokenizer"), "_setup_normalizer", plain)


@pytest.mark.parametrize("kind", KINDS)
def test_marian_with_one_vocabulary(tmp_path, kind):
    folder = marian(tmp_path, kind)
    ours, theirs = read("MarianTokenizer", folder), original("MarianTokenizer", folder)
    tagged = [f">>deu<< {text}" for text in ALL]
    assert ours.encode_batch(ALL, None, "deu") == [theirs(text)["input_ids"] for text in tagged]
    assert ours.encode_batch(tagged) == [theirs(text)["input_ids"] for text in tagged]
    assert ours.encode_target_batch(ALL) == [theirs(text_target=text)["input_ids"] for text in ALL]
    check(read("MarianTokenizer", marian(tmp_path, kind, languages=())), original("MarianTokenizer", folder))


@pytest.mark.parametrize(("kind", "target_kind"), [("unigram with bytes", "unigram"), ("unigram", "bpe with bytes")])
def test_text_is_made_by_the_model_of_the_source(tmp_path, kind, target_kind):
    folder = marian(tmp_path, kind, languages=(), target_kind=target_kind)
    check(read("MarianTokenizer", folder), original("MarianTokenizer", folder))


@pytest.mark.parametrize("languages", [(), (">>fra<<",)])
def test_marian_with_a_vocabulary_for_each_side(tmp_path, languages):
    folder = marian(tmp_path, languages=languages, separate=True)
    ours, theirs = read("MarianTokenizer", folder), original("MarianTokenizer", folder)
    assert ours.encode_target_batch(ALL) == [theirs(text_target=text)["input_ids"] for text in ALL]
    if not languages:
        # The target's own padding, which is never generated, is text to transformers, and an added space.
        check(ours, theirs, last=ours.target_vocab_size - 1)


def test_tags_of_marian(tmp_path):
    folder = marian(tmp_path)
    ours, theirs = read("MarianTokenizer", folder), original("MarianTokenizer", folder)
    assert ours.languages == ["deu", "fra"]
    for text in (">>fra<<", ">>fra<<x", ">>fra<< >>deu<< x", ">>fra<</s>>>deu<<x", ">>fra<< a >>xx<<"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.encode("x", None, "fra")[0] == theirs.convert_tokens_to_ids(">>fra<<")
    for text in ("x", " >>fra<< x", ">>xxx<< x", ">fra<"):
        with pytest.raises(ValueError, match="knows 2 languages and needs the target language: --target-language deu"):
            ours.encode(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codes", ["m2m100", "wmt21"])
def test_m2m100(tmp_path, kind, codes):
    folder = m2m100(tmp_path, kind, codes)
    theirs = original("M2M100Tokenizer", folder, src_lang="de")
    ours = read("M2M100Tokenizer", folder)
    check(ours, theirs, source="de")
    [start] = ours.decoder_starts(1, "zh")
    assert (start.start_id, start.first_id) == (ours.start_id, theirs.get_lang_id("zh"))
    theirs.tgt_lang = "ru"
    assert ours.encode_target_batch(ALL, "ru") == [theirs(text_target=text)["input_ids"] for text in ALL]


def test_ids_of_m2m100_that_mean_nothing(tmp_path):
    folder = m2m100(tmp_path)
    theirs = original("M2M100Tokenizer", folder)
    source, target, fields = SENTENCEPIECE_READERS["M2M100Tokenizer"][1](folder)
    size = source.size + 8
    ours = Tokenizer(source, target, TokenizerConfig(**fields, source_vocab_size=size, target_vocab_size=size))
    word = ours.encode_target("translation", "fr")
    rows = [[size - 1], [*word, size - 1, *word], [size - 8, size - 7], [*word, 3, *word]]
    assert ours.decode_batch(rows) == theirs.batch_decode(rows, skip_special_tokens=True)
    assert ours.tokens([size - 1, 2]) == ["", "</s>"]


def test_languages_of_m2m100_that_are_not_special(tmp_path):
    folder = m2m100(tmp_path, listed=False)
    check(read("M2M100Tokenizer", folder), original("M2M100Tokenizer", folder, src_lang="fr"), source="fr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codes", ["base", "multi"])
def test_plbart(tmp_path, kind, codes):
    folder = plbart(tmp_path, kind, codes)
    theirs = original("PLBartTokenizer", folder, src_lang="python", tgt_lang="en_XX")
    ours = read("PLBartTokenizer", folder)
    assert ours.source_vocab_size == theirs.vocab_size
    check(ours, theirs, source="python")
    assert ours.decoder_starts(2, ["java", "en_XX"]) == [
        (theirs.convert_tokens_to_ids("__java__"), None),
        (theirs.convert_tokens_to_ids("__en_XX__"), None),
    ]


@pytest.mark.parametrize("make", [marian, m2m100, plbart])
def test_files_that_transformers_saves(tmp_path, make):
    """Special tokens under other names, tokens that were added, and white space that these take with them."""
    name = CLASSES[make]
    language = {m2m100: {"src_lang": "fr"}, plbart: {"src_lang": "java"}}.get(make, {})
    theirs = original(name, make(tmp_path, **({"languages": ()} if make is marian else {})), **language)
    if make is not plbart:  # whose ids of added tokens are those of languages
        theirs.add_tokens(["quick", "лазу", "fox jumps"])
        theirs.add_special_tokens({"bos_token": "<go>", "extra_special_tokens": ["<x>", *theirs._extra_special_tokens]})
    theirs.save_pretrained(tmp_path / "saved")
    ours = read(name, tmp_path / "saved")
    again = original(name, tmp_path / "saved", **language)
    source = language.get("src_lang", "")
    last = None if make is not plbart else again.vocab_size
    text = "the quick<x>brown <go> fox jumps"
    assert ours.encode(text, source or None) == again(text)["input_ids"]
    check(ours, again, source=source, last=last)


def test_files_of_the_time_before_added_tokens_were_listed(tmp_path):
    token = {"content": "<pad>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    folder = write(
        m2m100(tmp_path, "as it is", config={"src_lang": "en", "tgt_lang": "de"}, listed=False),
        special_tokens_map__json={"pad_token": token, "additional_special_tokens": ["__en__", "__fr__"]},
        added_tokens__json={"<new>": 2000},
    )
    ours = read("M2M100Tokenizer", folder)
    check(ours, original("M2M100Tokenizer", folder), last=400)
    text = "a <pad>  b__fr__ <new> __de__"
    assert ours.encode(text) == original("M2M100Tokenizer", folder)(text)["input_ids"]
    assert ours.config.default_target_language == "de"


@pytest.mark.parametrize("make", [marian, m2m100, plbart])
def test_white_space_beside_added_tokens(tmp_path, make):
    """It is dropped as the files say, but not beside tokens that PLBart has anyway."""

    def token(text, left, right):
        return {"content": text, "lstrip": left, "rstrip": right, "special": True}

    folder = make(tmp_path, "as it is")
    ids = {"<pad>": 1, "</s>": 2} if make is plbart else json.loads((folder / "vocab.json").read_text())
    listed = {ids["<pad>"]: token("<pad>", True, True), ids["</s>"]: token("</s>", False, True)}
    listed[399] = token("<x>", True, False)
    language = {m2m100: {"src_lang": "de"}, plbart: {"src_lang": "java"}}.get(make, {})
    make(tmp_path, "as it is", config={"added_tokens_decoder": listed} | language)
    ours, theirs = read(CLASSES[make], folder), original(CLASSES[make], folder)
    text = ">>fra<< a  <pad>  b  </s>  c  <x>  d  <pad> </s> <x> <mask> e"
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_languages_of_plbart_that_the_files_state(tmp_path):
    config = {"src_lang": "__java__", "tgt_lang": "__en_XX__"}
    ours = read("PLBartTokenizer", plbart(tmp_path, config=config))
    assert ours.encode("a") == original("PLBartTokenizer", tmp_path)("a")["input_ids"]
    assert ours.config.default_source_language == "java" and ours.config.default_target_language == "en_XX"


@pytest.mark.parametrize("clean_up", [True, False])
def test_spaces_before_punctuation(tmp_path, clean_up):
    for make, name in ((marian, "MarianTokenizer"), (plbart, "PLBartTokenizer")):
        folder = tmp_path / name
        folder.mkdir()
        make(folder, config={"clean_up_tokenization_spaces": clean_up, "src_lang": "java"})
        ours, theirs = read(name, folder), original(name, folder)
        text = "Hello , world . do n't it 's he 'm a ' b"
        ids = ours.encode_target(text, "java" if make is plbart else None)
        assert ours.decode(ids) == theirs.batch_decode([ids], skip_special_tokens=True)[0]
        assert (" ," in ours.decode(ids)) != clean_up


@pytest.mark.parametrize("make", [marian, m2m100, plbart])
def test_what_is_saved_is_loaded(tmp_path, make):
    name = CLASSES[make]
    saved = read(name, make(tmp_path))
    saved.save(tmp_path / "model")
    loaded = Tokenizer.find(tmp_path / "model")
    source = None if make is marian else saved.languages[0]
    target = saved.languages[1]
    assert loaded.config == saved.config
    assert loaded.encode_batch(ALL, source, target) == saved.encode_batch(ALL, source, target)
    rows = saved.encode_target_batch(ALL, None if make is marian else target)
    assert loaded.encode_target_batch(ALL, None if make is marian else target) == rows
    assert loaded.decode_batch(rows) == saved.decode_batch(rows)


SMALL = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 32,
}
FAIRSEQ = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def checkpoint_of(folder, model, make, **settings):
    """A whole checkpoint of transformers: the tokenizer's files and a tiny model that fits them."""
    folder.mkdir(exist_ok=True)
    name = CLASSES[make]
    kept = {key: settings.pop(key) for key in ("config", "languages", "separate") if key in settings}
    tokenizer = read(name, make(folder, **kept))
    transformers = pytest.importorskip("transformers")
    first = settings.pop("first", None)
    sizes = {"vocab_size": tokenizer.source_vocab_size + settings.pop("dead", 0)}
    config = getattr(transformers, f"{model}Config")(**SMALL | sizes | settings)
    kind = {"Marian": "MarianMTModel"}.get(model, f"{model}ForConditionalGeneration")
    made = getattr(transformers, kind)(config)
    made.generation_config.forced_bos_token_id = first
    made.save_pretrained(folder)
    return folder


def both_ways(folder, tmp_path):
    """The tokenizer of a checkpoint converted in memory, and of the model folder that is made of it."""
    convert.convert(folder, tmp_path / "model")
    return [mt.load(folder)[1], mt.load(tmp_path / "model")[1]]


def test_conversion_of_marian(tmp_path):
    size = read("MarianTokenizer", marian(tmp_path)).source_vocab_size
    ids = {"pad_token_id": size - 1, "eos_token_id": 0, "decoder_start_token_id": size - 1}
    folder = checkpoint_of(tmp_path / "theirs", "Marian", marian, **ids)
    for tokenizer in both_ways(folder, tmp_path):
        assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.start_id) == (size - 1, 0, size - 1)
        assert (
            tokenizer.encode(SCRIPTS[0], target_language="fra")
            == original("MarianTokenizer", folder)(f">>fra<< {SCRIPTS[0]}")["input_ids"]
        )
        assert tokenizer.decoder_starts(1, "fra") == [(size - 1, None)]
        assert tokenizer.languages == ["deu", "fra"]


def test_conversion_of_marian_with_a_vocabulary_for_each_side(tmp_path):
    other = read("MarianTokenizer", marian(tmp_path, separate=True, languages=())).target_vocab_size
    ids = {"pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2, "decoder_vocab_size": other}
    settings = {"share_encoder_decoder_embeddings": False, "separate": True, "languages": ()}
    folder = checkpoint_of(tmp_path / "theirs", "Marian", marian, **ids, **settings)
    for tokenizer in both_ways(folder, tmp_path):
        assert not tokenizer.shared and tokenizer.source_vocab_size != tokenizer.target_vocab_size == other
        text = SCRIPTS[6]
        ids = original("MarianTokenizer", folder)(text_target=text)["input_ids"]
        assert tokenizer.encode_target(text) == ids != tokenizer.encode(text)


def test_conversion_of_m2m100_with_ids_that_mean_nothing(tmp_path):
    folder = checkpoint_of(tmp_path / "theirs", "M2M100", m2m100, dead=8, decoder_start_token_id=2, **FAIRSEQ)
    theirs = original("M2M100Tokenizer", folder, src_lang="fr", tgt_lang="de")
    for tokenizer in both_ways(folder, tmp_path):
        assert tokenizer.encode_batch(ALL, "fr") == [theirs(text)["input_ids"] for text in ALL]
        assert tokenizer.decoder_starts(1, "de") == [(2, theirs.get_lang_id("de"))]
        assert len(tokenizer.languages) == 100
        last = tokenizer.target_vocab_size - 1
        assert tokenizer.decode([last]) == theirs.batch_decode([[last]], skip_special_tokens=True)[0] == "<unk>"
        with pytest.raises(ValueError, match="needs the target language"):
            tokenizer.decoder_starts(1)


def test_the_language_that_a_checkpoint_begins_with_by_itself(tmp_path):
    tokenizer = read("M2M100Tokenizer", m2m100(tmp_path))
    settings = {"config": {"tgt_lang": "en"}, "first": tokenizer.config.languages["ru"], **FAIRSEQ}
    folder = checkpoint_of(tmp_path / "m2m100", "M2M100", m2m100, decoder_start_token_id=2, **settings)
    assert mt.load(folder)[1].decoder_starts(1) == [(2, tokenizer.config.languages["ru"])]
    tokenizer = read("PLBartTokenizer", plbart(tmp_path))
    start = tokenizer.config.languages["python"]
    config = {"src_lang": "java", "tgt_lang": "en_XX"}
    folder = checkpoint_of(tmp_path / "p", "PLBart", plbart, decoder_start_token_id=start, config=config, **FAIRSEQ)
    tokenizer = mt.load(folder)[1]
    assert tokenizer.decoder_starts(1) == [(start, None)]
    assert tokenizer.encode("a") == original("PLBartTokenizer", folder)("a")["input_ids"]


def test_files_that_do_not_fit(tmp_path):
    folder = checkpoint_of(tmp_path / "theirs", "M2M100", m2m100, decoder_start_token_id=2, **FAIRSEQ)
    (folder / "vocab.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match="(?i)there is no .*vocab.json"):
        mt.load(folder)
    ids = json.loads((folder / "other.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(ids | {f"new{i}": len(ids) + i for i in range(200)}))
    with pytest.raises(ValueError, match="must fit its model: 'new100' has the id"):
        convert.convert(folder, tmp_path / "ours")
    for content, told in (("{", "be JSON"), ('{"a": -1}', "map each piece to an id"), ('{"a": "b"}', "map each")):
        (folder / "vocab.json").write_text(content)
        with pytest.raises(ValueError, match=rf"vocab\.json must {told}"):
            mt.load(folder)
    (folder / "other.json").rename(folder / "vocab.json")
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="sentencepiece.bpe.model must be a sentencepiece model"):
        mt.load(folder)
    (folder / "vocab.json").unlink()
    (folder / "sentencepiece.bpe.model").unlink()
    assert mt.load(folder)[1] is None
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"language_codes": "m3"}, "language_codes of tokenizer_config.json must be one of m2m100, wmt21, not 'm3'"),
        ({"language_codes": ["m2m100"]}, "language_codes of tokenizer_config.json must be one of"),
        ({"eos_token": None}, "must have an eos_token: tokenizer_config.json removes it"),
        ({"unk_token": None}, "must have an unk_token"),
        ({"added_tokens_decoder": {"-5": {"content": "x"}}}, "added_tokens_decoder must map ids to tokens"),
        ({"added_tokens_decoder": {"7": {"content": ""}}}, "Added tokens must not be empty"),
    ],
)
def test_settings_that_cannot_be(tmp_path, config, told):
    with pytest.raises(ValueError, match=told):
        read("M2M100Tokenizer", m2m100(tmp_path, config=config))
