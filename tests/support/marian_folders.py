"""Folders of Marian's models as OPUS-MT and Firefox publish them, with vocabularies trained here."""

import json

from support.marian_files import MarianModel, options_yaml, write_bin, write_npz
from support.tiny_sentencepiece_tokenizers import ENGLISH, OTHERS, list_pieces, train_sentencepiece

MARIAN_IDS = {"bos_id": -1, "pad_id": -1, "eos_id": 0, "unk_id": 1}
OPUS_SEARCH = {"beam-size": 6, "normalize": 1, "word-penalty": 0, "relative-paths": True}


def write_opus_folder(folder, search=OPUS_SEARCH):
    """Write an .npz file, SentencePiece models, one list of pieces, decoder.yml and scripts; return the pieces."""
    folder.mkdir()
    models = [train_sentencepiece(lines, **MARIAN_IDS) for lines in (ENGLISH, OTHERS)]
    pieces = list(dict.fromkeys(piece for model in models for piece in list_pieces(model)))
    for name, model in zip(("source.spm", "target.spm"), models, strict=True):
        (folder / name).write_bytes(model)
    lines = (f"{json.dumps(piece, ensure_ascii=False)}: {number}\n" for number, piece in enumerate(pieces))
    (folder / "opus.spm.vocab.yml").write_text("".join(lines))
    vocabularies = {"models": ["/x/model.npz"], "vocabs": ["opus.spm.vocab.yml"] * 2}
    (folder / "decoder.yml").write_text(options_yaml(vocabularies | search))
    write_npz(folder / "opus.spm.npz", MarianModel({"dim-vocabs": [len(pieces)] * 2}))
    (folder / "preprocess.sh").write_text("exit 1\n")
    (folder / "README.md").write_text("# a model\n")
    return pieces


def write_firefox_folder(folder, **options):
    """Write a student in 8 bits and its vocabulary."""
    folder.mkdir(parents=True)
    content = train_sentencepiece(**MARIAN_IDS)
    (folder / "vocab.enfr.spm").write_bytes(content)
    size = len(list_pieces(content))
    write_bin(folder / "model.enfr.intgemm.alphas.bin", MarianModel({"dim-vocabs": [size, size]} | options), bits=8)
    (folder / "lex.50.50.enfr.s2t.bin").write_bytes(b"any")
    return size
