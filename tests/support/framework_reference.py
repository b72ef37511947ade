"""A forward pass in torch over the state dicts of training frameworks, and comparisons of converted models with it."""

import dataclasses
import itertools
import math
import re

import mlx.core as mx
import numpy as np
import pytest
from support.reference_search import Teacher, check_equals_reference
from support.tiny_models import padded

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.weights import convert
from mlx_transformer.weights.tokenizers.options import TokenizerOptions

torch = pytest.importorskip("torch")
DIMS, SOURCE_VOCAB, TARGET_VOCAB = 16, 21, 19
LAYERS = {"encoder": 2, "decoder": 3}
MLP = {"encoder": 24, "decoder": 20}


def interleaved_sinusoids(length, dims=DIMS):
    """Return a table of positions with sines in even columns and cosines in odd ones."""
    table = torch.zeros(length, dims)
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, dims, 2) * -(math.log(10000.0) / dims))
    table[:, 0::2], table[:, 1::2] = torch.sin(angles), torch.cos(angles)
    return table


def fairseq_sinusoids(length, first, dims=DIMS):
    """Return fairseq's table of positions: sines left, cosines right, numbered from `first`."""
    half = dims // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, first + length)[:, None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def deviation_norm(x, weight, bias, eps):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias


class Reference:
    """A forward pass over a state dict, with a framework's names for the parts of a layer.

    Args:
        state: The state dict.
        names: Part -> template of its name, with {s} for the stack and {i} for the layer; see test_fairseq.py.
        options: heads, pre (whether pre-norm), positions and alpha by stack; norm, eps, activation, scale, logit_scale
            and pad_id.
    """

    def __init__(self, state, names, **options):
        self.state, self.names = state, names
        self.heads, self.pre, self.eps = options["heads"], options["pre"], options.get("eps", 1e-5)
        self.scale, self.positions = options.get("scale", True), options["positions"]
        self.activation, self.norm_kind = options.get("activation", torch.relu), options.get("norm", "layer")
        self.alpha = options.get("alpha", {"encoder": 1.0, "decoder": 1.0})
        self.pad_id, self.logit_scale = options["pad_id"], options.get("logit_scale", 1.0)

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
        logits = torch.nn.functional.linear(x, self.get("output", "weight"), self.get("output", "bias"))
        return logits * self.logit_scale


def random_state(
    names, *, bias=True, out_bias=None, mlp_bias=True, norm_bias=True, output_bias=True, seed=0, gated=False
):
    """Return random tensors under a framework's names; the part determines the shape."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def put(name, shape, deviation=0.35, mean=0.0):
        state[name] = mean + deviation * torch.randn(shape, generator=generator)

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


def attention_names(**parts):
    """Return the names of the projections of self- and cross-attention, from the modules' names and `names`."""
    return {
        f"{kind}_{letter}": f"{parts[kind]}.{name}"
        for kind in ("self", "cross")
        for letter, name in zip("qkvo", parts["names"], strict=True)
    }


def without(names, *parts):
    """Return the names without those of some parts."""
    return {part: name for part, name in names.items() if part not in parts and part.split("_", 1)[-1] not in parts}


def rename_norms(state, weight, bias):
    """Rename the weights and biases of normalisations."""
    leaves = {"weight": weight, "bias": bias}
    return {
        f"{module}.{leaves[leaf] if re.search(r'norm[0-9]*$', module) else leaf}": value
        for name, value in state.items()
        for module, _, leaf in [name.rpartition(".")]
    }


def with_old_norms(state):
    """Rename weights of normalisations to a_2 and their biases to b_2."""
    return {
        re.sub(r"(norm[_\d]*)\.weight", r"\1.a_2", re.sub(r"(norm[_\d]*)\.bias", r"\1.b_2", name)): value
        for name, value in state.items()
    }


def encode_source(path, folder, source=("<unk>", "<pad>", "<s>", "</s>"), target=("<unk>", "<pad>", "<s>", "</s>")):
    """Convert a file with lists of words, which begin with these tokens, and return the ids of the source "w9 w8"."""
    for name, specials in (("source.txt", source), ("target.txt", target)):
        words = [f"w{i}" for i in range(len(specials), TARGET_VOCAB)]
        (folder / name).write_text("\n".join([*specials, *words]))
    options = TokenizerOptions(folder / "source.txt", folder / "target.txt")
    _, tokenizer = convert.load(path, tokenizer=options)
    return tokenizer.encode("w9 w8")


def make_batch(pad_id):
    """Return random source ids, padded on the right, and target ids."""
    rng = np.random.default_rng(0)
    source = rng.integers(4, TARGET_VOCAB, (4, 8))
    for row, length in zip(source, (8, 3, 6, 5), strict=True):
        row[length:] = pad_id
    return source, rng.integers(4, TARGET_VOCAB, (4, 7))


def check_logits(reference, path, tolerance, **options):
    """Compare the logits of a converted file with those of the reference; return the converted model."""
    model, _ = convert.load(path, **options)
    source, target = make_batch(model.config.pad_id)
    with torch.no_grad():
        expected = reference(torch.tensor(source), torch.tensor(target)).numpy()
    logits = model(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32)))
    assert np.abs(np.array(logits) - expected).max() <= tolerance(1e-4)
    assert model.config.norm_eps == reference.eps
    if isinstance(reference, Reference) and reference.positions is not None:
        limits = {stack: len(table) for stack, table in reference.positions.items()}
        assert limits == {"encoder": model.config.encoder.max_length, "decoder": model.config.decoder.max_length}
    assert np.abs(expected).max() > 1
    return model


def choose_eos_id(model, sources):
    """Return the token whose first positions vary most, so that as end token it ends hypotheses at many steps."""
    endless = SearchConfig(4, 4, 9, suppress_ids=(model.config.eos_id,))
    targets = [h.ids for group in generate_ids(model, padded(sources, model.config), endless) for h in group]
    positions = {token: {ids.index(token) for ids in targets if token in ids} for token in range(TARGET_VOCAB)}
    return max(positions, key=lambda token: len(positions[token]))


def check_searches(reference, model, tolerance):
    """Compare greedy and beam searches with a plain search over log-probabilities of the reference."""

    def forward(source, target):
        with torch.no_grad():
            return reference(torch.tensor(source), torch.tensor(target)).numpy()

    teacher = Teacher(model, forward)
    pad_id = model.config.pad_id
    sources = [[token for token in row if token != pad_id] for row in make_batch(pad_id)[0].tolist()]
    model.config = dataclasses.replace(model.config, eos_id=choose_eos_id(model, sources))
    lengths = set(check_equals_reference(teacher, sources, SearchConfig(max_tokens=9), tolerance))
    for beam_size, length_penalty, early_stopping in itertools.product((3, 4), (0.0, 0.6, 2.0), (False, True, "never")):
        search = SearchConfig(beam_size, beam_size, 9, 0, length_penalty, early_stopping)
        lengths |= set(check_equals_reference(teacher, sources, search, tolerance))
    assert len(lengths) > 2, "the hypotheses must end at different steps"
