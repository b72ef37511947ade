"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need"; d2l.ai teaches it in chapter 11.

The whole network: Attention, FeedForward and Residual make a Layer, layers make a Stack, two stacks and the embeddings
make a Transformer. What the decoder may read of a source is its Memory. Training and generation run the same code.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce

from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model.attention import AttentionFunction, attention_with_dropout, scaled_dot_product_attention
from mlx_transformer.model.compilation import compile_with_weights
from mlx_transformer.model.dropout import dropout, grad_checkpoint
from mlx_transformer.model.kv_cache import KVCache
from mlx_transformer.model.layers import ACTIVATIONS, NORMS, embedding, fused_linear, linear
from mlx_transformer.model.positions import (
    check_length,
    constant_arange,
    relative_position_bias,
    relative_position_buckets,
    sinusoidal_positions,
)


class Memory(NamedTuple):
    """What the decoder may read of a batch of sources.

    Attributes:
        key_values: For each decoder layer the keys and values of its cross-attention,
            (batch, num_heads, 2, source_length, head_dims).
        mask: True at source tokens, false at padding, (batch, 1, 1, source_length).
    """

    key_values: list[mx.array]
    mask: mx.array


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ModelConfig, stack: StackConfig) -> None:
        super().__init__()
        self.head_dims = config.head_dims or config.dims // stack.num_heads
        self.scale = self.head_dims**-0.5 if config.attention_scale is None else config.attention_scale
        width = stack.num_heads * self.head_dims
        out_bias = config.attention_bias if config.attention_out_bias is None else config.attention_out_bias
        self.query_proj = linear(config.dims, width, config.attention_bias)
        self.key_value_proj = fused_linear(config.dims, width, config.attention_bias, count=2)
        self.out_proj = linear(width, config.dims, out_bias)

    def split_heads(self, x: mx.array, batch: int) -> mx.array:
        """(rows, length, width) -> (batch, num_heads, rows / batch x length, head_dims)."""
        return x.reshape(batch, -1, x.shape[-1] // self.head_dims, self.head_dims).swapaxes(1, 2)

    def key_values(self, x: mx.array) -> mx.array:
        """Keys and values of what is attended to, (batch, length, dims) -> (batch, num_heads, 2, length, head_dims)."""
        heads = self.key_value_proj(x).reshape(*x.shape[:2], 2, -1, self.head_dims)
        return heads.transpose(0, 3, 2, 1, 4)

    def __call__(
        self,
        x: mx.array,
        key_values: mx.array,
        mask: mx.array | str,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        """Attend from x, (rows, length, dims), to key_values, (batch, num_heads, 2, keys, head_dims)."""
        # The beams of a sentence fold into its query length: they all read one memory.
        queries = self.split_heads(self.query_proj(x), batch=key_values.shape[0])
        keys, values = (part.squeeze(2) for part in mx.split(key_values, 2, axis=2))
        heads = attend(queries, keys, values, scale=self.scale, mask=mask)
        return self.out_proj(heads.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between, at each position alike (Vaswani et al. 2017, section 3.3).

    With a gate, its activated projection multiplies the other one (Shazeer 2020, "GLU Variants Improve Transformer").
    """

    def __init__(self, config: ModelConfig, stack: StackConfig) -> None:
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = linear(config.dims, stack.mlp_dims, config.mlp_bias)
        self.up_proj = linear(config.dims, stack.mlp_dims, config.mlp_bias)
        self.down_proj = linear(stack.mlp_dims, config.dims, config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.activation_dropout

    def __call__(self, x: mx.array) -> mx.array:
        """Transform each position, (rows, length, dims)."""
        inner = self.activation(self.gate_proj(x) if "gate_proj" in self else self.up_proj(x))
        if "gate_proj" in self:
            inner = inner * self.up_proj(x)
        return self.down_proj(dropout(inner, self.dropout) if self.training else inner)


class Residual(nn.Module):
    """A sublayer with its residual connection, normalisation (before it or after the sum) and dropout."""

    def __init__(self, config: ModelConfig, stack: StackConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm](config)
        self.dropout = config.dropout
        self.norm_first = stack.norm_first
        self.scale = stack.residual_scale

    def __call__(self, x: mx.array, sublayer: Callable[[mx.array], mx.array]) -> mx.array:
        """Add what the sublayer makes of x, (rows, length, dims)."""
        scaled = x if self.scale == 1 else x * self.scale
        added = sublayer(self.norm(x) if self.norm_first else x)
        total = scaled + (dropout(added, self.dropout) if self.training else added)
        return total if self.norm_first else self.norm(total)


def identity(key_values: mx.array) -> mx.array:
    """Remember nothing: attend to the keys and values of these positions alone."""
    return key_values


class Layer(nn.Module):
    """Self-attention, in a decoder cross-attention to the memory, and a feed-forward network, each in a residual."""

    def __init__(self, config: ModelConfig, stack: StackConfig, cross: bool) -> None:
        super().__init__()
        self.self_attention = Attention(config, stack)
        self.self_attention_residual = Residual(config, stack)
        if cross:
            self.cross_attention = Attention(config, stack)
            self.cross_attention_residual = Residual(config, stack)
        self.feed_forward = FeedForward(config, stack)
        self.feed_forward_residual = Residual(config, stack)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | str,
        update_cache: Callable[[mx.array], mx.array] = identity,
        memory: tuple[mx.array, mx.array] | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        """Run one layer.

        Args:
            x: (rows, length, dims).
            mask: What self-attention may attend to.
            update_cache: Takes the keys and values of x and returns those of all positions so far.
            memory: What cross-attention reads, in a decoder: keys and values, and their mask.
            attend: Computes attention, first self-attention, then cross-attention.
        """

        def self_attention(x: mx.array) -> mx.array:
            return self.self_attention(x, update_cache(self.self_attention.key_values(x)), mask, attend)

        x = self.self_attention_residual(x, self_attention)
        if memory is not None:
            x = self.cross_attention_residual(x, lambda x: self.cross_attention(x, *memory, attend))
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """Embedded tokens plus positions through the layers: the encoder, or (with cross-attention) the decoder."""

    def __init__(self, config: ModelConfig, stack: StackConfig, cross: bool) -> None:
        super().__init__()
        self.scale = math.sqrt(config.dims) if stack.scale_embeddings else 1.0
        if stack.positions in ("sinusoidal", "learned"):
            self.positions = nn.Embedding(stack.max_length, config.dims)
        if stack.positions == "sinusoidal":
            self.positions.weight = sinusoidal_positions(stack.max_length, config.dims)
            self.positions.freeze()
        self.dropout = config.dropout
        self.layers = [Layer(config, stack, cross) for _ in range(stack.num_layers)]
        if stack.positions == "relative":
            for module in [layer.self_attention for layer in self.layers] if stack.bias_each_layer else [self]:
                module.relative_bias = nn.Embedding(stack.num_buckets, stack.num_heads)
            self.buckets = relative_position_buckets(stack.num_buckets, stack.max_distance, two_sided=not cross)
        if stack.embedding_norm != "none":
            self.embedding_norm = NORMS[config.norm](config)
        self.norm_before_positions = stack.embedding_norm == "before"
        if stack.final_norm:
            self.norm = NORMS[config.norm](config)

    def embed(self, embeddings: mx.array, start: mx.array | int = 0) -> mx.array:
        """Scaled token embeddings plus the rows of their positions, (rows, length, dims)."""
        x = embeddings * self.scale
        if "embedding_norm" in self and self.norm_before_positions:
            x = self.embedding_norm(x)
        if "positions" in self:
            x = x + self.positions(start + constant_arange(x.shape[1]))
        if "embedding_norm" in self and not self.norm_before_positions:
            x = self.embedding_norm(x)
        return dropout(x, self.dropout) if self.training else x

    def masks(self, mask: mx.array, start: mx.array | int, queries: int) -> list[mx.array]:
        """For each layer what self-attention may attend to: the mask, or a bias by distance that contains it."""
        if "relative_bias" in self:
            return [relative_position_bias(self.relative_bias, self.buckets, mask, start, queries)] * len(self.layers)
        tables = [layer.self_attention.get("relative_bias") for layer in self.layers]
        return [
            mask if table is None else relative_position_bias(table, self.buckets, mask, start, queries)
            for table in tables
        ]

    def normalize(self, x: mx.array) -> mx.array:
        """The final normalisation, where the stack has one."""
        return self.norm(x) if "norm" in self else x


class Transformer(nn.Module):
    """The model: `encode` a batch of sources once, `decode` targets against that memory.

    Attributes:
        config: What the model is.
        search_defaults: The search that the model was made for.
        tasks: The TaskConfigs of the tasks that it was made for, by name, where there are several.
        recompute: In training layers are computed again for the gradient, instead of keeping all in memory.
    """

    def __init__(self, config: ModelConfig, search_defaults: SearchConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.search_defaults = search_defaults or SearchConfig()
        self.source_embedding = embedding(config.source_vocab_size, config.dims)
        if not config.share_embeddings:
            self.target_embedding = embedding(config.target_vocab_size, config.dims)
        self.encoder = Stack(config, config.encoder, cross=False)
        self.decoder = Stack(config, config.decoder, cross=True)
        if not config.tie_output:
            self.output = linear(config.dims, config.target_vocab_size, bias=config.output_bias)
        elif config.output_bias:
            self.output_bias = mx.zeros(config.target_vocab_size)
        self.recompute = False
        for name in ("tasks", "_compiled"):
            object.__setattr__(self, name, {})  # no parts of the module

    def __call__(self, source: mx.array, target: mx.array) -> mx.array:
        """Logits of every next target token, given the source and the target before it (teacher forcing).

        Args:
            source: Token ids, int32 (batch, source_length), padded on the right with `config.pad_id`.
            target: Token ids, int32 (batch, target_length), beginning with `config.start_id`.

        Returns:
            Logits, (batch, target_length, target_vocab_size).

        Raises:
            ValueError: If a sequence is longer than its stack has positions.
        """
        return self.logits(self.hidden_states(source, target))

    def hidden_states(self, source: mx.array, target: mx.array) -> mx.array:
        """What the output layer makes `model(source, target)` of, (batch, target_length, dims)."""
        attend = (
            attention_with_dropout(self.config.attention_dropout) if self.training else scaled_dot_product_attention
        )
        return self._decode(target, self.encode(source, attend=attend), attend=attend)

    def encode(
        self, source: mx.array, mask: mx.array | None = None, attend: AttentionFunction = scaled_dot_product_attention
    ) -> Memory:
        """Read a batch of sources.

        Args:
            source: Token ids, int32 (batch, source_length), padded on the right.
            mask: True at tokens, bool (batch, source_length); by default at all but the padding at the end.
            attend: Computes attention: what stands in for the fused one sees all queries and keys.

        Raises:
            ValueError: If a source is longer than the encoder has positions.
        """
        check_length("source", source.shape[1], self.config.encoder.max_length)
        tokens = mx.cumsum(source != self.config.pad_id, axis=1, reverse=True) > 0  # text may hold that token too
        mask = (tokens if mask is None else mask)[:, None, None]
        x = self.encoder.embed(self.source_embedding(source))
        for layer, visible in zip(self.encoder.layers, self.encoder.masks(mask, 0, source.shape[1]), strict=True):
            x = self._maybe_checkpoint(layer)(x, visible, attend=attend)
        x = self.encoder.normalize(x)
        key_values = [layer.cross_attention.key_values(x) for layer in self.decoder.layers]
        # Contiguous, or attention would copy them in every decode step.
        return Memory([mx.contiguous(layer) for layer in key_values], mask)

    def decode(
        self,
        target: mx.array,
        memory: Memory,
        cache: KVCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        """Logits of the tokens that follow each target position.

        Args:
            target: Token ids, int32 (rows, target_length); rows is a multiple of the memory's batch, the rows of one
                sentence (its beams) side by side. With a cache, only the tokens after those that it holds.
            memory: From `encode`.
            cache: Keys and values of the positions before `target`; the new ones are added to it.
            attend: Computes attention, as in `encode`.

        Returns:
            Logits, (rows, target_length, target_vocab_size).

        Raises:
            ValueError: If a target is longer than the decoder has positions.
        """
        return self.logits(self._decode(target, memory, cache, attend))

    def _decode(
        self,
        target: mx.array,
        memory: Memory,
        cache: KVCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        check_length("target", target.shape[1], self.config.decoder.max_length)
        start = 0 if cache is None else cache.length
        x = self.decoder.embed(self._target_embedding(target), start)
        masks = self._masks(target.shape[1], cache)
        for index, layer in enumerate(self.decoder.layers):
            update_cache = identity if cache is None else functools.partial(cache.update_and_fetch, index)
            x = self._maybe_checkpoint(layer)(
                x, masks[index], update_cache, (memory.key_values[index], memory.mask), attend
            )
        if cache is not None:
            cache.length = cache.length + target.shape[1]
        x = self.decoder.normalize(x)
        return x if self.config.logit_scale == 1 else x * self.config.logit_scale

    def _maybe_checkpoint(self, layer: Layer) -> Callable[..., mx.array]:
        return grad_checkpoint(layer) if self.recompute and self.training else layer

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` sequences of up to `capacity` tokens."""
        head_dims = self.decoder.layers[0].self_attention.head_dims
        shape = (rows, self.config.decoder.num_heads, 2, capacity, head_dims)
        return KVCache([mx.zeros(shape, self.dtype) for _ in self.decoder.layers], mx.array(0, mx.int32))

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained; fixed positions are not."""
        return tree_reduce(lambda total, array: total + array.size, self.trainable_parameters(), 0)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that activations are computed in."""
        return self.decoder.layers[0].feed_forward_residual.norm.weight.dtype

    def compiled(self, function: Callable, *options: Any) -> Callable:
        """`function(model, *options, ...)`, compiled; the weights are inputs, so that later updates are seen."""
        return compile_with_weights(self, self._compiled, function, options)

    def _masks(self, queries: int, cache: KVCache | None) -> list[mx.array] | list[str]:
        """For each decoder layer what may be attended to: without a cache, the positions up to the query's own."""
        if cache is not None:
            return self.decoder.masks(cache.mask(queries), cache.length, queries)
        if self.config.decoder.positions != "relative":
            return ["causal"] * len(self.decoder.layers)
        return self.decoder.masks(mx.tril(mx.ones((1, 1, queries, queries), mx.bool_)), 0, queries)

    @property
    def _target_embedding(self) -> nn.Embedding:
        return self.source_embedding if self.config.share_embeddings else self.target_embedding

    @property
    def output_layer(self) -> tuple[mx.array, mx.array | None]:
        """The output layer's matrix, (target_vocab_size, dims), and its bias."""
        if "output" in self:
            return self.output.weight, self.output.get("bias")
        return self._target_embedding.weight, self.get("output_bias")

    def logits(self, hidden_states: mx.array) -> mx.array:
        """What the output layer makes of `hidden`, (..., dims) -> (..., target_vocab_size)."""
        if "output" in self:
            return self.output(hidden_states)
        logits = self._target_embedding.as_linear(hidden_states)
        return logits + self.output_bias if "output_bias" in self else logits
