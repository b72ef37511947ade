"""The numpy reference of Marian's models against fxtranslate, the engine of Firefox, on students with 8-bit weights."""

import io
import random

import numpy as np
import pytest
from support.marian_files import EOS, SEPARATE, STUDENT, UNK, MarianModel, MarianReference, write_bin

WORDS = "red cat sat on the big mat dog ran far up to a house with blue door and saw men eat bread".split()
OTHER_WORDS = "rot hund lief weit bis zu haus mit blau tür sah mann isst brot".split()
SENTENCES = 60


def sentences(words, seed):
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=chance.randrange(1, 8))) for _ in range(SENTENCES)]


def train_vocabulary(lines):
    """Return the bytes of a SentencePiece vocabulary with Marian's ids, and its processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    ids = {"eos_id": EOS, "unk_id": UNK, "bos_id": -1, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=48, hard_vocab_limit=False, minloglevel=2, **ids
    )
    return model.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def search(reference, source):
    """Return the ids of a greedy translation, as long as fxtranslate's may be."""
    return reference.search(source, max_length_factor=(2 * len(source) + 4) / len(source))[0][1]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, SEPARATE], ids=["shared", "separate"])
def test_reference_gives_the_text_of_fxtranslate(tmp_path, options, seed):
    fxtranslate = pytest.importorskip("fxtranslate", reason="fxtranslate is not installed (pip install fxtranslate)")
    lines = sentences(WORDS, 3)
    source_bytes, source = train_vocabulary(lines)
    target_bytes, target = train_vocabulary(sentences(OTHER_WORDS, 4)) if options else (source_bytes, source)
    sizes = [source.get_piece_size(), target.get_piece_size()]
    model = MarianModel(STUDENT | options | {"dim-vocabs": sizes}, seed, gain=0.5)
    calibration = MarianReference(model.options, model.tensors)
    texts = [[*source.encode(line), EOS] for line in lines]
    for text in texts:
        search(calibration, text)
    alphas = {name: 127 / (1.5 * largest) for name, largest in calibration.ranges.items()}  # nothing is clipped
    stored = alphas | {"none": alphas[model.target_embedding]}  # fxtranslate needs the older name of this alpha
    del stored[model.target_embedding]
    values = write_bin(tmp_path / "model.bin", model, 8, stored)
    translator = fxtranslate.Translator((tmp_path / "model.bin").read_bytes(), source_bytes, target_bytes)
    expected = [translator.translate(line) for line in lines]
    counts = []
    for inputs in (alphas, None):  # rounded to 8 bits as in fxtranslate, and floats
        reference = MarianReference(model.options, values, inputs)
        results = [target.decode(search(reference, text)) for text in texts]
        counts.append(np.sum([text == result for text, result in zip(expected, results, strict=True)]))
    # Shown with -s.
    print(f"{counts[0]} (8-bit arithmetic) and {counts[1]} (floats) of {SENTENCES}, {len(set(expected))} different")
    assert counts[0] >= SENTENCES - 2 and counts[1] > SENTENCES // 2
    assert len(set(expected)) > 5
