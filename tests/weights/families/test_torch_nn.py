"""Converted models with torch.nn.Transformer equal those modules, under all common names of their parts."""

import math

import pytest
from mlx.utils import tree_flatten
from support.framework_reference import (
    DIMS,
    SOURCE_VOCAB,
    TARGET_VOCAB,
    check_logits,
    check_searches,
    interleaved_sinusoids,
)

from mlx_transformer.weights import convert
from mlx_transformer.weights.parameter_map import ConversionError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

IDS = {"pad_id": 1, "start_id": 2, "eos_id": 3}


class Wrapper(torch.nn.Module):
    """A typical module around torch.nn.Transformer."""

    def __init__(self, bias=True, heads=4, **options):
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "bias": bias, **options}
        self.transformer = torch.nn.Transformer(DIMS, heads, 2, 3, 24, **options)
        self.src_tok_emb = torch.nn.Embedding(SOURCE_VOCAB, DIMS)
        self.tgt_tok_emb = torch.nn.Embedding(TARGET_VOCAB, DIMS)
        self.positional_encoding = torch.nn.Module()
        self.positional_encoding.register_buffer("pos_embedding", interleaved_sinusoids(64)[:, None])
        self.positions = [self.positional_encoding.pos_embedding[:, 0]] * 2
        self.generator = torch.nn.Linear(DIMS, TARGET_VOCAB, bias=bias)
        self.eps = self.transformer.encoder.layers[0].norm1.eps
        for name, value in self.named_parameters():
            torch.nn.init.normal_(value, 1.0 if "norm" in name and "weight" in name else 0.0, 0.35)

    def forward(self, source, target):
        def embed(embedding, ids, positions):
            return embedding(ids) * math.sqrt(DIMS) + positions[: ids.shape[1]]

        padding = source == 1
        hidden = self.transformer(
            embed(self.src_tok_emb, source, self.positions[0]),
            embed(self.tgt_tok_emb, target, self.positions[1]),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.generator(hidden)


@pytest.fixture
def wrapper():
    return Wrapper()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first, bias, activation", [(False, True, "relu"), (True, False, "gelu")])
@pytest.mark.slow
def test_torch_nn_transformer(norm_first, bias, activation, tmp_path, tolerance):
    module = Wrapper(bias, norm_first=norm_first, activation=activation)
    settings = {"num_heads": 4, "norm_first": norm_first, "activation": activation}
    settings |= {"pad_id": 1, "start_id": 2, "eos_id": 3}
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, tmp_path / "model.pth")
    model = check_logits(module, tmp_path / "model.pth", tolerance, settings=settings)
    assert model.config.norm_bias == bias and model.config.encoder.final_norm
    assert model.config.encoder.positions == model.config.decoder.positions == "sinusoidal"
    check_searches(module, model, tolerance)


class Tutorial(Wrapper):
    """The model of pytorch.org's translation tutorial, with the names of its modules."""

    def __init__(self):
        super().__init__(heads=8)
        embeddings = self.src_tok_emb, self.tgt_tok_emb
        for name, embedding in zip(("src_tok_emb", "tgt_tok_emb"), embeddings, strict=True):
            module = torch.nn.Module()
            module.embedding, module.forward = embedding, embedding.forward
            setattr(self, name, module)


def test_the_tutorial_of_pytorch_needs_no_settings(tmp_path, tolerance):
    module = Tutorial()
    state = module.state_dict()
    assert {"src_tok_emb.embedding.weight", "tgt_tok_emb.embedding.weight"} < state.keys()
    torch.save(state, tmp_path / "model.pth")
    model = check_logits(module, tmp_path / "model.pth", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    check_searches(module, model, tolerance)


@pytest.mark.parametrize(
    "source, target",
    [
        ("pos_embedding", "pos_embedding"),
        ("position_embedding", "position_embedding"),
        ("position_embeddings", "position_embeddings"),
        ("positional_embedding", "positional_embedding"),
        ("src_pos_embed", "tgt_pos_emb"),
        ("source_pos_encoding", "target_pos_encoding"),
        ("positional_encoding", "positional_encoding"),
        ("positional_encoding.embedding", "positional_encoding.embedding"),
        ("src_pos_embedding", "tgt_pos_embedding"),
        ("src_position_embedding", "trg_position_embedding"),
        ("encoder_pos", "decoder_pos"),
    ],
)
def test_positions_in_an_embedding_are_learned(wrapper, source, target, tmp_path, tolerance):
    wrapper.positions = [torch.randn(30, DIMS)] * 2 if source == target else [torch.randn(n, DIMS) for n in (30, 40)]
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    state |= {f"{source}.weight": wrapper.positions[0], f"{target}.weight": wrapper.positions[1]}
    torch.save(state, tmp_path / "model.pt")
    model = check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    stacks = model.config.encoder, model.config.decoder
    assert [stack.positions for stack in stacks] == ["learned"] * 2
    assert [stack.max_length for stack in stacks] == list(map(len, wrapper.positions))


@pytest.mark.parametrize(
    "source, target",
    [("pos_encoder.pe", "pos_encoder.pe"), ("pe", "pe"), ("src_pe", "tgt_pe"), ("encoder_pos.pe", "decoder_pos.pe")],
)
@pytest.mark.parametrize("shape", [(1, 50, DIMS), (50, 1, DIMS), (50, DIMS)], ids=str)
def test_positions_in_a_buffer_are_fixed(wrapper, source, target, shape, tmp_path, tolerance):
    wrapper.positions = [torch.randn(50, DIMS)] * 2 if source == target else list(torch.randn(2, 50, DIMS))
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    state |= {source: wrapper.positions[0].reshape(shape), target: wrapper.positions[1].reshape(shape)}
    torch.save(state, tmp_path / "model.pt")
    model = check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert model.config.encoder.positions == model.config.decoder.positions == "sinusoidal"
    assert not any("positions" in name for name, _ in tree_flatten(model.trainable_parameters()))


def test_positions_are_computed_without_a_buffer(wrapper, tmp_path, tolerance):
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    torch.save(state, tmp_path / "model.pt")
    check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


@pytest.mark.parametrize(
    "source, target, output",
    [
        ("src_word_embedding", "trg_word_embedding", "fc_out"),
        ("encoder_embedding", "decoder_embedding", "fc"),
        ("source_embedding.embedding", "target_embedding.embedding", "output_layer"),
        ("src_embed.lut", "tgt_embed.lut", "projection"),
        ("src_tok_emb", "tgt_tok_emb", "linear"),
        ("src_emb", "tgt_emb", "out"),
        ("enc_token_embedding", "dec_token_embedding", "output"),
        ("src_embedding", "embedding", "lm_head"),
    ],
)
def test_common_names_of_embeddings_and_output(wrapper, source, target, output, tmp_path, tolerance):
    names = {"src_tok_emb": source, "tgt_tok_emb": target, "generator": output}
    state = {
        ".".join([names.get(module, module), leaf]): value
        for name, value in wrapper.state_dict().items()
        for module, leaf in [name.split(".", 1)]
    }
    torch.save(state, tmp_path / "model.pt")
    check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


def test_tied_embeddings(wrapper, tmp_path, tolerance):
    wrapper.src_tok_emb = wrapper.tgt_tok_emb
    wrapper.generator.weight = wrapper.tgt_tok_emb.weight
    state = {name.replace("tgt_tok_emb", "embedding"): value for name, value in wrapper.state_dict().items()}
    torch.save({name: value for name, value in state.items() if "src_tok_emb" not in name}, tmp_path / "model.pt")
    model = check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert model.config.share_embeddings and model.config.tie_output and model.config.output_bias


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "model.transformer."]
)
def test_prefixes_of_wrapped_models(wrapper, prefix, tmp_path, tolerance):
    torch.save({f"{prefix}{name}": value for name, value in wrapper.state_dict().items()}, tmp_path / "model.pt")
    check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_lightning_hyperparameters(tmp_path, tolerance):
    module = Wrapper(norm_first=True, activation="gelu", layer_norm_eps=1e-2)
    state = {f"model.{name}": value for name, value in module.state_dict().items()}
    hyperparameters = {
        "nhead": 4,
        "norm_first": True,
        "activation": "gelu",
        "layer_norm_eps": 1e-2,
        "learning_rate": 0.1,
    }
    saved = {"epoch": 3, "pytorch-lightning_version": "2.2", "state_dict": state, "hyper_parameters": hyperparameters}
    torch.save(saved | {"optimizer_states": [{"step": torch.tensor(3.0)}]}, tmp_path / "last.ckpt")
    model = check_logits(module, tmp_path / "last.ckpt", tolerance, settings=IDS)
    assert model.config.norm_eps == 1e-2


def test_stacks_without_a_final_norm(wrapper, tmp_path, tolerance):
    wrapper.transformer.encoder.norm = wrapper.transformer.decoder.norm = None
    torch.save(wrapper.state_dict(), tmp_path / "model.pt")
    model = check_logits(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert not model.config.encoder.final_norm and not model.config.decoder.final_norm


def test_separate_projections_and_wrong_widths(wrapper, tmp_path, tolerance):
    state = {}
    for name, value in wrapper.state_dict().items():
        if name.endswith("in_proj_weight"):
            state |= {name.replace("in_proj", f"{x}_proj"): y for x, y in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[name] = value
    torch.save(state, tmp_path / "apart.pt")
    check_logits(wrapper, tmp_path / "apart.pt", tolerance, settings=IDS | {"num_heads": 4})
    other = torch.nn.MultiheadAttention(DIMS, 4, kdim=12, vdim=12).state_dict()
    state |= {f"transformer.decoder.layers.1.multihead_attn.{name}": value for name, value in other.items()}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=r"2 of another shape \(.*k_proj_weight \(16, 12\) instead of \(16, 16\)"):
        convert.load(tmp_path / "other.pt", settings=IDS | {"num_heads": 4})


def test_added_keys_and_values_are_errors(wrapper, tmp_path):
    attention = torch.nn.MultiheadAttention(DIMS, 4, add_bias_kv=True)
    wrapper.transformer.encoder.layers[1].self_attn = attention
    torch.save(wrapper.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConversionError, match=r"2 unexpected \(.*self_attn.bias_k, .*self_attn.bias_v\)"):
        convert.load(tmp_path / "model.pt", settings=IDS | {"num_heads": 4})


def test_rename_maps_custom_names(wrapper, tmp_path, tolerance):
    state = {
        name.replace("transformer.encoder", "net.reader").replace("src_tok_emb", "lookup_in"): value
        for name, value in wrapper.state_dict().items()
    }
    torch.save(state, tmp_path / "model.pth")
    settings = IDS | {"num_heads": 4}
    with pytest.raises(ValueError, match="The tensors do not fit the family torch: 2 missing"):
        convert.load(tmp_path / "model.pth", settings=settings)
    rename = {r"^net\.reader\.": "encoder.", "^lookup_in": "src_tok_emb"}
    check_logits(wrapper, tmp_path / "model.pth", tolerance, settings=settings, rename=rename)
