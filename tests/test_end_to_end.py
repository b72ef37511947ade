"""Tiny complete checkpoints as on the hub: the command line gives the text of transformers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.texts import EMOJI, SCRIPTS
from support.tiny_families import MODELS, torch_model
from support.tiny_hf_tokenizers import auto_tokenizer, train_models, write_case
from support.tiny_sentencepiece_tokenizers import write_m2m100, write_marian, write_plbart

from mlx_transformer.cli import main
from mlx_transformer.pretrained import hub
from mlx_transformer.tokenization.normalization import is_blank
from mlx_transformer.weights import convert

pytestmark = [pytest.mark.torch, pytest.mark.slow]

LONG = " ".join(SCRIPTS[:6])
LINES = [
    *SCRIPTS[:8:3],
    SCRIPTS[9],
    "",
    *SCRIPTS[12:18:2],
    EMOJI[1],
    "Well , I do n't know ... (1)?!",
    LONG,
    " ",
    "\u200b",
]
MARIAN = {"num_beams": 4, "max_length": 14, "forced_eos_token_id": 0, "renormalize_logits": True}
SUMMARY = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3}
BEAMS = {"num_beams": 3, "max_length": 12}
CHAT = BEAMS | {"min_length": 6, "no_repeat_ngram_size": 3}
# Weights of attention to the source and of feed-forward blocks, in the names of BART and of T5.
STRONG = ("encoder_attn.q_proj.weight", "encoder_attn.out_proj.weight", "fc2.weight")
STRONG += ("EncDecAttention.q.weight", "EncDecAttention.o.weight", "wo.weight")
LANGUAGE_TOKENS = {"m2m100": "__{}__", "plbart": "__{}__"}  # where they are not the codes themselves


def pieces(case):
    """Return a function that writes the files of a case."""
    return lambda folder: write_case(folder, train_models(), case)


@dataclass
class Family:
    """A checkpoint family and its options.

    Attributes:
        model: A tiny model's name.
        files: What writes the files of its tokenizer into a folder.
        generation: Its generation settings.
        source: The code of the language of sources, for our command line and for transformers.
        target: The code of the language to generate.
        prefix: What sources begin with.
        dead: Ids of the model that its tokenizer does not have.
        seed: Of its random weights; one with which texts vary, and none is nearly as probable as another.
    """

    model: str
    files: object
    generation: dict = field(default_factory=dict)
    source: str | None = None
    target: str | None = None
    prefix: str = ""
    dead: int = 0
    seed: int = 0


def saved_by_transformers(folder):
    """umT5 has a tokenizer.json, which is read unchanged."""
    with auto_tokenizer() as load:
        load(write_case(folder / "four", train_models(), "t5")).save_pretrained(folder)


FAMILIES = {
    "marian": Family("marian", write_marian, MARIAN, target="fra", seed=5),
    "marian-split": Family("marian-split", partial(write_marian, separate=True), MARIAN, target="deu", seed=10),
    "bart": Family("bart", pieces("bart"), SUMMARY | {"max_length": 14, "min_length": 5, "forced_bos_token_id": 0}),
    "plbart": Family("plbart", write_plbart, BEAMS, "java", "en_XX", seed=4),
    "mbart": Family("mbart", pieces("mbart"), BEAMS | {"forced_eos_token_id": 2}, "ro_RO", "en_XX"),
    "mbart-50": Family("mbart-50", pieces("mbart50"), BEAMS | {"forced_eos_token_id": 2}, "fr_XX", "de_DE"),
    "m2m100": Family("m2m100", write_m2m100, BEAMS | {"early_stopping": True}, "de", "zh", dead=8, seed=3),
    "nllb": Family("nllb", pieces("nllb"), BEAMS, "fra_Latn", "tyv_Cyrl", seed=2),
    "nllb-legacy": Family("nllb", pieces("nllb legacy"), {"max_length": 12}, "fra_Latn", "ace_Arab", seed=2),
    "pegasus": Family("pegasus", pieces("pegasus"), BEAMS | {"length_penalty": 0.6, "forced_eos_token_id": 1}),
    "blenderbot": Family("blenderbot", pieces("blenderbot"), CHAT | {"encoder_no_repeat_ngram_size": 3}),
    "blenderbot-small": Family("blenderbot-small", pieces("blenderbot-small"), CHAT, seed=3),
    "t5": Family("t5", pieces("t5"), SUMMARY | {"max_length": 12}, prefix="summarize: ", dead=28),
    "flan": Family("flan", pieces("t5"), {"max_new_tokens": 11, "repetition_penalty": 1.2}),
    "mt5": Family("mt5", pieces("mt5"), BEAMS | {"num_beams": 4}, seed=1),
    "umt5": Family("umt5", saved_by_transformers, BEAMS),
    "byt5": Family("byt5", pieces("byt5"), {"num_beams": 2, "max_length": 18}),
    "madlad": Family("madlad", pieces("t5 with symbols"), BEAMS, prefix="<2de> ", seed=1),
}


@pytest.fixture(autouse=True)
def uncompiled():
    """Compilation is disabled, because every trace takes seconds on a CPU."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(autouse=True, scope="module")
def load_tokenizer():
    """Hide protobuf, and sacremoses, which changes punctuation if it is installed."""
    transformers = pytest.importorskip("transformers")
    with auto_tokenizer() as load, pytest.MonkeyPatch.context() as patch:
        plain = lambda self: setattr(self, "punc_normalizer", lambda text: text)  # noqa: E731
        patch.setattr(transformers.MarianTokenizer, "_setup_normalizer", plain)
        yield load


def make_lively(model, torch):
    """Change random weights so that targets depend on the source and do not repeat tokens."""
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith("bias"):
                value *= 0.1
            elif key.endswith(STRONG):
                value *= 8


def write_checkpoint(folder, family, load_tokenizer, **config):
    """Write a checkpoint as on the hub; returns the tokenizer and model of transformers."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    family.files(folder)
    theirs = load_tokenizer(folder)  # for its sizes
    settings = MODELS[family.model][1] | {"vocab_size": len(theirs) + family.dead}
    settings |= {"pad_token_id": theirs.pad_token_id, "eos_token_id": theirs.eos_token_id}
    generation = family.generation
    if family.model.startswith("marian"):
        settings["decoder_start_token_id"] = theirs.pad_token_id
        settings["decoder_vocab_size"] = len(theirs.target_encoder if theirs.separate_vocabs else theirs)
        generation = generation | {"bad_words_ids": [[theirs.pad_token_id]]}
    settings |= {"scale_embedding": False} if "scale_embedding" in settings else {}
    model = torch_model(family.model, family.seed, settings, generation)
    make_lively(model, torch)
    model.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | config))
    return load_tokenizer(folder), type(model).from_pretrained(folder)


def original(theirs, model, lines, family, **settings):
    """Generate each line separately with transformers; padding is suppressed, as in our search."""
    if family.source:
        theirs.src_lang = family.source
    if family.target and not family.model.startswith("marian"):
        theirs.tgt_lang = family.target
        name = "decoder_start_token_id" if family.model in ("mbart", "plbart") else "forced_bos_token_id"
        settings[name] = theirs.convert_tokens_to_ids(LANGUAGE_TOKENS.get(family.model, "{}").format(family.target))
    longest = vars(model.config).get("max_position_embeddings")
    texts = []
    for line in lines:
        if is_blank(line):  # as a zero-width space, for which transformers writes some text
            texts.append("")
            continue
        text = f">>{family.target}<< {line}" if family.model.startswith("marian") else family.prefix + line
        tokens = theirs(text, return_tensors="pt", truncation=longest is not None, max_length=longest)
        [ids] = model.generate(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            suppress_tokens=[theirs.pad_token_id],
            **settings,
        )
        texts.append(theirs.decode(ids, skip_special_tokens=True).replace("\n", " "))
    return texts


def original_scores(theirs, model, pairs, family):
    """Return transformers' log-probabilities of target tokens; 0 for a forced one."""
    import torch

    start, forced = model.config.decoder_start_token_id, model.generation_config.forced_bos_token_id
    if family.target and not family.model.startswith("marian"):
        code = theirs.convert_tokens_to_ids(LANGUAGE_TOKENS.get(family.model, "{}").format(family.target))
        start, forced = (code, None) if family.model in ("mbart", "plbart") else (start, code)
    if family.source:
        theirs.src_lang = family.source
    longest = vars(model.config).get("max_position_embeddings")
    rows = []
    for source, ids in pairs:
        text = f">>{family.target}<< {source}" if family.model.startswith("marian") else family.prefix + source
        tokens = theirs(text, return_tensors="pt", truncation=longest is not None, max_length=longest)
        read = torch.tensor([[start, *ids[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=tokens.input_ids, decoder_input_ids=read).logits[0]
        scores = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        rows.append(scores if forced is None else [0.0, *scores[1:]])
        assert forced in (None, ids[0])
    return rows


def run(*arguments, status=0, stdin=""):
    """Run our command line; returns its output or its one-line error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == status, result.output
    if not status:
        return result.stdout_bytes.decode()
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def generate(folder, lines, *options):
    """Run our command line as transformers generates: it neither splits lines nor copies parts of them."""
    stdin = "".join(f"{line}\n" for line in lines)
    printed = run("generate", "--model", folder, "--no-split-sentences", "--protect", "none", *options, stdin=stdin)
    return printed.removesuffix("\n").split("\n")


def languages(family):
    """Return the options of a family."""
    sides = {"--source-language": family.source, "--target-language": family.target}
    return [word for option, code in sides.items() if code for word in (option, code)]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_equals_transformers(name, tmp_path, load_tokenizer):
    """Both from the checkpoint and from the converted folder."""
    family = FAMILIES[name]
    prefix = {"prefix": family.prefix} if family.prefix else {}
    theirs, model = write_checkpoint(tmp_path / "theirs", family, load_tokenizer, **prefix)
    # The positions of M2M100 leave padding out, also where it is typed.
    lines = LINES if family.model in ("m2m100", "nllb") else [*LINES, "typed <pad> and __null__ here"]
    expected = original(theirs, model, lines, family)
    assert len(set(expected)) > 8, "the texts must depend on the sources"
    assert generate(tmp_path / "theirs", lines, *languages(family)) == expected
    run("convert", tmp_path / "theirs", tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    assert generate(tmp_path / "ours", lines, *languages(family)) == expected
    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert files - {"README.md", "SHA256SUMS"} == set(hub.choose_files("own/er", sorted(files)))


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_transformers(name, tmp_path, load_tokenizer):
    """Scores of given targets, with languages, prefixes and forced tokens."""
    family = FAMILIES[name]
    theirs, model = write_checkpoint(tmp_path / "theirs", family, load_tokenizer)
    sources, targets = SCRIPTS[:6], [*SCRIPTS[5:0:-1], "a"]
    options = ("--model", tmp_path / "theirs", "--json", "--source-prefix", family.prefix, *languages(family))
    stdin = "".join(f"{source}\t{target}\n" for source, target in zip(sources, targets, strict=True))
    printed = run("score", *options, stdin=stdin)
    found = [json.loads(line) for line in printed.splitlines()]
    ids = convert.load(tmp_path / "theirs")[1].encode_target_batch(targets, family.target)
    ids = [row[: vars(model.config).get("max_position_embeddings")] for row in ids]
    expected = original_scores(theirs, model, zip(sources, ids, strict=True), family)
    for one, scores in zip(found, expected, strict=True):
        assert one["token_scores"] == pytest.approx(scores, abs=5e-4)
        assert one["score"] == pytest.approx(sum(one["token_scores"]))
    assert len({round(sum(scores), 2) for scores in expected}) > 4


def test_command_line_equals_library(tmp_path, load_tokenizer):
    family = FAMILIES["bart"]
    expected = original(*write_checkpoint(tmp_path / "theirs", family, load_tokenizer), LINES, family)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_transformer", "generate", "--model", str(tmp_path / "theirs")],
        input="".join(f"{line}\n" for line in LINES).encode(),
        env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "".join(f"{text}\n" for text in expected)
    assert (
        "Warning: Line 11 is longer than the model can read and was cut: shorten it, or give --split-sentences.\n"
        in done.stderr.decode()
    )


PAIRS = {
    "m2m100": [("de", "zh"), ("ru", "fr"), ("zh", "de")],
    "nllb": [("fra_Latn", "eng_Latn"), ("tyv_Cyrl", "ace_Arab"), ("eng_Latn", "fra_Latn")],
    "mbart-50": [("fr_XX", "de_DE"), ("ru_RU", "en_XX"), ("zh_CN", "ta_IN")],
}


@pytest.mark.parametrize("name", PAIRS)
def test_languages_of_each_line(name, tmp_path, load_tokenizer):
    """In any order, and next to lines that use the options' languages."""
    theirs, model = write_checkpoint(tmp_path / "theirs", FAMILIES[name], load_tokenizer)
    objects, expected = [], []
    for text, (source, target) in zip(SCRIPTS[:6], PAIRS[name] * 2, strict=True):
        family = replace(FAMILIES[name], source=source, target=target)
        objects.append({"id": len(objects), "text": text, "source_language": source, "target_language": target})
        expected += original(theirs, model, [text], family)
    objects.append({"id": 6, "text": SCRIPTS[0]})
    expected += original(theirs, model, SCRIPTS[:1], FAMILIES[name])
    lines = [json.dumps(each) for each in objects]
    found = [json.loads(line) for line in generate(tmp_path / "theirs", lines, "--json", *languages(FAMILIES[name]))]
    assert [(each["id"], each["text"].replace("\n", " ")) for each in found] == list(enumerate(expected))
    alike = original(theirs, model, SCRIPTS[:6], FAMILIES[name])
    assert expected[1:3] != alike[1:3], "languages must make a difference"


TASKS = {
    "summarization": {"prefix": "summarize: ", "num_beams": 4, "no_repeat_ngram_size": 3, "min_length": 6},
    "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 2, "max_length": 8},
}


def test_tasks(tmp_path, load_tokenizer):
    """A task has a prefix and generation settings; --source-prefix overrides the config's."""
    family = replace(FAMILIES["t5"], generation={"max_length": 12})
    config = {"prefix": "question: ", "task_specific_params": TASKS}
    theirs, model = write_checkpoint(tmp_path / "theirs", family, load_tokenizer, **config)
    run("convert", tmp_path / "theirs", tmp_path / "ours")
    answers = []
    for options, changes in (
        ((), {"prefix": "question: "}),
        (("--source-prefix", "read: "), {"prefix": "read: "}),
        (("--source-prefix", ""), {"prefix": ""}),
        *((("--task", name), task) for name, task in TASKS.items()),
    ):
        settings = dict(changes)
        prefixed = replace(family, prefix=settings.pop("prefix"))
        answers.append(original(theirs, model, LINES, prefixed, **settings))
        for folder in ("theirs", "ours"):
            assert generate(tmp_path / folder, LINES, *options) == answers[-1]
    assert len(set(map(tuple, answers))) == len(answers), "each must make a difference"
    message = run("info", tmp_path / "ours")
    assert all(f"{name}: sources begin with {task['prefix']!r}" in message for name, task in TASKS.items())
    error = run("generate", "--model", tmp_path / "ours", "--task", "sum", status=2, stdin="a\n")
    assert "--task must be one of summarization, translation_en_to_de, not 'sum'" in error


@pytest.mark.parametrize("name, wrong, like", [("nllb", "fra", "fra_Latn"), ("marian", "fr", "fra")])
def test_info_lists_languages(name, wrong, like, tmp_path, load_tokenizer):
    family, folder = FAMILIES[name], tmp_path / "theirs"
    write_checkpoint(folder, family, load_tokenizer)
    known = json.loads(run("info", folder, "--json"))["languages"]
    assert {family.target, like} <= set(known)
    assert " ".join(known) in " ".join(run("info", folder).split())
    error = run("generate", "--model", folder, status=1, stdin="Hello\n")
    assert f"knows {len(known)} languages and needs the target language: --target-language " in error
    error = run("generate", "--model", folder, "--target-language", wrong, status=1, stdin="Hello\n")
    assert f"got {wrong!r}. Similar codes are {like}" in error


def test_unneeded_language_is_rejected(tmp_path, load_tokenizer):
    write_checkpoint(tmp_path / "theirs", FAMILIES["t5"], load_tokenizer)
    for side in ("source", "target"):
        error = run("generate", "--model", tmp_path / "theirs", f"--{side}-language", "de", status=1, stdin="Hello\n")
        assert f"takes no {side} language: got 'de'; leave it out" in error
