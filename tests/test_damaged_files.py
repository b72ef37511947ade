"""Randomly damaged folders, tokenizers and archives are refused with one line, or load; nothing else happens.

Every kind has a few hundred files in the suite. MLX_TRANSFORMER_FUZZ=20000 reads as many of each kind, and -s shows the
counts.
"""

import json
import os
import random
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.checkpoint_files import numbers, safetensors_file, tensor, zip_file
from support.damage import damage_bytes, damage_json
from support.fuzzing import read_damaged_files
from support.tiny_sentencepiece_tokenizers import list_pieces, train_sentencepiece, write_files, write_marian

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.plotting.learning_curves import plot_learning_curves
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary, load_hf_tokenizer
from mlx_transformer.training.run_directory import RunDirectory, load_run_options
from mlx_transformer.weights import convert
from mlx_transformer.weights.conversion_plan import build_config, fields_from_config, parameter_shapes
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.formats.checkpoint import read_checkpoint, to_plain
from mlx_transformer.weights.parameter_map import expand_layers
from mlx_transformer.weights.source_config import read_joeynmt_options
from mlx_transformer.weights.tokenizers.framework_vocabularies import read_framework_vocabularies
from mlx_transformer.weights.tokenizers.sentencepiece_models import read_marian

COUNT = int(os.environ.get("MLX_TRANSFORMER_FUZZ", "200"))
RUN = Path(__file__).parent / "support" / "runs" / "version_0.1.0"
TEXTS = ("a cat.", "The café – ½ ﬁ 漢字 🙂 zzz", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "<unk></s> <extra_id_1>")
T5 = {
    "model_type": "t5",
    **{"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "relu"},
    **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "layer_norm_epsilon": 1e-6},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "tie_word_embeddings": True},
    "task_specific_params": {"translation": {"prefix": "translate: ", "num_beams": 4, "max_length": 20}},
}
GENERATION = {
    **{"max_length": 20, "num_beams": 2, "eos_token_id": [1], "forced_bos_token_id": 5, "bad_words_ids": [[3], [4, 5]]},
    **{"length_penalty": 0.6, "early_stopping": True, "no_repeat_ngram_size": 3, "suppress_tokens": [7]},
}
TOKENIZER_CONFIG = {
    **{"tokenizer_class": "T5Tokenizer", "extra_ids": 10, "eos_token": "</s>", "unk_token": {"content": "<unk>"}},
    "additional_special_tokens": ["<extra_id_0>"],
    "added_tokens_decoder": {"1": {"content": "</s>", "special": True}},
    "clean_up_tokenization_spaces": True,
}
COMPONENTS = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFKC"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Strip", "strip_left": True, "strip_right": False},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\s+|\\w+"}, "behavior": "Isolated", "invert": False},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [{"type": "ByteFallback"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
}
MODELS = (
    {"type": "WordLevel", "vocab": {"<unk>": 0, "</s>": 1, "▁a": 2}, "unk_token": "<unk>"},
    {
        "type": "Unigram",
        "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["▁a", -2.5], ["c", -3.0]],
        "unk_id": 0,
        "byte_fallback": False,
    },
    {
        **{"type": "BPE", "vocab": {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, "merges": [["a", "b"]]},
        **{"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None},
    },
    {
        **{"type": "WordPiece", "vocab": {"<unk>": 0, "</s>": 1, "a": 2, "##b": 3}, "unk_token": "<unk>"},
        **{"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    },
)
YAML = """name: &name "a model"
data: {src: {lang: "de", level: "bpe", voc_file: "src.txt"}, trg: {lang: "en", voc_file: 'trg.txt'}}
model:
    initializer: "xavier"   # a comment
    tied_embeddings: !!bool True
    encoder: {type: "transformer", num_layers: 6, num_heads: 4, layer_norm: "pre", dropout: 0.1}
    decoder:
        num_heads: 4
        numbers: [1, 2.5, 1e-3, 0x1F, 017, 1:30, 2001-01-01, .inf, ~]
        text: |
            some text
testing: {beam_size: 5, name: *name}
"""
ADDED = {
    "id": 1,
    "content": "</s>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def use_tokenizer(tokenizer):
    """Encode and decode some texts."""
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text)[:20])


class Folder:
    """A folder of files of which one at a time is damaged."""

    def __init__(self, path, damages, use):
        self.path, self.use = path, use
        self.names = [name for name, _ in damages]
        self.damages = dict(damages)
        self.contents = {name: (path / name).read_bytes() for name in self.names}

    def damage(self, chance):
        """Damage one file, after restoring the others."""
        for name, content in self.contents.items():
            if (self.path / name).read_bytes() != content:
                (self.path / name).write_bytes(content)
        name = chance.choice(self.names)
        (self.path / name).write_bytes(self.damages[name](self.contents[name], chance))

    def read(self):
        """Read the folder."""
        self.use(self.path)


def by_bytes(content, chance):
    return damage_bytes(content, [content], chance)


def json_lines(content, chance):
    """Damage one line of JSON."""
    lines = content.splitlines(keepends=True)
    number = chance.randrange(len(lines))
    return b"".join([*lines[:number], damage_json(lines[number], chance) + b"\n", *lines[number + 1 :]])


def directory_of_zip(content, chance):
    """Damage the directory and headers of a zip archive, not the data of its members."""
    start = content.rindex(b"PK\x01\x02archive/data.pkl"[:4])
    where = content.index(b"PK\x01\x02") if chance.random() < 0.8 else start
    return content[:where] + by_bytes(content[where:], chance)


def checkpoint_folder(path):
    """Write a checkpoint of T5 in the format of transformers."""
    model = train_sentencepiece(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, vocab_size=450)
    size = len(list_pieces(model)) + 11  # ten sentinels, and an added token
    settings = T5 | {"vocab_size": size}
    family = FAMILIES["t5"]
    sizes = {"source_vocab_size": size, "target_vocab_size": size, "start_id": 0}
    config = build_config(sizes, family.constants, fields_from_config(family, settings))
    names = expand_layers(family.names, 1)
    header, payload = {}, b""
    for parameter, shape in parameter_shapes(config).items():
        source = names[parameter][-1]
        values = np.full(shape, 0.5, np.float32).tobytes()
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [len(payload), len(payload) + len(values)]}
        header[source if isinstance(source, str) else source[0]] = entry
        payload += values
    (path / "model.safetensors").write_bytes(safetensors_file(header, payload))
    files = {
        "config__json": settings,
        "generation_config__json": GENERATION,
        "tokenizer_config__json": TOKENIZER_CONFIG,
    }
    write_files(path, spiece__model=model, **files)

    def use(folder):
        _, tokenizer = convert.load(folder)
        if tokenizer is not None:
            use_tokenizer(tokenizer)

    jsons = ("config.json", "generation_config.json", "tokenizer_config.json")
    return Folder(path, [*((name, damage_json) for name in jsons)], use)


def model_files(path):
    """Copy a model folder of this package."""
    shutil.copytree(RUN / "best", path, dirs_exist_ok=True)

    def use(folder):
        use_tokenizer(model_folder.load(folder)[1])

    names = ("config.json", "vocabulary.json", "tokenizer.json")
    return Folder(path, [*((name, damage_json) for name in names), ("model.safetensors", by_bytes)], use)


def adapter_files(path):
    """Write an adapter folder."""
    model = mt.load_model(RUN / "best")
    mt.add_adapter(model, mt.AdapterConfig(rank=2, alpha=2.0, targets=("query_proj",), dora=True))
    mt.save_adapter(path / "adapter", model)
    (path / "adapter" / "SHA256SUMS").unlink()
    damages = [("adapter_config.json", damage_json), ("adapters.safetensors", by_bytes)]
    return Folder(path / "adapter", damages, lambda folder: mt.load_adapter(model, folder))


def sentencepiece_files(path):
    """Write the tokenizer of Marian."""
    write_marian(path)

    def use(folder):
        loaded = read_marian(folder)
        for vocabulary in filter(None, loaded[:2]):
            use_tokenizer(vocabulary)

    return Folder(path, [("source.spm", by_bytes), ("target.spm", by_bytes), ("vocab.json", damage_json)], use)


def tokenizer_json(path):
    """Write a tokenizer.json of each model."""
    for number, model in enumerate(MODELS):
        data = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [ADDED],
            **COMPONENTS,
            "model": model,
        }
        (path / f"{number}.json").write_text(json.dumps(data, ensure_ascii=False))

    def use(folder):
        for file in sorted(folder.iterdir()):
            use_tokenizer(HFVocabulary(load_hf_tokenizer(file.read_bytes(), str(file))))

    return Folder(path, [(f"{number}.json", damage_json) for number in range(len(MODELS))], use)


def yaml_files(path):
    """Write the config.yaml of JoeyNMT, and its vocabularies."""
    (path / "config.yaml").write_text(YAML)
    for side in ("src", "trg"):
        (path / f"{side}.txt").write_text("the\na\n@@x\n")

    def use(folder):
        read_joeynmt_options(folder)
        read_framework_vocabularies(folder, "joeynmt", {})

    return Folder(path, [("config.yaml", by_bytes)] * 8 + [("src.txt", by_bytes)], use)


def run_folder(path):
    """Copy a training run."""
    shutil.copytree(RUN, path, dirs_exist_ok=True)

    def use(folder):
        run = RunDirectory(folder)
        load_run_options(folder)
        run.latest_checkpoint(set_aside_damaged=False)
        plot_learning_curves([folder])

    damages = [("log.jsonl", json_lines), ("log.jsonl", json_lines), ("options.toml", by_bytes)]
    return Folder(path, [*damages, ("last/SHA256SUMS", by_bytes), ("last/training.json", damage_json)], use)


def zip_files(path):
    """Write an archive of torch.save."""
    root = {"model": {"a": tensor(), "b": tensor("1", shape=(2,), numel=2)}, "args": {"heads": 8}}
    (path / "model.pt").write_bytes(zip_file(root, {"0": numbers(), "1": numbers(2)}, order="little"))

    def use(folder):
        with read_checkpoint(folder / "model.pt") as checkpoint:
            mx.eval([checkpoint.load(name) for name in checkpoint.tensors])
            to_plain(checkpoint.extras)

    return Folder(path, [("model.pt", directory_of_zip)], use)


KINDS = {
    "checkpoint": checkpoint_folder,
    "model folder": model_files,
    "adapter folder": adapter_files,
    "sentencepiece": sentencepiece_files,
    "tokenizer.json": tokenizer_json,
    "yaml": yaml_files,
    "run folder": run_folder,
    "zip": zip_files,
}


@pytest.mark.parametrize("kind", KINDS)
def test_randomly_damaged_files_are_refused_or_load(tmp_path, kind):
    folder = tmp_path / kind
    folder.mkdir()
    files = KINDS[kind](folder)
    files.read()  # so that libraries are loaded, and undamaged files are known to load
    outcomes, faults = read_damaged_files(files, COUNT, random.Random(23))
    print(f"{kind}: {COUNT} damaged files: {dict(outcomes)}")
    assert faults == []
    assert outcomes["loaded"] + outcomes["refused"] == COUNT
    assert min(outcomes["loaded"], outcomes["refused"]) > COUNT // 50
