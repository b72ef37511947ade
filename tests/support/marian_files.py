"""Random models in Marian's formats, and Marian's forward pass and beam search in plain numpy.

Written from Marian's documentation and what its files contain; the reference for its models.
"""

import math
import struct

import numpy as np

EOS, UNK = 0, 1  # Marian's ids in SentencePiece vocabularies
NORM_EPS = 1e-6
NORMS = {"n": "ln", "r": "rms"}  # operation -> what its tensors are called
OPTIONS = {
    "type": "transformer",
    "dim-emb": 64,
    "dim-vocabs": [48, 48],
    "enc-depth": 2,
    "dec-depth": 2,
    "enc-type": "bidirectional",
    "enc-cell": "gru",
    "dec-cell": "gru",
    "transformer-heads": 4,
    "transformer-dim-ffn": 128,
    "transformer-decoder-dim-ffn": 0,
    "transformer-ffn-depth": 2,
    "transformer-decoder-ffn-depth": 0,
    "transformer-ffn-activation": "swish",
    "transformer-dim-aan": 96,
    "transformer-aan-depth": 2,
    "transformer-aan-activation": "swish",
    "transformer-aan-nogate": False,
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "",
    "transformer-decoder-autoreg": "self-attention",
    "transformer-train-positions": False,
    "transformer-train-position-embeddings": False,
    "transformer-disable-position-embeddings": False,
    "transformer-no-projection": False,
    "transformer-rnn-projection": False,
    "transformer-tied-layers": [],
    "transformer-guided-alignment-layer": "last",
    "layer-normalization": False,
    "tied-embeddings": False,
    "tied-embeddings-src": False,
    "tied-embeddings-all": True,
    "max-length": 100,
    "skip": False,
    "output-omit-bias": False,
    "ulr": False,
    "version": "v1.9.14; 1d4bbcb 2020-05-05 16:07:41 +0100",
}
STUDENT = {"transformer-decoder-autoreg": "rnn", "dec-cell": "ssru", "transformer-ffn-activation": "relu"}
AVERAGE = {"transformer-decoder-autoreg": "average-attention"}
PRE_NORM = {
    "transformer-preprocess": "nd",
    "transformer-postprocess": "da",
    "transformer-postprocess-top": "n",
    "version": "v1.11.0; f00d062 2022-02-08 08:39:24 -0800",
}
OLD_PRE_NORM = PRE_NORM | {"version": "v1.10.0; 6f6d4846 2021-02-06 15:35:16 -0800"}  # of queries only
SEPARATE = {"tied-embeddings-all": False, "tied-embeddings": True, "dim-vocabs": [40, 56]}


RMS_NORM = {"transformer-postprocess": "dar", "transformer-postprocess-emb": "r", "transformer-postprocess-top": "r"}


def options_yaml(options):
    """Return options as Marian writes them: YAML with one key a line."""

    def value(option):
        if isinstance(option, bool):
            return str(option).lower()
        if isinstance(option, list):
            return "".join(f"\n  - {part}" for part in option) or "[]"
        return f'"{option}"' if option == "" or ":" in str(option) else str(option)

    return "".join(f"{key}: {value(option)}\n" for key, option in sorted(options.items()))


def stack_option(options, stack, name):
    """Return an option of a stack: zero in the decoder means that of the encoder."""
    return (options[f"transformer-decoder-{name}"] if stack == "decoder" else 0) or options[f"transformer-{name}"]


class MarianModel:
    """Options and named float32 tensors.

    Args:
        options: Those that differ from OPTIONS.
        seed: Of the random tensors.
        gain: A factor of the matrices inside layers: large ones give outputs that depend strongly on the inputs.
    """

    def __init__(self, options=None, seed=0, gain=1.5):
        self.options = OPTIONS | (options or {})
        self.tensors = {}
        self._random, self._gain = np.random.default_rng(seed), gain
        self._dims = self.options["dim-emb"]
        self._make_embeddings()
        for stack, depth in (("encoder", self.options["enc-depth"]), ("decoder", self.options["dec-depth"])):
            ties = (self.options["transformer-tied-layers"] if stack == "decoder" else []) or range(1, depth + 1)
            for number in sorted(set(ties)):
                self._make_layer(stack, f"{stack}_l{number}")
            self._make_norms(f"{stack}_emb", self.options["transformer-postprocess-emb"], "_pre")
            self._make_norms(f"{stack}_top", self.options["transformer-postprocess-top"], "")

    @property
    def ssru(self):
        """Whether the decoder has SSRU layers."""
        return self.options["transformer-decoder-autoreg"] == "rnn"

    @property
    def source_embedding(self):
        """The name of the source embeddings."""
        shared = self.options["tied-embeddings-all"] or self.options["tied-embeddings-src"]
        return "Wemb" if shared else "encoder_Wemb"

    @property
    def target_embedding(self):
        """The name of the target embeddings."""
        shared = self.options["tied-embeddings-all"] or self.options["tied-embeddings-src"]
        return "Wemb" if shared else "decoder_Wemb"

    def _make_embeddings(self):
        source, target = self.options["dim-vocabs"]
        for name, size in ((self.source_embedding, source), (self.target_embedding, target)):
            if name not in self.tensors:
                self.tensors[name] = self._normal(size, self._dims) / self._dims**0.5
        if not (self.options["tied-embeddings-all"] or self.options["tied-embeddings"]):
            self.tensors["decoder_ff_logit_out_Wt"] = self._normal(target, self._dims) * 3 / self._dims**0.5
        if not self.options["output-omit-bias"]:
            self.tensors["decoder_ff_logit_out_b"] = self._normal(1, target) * 0.5
            self.tensors["decoder_ff_logit_out_b"][0, EOS] += 3
        if self.options["transformer-train-positions"]:
            self.tensors["Wpos"] = self._normal(self.options["max-length"], self._dims) * 0.5

    def _make_layer(self, stack, name):
        dims, ffn = self._dims, stack_option(self.options, stack, "dim-ffn")
        if stack == "decoder" and self.ssru:
            self._make_matrix(f"{name}_rnn_W", dims, dims, 2)
            self._make_matrix(f"{name}_rnn_Wf", dims, dims, 2)
            self.tensors[f"{name}_rnn_bf"] = self._normal(1, dims) * 0.5
            if self.options["transformer-rnn-projection"]:
                self._make_matrix(f"{name}_rnn_Wo", dims, dims)
                self.tensors[f"{name}_rnn_bo"] = self._normal(1, dims) * 0.1
            self._make_norms(f"{name}_rnn", self.options["transformer-preprocess"], "_pre")
            self._make_norms(f"{name}_rnn_ffn", self.options["transformer-postprocess"], "")
        elif stack == "decoder" and self.options["transformer-decoder-autoreg"] == "average-attention":
            self._make_average_attention(f"{name}_aan")
        else:
            self._make_attention(f"{name}_self")
        if stack == "decoder":
            self._make_attention(f"{name}_context")
        self._make_feed_forward(f"{name}_ffn", ffn, stack_option(self.options, stack, "ffn-depth"))
        self._make_norms(f"{name}_ffn_ffn", self.options["transformer-preprocess"], "_pre")
        self._make_norms(f"{name}_ffn_ffn", self.options["transformer-postprocess"], "")

    def _make_feed_forward(self, name, width, depth):
        sizes = [self._dims, *[width] * (depth - 1), self._dims]
        for number, (rows, columns) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
            self._make_matrix(f"{name}_W{number}", rows, columns)
            self.tensors[f"{name}_b{number}"] = self._normal(1, columns) * 0.1

    def _make_average_attention(self, name):
        if self.options["transformer-aan-depth"] > 1:
            self._make_feed_forward(name, self.options["transformer-dim-aan"], self.options["transformer-aan-depth"])
        for gate in "" if self.options["transformer-aan-nogate"] else "if":
            self._make_matrix(f"{name}_W{gate}", self._dims, self._dims, 2)
            self.tensors[f"{name}_b{gate}"] = self._normal(1, self._dims) * 0.5
        self._make_norms(f"{name}_ffn", self.options["transformer-preprocess"], "_pre")
        self._make_norms(f"{name}_ffn", self.options["transformer-postprocess"], "")

    def _make_attention(self, name):
        for part in "qkv" if self.options["transformer-no-projection"] else "qkvo":
            self._make_matrix(f"{name}_W{part}", self._dims, self._dims, 2 if part in "qk" else 0.7)
            self.tensors[f"{name}_b{part}"] = self._normal(1, self._dims) * 0.1
        self._make_norms(f"{name}_Wo", self.options["transformer-preprocess"], "_pre")
        self._make_norms(f"{name}_Wo", self.options["transformer-postprocess"], "")

    def _make_matrix(self, name, rows, columns, gain=1):
        scale = np.float32(gain * self._gain * (2 / (rows + columns)) ** 0.5)
        self.tensors[name] = self._normal(rows, columns) * scale

    def _make_norms(self, name, operations, suffix):
        for operation in set(operations) & {"n", "r"}:
            scale = 1 + self._normal(1, self._dims) * 0.1
            if name.startswith("decoder") and name.endswith(("ffn_ffn", "top")) and not suffix:
                scale *= 3 * np.sign(self._normal(1, self._dims))  # otherwise the model repeats its input
            self.tensors[f"{name}_{NORMS[operation]}_scale{suffix}"] = scale
            if operation == "n":
                self.tensors[f"{name}_ln_bias{suffix}"] = self._normal(1, self._dims) * 0.1

    def _normal(self, rows, columns):
        return self._random.standard_normal((rows, columns), dtype=np.float32)


def write_npz(path, model):
    """Write a model as Marian's .npz."""
    options = np.frombuffer(options_yaml(model.options).encode() + b"\0", np.int8)
    np.savez(path, **model.tensors, **{"special:model.yml": options})
    return path


def binary_file(items, version=1):
    """Return a binary file of (name, type, shape, data) items."""
    names = [name.encode() + b"\0" for name, _, _, _ in items]
    content = struct.pack("<2Q", version, len(items))
    for name, (_, kind, shape, data) in zip(names, items, strict=True):
        content += struct.pack("<4Q", len(name), kind, len(shape), len(data))
    content += b"".join(names)
    content += b"".join(struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items)
    padding = ((len(content) + 8) // 256 + 1) * 256 - len(content) - 8
    return content + struct.pack("<Q", padding) + bytes(padding) + b"".join(data for _, _, _, data in items)


def is_quantised(name):
    """Return whether marian-conv quantises a tensor: it decides by name, also for the alpha of embeddings."""
    return "Wemb" in name or name[-3:-1] == "_W" or name.endswith("_W")


def quantise(name, values, bits=8):
    """Return the data of a quantised tensor (matrices transposed, then the multiplier), and its dequantised values."""
    limit, code = (127, "i1") if bits == 8 else (32767, "<i2")
    multiplier = np.float32(127 / np.abs(values).max() if bits == 8 else 1024)
    integers = np.clip(np.rint(values * multiplier), -limit, limit).astype(code)
    stored = integers if "Wemb" in name else integers.T
    return stored.tobytes() + multiplier.tobytes(), integers.astype(np.float32) * (np.float32(1) / multiplier)


def binary_items(model, bits=None, alphas=None):
    """Return the items of a model's binary file, sorted by name, and the float32 tensors that they stand for.

    Args:
        model: A MarianModel.
        bits: 8 or 16 to quantise as marian-conv does; None for float32.
        alphas: The multiplier of each matrix's inputs by the matrix's name, as in files of `intgemm8.alphas`.
    """
    tensors = dict(model.tensors)
    for name, alpha in (alphas or {}).items():
        tensors[f"{name}_QuantMultA"] = np.float32([alpha])
    items, values = [], {}
    for name, tensor in sorted(tensors.items()):
        kind, data, values[name] = 0x0404, tensor.astype("<f4").tobytes(), tensor
        if bits and is_quantised(name):
            kind = 0x4100 + bits // 8
            data, values[name] = quantise(name, tensor, bits)
        items.append((name, kind, tensor.shape, data + bytes(-len(data) % 256)))
    options = options_yaml(model.options).encode() + b"\0"
    items.append(("special:model.yml", 0x0101, (len(options),), options))
    return items, values


def write_bin(path, model, bits=None, alphas=None):
    """Write a model as Marian's .bin; return the float32 tensors that it stands for."""
    items, values = binary_items(model, bits, alphas)
    path.write_bytes(binary_file(items))
    return values


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "swish": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "old gelu": lambda x: x * sigmoid(1.702 * x),  # until version 1.12.2
}


class MarianReference:
    """Marian's forward pass and beam search for one sentence, in float64.

    Args:
        options: The model's options.
        tensors: Its tensors.
        alphas: The multiplier of each matrix's inputs, to round them to 8 bits as intgemm does; None for floats.

    Attributes:
        ranges: The largest absolute input of each matrix so far, to calibrate alphas.
    """

    def __init__(self, options, tensors, alphas=None):
        self.options, self.alphas, self.ranges = options, alphas, {}
        self.tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
        self.version = tuple(map(int, options["version"].split(";")[0].split()[0].lstrip("v").split(".")))

    def encode(self, source):
        """Return the encoder's output for source ids that end with EOS, (length, dims)."""
        name = "Wemb" if "Wemb" in self.tensors else "encoder_Wemb"
        x = bottom = self._embed(self.tensors[name][source], "encoder")
        for number in range(1, self.options["enc-depth"] + 1):
            x = self._attention(f"encoder_l{number}_self", x, None, None)
            x = self._feed_forward(f"encoder_l{number}_ffn", x)
        return self._process("encoder_top", self.options["transformer-postprocess-top"], x, bottom)

    def log_probs(self, encoded, target):
        """Return log-probabilities of the tokens after each prefix of target ids, (1 + length, vocabulary)."""
        name = "Wemb" if "Wemb" in self.tensors else "decoder_Wemb"
        vectors = self.tensors[name][np.asarray(target, int)]
        vectors = np.concatenate([np.zeros((1, vectors.shape[1])), vectors])  # the first input is a zero vector
        x = bottom = self._embed(vectors, "decoder")
        causal = np.where(np.tri(len(x), dtype=bool), 0, -np.inf)
        depth = self.options["dec-depth"]
        for number in self.options["transformer-tied-layers"] or range(1, depth + 1):
            if self.options["transformer-decoder-autoreg"] == "rnn":
                x = self._ssru(f"decoder_l{number}_rnn", x)
            elif self.options["transformer-decoder-autoreg"] == "average-attention":
                x = self._average_attention(f"decoder_l{number}_aan", x)
            else:
                x = self._attention(f"decoder_l{number}_self", x, None, causal)
            x = self._attention(f"decoder_l{number}_context", x, encoded, None)
            x = self._feed_forward(f"decoder_l{number}_ffn", x)
        x = self._process("decoder_top", self.options["transformer-postprocess-top"], x, bottom)
        output = self.tensors.get("decoder_ff_logit_out_Wt", self.tensors[name])
        x = self._round(x, name if output is self.tensors[name] else "decoder_ff_logit_out_Wt")
        return log_softmax(x @ output.T + self.tensors.get("decoder_ff_logit_out_b", 0))

    def search(self, source, beam_size=1, normalize=0.0, word_penalty=0.0, max_length_factor=3.0, *, allow_unk=False):
        """Return finished hypotheses as (normalised score, ids without EOS), best first.

        The beam shrinks by one with each finished hypothesis. A hypothesis that the maximum length cuts counts as
        finished.
        """
        encoded = self.encode(source)
        beam, finished, length = [(0.0, [])], [], 0
        width = beam_size
        while beam:
            length += 1
            candidates = []
            for score, ids in beam:
                scores = score + self.log_probs(encoded, ids)[-1]
                if not allow_unk:
                    scores[UNK] = -np.inf
                candidates += [(scores[token], [*ids, int(token)]) for token in np.argsort(-scores)[:width]]
            best = sorted(candidates, key=lambda hypothesis: -hypothesis[0])[:width]
            survivors = [hypothesis for hypothesis in best if hypothesis[1][-1] != EOS]
            last = length >= max_length_factor * len(source)
            for score, ids in best:
                if ids[-1] == EOS or last:
                    normalised = (score - word_penalty * length) / length**normalize
                    finished.append((normalised, ids[:-1] if ids[-1] == EOS else ids))
            beam = [] if last else survivors
            width = len(beam)
        return sorted(finished, key=lambda hypothesis: -hypothesis[0])

    def _embed(self, vectors, stack):
        dims, length = vectors.shape[1], len(vectors)
        if self.options["transformer-disable-position-embeddings"]:
            x = vectors
        elif self.options["transformer-train-positions"]:
            table = self.tensors["Wpos"]
            x = vectors + table[np.minimum(np.arange(length), len(table) - 1)]
        else:
            frequencies = np.exp(-np.log(10000) / (dims / 2 - 1) * np.arange(dims // 2))
            angles = np.arange(length)[:, None] * frequencies
            x = vectors * dims**0.5 + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return self._process(f"{stack}_emb", self.options["transformer-postprocess-emb"], x, None, "_pre")

    def _process(self, name, operations, x, shortcut, suffix=""):
        for operation in operations:
            if operation in NORMS:
                x = x - x.mean(-1, keepdims=True) if operation == "n" else x
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPS)
                x = x * self.tensors[f"{name}_{NORMS[operation]}_scale{suffix}"]
                x = x + self.tensors[f"{name}_ln_bias{suffix}"] if operation == "n" else x
            elif operation == "a":
                x = x + shortcut
        return x

    def _before(self, name, x):
        return self._process(name, self.options["transformer-preprocess"], x, None, "_pre")

    def _after(self, name, x, shortcut):
        return self._process(name, self.options["transformer-postprocess"], x, shortcut)

    def _round(self, x, name):
        """Return the inputs of a matrix, rounded if there are alphas."""
        self.ranges[name] = max(self.ranges.get(name, 0), np.abs(x).max())
        if not self.alphas:
            return x
        return np.clip(np.rint(x * self.alphas[name]), -127, 127) / self.alphas[name]

    def _linear(self, x, matrix, bias=None):
        result = self._round(x, matrix) @ self.tensors[matrix]
        return result if bias is None else result + self.tensors[bias]

    def _attention(self, name, x, memory, mask):
        heads, inputs = self.options["transformer-heads"], self._before(f"{name}_Wo", x)
        if memory is None:  # until version 1.10 a pre-norm was that of the queries only
            memory = inputs if self.version >= (1, 11) else x
        queries, keys, values = (
            self._linear(part, f"{name}_W{letter}", f"{name}_b{letter}").reshape(len(part), heads, -1).swapaxes(0, 1)
            for letter, part in zip("qkv", (inputs, memory, memory), strict=True)
        )
        scores = queries @ keys.swapaxes(1, 2) / queries.shape[-1] ** 0.5
        weights = np.exp(log_softmax(scores if mask is None else scores + mask))
        result = (weights @ values).swapaxes(0, 1).reshape(len(x), -1)
        if not self.options["transformer-no-projection"]:
            result = self._linear(result, f"{name}_Wo", f"{name}_bo")
        return self._after(f"{name}_Wo", result, x)

    def _ssru(self, name, x):
        inputs = self._before(name, x)
        values = self._linear(inputs, f"{name}_W")
        gates = sigmoid(self._linear(inputs, f"{name}_Wf", f"{name}_bf"))
        cell, outputs = np.zeros(x.shape[1]), []
        for value, gate in zip(values, gates, strict=True):
            cell = gate * cell + (1 - gate) * value
            outputs.append(np.maximum(cell, 0))
        outputs = np.array(outputs)
        if self.options["transformer-rnn-projection"]:
            outputs = self._linear(outputs, f"{name}_Wo", f"{name}_bo")
        return self._after(f"{name}_ffn", outputs, x)

    def _average_attention(self, name, x):
        inputs = np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]
        result, depth = self._before(f"{name}_ffn", inputs), self.options["transformer-aan-depth"]
        if depth > 1:
            result = self._network(name, result, depth, self.options["transformer-aan-activation"])
        if not self.options["transformer-aan-nogate"]:
            input_gate = sigmoid(self._linear(x, f"{name}_Wi", f"{name}_bi"))
            result = input_gate * x + sigmoid(self._linear(result, f"{name}_Wf", f"{name}_bf")) * result
        return self._after(f"{name}_ffn", result, x)

    def _feed_forward(self, name, x):
        inputs, depth = self._before(f"{name}_ffn", x), stack_option(self.options, name.split("_")[0], "ffn-depth")
        result = self._network(name, inputs, depth, self.options["transformer-ffn-activation"])
        return self._after(f"{name}_ffn", result, x)

    def _network(self, name, result, depth, activation):
        activation = ACTIVATIONS["old gelu" if activation == "gelu" and self.version < (1, 12, 3) else activation]
        for number in range(1, depth + 1):
            result = self._linear(result, f"{name}_W{number}", f"{name}_b{number}")
            result = activation(result) if number < depth else result
        return result
