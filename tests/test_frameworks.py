"""Checkpoints of torch.nn.Transformer, the Annotated Transformer, d2l.ai, fairseq, OpenNMT-py and JoeyNMT.

Their exact names and file layouts, with random weights, against a forward pass in torch that is written here.
"""

import argparse
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_transformer.weights import convert

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
DIMS, SOURCE_VOCAB, TARGET_VOCAB = 16, 21, 19
LAYERS = {"encoder": 2, "decoder": 3}
MLP = {"encoder": 24, "decoder": 20}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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


def deviation_norm(x, weight, bias):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + bias


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
            return deviation_norm(x, weight, bias)
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
    assert np.abs(expected).max() > 1
    return ours


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
        "activation_fn": "gelu" if kind == "cfg" else "relu",
        "no_scale_embedding": kind == "learned",
        "max_source_positions": 30,
        "max_target_positions": 40,
    }
    positions = {"encoder": spread(30, 2), "decoder": spread(40, 2)}
    extra = {"encoder.version": torch.tensor([3.0]), "encoder.embed_positions._float_tensor": torch.zeros(1)}
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
        activation=torch.nn.functional.gelu if kind == "cfg" else torch.relu,
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
    assert ours.config.share_embeddings == ours.config.tie_output == (kind == "legacy args")
    assert (ours.config.start_id, ours.search_defaults.suppress_ids) == (2, (1,))


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


def test_annotated_transformer(tmp_path, tolerance):
    state = random_state(ANNOTATED)
    state = {
        name.replace("norm.weight", "norm.a_2").replace("norm.bias", "norm.b_2"): value for name, value in state.items()
    }
    table = interleaved(50)
    reference = Reference(
        state,
        ANNOTATED,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": True, "decoder": True},
        norm="deviation",
        positions={"encoder": table, "decoder": table},
        pad_id=2,
    )
    buffers = {"src_embed.1.pe": table[None], "tgt_embed.1.pe": table[None]}
    torch.save({f"module.{name}": value for name, value in (state | buffers).items()}, tmp_path / "multi30k.pt")
    ours = check(reference, tmp_path / "multi30k.pt", tolerance, settings={"num_heads": 4})
    assert ours.config.norm == "deviation"


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
    with pytest.raises(ValueError, match="does not tell pad_id, eos_id, start_id, num_heads: say it in settings"):
        convert.load(tmp_path / "d2l.pt")


@pytest.mark.parametrize("kind", ["standard", "rms, gated, half biases", "no positions"])
def test_opennmt_py(kind, tmp_path, tolerance):
    gated = kind.startswith("rms")
    state = random_state(
        ONMT, bias=not gated, out_bias=gated or None, mlp_bias=not gated, norm_bias=not gated, gated=gated
    )
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
    saved["opt"].max_relative_positions = -1
    torch.save(saved, path)
    with pytest.raises(ValueError, match="max_relative_positions -1 cannot be converted"):
        convert.load(path)


JOEY_YAML = """
name: tiny
model:
    tied_embeddings: false
    encoder: {{type: transformer, num_heads: 2, {encoder}embeddings: {{embedding_dim: 16, scale: true}}}}
    decoder: {{type: transformer, num_heads: 4, {decoder}embeddings: {{embedding_dim: 16, scale: true}}}}
"""


@pytest.mark.parametrize("pre, alpha", [(True, None), (False, 1.7)])
def test_joeynmt(pre, alpha, tmp_path, tolerance):
    names = JOEY if pre else without(JOEY, "final_norm")
    state = random_state(names, output_bias=False)
    table = interleaved(50)
    reference = Reference(
        state,
        names,
        heads={"encoder": 2, "decoder": 4},
        pre={"encoder": pre, "decoder": pre},
        eps=1e-6,
        positions={"encoder": table, "decoder": table},
        alpha={"encoder": alpha or 1.0, "decoder": 2.0 if alpha else 1.0},
        pad_id=1,
    )
    buffers = {f"{stack}.pe.pe": table[None] for stack in LAYERS}
    norm = "pre" if pre else "post"
    said = {"encoder": f"layer_norm: {norm}, ", "decoder": f"layer_norm: {norm}, "}
    if alpha:
        said = {"encoder": said["encoder"] + f"alpha: {alpha}, ", "decoder": said["decoder"] + "alpha: 2.0, "}
    (tmp_path / "config.yaml").write_text(JOEY_YAML.format(**said))
    torch.save({"steps": 10, "model_state": state | buffers, "optimizer_state": {}}, tmp_path / "best.ckpt")
    check(reference, tmp_path / "best.ckpt", tolerance)


class Wrapper(torch.nn.Module):
    """The usual module around torch.nn.Transformer."""

    def __init__(self, bias=True, **options):
        super().__init__()
        self.transformer = torch.nn.Transformer(DIMS, 4, 2, 3, 24, dropout=0.0, batch_first=True, bias=bias, **options)
        self.src_tok_emb = torch.nn.Embedding(SOURCE_VOCAB, DIMS)
        self.tgt_tok_emb = torch.nn.Embedding(TARGET_VOCAB, DIMS)
        self.positional_encoding = torch.nn.Module()
        self.positional_encoding.register_buffer("pos_embedding", interleaved(64)[:, None])
        self.generator = torch.nn.Linear(DIMS, TARGET_VOCAB)
        for name, value in self.named_parameters():
            torch.nn.init.normal_(value, 1.0 if "norm" in name and "weight" in name else 0.0, 0.35)

    def forward(self, source, target):
        def embed(table, ids):
            return table(ids) * math.sqrt(DIMS) + self.positional_encoding.pos_embedding[: ids.shape[1], 0]

        padding = source == 1
        hidden = self.transformer(
            embed(self.src_tok_emb, source),
            embed(self.tgt_tok_emb, target),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.generator(hidden)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first, bias, activation", [(False, True, "relu"), (True, False, "gelu")])
def test_torch_nn_transformer(norm_first, bias, activation, tmp_path, tolerance):
    torch.manual_seed(0)
    theirs = Wrapper(bias, norm_first=norm_first, activation=activation)
    settings = {"num_heads": 4, "norm_first": norm_first, "activation": activation}
    settings |= {"pad_id": 1, "start_id": 2, "eos_id": 3}
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "model.pth")
    ours = check(theirs, tmp_path / "model.pth", tolerance, settings=settings)
    assert ours.config.norm_bias == bias and ours.config.encoder.final_norm


def test_a_users_own_names_are_renamed(tmp_path, tolerance):
    torch.manual_seed(0)
    theirs = Wrapper()
    state = {
        name.replace("transformer.encoder", "net.enc").replace("src_tok_emb", "lookup_in"): value
        for name, value in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "model.pth")
    settings = {"num_heads": 4, "pad_id": 1, "start_id": 2, "eos_id": 3}
    with pytest.raises(ValueError, match="The family is not told by config.json, nor by the names of tensors"):
        convert.load(tmp_path / "model.pth", settings=settings)
    rename = {r"^net\.enc\.": "encoder.", "^lookup_in": "src_tok_emb"}
    check(theirs, tmp_path / "model.pth", tolerance, settings=settings, rename=rename)
