"""Checkpoints of torch.nn.Transformer, the Annotated Transformer, d2l.ai, fairseq, OpenNMT-py and JoeyNMT.

Their exact names and file layouts, with random weights, against a forward pass in torch that is written here.
"""

import argparse
import dataclasses
import itertools
import math
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.reference_search import Teacher, check_equals_reference
from support.tiny_models import padded

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.weights import convert
from mlx_transformer.weights.conversion_plan import fields_from_config
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.parameter_map import ConversionError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
DIMS, SOURCE_VOCAB, TARGET_VOCAB = 16, 21, 19
LAYERS = {"encoder": 2, "decoder": 3}
MLP = {"encoder": 24, "decoder": 20}


@pytest.fixture(autouse=True)
def quick():
    """One thread, one seed, and nothing compiled: on a CPU every new trace costs seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mx.disable_compile()
    yield
    mx.enable_compile()


def interleaved(length, dims=DIMS):
    table = torch.zeros(length, dims)
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, dims, 2) * -(math.log(10000.0) / dims))
    table[:, 0::2], table[:, 1::2] = torch.sin(angles), torch.cos(angles)
    return table


def spread(length, first, dims=DIMS):
    half = dims // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, first + length)[:, None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def deviation_norm(x, weight, bias, eps):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias


class Reference:
    """A forward pass over a state dict, by the names that a framework gives to the parts of a layer.

    Args:
        state: The state dict.
        names: Part -> template of its name, with {s} for the stack and {i} for the layer; see FAIRSEQ for the parts.
        options: heads, pre (pre-norm), norm, activation, scale, positions (a table), alpha, gate.
    """

    def __init__(self, state, names, **options):
        self.state, self.names = state, names
        self.heads, self.pre, self.eps = options["heads"], options["pre"], options.get("eps", 1e-5)
        self.scale, self.positions = options.get("scale", True), options["positions"]
        self.activation, self.norm_kind = options.get("activation", torch.relu), options.get("norm", "layer")
        self.alpha = options.get("alpha", {"encoder": 1.0, "decoder": 1.0})
        self.pad_id = options["pad_id"]

    def get(self, part, leaf, stack="", layer=0):
        template = self.names.get(f"{stack}_{part}", self.names.get(part))
        if template is None:
            return None
        name = template.format(s=stack, i=layer)
        if self.norm_kind == "deviation" and "norm" in part:
            leaf = {"weight": "a_2", "bias": "b_2"}[leaf]
        return self.state.get(f"{name}.{leaf}")

    def linear(self, part, x, stack, layer):
        return torch.nn.functional.linear(
            x, self.get(part, "weight", stack, layer), self.get(part, "bias", stack, layer)
        )

    def norm(self, part, x, stack, layer=0):
        weight, bias = (self.get(part, leaf, stack, layer) for leaf in ("weight", "bias"))
        if weight is None:
            return x
        if self.norm_kind == "deviation":
            return deviation_norm(x, weight, bias, self.eps)
        if self.norm_kind == "rms":
            return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def attend(self, kind, x, memory, mask, stack, layer):
        heads = self.heads[stack]

        def split(y):
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k, v = (
            split(self.linear(f"{kind}_{letter}", y, stack, layer))
            for letter, y in {"q": x, "k": memory, "v": memory}.items()
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
        return self.linear(f"{kind}_o", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), stack, layer)

    def sublayer(self, norm, x, function, stack, layer):
        alpha = self.alpha[stack]
        if self.pre[stack]:
            return alpha * x + function(self.norm(norm, x, stack, layer))
        return self.norm(norm, alpha * x + function(x), stack, layer)

    def feed_forward(self, x, stack, layer):
        hidden = self.activation(self.linear("up", x, stack, layer))
        if self.get("gated", "weight", stack, layer) is not None:
            hidden = hidden * self.linear("gated", x, stack, layer)
        return self.linear("down", hidden, stack, layer)

    def stack(self, stack, ids, mask, memory=None, memory_mask=None):
        x = self.get("embedding", "weight", stack)[ids] * (math.sqrt(DIMS) if self.scale else 1)
        if self.positions is not None:
            x = x + self.positions[stack][: ids.shape[1]]
        x = self.norm("embedding_norm", x, stack)
        for layer in range(LAYERS[stack]):
            x = self.sublayer(
                "self_norm", x, lambda y, n=layer: self.attend("self", y, y, mask, stack, n), stack, layer
            )
            if memory is not None:
                x = self.sublayer(
                    "cross_norm",
                    x,
                    lambda y, n=layer: self.attend("cross", y, memory, memory_mask, stack, n),
                    stack,
                    layer,
                )
            x = self.sublayer("mlp_norm", x, lambda y, n=layer: self.feed_forward(y, stack, n), stack, layer)
        return self.norm("final_norm", x, stack)

    def __call__(self, source, target):
        mask = (source != self.pad_id)[:, None, None]
        causal = torch.ones(target.shape[1], target.shape[1]).tril().bool()
        memory = self.stack("encoder", source, mask)
        x = self.stack("decoder", target, causal, memory, mask)
        return torch.nn.functional.linear(x, self.get("output", "weight"), self.get("output", "bias"))


def random_state(
    names, *, bias=True, out_bias=None, mlp_bias=True, norm_bias=True, output_bias=True, seed=0, gated=False
):
    """Random tensors under the names of a framework; its shapes follow from the parts."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def put(name, shape, kind=0.35, mean=0.0):
        state[name] = mean + kind * torch.randn(shape, generator=generator)

    for part, template in names.items():
        stacks = ("encoder", "decoder") if "{s}" in template else ("",)
        if part.split("_")[0] in LAYERS:
            part, stacks = part.split("_", 1)[1], (part.split("_")[0],)
        for stack in stacks:
            if part.startswith("cross") and stack == "encoder" or f"{stack}_{part}" in names and stacks != (stack,):
                continue
            for layer in range(LAYERS.get(stack, 1) if "{i}" in template else 1):
                name = template.format(s=stack, i=layer)
                if part == "embedding":
                    put(f"{name}.weight", (SOURCE_VOCAB if stack == "encoder" else TARGET_VOCAB, DIMS), 0.6)
                elif part == "output":
                    put(f"{name}.weight", (TARGET_VOCAB, DIMS), 0.6)
                    if output_bias:
                        put(f"{name}.bias", (TARGET_VOCAB,))
                elif "norm" in part:
                    put(f"{name}.weight", (DIMS,), 0.2, 1.0)
                    if norm_bias:
                        put(f"{name}.bias", (DIMS,))
                elif part in ("up", "down", "gated"):
                    shape = (DIMS, MLP[stack]) if part == "down" else (MLP[stack], DIMS)
                    if part != "gated" or gated:
                        put(f"{name}.weight", shape)
                        if mlp_bias:
                            put(f"{name}.bias", shape[:1])
                else:
                    put(f"{name}.weight", (DIMS, DIMS))
                    if out_bias if part.endswith("_o") and out_bias is not None else bias:
                        put(f"{name}.bias", (DIMS,))
    return state


def layer_parts(**parts):
    return {
        f"{kind}_{letter}": f"{parts[kind]}.{name}"
        for kind in ("self", "cross")
        for letter, name in zip("qkvo", parts["names"], strict=True)
    }


FAIRSEQ = {
    **layer_parts(
        self="{s}.layers.{i}.self_attn",
        cross="{s}.layers.{i}.encoder_attn",
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    "self_norm": "{s}.layers.{i}.self_attn_layer_norm",
    "cross_norm": "{s}.layers.{i}.encoder_attn_layer_norm",
    "mlp_norm": "{s}.layers.{i}.final_layer_norm",
    "up": "{s}.layers.{i}.fc1",
    "down": "{s}.layers.{i}.fc2",
    "embedding": "{s}.embed_tokens",
    "embedding_norm": "{s}.layernorm_embedding",
    "final_norm": "{s}.layer_norm",
    "output": "decoder.output_projection",
}
ANNOTATED = {
    **layer_parts(
        self="{s}.layers.{i}.self_attn",
        cross="{s}.layers.{i}.src_attn",
        names=[f"linears.{number}" for number in range(4)],
    ),
    "self_norm": "{s}.layers.{i}.sublayer.0.norm",
    "cross_norm": "{s}.layers.{i}.sublayer.1.norm",
    "encoder_mlp_norm": "encoder.layers.{i}.sublayer.1.norm",
    "decoder_mlp_norm": "decoder.layers.{i}.sublayer.2.norm",
    "up": "{s}.layers.{i}.feed_forward.w_1",
    "down": "{s}.layers.{i}.feed_forward.w_2",
    "encoder_embedding": "src_embed.0.lut",
    "decoder_embedding": "tgt_embed.0.lut",
    "final_norm": "{s}.norm",
    "output": "generator.proj",
}
D2L = {
    **{f"encoder_self_{letter}": f"encoder.blks.block{{i}}.attention.W_{letter}" for letter in "qkvo"},
    **{f"decoder_self_{letter}": f"decoder.blks.block{{i}}.attention1.W_{letter}" for letter in "qkvo"},
    **{f"decoder_cross_{letter}": f"decoder.blks.block{{i}}.attention2.W_{letter}" for letter in "qkvo"},
    "self_norm": "{s}.blks.block{i}.addnorm1.ln",
    "cross_norm": "{s}.blks.block{i}.addnorm2.ln",
    "encoder_mlp_norm": "encoder.blks.block{i}.addnorm2.ln",
    "decoder_mlp_norm": "decoder.blks.block{i}.addnorm3.ln",
    "up": "{s}.blks.block{i}.ffn.dense1",
    "down": "{s}.blks.block{i}.ffn.dense2",
    "embedding": "{s}.embedding",
    "output": "decoder.dense",
}
ONMT_ATTENTION = ("linear_query", "linear_keys", "linear_values", "final_linear")
ONMT = {
    f"{stack}_{part}": name.replace("LAYER", f"{stack}.{layers}.{{i}}")
    for stack, layers, norms in (
        ("encoder", "transformer", {"self_norm": "layer_norm"}),
        ("decoder", "transformer_layers", {"self_norm": "layer_norm_1", "cross_norm": "layer_norm_2"}),
    )
    for part, name in {
        **layer_parts(self="LAYER.self_attn", cross="LAYER.context_attn", names=ONMT_ATTENTION),
        **{norm: f"LAYER.{name}" for norm, name in norms.items()},
        "up": "LAYER.feed_forward.w_1",
        "gated": "LAYER.feed_forward.w_3",
        "down": "LAYER.feed_forward.w_2",
        "mlp_norm": "LAYER.feed_forward.layer_norm",
        "embedding": f"{stack}.embeddings.make_embedding.emb_luts.0",
        "final_norm": f"{stack}.layer_norm",
    }.items()
} | {"output": "generator"}
JOEY = {
    f"{stack}_{part}": name
    for stack, attention, norms in (
        ("encoder", {"self": "src_src_att"}, {"self_norm": "layer_norm"}),
        (
            "decoder",
            {"self": "trg_trg_att", "cross": "src_trg_att"},
            {"self_norm": "x_layer_norm", "cross_norm": "dec_layer_norm"},
        ),
    )
    for part, name in {
        **{
            f"{kind}_{letter}": f"{stack}.layers.{{i}}.{module}.{layer}"
            for kind, module in attention.items()
            for letter, layer in zip("qkvo", ("q_layer", "k_layer", "v_layer", "output_layer"), strict=True)
        },
        **{norm: f"{stack}.layers.{{i}}.{name}" for norm, name in norms.items()},
        "up": f"{stack}.layers.{{i}}.feed_forward.pwff_layer.0",
        "down": f"{stack}.layers.{{i}}.feed_forward.pwff_layer.3",
        "mlp_norm": f"{stack}.layers.{{i}}.feed_forward.layer_norm",
        "embedding": {"encoder": "src_embed.lut", "decoder": "trg_embed.lut"}[stack],
        "final_norm": f"{stack}.layer_norm",
    }.items()
} | {"output": "decoder.output_layer"}


def batch(pad_id):
    rng = np.random.default_rng(0)
    source = rng.integers(4, TARGET_VOCAB, (4, 8))
    for row, length in zip(source, (8, 3, 6, 5), strict=True):
        row[length:] = pad_id
    return source, rng.integers(4, TARGET_VOCAB, (4, 7))


def check(reference, path, tolerance, **options):
    """Compare the conversion of a file with the reference."""
    ours, _ = convert.load(path, **options)
    source, target = batch(ours.config.pad_id)
    with torch.no_grad():
        expected = reference(torch.tensor(source), torch.tensor(target)).numpy()
    found = ours(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32)))
    difference = np.abs(np.array(found) - expected).max()
    assert difference <= tolerance(1e-4)
    assert ours.config.norm_eps == reference.eps
    if isinstance(reference, Reference) and reference.positions is not None:
        limits = {stack: len(rows) for stack, rows in reference.positions.items()}
        assert limits == {"encoder": ours.config.encoder.max_length, "decoder": ours.config.decoder.max_length}
    assert np.abs(expected).max() > 1
    return ours


def often(ours, sources):
    """The token whose first places differ most from target to target: as the end token, it ends them at many steps."""
    endless = SearchConfig(4, 4, 9, suppress_ids=(ours.config.eos_id,))
    found = [h.ids for group in generate_ids(ours, padded(sources, ours.config), endless) for h in group]
    places = {token: {ids.index(token) for ids in found if token in ids} for token in range(TARGET_VOCAB)}
    return max(places, key=lambda token: len(places[token]))


def check_beams(reference, ours, tolerance):
    """Compare searches with plain ones that ask the reference for log-probabilities."""

    def forward(source, target):
        with torch.no_grad():
            return reference(torch.tensor(source), torch.tensor(target)).numpy()

    teacher = Teacher(ours, forward)
    sources = [[token for token in row if token != ours.config.pad_id] for row in batch(ours.config.pad_id)[0].tolist()]
    ours.config = dataclasses.replace(ours.config, eos_id=often(ours, sources))
    lengths = set(check_equals_reference(teacher, sources, SearchConfig(max_tokens=9), tolerance))
    for beam_size, length_penalty, early_stopping in itertools.product((3, 4), (0.0, 0.6, 2.0), (False, True, "never")):
        search = SearchConfig(beam_size, beam_size, 9, 0, length_penalty, early_stopping)
        lengths |= set(check_equals_reference(teacher, sources, search, tolerance))
    assert len(lengths) > 2, "the hypotheses must end at different steps"


def without(names, *parts):
    return {part: name for part, name in names.items() if part not in parts and part.split("_", 1)[-1] not in parts}


def shared(state):
    """One table for source, target and output, as fairseq saves it: three names of one storage."""
    table = torch.randn(TARGET_VOCAB, DIMS) * 0.6
    return state | dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"), table
    )


@pytest.mark.parametrize("kind", ["legacy args", "cfg", "learned", "old names"])
def test_fairseq(kind, tmp_path, tolerance):
    pre = kind in ("cfg", "learned")
    names = FAIRSEQ if kind == "learned" else without(FAIRSEQ, "embedding_norm")
    names = names if pre else without(names, "final_norm")
    state = random_state(names, output_bias=False)
    options = {
        "arch": "transformer",
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_normalize_before": pre,
        "decoder_normalize_before": pre,
        "activation_fn": "gelu_accurate" if kind == "cfg" else "relu",
        "no_scale_embedding": kind == "learned",
        "max_source_positions": 30,
        "max_target_positions": 40,
    }
    positions = {"encoder": spread(30, 2), "decoder": spread(40, 2)}
    extra = {"encoder.version": torch.tensor([3.0]), "encoder.embed_positions._float_tensor": torch.zeros(1)}
    extra |= {"decoder.embed_positions.weights": torch.zeros(7, DIMS)}
    if kind == "learned":
        positions = {"encoder": torch.randn(30, DIMS), "decoder": torch.randn(40, DIMS)}
        extra = {f"{s}.embed_positions.weight": torch.cat([torch.randn(2, DIMS), t]) for s, t in positions.items()}
    if kind == "legacy args":
        state = shared(state)
    stored = dict(state)
    if kind == "old names":
        stored = fairseq_old_names(stored)
    reference = Reference(
        state,
        names,
        heads={"encoder": 2, "decoder": 4},
        pre={"encoder": pre, "decoder": pre},
        activation=torch.nn.GELU("tanh") if kind == "cfg" else torch.relu,
        scale=kind != "learned",
        positions=positions,
        pad_id=1,
    )
    saved = {"model": stored | extra, "args": argparse.Namespace(**options), "extra_state": {"epoch": 3}}
    if kind == "cfg":
        saved |= {"args": None, "cfg": {"model": options, "task": {"_name": "translation"}}}
    path = tmp_path / "checkpoint_best.pt"
    torch.save(saved, path)
    ours = check(reference, path, tolerance)
    config = ours.config
    assert config.share_embeddings == config.tie_output == (kind == "legacy args")
    sort = "learned" if kind == "learned" else "sinusoidal"
    assert config.encoder.positions == config.decoder.positions == sort
    assert (config.pad_id, config.start_id, config.eos_id) == (1, 2, 2)
    assert ours.search_defaults == SearchConfig(beam_size=5)
    check_beams(reference, ours, tolerance)


@pytest.mark.parametrize(
    "said, heads, pre",
    [
        ({"arch": "transformer"}, 8, False),
        ({"arch": "transformer_iwslt_de_en"}, 4, False),
        ({"_name": "transformer_vaswani_wmt_en_de_big"}, 16, False),
        ({"arch": "transformer_wmt_en_de_big_t2t"}, 16, True),
        ({"arch": "transformer_wmt_en_de_big_t2t", "encoder_normalize_before": False}, 16, False),
        ({"arch": "transformer", "encoder_attention_heads": 2, "encoder_normalize_before": True}, 2, True),
    ],
    ids=str,
)
def test_what_the_architectures_of_fairseq_stand_for(said, heads, pre):
    found = fields_from_config(FAMILIES["fairseq"], said)
    assert (found["encoder.num_heads"], found["encoder.norm_first"]) == (heads, pre)
    assert found["decoder.max_length"] == found["encoder.max_length"] == 1024


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_fairseq_without_options_or_positions(positions, tmp_path, tolerance):
    names = without(FAIRSEQ, "embedding_norm", "final_norm")
    state = random_state(names, output_bias=False)
    rows = {"encoder": torch.randn(30, DIMS), "decoder": torch.randn(40, DIMS)} if positions == "learned" else None
    reference = Reference(
        state,
        names,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": False, "decoder": False},
        positions=rows,
        pad_id=1,
    )
    if rows:
        state |= {f"{side}.embed_positions.weight": torch.cat([torch.zeros(2, DIMS), rows[side]]) for side in rows}
        torch.save(state, tmp_path / "model.pt")
        check(reference, tmp_path / "model.pt", tolerance, settings={"num_heads": 4})
        with pytest.raises(ValueError, match="does not specify num_heads"):
            convert.load(tmp_path / "model.pt")
    else:
        options = {"arch": "transformer_iwslt_de_en", "no_token_positional_embeddings": True}
        torch.save({"model": state, "args": argparse.Namespace(**options)}, tmp_path / "model.pt")
        assert check(reference, tmp_path / "model.pt", tolerance).config.encoder.positions == "none"


# Option -> values that are covered, and last one that is not.
COVERED = {
    "fairseq": {
        "adaptive_softmax_cutoff": (None, "10,20"),
        "adaptive_input": (False, True),
        "no_cross_attention": (False, True),
        "cross_self_attention": (False, True),
    },
    "opennmt-py": {
        "max_relative_positions": (0, 20),
        "self_attn_type": ("scaled-dot", "scaled-dot-flash", "average"),
        "parallel_residual": (False, True),
        "multiquery": (False, True),
        "copy_attn": (False, True),
    },
}


@pytest.mark.parametrize("family, key, values", [(f, *item) for f, said in COVERED.items() for item in said.items()])
def test_options_that_are_not_covered_are_refused(family, key, values):
    row, (*covered, value) = FAMILIES[family], values
    for each in covered:
        fields_from_config(row, {"heads": 4, key: each})
    with pytest.raises(ValueError, match=f"A checkpoint with {key} {value!r} cannot be converted"):
        fields_from_config(row, {key: value})


def fairseq_old_names(state):
    """Packed projections, counted norms and a bare output table."""
    stored = {}
    counts = {"self_attn_layer_norm": 0, "encoder_attn_layer_norm": 1, "final_layer_norm": None}
    for name, value in state.items():
        stack, *_ = name.split(".")
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            stored[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        elif norm := next((part for part in counts if f".{part}." in name), None):
            number = counts[norm] if counts[norm] is not None else {"encoder": 1, "decoder": 2}[stack]
            stored[name.replace(norm, f"layer_norms.{number}")] = value
        elif name == "decoder.output_projection.weight":
            stored["decoder.embed_out"] = value
        else:
            stored[name] = value
    return stored


def with_old_norms(state):
    """The same tensors, with weights of normalisations called a_2 and biases b_2."""
    return {
        re.sub(r"(norm[_\d]*)\.weight", r"\1.a_2", re.sub(r"(norm[_\d]*)\.bias", r"\1.b_2", n)): v
        for n, v in state.items()
    }


@pytest.mark.parametrize("norm", ["deviation", "layer"])
def test_annotated_transformer(norm, tmp_path, tolerance):
    state = random_state(ANNOTATED)
    state = with_old_norms(state) if norm == "deviation" else state
    table = interleaved(50)
    reference = Reference(
        state,
        ANNOTATED,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": True, "decoder": True},
        norm=norm,
        eps=1e-6 if norm == "deviation" else 1e-5,
        positions={"encoder": table, "decoder": table},
        pad_id=2,
    )
    buffers = {"src_embed.1.pe": table[None], "tgt_embed.1.pe": table[None]}
    torch.save({f"module.{name}": value for name, value in (state | buffers).items()}, tmp_path / "multi30k.pt")
    ours = check(reference, tmp_path / "multi30k.pt", tolerance, settings={"num_heads": 4})
    assert (ours.config.start_id, ours.config.eos_id, ours.config.pad_id) == (0, 1, 2)
    check_beams(reference, ours, tolerance)


def test_d2l(tmp_path, tolerance):
    state = random_state(D2L, bias=False)
    table = interleaved(1000)
    reference = Reference(
        state,
        D2L,
        heads={"encoder": 2, "decoder": 2},
        pre={"encoder": False, "decoder": False},
        positions={"encoder": table, "decoder": table},
        pad_id=1,
    )
    torch.save(state, tmp_path / "d2l.pt")
    settings = {"num_heads": 2, "pad_id": 1, "start_id": 2, "eos_id": 3}
    ours = check(reference, tmp_path / "d2l.pt", tolerance, settings=settings)
    assert not ours.config.attention_bias and ours.config.mlp_bias
    check_beams(reference, ours, tolerance)
    with pytest.raises(ValueError, match="pad_id, eos_id, start_id, num_heads: convert it with --set pad_id="):
        convert.load(tmp_path / "d2l.pt")


@pytest.mark.parametrize("kind", ["standard", "rms, gated, half biases", "no positions", "no biases", "old norms"])
def test_opennmt_py(kind, tmp_path, tolerance):
    gated = kind.startswith("rms")
    bias = not gated and kind != "no biases"
    state = random_state(ONMT, bias=bias, out_bias=gated or None, mlp_bias=bias, norm_bias=not gated, gated=gated)
    table = None if kind == "no positions" else interleaved(60)
    reference = Reference(
        state,
        ONMT,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": True, "decoder": True},
        norm="rms" if gated else "layer",
        eps=1e-6,
        activation=torch.nn.functional.gelu if gated else torch.relu,
        scale=table is not None,
        positions=None if table is None else {"encoder": table, "decoder": table},
        pad_id=1,
    )
    model = {name: value for name, value in state.items() if not name.startswith("generator")}
    if table is not None:
        model |= {f"{s}.embeddings.make_embedding.pe.pe": table[:, None] for s in LAYERS}
    options = {
        "heads": 4,
        "layer_norm": "rms" if gated else "standard",
        "pos_ffn_activation_fn": "gated-gelu" if gated else "relu",
        "position_encoding": table is not None,
        "max_relative_positions": 0,
        "self_attn_type": "scaled-dot",
    }
    numbered = "0." if gated else ""
    if kind == "old norms":
        model = with_old_norms(model)
    if kind == "no positions":  # an option that is not said is what it is by default
        options = {"heads": 4}
    generator = {f"{numbered}{leaf}": state[f"generator.{leaf}"] for leaf in ("weight", "bias")}
    vocab = {"src": ["<unk>", "<blank>", "a"], "tgt": ["<blank>", "<unk>", "<s>", "</s>"]} if gated else None
    saved = {
        "model": model,
        "generator": generator,
        "opt": argparse.Namespace(**options),
        "vocab": vocab,
        "optim": {"step": 3},
    }
    reference.pad_id = 0 if gated else 1
    path = tmp_path / "model_step_10.pt"
    torch.save(saved, path)
    ours = check(reference, path, tolerance)
    assert (ours.config.gated_mlp, ours.config.pad_id) == (gated, 0 if gated else 1)
    assert ours.search_defaults == SearchConfig(beam_size=5)
    check_beams(reference, ours, tolerance)
    saved["opt"].max_relative_positions = -1
    torch.save(saved, path)
    with pytest.raises(ValueError, match="max_relative_positions -1 cannot be converted"):
        convert.load(path)


JOEY_YAML = """
name: tiny
model:
    tied_embeddings: false
    encoder: {{type: transformer, num_heads: 2, {encoder}embeddings: {{embedding_dim: 16{scale}}}}}
    decoder: {{type: transformer, num_heads: 4, {decoder}embeddings: {{embedding_dim: 16{scale}}}}}
"""


def joeynmt(tmp_path, tolerance, said, *, final_norms, **options):
    """Save and compare a model whose config.yaml says this."""
    names = JOEY if final_norms else without(JOEY, "final_norm")
    state = random_state(names, output_bias=False)
    table = interleaved(50)
    positions = {"encoder": table, "decoder": table}
    heads = {"encoder": 2, "decoder": 4}
    reference = Reference(state, names, heads=heads, eps=1e-6, positions=positions, pad_id=1, **options)
    buffers = {f"{stack}.pe.pe": table[None] for stack in LAYERS}
    (tmp_path / "config.yaml").write_text(said)
    torch.save({"steps": 10, "model_state": state | buffers, "optimizer_state": {}}, tmp_path / "best.ckpt")
    return reference, check(reference, tmp_path / "best.ckpt", tolerance)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_joeynmt(kind, tmp_path, tolerance):
    pre = kind == "pre"
    encoder, decoder = ("", "") if pre else ("alpha: 1.7, ", "alpha: 2.0, ")
    said = JOEY_YAML.format(
        encoder=f"layer_norm: {kind}, {encoder}",
        decoder=f"layer_norm: {kind}, {decoder}",
        scale=", scale: true" if pre else "",
    )
    said += "testing: {beam_size: 7, beam_alpha: 1.0}" if pre else "testing: {n_best: 1}"
    reference, ours = joeynmt(
        tmp_path,
        tolerance,
        said,
        final_norms=pre,
        pre={"encoder": pre, "decoder": pre},
        scale=pre,
        alpha={"encoder": 1.0, "decoder": 1.0} if pre else {"encoder": 1.7, "decoder": 2.0},
    )
    assert ours.search_defaults == SearchConfig(beam_size=7 if pre else 1)
    assert (ours.config.pad_id, ours.config.start_id, ours.config.eos_id) == (1, 2, 3)
    check_beams(reference, ours, tolerance)


@pytest.mark.parametrize("final_norms", [True, False])
def test_joeynmt_without_a_place_of_the_norms(final_norms, tmp_path, tolerance):
    """Of old versions, always pre-norm with final norms; or of new ones, where the stacks have other defaults."""
    said = JOEY_YAML.format(encoder="", decoder="", scale="")
    pre = {"encoder": True, "decoder": final_norms}
    joeynmt(tmp_path, tolerance, said, final_norms=final_norms, pre=pre, scale=False)


def test_joeynmt_with_stacks_of_other_activations_is_refused():
    heads = {"encoder_num_heads": 2, "decoder_num_heads": 2, "encoder_activation": "gelu"}
    assert fields_from_config(FAMILIES["joeynmt"], heads | {"decoder_activation": "gelu"})["activation"] == "gelu"
    with pytest.raises(ValueError, match="do not determine activation"):
        fields_from_config(FAMILIES["joeynmt"], heads)


class Wrapper(torch.nn.Module):
    """The usual module around torch.nn.Transformer."""

    def __init__(self, bias=True, **options):
        super().__init__()
        self.transformer = torch.nn.Transformer(DIMS, 4, 2, 3, 24, dropout=0.0, batch_first=True, bias=bias, **options)
        self.src_tok_emb = torch.nn.Embedding(SOURCE_VOCAB, DIMS)
        self.tgt_tok_emb = torch.nn.Embedding(TARGET_VOCAB, DIMS)
        self.positional_encoding = torch.nn.Module()
        self.positional_encoding.register_buffer("pos_embedding", interleaved(64)[:, None])
        self.rows = [self.positional_encoding.pos_embedding[:, 0]] * 2
        self.generator = torch.nn.Linear(DIMS, TARGET_VOCAB, bias=bias)
        self.eps = self.transformer.encoder.layers[0].norm1.eps
        for name, value in self.named_parameters():
            torch.nn.init.normal_(value, 1.0 if "norm" in name and "weight" in name else 0.0, 0.35)

    def forward(self, source, target):
        def embed(table, ids, rows):
            return table(ids) * math.sqrt(DIMS) + rows[: ids.shape[1]]

        padding = source == 1
        hidden = self.transformer(
            embed(self.src_tok_emb, source, self.rows[0]),
            embed(self.tgt_tok_emb, target, self.rows[1]),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.generator(hidden)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first, bias, activation", [(False, True, "relu"), (True, False, "gelu")])
def test_torch_nn_transformer(norm_first, bias, activation, tmp_path, tolerance):
    theirs = Wrapper(bias, norm_first=norm_first, activation=activation)
    settings = {"num_heads": 4, "norm_first": norm_first, "activation": activation}
    settings |= {"pad_id": 1, "start_id": 2, "eos_id": 3}
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "model.pth")
    ours = check(theirs, tmp_path / "model.pth", tolerance, settings=settings)
    assert ours.config.norm_bias == bias and ours.config.encoder.final_norm
    assert ours.config.encoder.positions == ours.config.decoder.positions == "sinusoidal"
    check_beams(theirs, ours, tolerance)


IDS = {"pad_id": 1, "start_id": 2, "eos_id": 3}


@pytest.fixture
def wrapper():
    return Wrapper()


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
def test_rows_of_an_embedding_are_learned(wrapper, source, target, tmp_path, tolerance):
    wrapper.rows = [torch.randn(30, DIMS)] * 2 if source == target else [torch.randn(n, DIMS) for n in (30, 40)]
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    state |= {f"{source}.weight": wrapper.rows[0], f"{target}.weight": wrapper.rows[1]}
    torch.save(state, tmp_path / "model.pt")
    ours = check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    stacks = ours.config.encoder, ours.config.decoder
    assert [stack.positions for stack in stacks] == ["learned"] * 2
    assert [stack.max_length for stack in stacks] == list(map(len, wrapper.rows))


@pytest.mark.parametrize(
    "source, target",
    [("pos_encoder.pe", "pos_encoder.pe"), ("pe", "pe"), ("src_pe", "tgt_pe"), ("encoder_pos.pe", "decoder_pos.pe")],
)
@pytest.mark.parametrize("shape", [(1, 50, DIMS), (50, 1, DIMS), (50, DIMS)], ids=str)
def test_rows_of_a_buffer_are_fixed(wrapper, source, target, shape, tmp_path, tolerance):
    wrapper.rows = [torch.randn(50, DIMS)] * 2 if source == target else list(torch.randn(2, 50, DIMS))
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    state |= {source: wrapper.rows[0].reshape(shape), target: wrapper.rows[1].reshape(shape)}
    torch.save(state, tmp_path / "model.pt")
    ours = check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert ours.config.encoder.positions == ours.config.decoder.positions == "sinusoidal"
    assert not any("positions" in name for name, _ in tree_flatten(ours.trainable_parameters()))


def test_without_a_buffer_positions_are_computed(wrapper, tmp_path, tolerance):
    state = wrapper.state_dict()
    del state["positional_encoding.pos_embedding"]
    torch.save(state, tmp_path / "model.pt")
    check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


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
def test_usual_names_of_tables(wrapper, source, target, output, tmp_path, tolerance):
    words = {"src_tok_emb": source, "tgt_tok_emb": target, "generator": output}
    state = {
        ".".join([words.get(module, module), leaf]): value
        for name, value in wrapper.state_dict().items()
        for module, leaf in [name.split(".", 1)]
    }
    torch.save(state, tmp_path / "model.pt")
    check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


def test_one_table_for_both_sides(wrapper, tmp_path, tolerance):
    wrapper.src_tok_emb = wrapper.tgt_tok_emb
    wrapper.generator.weight = wrapper.tgt_tok_emb.weight
    state = {name.replace("tgt_tok_emb", "embedding"): value for name, value in wrapper.state_dict().items()}
    torch.save({name: value for name, value in state.items() if "src_tok_emb" not in name}, tmp_path / "model.pt")
    ours = check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert ours.config.share_embeddings and ours.config.tie_output and ours.config.output_bias


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "model.transformer."]
)
def test_wrappers_of_a_whole_model(wrapper, prefix, tmp_path, tolerance):
    torch.save({f"{prefix}{name}": value for name, value in wrapper.state_dict().items()}, tmp_path / "model.pt")
    check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_hyperparameters_of_lightning(tmp_path, tolerance):
    theirs = Wrapper(norm_first=True, activation="gelu", layer_norm_eps=1e-2)
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    stated = {"nhead": 4, "norm_first": True, "activation": "gelu", "layer_norm_eps": 1e-2, "learning_rate": 0.1}
    saved = {"epoch": 3, "pytorch-lightning_version": "2.2", "state_dict": state, "hyper_parameters": stated}
    torch.save(saved | {"optimizer_states": [{"step": torch.tensor(3.0)}]}, tmp_path / "last.ckpt")
    ours = check(theirs, tmp_path / "last.ckpt", tolerance, settings=IDS)
    assert ours.config.norm_eps == 1e-2


def test_stacks_without_a_final_norm(wrapper, tmp_path, tolerance):
    wrapper.transformer.encoder.norm = wrapper.transformer.decoder.norm = None
    torch.save(wrapper.state_dict(), tmp_path / "model.pt")
    ours = check(wrapper, tmp_path / "model.pt", tolerance, settings=IDS | {"num_heads": 4})
    assert not ours.config.encoder.final_norm and not ours.config.decoder.final_norm


def test_projections_apart_and_of_other_widths(wrapper, tmp_path, tolerance):
    state = {}
    for name, value in wrapper.state_dict().items():
        if name.endswith("in_proj_weight"):
            state |= {name.replace("in_proj", f"{x}_proj"): y for x, y in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[name] = value
    torch.save(state, tmp_path / "apart.pt")
    check(wrapper, tmp_path / "apart.pt", tolerance, settings=IDS | {"num_heads": 4})
    other = torch.nn.MultiheadAttention(DIMS, 4, kdim=12, vdim=12).state_dict()
    state |= {f"transformer.decoder.layers.1.multihead_attn.{name}": value for name, value in other.items()}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=r"2 of another shape \(.*k_proj_weight \(16, 12\) instead of \(16, 16\)"):
        convert.load(tmp_path / "other.pt", settings=IDS | {"num_heads": 4})


def test_added_keys_and_values_are_refused(wrapper, tmp_path):
    attention = torch.nn.MultiheadAttention(DIMS, 4, add_bias_kv=True)
    wrapper.transformer.encoder.layers[1].self_attn = attention
    torch.save(wrapper.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConversionError, match=r"2 unexpected \(.*self_attn.bias_k, .*self_attn.bias_v\)"):
        convert.load(tmp_path / "model.pt", settings=IDS | {"num_heads": 4})


def test_a_users_own_names_are_renamed(wrapper, tmp_path, tolerance):
    state = {
        name.replace("transformer.encoder", "net.enc").replace("src_tok_emb", "lookup_in"): value
        for name, value in wrapper.state_dict().items()
    }
    torch.save(state, tmp_path / "model.pth")
    settings = IDS | {"num_heads": 4}
    with pytest.raises(ValueError, match="The family cannot be detected from config.json or the names of tensors"):
        convert.load(tmp_path / "model.pth", settings=settings)
    rename = {r"^net\.enc\.": "encoder.", "^lookup_in": "src_tok_emb"}
    check(wrapper, tmp_path / "model.pth", tolerance, settings=settings, rename=rename)
