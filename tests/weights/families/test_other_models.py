"""Checkpoints that are no encoder-decoder Transformer are named as what they are, by the names of their tensors."""

import re
import time

import pytest
from support.bart_files import bart_tensors

from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.other_models import describe_other_model
from mlx_transformer.weights.parameter_map import expand_layers

# Tensor -> words of the error. Of each model, as many tensors as it takes to recognise it.
NAMES = {
    "GPT-2": (["wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"], "decoder without an encoder"),
    "nanoGPT": (["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "lm_head.weight"], "use mlx-lm"),
    "minGPT": (["tok_emb.weight", "blocks.0.attn.key.weight", "head.weight"], "decoder without an encoder"),
    "a lecture's GPT": (["blocks.0.sa.heads.0.query.weight", "blocks.0.sa.proj.weight"], "decoder without an encoder"),
    "LLaMA": (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"], "decoder without an encoder"),
    "Meta's LLaMA": (["tok_embeddings.weight", "layers.0.attention.wq.weight"], "decoder without an encoder"),
    "BLOOM": (["transformer.h.0.self_attention.query_key_value.weight"], "decoder without an encoder"),
    "GPT-NeoX": (["gpt_neox.layers.0.attention.query_key_value.weight"], "decoder without an encoder"),
    "OPT": (["model.decoder.embed_tokens.weight", "model.decoder.layers.0.self_attn.k_proj.weight"], "decoder without"),
    "BERT": (
        ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"],
        "encoder without a decoder",
    ),
    "BERT with a head": (
        ["bert.encoder.layer.0.attention.self.query.weight", "cls.predictions.decoder.weight"],
        "encoder without a decoder",
    ),
    "DistilBERT": (
        ["distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.0.attention.q_lin.weight"],
        "encoder without a decoder",
    ),
    "a classifier": (["encoder.layers.0.self_attn.in_proj_weight", "classifier.weight"], "encoder without a decoder"),
    "torch's language model": (
        ["transformer_encoder.layers.0.self_attn.in_proj_weight", "encoder.weight", "decoder.weight"],
        "encoder without a decoder, as 'transformer_encoder.layers.0.self_attn.in_proj_weight' shows",
    ),
    "the encoder of a T5": (
        ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
        "encoder without a decoder, .* or rename the tensors of its other stack",
    ),
    "a decoder with attention to an encoder": (
        ["decoder.layers.0.self_attn.k_proj.weight", "decoder.layers.0.encoder_attn.k_proj.weight"],
        "decoder without an encoder",
    ),
    "unnamed layers": (
        ["0.weight", "layers.0.attn.qkv.weight", "layers.1.attn.qkv.weight"],
        "in one stack, as 'layers.0.attn.qkv.w",
    ),
    "Whisper": (["model.encoder.conv1.weight", "model.decoder.layers.0.fc1.weight"], "its source is audio"),
    "wav2vec 2": (["wav2vec2.feature_extractor.conv_layers.0.conv.weight"], "its source is audio"),
    "speech to text": (["encoder.subsample.conv_layers.0.weight", "encoder.layers.0.fc1.weight"], "its source is aud"),
    "ESPnet": (["encoder.embed.conv.0.weight", "decoder.decoders.0.self_attn.linear_q.weight"], "its source is audio"),
    "ViT": (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "its source is an image"),
    "torchvision": (["conv_proj.weight", "encoder.layers.encoder_layer_0.mlp.0.weight"], "its source is an image"),
    "TrOCR": (
        ["encoder.embeddings.patch_embeddings.projection.weight", "decoder.model.decoder.layers.0.fc1.weight"],
        "its source is an image",
    ),
    "CLIP": (
        ["text_model.embeddings.token_embedding.weight", "vision_model.embeddings.patch_embedding.weight"],
        "two encoders, for text and images",
    ),
    "DPR": (["question_encoder.pooler.weight", "ctx_encoder.pooler.weight"], "two encoders, for retrieval"),
    "a convolutional model": (["encoder.convolutions.0.weight_v", "decoder.convolutions.0.weight_v"], "convolutional"),
    "mixtures of experts": (
        ["encoder.layers.0.fc1.weight", "decoder.layers.3.ffn.experts.expert_0.fc1.weight"],
        "mixtures of experts",
    ),
    "Mamba": (["backbone.layers.0.mixer.A_log"], "state-space"),
    "BERT to BERT": (
        ["encoder.embeddings.word_embeddings.weight", "decoder.bert.encoder.layer.0.crossattention.self.query.weight"],
        "encoder and decoder are those of BERT",
    ),
    "MLX": (["encoder.layers.0.linear1.weight", "decoder.layers.0.linear1.scales"], "quantised by MLX, as"),
    "peft": (
        ["base_model.model.model.encoder.layers.0.fc1.lora_A.weight"],
        "^An adapter is not a complete model: give",
    ),
    "prompt tuning": (["prompt_embeddings"], "^An adapter is not a complete model"),
    "unmerged LoRA": (["fc1.weight", "fc1.lora_A.default.weight"], "has an adapter that is not merged, as 'fc1.lora_A"),
    "loralib": (["q_proj.weight", "q_proj.lora_A"], "adapter that is not merged"),
    "kohya": (["fc1.weight", "fc1.lora_down.weight"], "adapter that is not merged"),
    "IA3": (["fc1.weight", "fc1.ia3_l.default"], "adapter that is not merged"),
    "bitsandbytes": (["fc1.weight", "fc1.SCB"], "quantised by bitsandbytes, as 'fc1.SCB' shows; convert the original"),
    "4 bits": (["fc1.weight", "fc1.weight.absmax", "fc1.weight.quant_map"], "quantised by bitsandbytes"),
    "GPTQ": (["fc1.qweight", "fc1.scales"], "quantised by GPTQ or AWQ"),
    "torch.ao": (["fc1.scale", "fc1._packed_params._packed_params"], "quantised by torch.ao"),
    "torch.ao without its objects": (["encoder.fc1.scale", "encoder.fc1.zero_point"], "quantised by torch.ao"),
    "quanto": (["fc1.weight._data", "fc1.weight._scale"], "quantised by quanto"),
    "compressed tensors": (["fc1.weight_packed", "fc1.weight_scale"], "quantised by compressed-tensors"),
}


@pytest.mark.parametrize("model", NAMES)
def test_other_models_are_named(model):
    names, words = NAMES[model]
    message = describe_other_model(dict.fromkeys(names, ()), names)
    assert message is not None and re.search(words, message), message
    assert message.endswith(".") and len(message.splitlines()) == 1


@pytest.mark.parametrize(("rows", "cell"), [(32, "LSTM"), (24, "GRU"), (8, "RNN")])
def test_recurrent_models_name_their_cell(rows, cell):
    names = ["encoder.rnn.weight_ih_l0", "encoder.rnn.weight_hh_l0", "decoder.rnn.weight_hh_l0"]
    message = describe_other_model(dict.fromkeys(names, (rows, 8)), names)
    assert f"its layers are recurrent ({cell}), as 'encoder.rnn.weight_hh_l0' shows" in message


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_decoder_models_are_none_of_these(family):
    """All names that a family knows, at once and the first of each alone."""
    sources = expand_layers(FAMILIES[family].names, layers=3)
    for names in ([source.name for many in sources.values() for source in many], [s[0].name for s in sources.values()]):
        for prefix in ("", "model.", "module.", "my_sequence_model.core."):
            assert describe_other_model(dict.fromkeys((prefix + name for name in names), ()), []) is None


def test_the_file_of_a_model_folder_is_named_unless_its_names_were_given_by_renaming():
    names = {f"{stack}.layers.0.self_attention_residual.norm.weight": (2,) for stack in ("encoder", "decoder")}
    assert "it is the file of a model folder without its config" in describe_other_model(names, names)
    assert describe_other_model(names, ["enc.0.norm.weight", "dec.0.norm.weight"]) is None


@pytest.mark.parametrize(
    "names",
    [
        ["encoder.h.0.attn.c_attn.weight", "decoder.h.0.attn.c_attn.weight", "decoder.h.0.cross_attn.c_attn.weight"],
        [
            "encoder.embeddings.word_embeddings.weight",
            "encoder.layer.0.attention.weight",
            "decoder.layers.0.attn.weight",
        ],
        ["context_encoder.layers.0.attn.weight", "response_decoder.layers.0.attn.weight"],
        ["encoder.layers.0.attn.W_q", "decoder.layers.0.attn.W_q"],
        ["sequence_model.encoder.layers.0.attn.weight", "sequence_model.decoder.layers.0.attn.weight"],
    ],
)
def test_encoder_decoder_models_with_words_of_others_are_none_of_these(names):
    assert describe_other_model(dict.fromkeys(names, (2, 2)), names) is None


def test_integers_of_quantised_weights_count_although_they_are_no_tensors_of_the_model():
    assert "GPTQ" in describe_other_model({"fc1.scales": (2, 2)}, ["fc1.scales", "fc1.qweight"])


def test_convolutions_in_two_dimensions_are_for_images():
    message = describe_other_model({"encoder.cnn.0.weight": (8, 3, 7, 7)}, [])
    assert "two-dimensional convolutions, for images, as 'encoder.cnn.0.weight' shows; convert a model whose" in message


@pytest.mark.parametrize("part", [".0", ".1.att", "h.0.", "\\"])
def test_long_names_take_little_time(part):
    start = time.process_time()
    describe_other_model({f"{number}{part * (990 // len(part))}": () for number in range(10_000)}, [])
    assert time.process_time() - start < 4


def test_names_that_tell_nothing_are_none_of_these():
    for names in (
        [],
        ["weight", "bias"],
        ["first.layers.0.attn.weight", "second.layers.0.attn.weight"],
        ["layers.0.self_attn.weight", "layers.0.cross_attn.weight"],
        list(bart_tensors()),
    ):
        assert describe_other_model(dict.fromkeys(names, ()), names) is None
