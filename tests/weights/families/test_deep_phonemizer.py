"""Converted autoregressive checkpoints of as-ideas/DeepPhonemizer equal torch.nn.Transformer."""

import pytest
from support.framework_reference import (
    DIMS,
    SOURCE_VOCAB,
    TARGET_VOCAB,
    check_logits,
    check_searches,
    interleaved_sinusoids,
)

import mlx_transformer as mt
from mlx_transformer.weights import convert
from mlx_transformer.weights.inspection import inspect_checkpoint
from mlx_transformer.weights.parameter_map import ConversionError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LANGUAGES = ["de", "en_us"]
TEXT = "abcdefghijklmnoß"  # with the four special tokens, not more than the embeddings have rows
PHONEMES = ["a", "b", "t", "ts", "ʃ", "ː", "ə"]


class Preprocessor:
    """Stands for the project's own object beside the weights."""

    def __init__(self):
        self.languages = LANGUAGES


class ScaledPositions(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([scale]))
        self.pe = torch.nn.Parameter(interleaved_sinusoids(50)[:, None], requires_grad=False)

    def forward(self, x):
        return x + self.scale * self.pe[: x.shape[1], 0]


class Autoregressive(torch.nn.Module):
    """Embeddings called encoder and decoder, positions times a learned factor, and torch's layers: 4 heads."""

    def __init__(self):
        super().__init__()
        self.eps = 1e-5
        self.encoder = torch.nn.Embedding(SOURCE_VOCAB, DIMS)
        self.decoder = torch.nn.Embedding(TARGET_VOCAB, DIMS)
        self.pos_encoder, self.pos_decoder = ScaledPositions(1.7), ScaledPositions(-0.6)
        self.transformer = torch.nn.Transformer(DIMS, 4, 2, 3, 24, dropout=0.0, batch_first=True)
        self.fc_out = torch.nn.Linear(DIMS, TARGET_VOCAB)
        for name, value in self.named_parameters():
            if not name.startswith("pos_"):
                torch.nn.init.normal_(value, 1.0 if "norm" in name and "weight" in name else 0.0, 0.35)

    def forward(self, source, target):
        padding = source == 0
        hidden = self.transformer(
            self.pos_encoder(self.encoder(source)),
            self.pos_decoder(self.decoder(target)),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.fc_out(hidden)


def write_checkpoint(path, module, preprocessing=None, **model_options):
    """Write a model in the project's layout, with its preprocessor and its whole configuration."""
    options = {"type": "autoreg_transformer", "d_model": DIMS, "d_fft": 24, "layers": 2, "dropout": 0.1, "heads": 4}
    symbols = {"languages": LANGUAGES, "text_symbols": TEXT, "phoneme_symbols": PHONEMES, "char_repeats": 1}
    symbols |= {"lowercase": True, **(preprocessing or {})}
    training = {"learning_rate": 1e-4, "epochs": 500}
    config = {"preprocessing": symbols, "model": options | model_options, "training": training}
    saved = {"preprocessor": Preprocessor(), "config": config, "step": 7, "optimizer": None}
    torch.save(saved | {"model": module.state_dict()}, path)


def test_logits_need_no_settings(tmp_path, tolerance):
    model = Autoregressive()
    write_checkpoint(tmp_path / "best_model.pt", model)
    assert inspect_checkpoint(tmp_path / "best_model.pt")[1].family == "deep-phonemizer"
    converted = check_logits(model, tmp_path / "best_model.pt", tolerance)
    assert (converted.config.pad_id, converted.config.start_id, converted.config.eos_id) == (0, 1, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_end_token_follows_those_of_languages(count, tmp_path):
    write_checkpoint(tmp_path / "best_model.pt", Autoregressive(), {"languages": ["de", "en_us", "fr"][:count]})
    model, _ = convert.load(tmp_path / "best_model.pt")
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (0, 1, 1 + count)
    assumed = {assumption.setting for assumption in inspect_checkpoint(tmp_path / "best_model.pt")[1].assumptions}
    assert ("start_id" in assumed) == (count > 1) and not {"eos_id", "num_heads", "final_norm"} & assumed


@pytest.mark.parametrize("heads", [2, 8])
def test_heads_are_those_of_the_config(heads, tmp_path, tolerance):
    model = Autoregressive()
    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.num_heads, module.head_dim = heads, DIMS // heads
    write_checkpoint(tmp_path / "best_model.pt", model, heads=heads)
    check_logits(model, tmp_path / "best_model.pt", tolerance)


def test_searches(tmp_path, tolerance):
    model = Autoregressive()
    write_checkpoint(tmp_path / "best_model.pt", model)
    check_searches(model, check_logits(model, tmp_path / "best_model.pt", tolerance), tolerance)


@pytest.mark.parametrize("start_id, language", [(1, "de"), (2, "en_us")])
def test_texts_are_characters_and_targets_phonemes(start_id, language, tmp_path):
    write_checkpoint(tmp_path / "best_model.pt", Autoregressive())
    convert.convert(tmp_path / "best_model.pt", tmp_path / "folder", settings={"start_id": start_id})
    _, tokenizer = mt.load(tmp_path / "folder")
    ids = {token: i for i, token in enumerate(["_", "<de>", "<en_us>", "<end>", *TEXT])}
    assert tokenizer.encode("Bei-Maß") == [ids[token] for token in (f"<{language}>", *"beimaß", "<end>")]
    assert (
        tokenizer.decode([start_id, *(4 + PHONEMES.index(phoneme) for phoneme in ("ts", "ə", "ː", "t")), 3]) == "tsəːt"
    )


@pytest.mark.parametrize("lowercase, expected", [(True, "a"), (False, "")])
def test_lowercase_is_that_of_the_options(lowercase, expected, tmp_path):
    write_checkpoint(tmp_path / "best_model.pt", Autoregressive(), {"lowercase": lowercase})
    _, tokenizer = convert.load(tmp_path / "best_model.pt")
    assert tokenizer.encode("A") == [1, *(4 + TEXT.index(letter) for letter in expected), 3]


def test_no_tokenizer_without_symbols_or_with_repeated_characters(tmp_path, caplog):
    write_checkpoint(tmp_path / "plain.pt", Autoregressive(), {"text_symbols": None})
    assert convert.load(tmp_path / "plain.pt")[1] is None
    write_checkpoint(tmp_path / "repeats.pt", Autoregressive(), {"char_repeats": 3})
    assert convert.load(tmp_path / "repeats.pt")[1] is None
    assert "it repeats the characters of texts" in caplog.text


def test_a_factor_of_several_values_is_an_error(tmp_path):
    model = Autoregressive()
    model.pos_decoder.scale = torch.nn.Parameter(torch.ones(DIMS))
    write_checkpoint(tmp_path / "best_model.pt", model)
    with pytest.raises(ConversionError, match=r"pos_decoder.scale must have one value, not the shape \(16,\): check"):
        convert.load(tmp_path / "best_model.pt")


def test_the_forward_model_is_an_encoder_without_a_decoder(tmp_path):
    model = torch.nn.Module()
    model.embedding = torch.nn.Embedding(SOURCE_VOCAB, DIMS)
    model.pos_encoder = ScaledPositions(1.0)
    layer = torch.nn.TransformerEncoderLayer(DIMS, 4, 24)
    model.encoder = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(DIMS), enable_nested_tensor=False)
    model.fc_out = torch.nn.Linear(DIMS, TARGET_VOCAB)
    write_checkpoint(tmp_path / "best_model.pt", model, type="transformer")
    with pytest.raises(ConversionError, match="encoder without a decoder"):
        convert.load(tmp_path / "best_model.pt")
