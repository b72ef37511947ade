"""Tiny but complete checkpoints as on the Hugging Face hub: random weights saved by transformers, and tokenizers."""

import json

from support.tiny_families import BART, MARIAN, T5, torch_model
from support.tiny_sentencepiece_tokenizers import list_pieces, train_sentencepiece, write_files, write_marian

WIDTHS = {"d_model": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # that allow quantisation
LENGTHS = {"min_length": 4, "max_length": 12}  # otherwise random weights end at once, or never
NLLB_CODES = ("deu_Latn", "eng_Latn", "fra_Latn")
TASKS = {
    "summarization": {"prefix": "summarize: ", "num_beams": 4, "max_length": 9},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "num_beams": 4, "max_length": 7},
}


def opus_mt(folder):
    """Write a Marian checkpoint for one language pair; return its files."""
    write_marian(folder, languages=())
    size = len(json.loads((folder / "vocab.json").read_text()))
    ids = {"pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    return finish(folder, "marian", {**MARIAN, **WIDTHS, **ids, "vocab_size": size}, bad_words_ids=[[size - 1]])


def nllb(folder):
    """Write an NLLB checkpoint, whose tokenizer_config.json numbers the languages; return its files."""
    model = train_sentencepiece()
    size = len(list_pieces(model)) + 1
    tokens = dict(enumerate(("<s>", "<pad>", "</s>", "<unk>"))) | dict(enumerate((*NLLB_CODES, "<mask>"), start=size))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    tokenizer_config = {
        "tokenizer_class": "NllbTokenizer",
        "added_tokens_decoder": {str(i): flags | {"content": token} for i, token in tokens.items()},
    }
    write_files(folder, sentencepiece__bpe__model=model, tokenizer_config__json=tokenizer_config)
    return finish(folder, "nllb", {**BART, **WIDTHS, "vocab_size": max(tokens) + 1})


def t5(folder):
    """Write a T5 checkpoint with tasks; return its files."""
    model = train_sentencepiece(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write_files(folder, spiece__model=model)
    files = finish(folder, "t5", {**T5, "vocab_size": len(list_pieces(model)) + 100})
    config = json.loads(files["config.json"]) | {"task_specific_params": TASKS}
    return files | {"config.json": json.dumps(config).encode()}


def finish(folder, name, settings, **generation):
    """Save a model of a family next to its tokenizer; return the content of all files by name."""
    torch_model(name, settings=settings, generation=LENGTHS | generation).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
