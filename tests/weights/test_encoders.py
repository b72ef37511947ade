"""Encoders without a decoder give the hidden states of transformers, and the vectors of sentence-transformers."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from support.command_line import error_line
from support.tiny_checkpoints import nllb
from support.tiny_encoders import MAX_TOKENS, TEXTS, encoder_model, write_sentence_transformer, write_tokenizer
from support.tiny_families import MODELS, T5, torch_model, torch_sources

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.config.model import PoolingConfig
from mlx_transformer.pretrained.hub import choose_files
from mlx_transformer.weights import convert

pytestmark = pytest.mark.torch
NAMES = ("t5", "t5-v1.1", "mt5", "umt5", "m2m100", "nllb", "marian", "bart", "mbart", "pegasus", "blenderbot")
WIDE = {**T5, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 64}
DENSE = {"in_features": 64, "out_features": 24, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
LEGACY = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
IDENTITY = {"activation_function": "torch.nn.modules.linear.Identity", "bias": False, "out_features": 32}
# Name -> the pooling, the dense layer and whether vectors are normalised.
FOLDERS = {
    "as sentence-t5": (LEGACY, DENSE | IDENTITY, True),
    "mean": ({"embedding_dimension": 64, "pooling_mode": "mean"}, None, False),
    "first token": ({"embedding_dimension": 64, "pooling_mode": "cls"}, None, True),
    "last token, tanh": ({"embedding_dimension": 64, "pooling_mode": ["lasttoken"]}, DENSE, False),
}
NEEDS_DECODER = "need a decoder, but this model is an encoder alone: embed texts with it by embed"


def check_hidden_states(theirs, ours, source):
    import torch

    is_token = source != theirs.config.pad_token_id
    arguments = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(is_token.astype(np.int64))}
    with torch.no_grad():
        expected = theirs(**arguments).last_hidden_state.numpy()
    hidden = np.array(ours.encode_hidden(mx.array(source.astype(np.int32))))
    assert np.abs(hidden - expected)[is_token].max() < 1e-5
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_of_an_encoder_alone(name, tmp_path):
    theirs = encoder_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    (architecture,) = json.loads((tmp_path / "theirs/config.json").read_text())["architectures"]
    assert architecture.endswith(("Encoder", "EncoderModel"))
    source = torch_sources(theirs)
    ours = convert.load(tmp_path / "theirs")[0]
    assert ours.config.decoder is None and not {"decoder", "output", "target_embedding"} & set(ours)
    check_hidden_states(theirs, ours, source)
    convert.convert(tmp_path / "theirs", tmp_path / "ours")
    check_hidden_states(theirs, mt.load_model(tmp_path / "ours"), source)


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_the_encoder_of_a_whole_model_needs_a_config_that_says_so(name, tmp_path):
    theirs = torch_model(name)
    theirs.config.save_pretrained(tmp_path)
    state = {key: mx.array(value.detach().numpy()) for key, value in theirs.state_dict().items()}
    kept = {key: value for key, value in state.items() if "decoder" not in key}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), kept)
    settings = json.loads((tmp_path / "config.json").read_text())
    kind = MODELS[name][0]
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": [f"{kind}ForConditionalGeneration"]}))
    with pytest.raises(ValueError, match="it is an encoder without a decoder"):
        convert.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": [f"{kind}EncoderModel"]}))
    check_hidden_states(theirs.get_encoder(), convert.load(tmp_path)[0], torch_sources(theirs))


def test_a_stack_of_t5_may_be_an_encoder_but_no_decoder(tmp_path):
    theirs = torch_model("t5")
    for name in ("encoder", "decoder"):
        getattr(theirs, name).save_pretrained(tmp_path / name)
        settings = json.loads((tmp_path / name / "config.json").read_text())
        assert settings["architectures"] == ["T5Stack"]
    check_hidden_states(theirs.encoder, convert.load(tmp_path / "encoder")[0], torch_sources(theirs))
    with pytest.raises(ValueError, match="do not fit the family t5: .* unexpected"):
        convert.load(tmp_path / "decoder")


def test_the_encoder_of_nllb_embeds_by_its_source_language(tmp_path):
    transformers = pytest.importorskip("transformers")
    nllb(tmp_path)
    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    whole.get_encoder().save_pretrained(tmp_path)
    model, tokenizer = mt.load(tmp_path)
    assert model.config.decoder is None and "fra_Latn" in tokenizer.languages
    english, french = (mt.embed(model, tokenizer, "No.", source_language=code) for code in ("eng_Latn", "fra_Latn"))
    assert np.abs(english - french).max() > 0.01
    hidden = np.array(model.encode_hidden(mx.array([tokenizer.encode("No.", "fra_Latn")]))[0])
    assert np.abs(hidden.mean(axis=0) - french).max() < 1e-5
    result = CliRunner().invoke(main, ["embed", "--model", str(tmp_path), "--source-language", "xx", "No."])
    assert "A language must be one of the 3 that the model knows: got 'xx'" in error_line(result)


def test_a_whole_model_keeps_its_decoder_whatever_its_class_is_called(tmp_path):
    theirs = torch_model("t5")
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["T5EncoderModel"]}))
    assert convert.load(tmp_path)[0].config.decoder is not None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with an encoder and its tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    encoder_model("t5", WIDE | {"vocab_size": write_tokenizer(folder)}).save_pretrained(folder)
    return folder


def test_what_needs_a_decoder_says_so(encoder, tmp_path):
    model, tokenizer = mt.load(encoder)
    source = mx.array([tokenizer.encode("No.")])
    calls = [
        lambda: mt.generate(model, tokenizer, "No."),
        lambda: next(mt.stream_generate(model, tokenizer, "No.")),
        lambda: mt.score(model, tokenizer, ["No."], ["Non."]),
        lambda: mt.attention(model, tokenizer, "No.", "Non."),
        lambda: mt.generate_ids(model, source),
        lambda: mt.score_ids(model, source, source),
        lambda: mt.attention_ids(model, source, source),
        lambda: model(source, source),
        lambda: model.encode(source),
        lambda: model.new_cache(1, 2),
        lambda: mt.train(
            mt.TrainingConfig(init=str(encoder), train=("dates",), valid=("dates",), output=str(tmp_path / "run"))
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=NEEDS_DECODER):
            call()
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("command", ["generate", "score", "evaluate", "attention"])
def test_commands_that_need_a_decoder_say_so(encoder, command, tmp_path):
    arguments = {"evaluate": ["dates:test"], "attention": ["No.", "-o", str(tmp_path / "out.svg")]}.get(command, [])
    result = CliRunner().invoke(main, [command, "--model", str(encoder), *arguments], input="No.\n")
    assert result.exit_code == 1 and NEEDS_DECODER in error_line(result) and result.stdout == ""


def test_info_shows_an_encoder(encoder):
    lines = CliRunner().invoke(main, ["info", str(encoder)]).stdout.splitlines()
    assert "decoder           none: the model embeds texts" in lines
    assert not any(line.startswith(("search defaults", "decoder attention")) for line in lines)


@pytest.mark.parametrize("precision", [{"quantize": 8}, {"dtype": "bfloat16"}])
def test_an_encoder_in_another_precision(encoder, tmp_path, precision):
    exact = mt.embed(*mt.load(encoder), TEXTS, normalize=True)
    convert.convert(encoder, tmp_path / "small", **precision)
    vectors = mt.embed(*mt.load(tmp_path / "small"), TEXTS, normalize=True)
    assert 1e-6 < np.abs(vectors - exact).max() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"share_embeddings": False}, "has no output layer"), ({"output_bias": True}, "has no output layer")],
)
def test_an_encoder_has_no_output_layer(changes, message):
    stack = mt.StackConfig(num_layers=1, num_heads=1, mlp_dims=4)
    with pytest.raises(ValueError, match=message):
        mt.ModelConfig(9, 9, 8, stack, None, **changes)


@pytest.fixture(scope="module", params=FOLDERS)
def sentence_folder(request, tmp_path_factory):
    """A folder of sentence-transformers."""
    folder = tmp_path_factory.mktemp("folder")
    write_sentence_transformer(folder, WIDE, *FOLDERS[request.param])
    return folder


@pytest.mark.slow
def test_vectors_of_sentence_transformers(sentence_folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    # In float64, so that only our rounding counts.
    theirs = sentence_transformers.SentenceTransformer(str(sentence_folder), device="cpu").double()
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    vectors = mt.embed(*mt.load(sentence_folder), TEXTS)
    assert np.abs(vectors - expected).max() < 1e-5


def test_pooling_projection_and_length_of_a_folder(sentence_folder, tmp_path):
    """Computed in numpy from hidden states, which are compared with those of transformers above."""
    import torch

    model, tokenizer = mt.load(sentence_folder)
    pooling = model.config.pooling
    dense = torch.load(sentence_folder / "2_Dense/pytorch_model.bin") if pooling.projection_dims else {}
    for text, vector in zip(TEXTS, mt.embed(model, tokenizer, TEXTS), strict=True):
        ids = tokenizer.encode(text)
        ids = ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]
        hidden = np.array(model.encode_hidden(mx.array([ids]))[0])
        expected = {"mean": hidden.mean(axis=0), "first": hidden[0], "last": hidden[-1]}[pooling.mode]
        if dense:
            expected = dense["linear.weight"].numpy() @ expected + dense.get("linear.bias", torch.zeros(1)).numpy()
            expected = np.tanh(expected) if pooling.projection_activation == "tanh" else expected
        expected = expected / np.linalg.norm(expected) if pooling.normalize else expected
        assert np.abs(vector - expected).max() < 1e-5
    convert.convert(sentence_folder, tmp_path / "ours")
    assert mt.load_model(tmp_path / "ours").config == model.config
    assert np.array_equal(mt.embed(*mt.load(tmp_path / "ours"), TEXTS), mt.embed(model, tokenizer, TEXTS))


@pytest.fixture(scope="module")
def projecting(tmp_path_factory):
    """A folder of sentence-transformers with a dense layer and normalisation."""
    folder = tmp_path_factory.mktemp("projecting")
    write_sentence_transformer(folder, WIDE, LEGACY, DENSE, normalize=True)
    return folder


def test_arguments_change_what_a_folder_says(projecting):
    model, tokenizer = mt.load(projecting)
    assert model.config.pooling == PoolingConfig("mean", 24, True, "tanh", True)
    plain = mt.embed(model, tokenizer, "No.", "first", normalize=False, projection=False)
    assert np.abs(plain - np.array(model.encode_hidden(mx.array([tokenizer.encode("No.")]))[0, 0])).max() < 1e-5
    assert mt.embed(model, tokenizer, []).shape == (0, 24)
    arguments = ["embed", "--model", str(projecting), "--pooling", "first", "--no-normalize", "--no-projection", "No."]
    result = CliRunner().invoke(main, arguments)
    assert np.abs(np.array(json.loads(result.stdout)["embedding"]) - plain).max() < 1e-5
    line = next(
        line for line in CliRunner().invoke(main, ["info", str(projecting)]).stdout.splitlines() if "embeddings" in line
    )
    assert line == "embeddings        the mean over tokens, a projection to 24 with tanh, normalised"


def test_the_projection_is_not_quantised(projecting, tmp_path):
    convert.convert(projecting, tmp_path / "small", quantize=8)
    names = set(mx.load(str(tmp_path / "small/model.safetensors")))
    assert "source_embedding.scales" in names and "projection.scales" not in names
    exact, small = (mt.embed(*mt.load(folder), TEXTS) for folder in (projecting, tmp_path / "small"))
    assert 1e-6 < np.abs(small - exact).max() < 0.05


def change_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


BAD_FOLDERS = [
    ("modules.json", lambda modules: {}, "must be a list of modules"),
    ("modules.json", lambda modules: [{"type": "a.Pooling", "path": "../x"}], "must name the type of each module"),
    (
        "modules.json",
        lambda modules: modules[:2] + modules[3:] + modules[2:3],
        "in this order, not Transformer, Pooling, N",
    ),
    ("modules.json", lambda modules: [modules[0] | {"path": "0_T"}, *modules[1:]], "in the folder itself, not in 0_T"),
    (
        "1_Pooling/config.json",
        lambda _: {"pooling_mode_max_tokens": True},
        "must be one of mean, cls, lasttoken, not 'max'",
    ),
    ("1_Pooling/config.json", lambda _: {"pooling_mode": ["mean", "max"]}, "must be one of mean, cls, lasttoken"),
    ("1_Pooling/config.json", lambda _: {}, "must be one of mean, cls, lasttoken, not None"),
    ("2_Dense/config.json", lambda dense: dense | {"use_residual": True}, "has a residual connection"),
    ("2_Dense/config.json", lambda dense: dense | {"activation_function": "os.system"}, "has the activation 'system'"),
    ("2_Dense/config.json", lambda dense: dense | {"out_features": 25}, r"1 of another shape|2 of another shape"),
    ("2_Dense/config.json", lambda dense: dense | {"bias": False}, "1 unexpected"),
    ("2_Dense/config.json", lambda dense: dense | {"out_features": "many"}, "projection_dims must be int | None"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD_FOLDERS)
def test_folders_that_cannot_be_read(projecting, tmp_path, name, change, message):
    folder = shutil.copytree(projecting, tmp_path / "folder")
    change_json(folder / name, change)
    with pytest.raises(ValueError, match=message):
        mt.load(folder)


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"])
def test_missing_files_of_a_folder_are_named(projecting, tmp_path, name):
    folder = shutil.copytree(projecting, tmp_path / "folder")
    (folder / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=name.partition("/")[0]):
        mt.load(folder)


def test_a_default_prompt_is_named(projecting, tmp_path, caplog):
    folder = shutil.copytree(projecting, tmp_path / "folder")
    (folder / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    mt.load(folder)
    assert "The default prompt 'query' is not put before texts" in caplog.text


def test_texts_are_lower_cased_as_the_folder_says(projecting, tmp_path):
    folder = shutil.copytree(projecting, tmp_path / "folder")
    plain = mt.embed(*mt.load(folder), ["The station", "the station"])
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    change_json(folder / "sentence_bert_config.json", lambda settings: settings | {"do_lower_case": True})
    convert.convert(folder, tmp_path / "ours")
    for path in (folder, tmp_path / "ours"):
        vectors = mt.embed(*mt.load(path), ["The station", "the station"])
        assert np.abs(vectors - plain[1]).max() < 1e-6


@pytest.mark.parametrize("limit", [10, 10**6])
def test_a_table_of_positions_longer_than_the_limit_is_named(tmp_path, caplog, limit):
    encoder_model("bart").save_pretrained(tmp_path)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate({"Transformer": "", "Pooling": "1_Pooling"}.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    length = mt.load_model(tmp_path).config.encoder.max_length
    message = f"Texts are truncated to the model's {length} tokens, not to {limit} as by sentence-transformers"
    assert (message in caplog.text) == (limit < length)


def test_the_files_of_modules_are_downloaded():
    weights = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "model.safetensors"]
    names = ["config.json", "modules.json", "sentence_bert_config.json", "onnx/model.onnx", ".gitattributes", *weights]
    chosen = choose_files("owner/name", names)
    assert set(chosen) == {*names} - {"onnx/model.onnx", ".gitattributes"} and chosen[-1] == "model.safetensors"
    assert choose_files("owner/name", ["config.json", "1_Pooling/config.json", "model.safetensors"]) == [
        "config.json",
        "model.safetensors",
    ]
