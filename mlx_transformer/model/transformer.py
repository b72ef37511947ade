"""The encoder-decoder Transformer of Vaswani et al. 2017, "Attention Is All You Need" (d2l.ai, chapter 11).

This file holds the whole network. Attention (or SSRU, or AverageAttention), FeedForward and Residual form a Layer,
layers form a Stack, and two stacks with their embeddings form a Transformer. Memory is the encoded source that the
decoder attends to. Training and generation run the same code.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_reduce, tree_unflatten

from mlx_transformer.config.model import AverageAttentionConfig, ModelConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model.attention import AttentionFunction, attention_with_dropout, scaled_dot_product_attention
from mlx_transformer.model.compilation import CompiledFunctions, with_arrays
from mlx_transformer.model.dropout import dropout, grad_checkpoint
from mlx_transformer.model.kv_cache import CACHES, DecoderCache
from mlx_transformer.model.layers import ACTIVATIONS, NORMS, add_linear, embedding, fused_linear, linear
from mlx_transformer.model.masks import causal_mask, full_mask, padding_mask
from mlx_transformer.model.positions import (
    check_length,
    constant_arange,
    relative_position_bias,
    relative_position_buckets,
    sinusoidal_positions,
)
from mlx_transformer.model.process import check_process
from mlx_transformer.model.recurrence import linear_recurrence, running_sums
from mlx_transformer.model.shortlist import Shortlist, select_rows
from mlx_transformer.model.token_ids import check_embeddings, check_target_rows, check_token_ids
from mlx_transformer.storage.checksums import WeightsSource

UNTIED_MODULES = {"target_embedding", "output"}  # which a model has only if it does not tie them to its embeddings


class Memory(NamedTuple):
    """A batch of encoded sources, as the decoder's cross-attention reads it.

    Attributes:
        key_values: Keys and values for each decoder layer, (batch, num_heads, 2, source_length, head_dims).
        mask: True at source tokens, False at padding, (batch, 1, 1, source_length).
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
        if config.attention_projection:
            self.out_proj = linear(width, config.dims, out_bias)

    def split_heads(self, x: mx.array, batch: int) -> mx.array:
        """(rows, length, width) -> (batch, num_heads, rows / batch x length, head_dims)."""
        return x.reshape(batch, -1, x.shape[-1] // self.head_dims, self.head_dims).swapaxes(1, 2)

    def key_values(self, x: mx.array) -> mx.array:
        """Project x to keys and values, (batch, length, dims) -> (batch, num_heads, 2, length, head_dims)."""
        heads = self.key_value_proj(x).reshape(*x.shape[:2], 2, -1, self.head_dims)
        return heads.transpose(0, 3, 2, 1, 4)

    def __call__(
        self,
        x: mx.array,
        key_values: mx.array,
        mask: mx.array | str,
        attend: AttentionFunction = scaled_dot_product_attention,
        shortcut: mx.array | None = None,
    ) -> mx.array:
        """Attend from x, (rows, length, dims), to key_values, (batch, num_heads, 2, keys, head_dims).

        The result is added to a shortcut, if there is one.
        """
        # The beams of a sentence are folded into its query length, so that they share one memory.
        queries = self.split_heads(self.query_proj(x), batch=key_values.shape[0])
        keys, values = (part.squeeze(2) for part in mx.split(key_values, 2, axis=2))
        heads = attend(queries, keys, values, scale=self.scale, mask=mask).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return add_linear(self.get("out_proj"), heads, shortcut)

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array | None = None, mask: mx.array | str | None = None
    ) -> mx.array:
        """Attend from queries to keys and values, all before their projections.

        Args:
            queries: (batch, num_queries, dims).
            keys: (batch, num_keys, dims).
            values: (batch, num_keys, dims); the keys if None.
            mask: True where attention is allowed, or an additive bias, (batch or 1, num_heads or 1, num_queries or 1,
                num_keys); or "causal"; None to allow all keys.

        Returns:
            The attended values, (batch, num_queries, dims).
        """
        key_values = self.key_values(keys)
        if values is not None:
            key_values = mx.concatenate([key_values[:, :, :1], self.key_values(values)[:, :, 1:]], axis=2)
        return self(queries, key_values, full_mask(keys.shape[1]) if mask is None else mask)


class SSRU(nn.Module):
    """Simpler simple recurrent unit (Kim et al. 2019, section 3): a decoder sublayer instead of self-attention.

    Each dimension of its state is a running mean of the inputs, with weights that depend on the inputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_proj = linear(config.dims, config.dims, bias=False)
        self.forget_proj = linear(config.dims, config.dims, bias=True)
        if config.ssru_projection:
            self.out_proj = linear(config.dims, config.dims, bias=True)

    def gates(self, x: mx.array) -> mx.array:
        """Project x to the inputs and gates of the recurrence, (rows, length, dims) -> (rows, length, 2, dims)."""
        return mx.stack([self.input_proj(x), self.forget_proj(x)], axis=2)

    def __call__(self, cells: mx.array, shortcut: mx.array | None = None) -> mx.array:
        """Return the output for the cell states, (rows, length, dims), added to a shortcut, if there is one."""
        return add_linear(self.get("out_proj"), nn.relu(cells), shortcut)


class FeedForward(nn.Module):
    """Position-wise feed-forward network: two linear layers and an activation (Vaswani et al. 2017, section 3.3).

    Deeper networks have further linear layers in between, each followed by the activation.
    The gated variant multiplies the up-projection by an activated gate (Shazeer 2020, "GLU Variants Improve
    Transformer").
    """

    def __init__(self, config: ModelConfig, stack: StackConfig) -> None:
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = linear(config.dims, stack.mlp_dims, config.mlp_bias)
        self.up_proj = linear(config.dims, stack.mlp_dims, config.mlp_bias)
        if stack.mlp_layers > 2:
            sizes = [stack.mlp_dims] * (stack.mlp_layers - 2)
            self.hidden_projs = [linear(size, size, config.mlp_bias) for size in sizes]
        self.down_proj = linear(stack.mlp_dims, config.dims, config.mlp_bias)
        self.activation = config.activation
        self.dropout = config.activation_dropout

    def __call__(self, x: mx.array, shortcut: mx.array | None = None) -> mx.array:
        """Transform each position, (rows, length, dims), and add a shortcut."""
        activation, dropout_rate = ACTIVATIONS[self.activation], self.dropout if self.training else 0.0
        if "gate_proj" in self:
            inner = activation(self.gate_proj(x)) * self.up_proj(x)
        else:
            inner = activation(self.up_proj(x))
        for projection in self.get("hidden_projs", []):
            inner = activation(projection(dropout(inner, dropout_rate)))
        return add_linear(self.down_proj, dropout(inner, dropout_rate), shortcut)


class AverageAttention(nn.Module):
    """Average attention (Zhang et al. 2018): a decoder sublayer instead of self-attention.

    It attends to all positions so far alike: the mean of their inputs passes through a feed-forward network. The result
    and the input of the position itself are summed by gates, of which each depends on what it weights (Marian).
    """

    def __init__(self, config: ModelConfig, stack: StackConfig, average: AverageAttentionConfig) -> None:
        super().__init__()
        if average.mlp_dims is not None:
            mlp = replace(stack, mlp_dims=average.mlp_dims, mlp_layers=average.mlp_layers)
            self.network = FeedForward(replace(config, activation=average.activation, gated_mlp=False), mlp)
        if average.gated:
            self.input_gate = linear(config.dims, config.dims, bias=True)
            self.mean_gate = linear(config.dims, config.dims, bias=True)

    def __call__(self, x: mx.array, sums: mx.array, shortcut: mx.array | None = None) -> mx.array:
        """Return the output for inputs, (rows, length, dims), and their `running_sums`, added to a shortcut."""
        mean = (sums[..., :-1] / sums[..., -1:]).astype(x.dtype)
        if "network" in self:
            mean = self.network(mean)
        if "mean_gate" in self:
            mean = mx.sigmoid(self.input_gate(x)) * x + mx.sigmoid(self.mean_gate(mean)) * mean
        return mean if shortcut is None else shortcut + mean


class Residual(nn.Module):
    """Residual connection around a sublayer, with dropout and pre- or post-normalisation."""

    def __init__(self, config: ModelConfig, stack: StackConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm](config)
        self.dropout = config.dropout
        self.norm_first = stack.norm_first
        self.scale = stack.residual_scale

    def __call__(self, x: mx.array, sublayer: Callable[..., mx.array]) -> mx.array:
        """Return x + sublayer(x), (rows, length, dims).

        In training the result of `sublayer(x)` gets dropout before it is added. Otherwise `sublayer(x, shortcut=x)`
        adds x itself, in its last matrix product.
        """
        shortcut = x if self.scale == 1 else x * self.scale
        inputs = self.norm(x) if self.norm_first else x
        if self.training:
            total = shortcut + dropout(sublayer(inputs), self.dropout)
        else:
            total = sublayer(inputs, shortcut=shortcut)
        return total if self.norm_first else self.norm(total)


def identity(key_values: mx.array) -> mx.array:
    """Return keys and values unchanged: the cache update of a pass without a cache."""
    return key_values


class Layer(nn.Module):
    """Self-attention (or an alternative), cross-attention and a feed-forward network, each with a residual.

    Only decoder layers have cross-attention, or an SSRU or average attention instead of self-attention.
    """

    def __init__(self, config: ModelConfig, stack: StackConfig, is_decoder: bool) -> None:
        super().__init__()
        self.norm_queries_only = stack.norm_queries_only
        if is_decoder and config.decoder_self_attention == "ssru":
            self.ssru = SSRU(config)
        elif is_decoder and config.average_attention is not None:
            self.average_attention = AverageAttention(config, stack, config.average_attention)
        else:
            self.self_attention = Attention(config, stack)
        self.self_attention_residual = Residual(config, stack)
        if is_decoder:
            self.cross_attention = Attention(config, stack)
            self.cross_attention_residual = Residual(config, stack)
        self.feed_forward = FeedForward(config, stack)
        self.feed_forward_residual = Residual(config, stack)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | str,
        update_cache: Callable[[mx.array], mx.array] | None = None,
        memory: tuple[mx.array, mx.array] | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        """Run one layer.

        Args:
            x: (rows, length, dims).
            mask: Self-attention mask: boolean, an additive bias, or "causal".
            update_cache: Takes the keys and values of x, returns those of all positions so far; with an SSRU or average
                attention, takes the inputs of its recurrence and returns the states. None without a cache.
            memory: Keys, values and mask for cross-attention; None in the encoder.
            attend: The attention function, called for self-attention and then for cross-attention.
        """

        def self_attention(inputs: mx.array, shortcut: mx.array | None = None) -> mx.array:
            keys = x if self.norm_queries_only else inputs
            key_values = (update_cache or identity)(self.self_attention.key_values(keys))
            return self.self_attention(inputs, key_values, mask, attend, shortcut)

        def ssru(x: mx.array, shortcut: mx.array | None = None) -> mx.array:
            cells = (update_cache or linear_recurrence)(self.ssru.gates(x))
            return self.ssru(cells.astype(x.dtype), shortcut)

        def average_attention(x: mx.array, shortcut: mx.array | None = None) -> mx.array:
            return self.average_attention(x, (update_cache or running_sums)(x), shortcut)

        sublayer = ssru if "ssru" in self else average_attention if "average_attention" in self else self_attention
        x = self.self_attention_residual(x, sublayer)
        if memory is not None:
            attention = functools.partial(self.cross_attention, key_values=memory[0], mask=memory[1], attend=attend)
            x = self.cross_attention_residual(x, attention)
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """The encoder or the decoder: embedding scale, positions, layers and an optional final norm."""

    def __init__(self, config: ModelConfig, stack: StackConfig, is_decoder: bool) -> None:
        super().__init__()
        self.dims, self.is_decoder, self.recompute = config.dims, is_decoder, False
        self.scale = math.sqrt(config.dims) if stack.scale_embeddings else 1.0
        if stack.positions in ("sinusoidal", "learned"):
            self.positions = nn.Embedding(stack.max_length, config.dims)
        if stack.positions == "sinusoidal":
            self.positions.weight = sinusoidal_positions(stack.max_length, config.dims)
            self.positions.freeze()
        self.dropout = config.dropout
        self.layers = [Layer(config, stack, is_decoder) for _ in range(stack.num_layers)]
        if stack.positions == "relative":
            for module in [layer.self_attention for layer in self.layers] if stack.bias_each_layer else [self]:
                module.relative_bias = nn.Embedding(stack.num_buckets, stack.num_heads)
            self.buckets = relative_position_buckets(stack.num_buckets, stack.max_distance, two_sided=not is_decoder)
        if stack.embedding_norm != "none":
            self.embedding_norm = NORMS[config.norm](config)
        self.norm_before_positions = stack.embedding_norm == "before"
        if stack.final_norm:
            self.norm = NORMS[config.norm](config)

    def __call__(
        self,
        embeddings: mx.array,
        mask: mx.array | str | None = None,
        memory: Memory | None = None,
        cache: DecoderCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        """Run all layers on token embeddings.

        Args:
            embeddings: (rows, length, dims).
            mask: Self-attention mask, True at allowed keys, (rows or 1, 1, length or 1, length), or "causal". By
                default all keys in an encoder, "causal" in a decoder.
            memory: The encoded sources, for a decoder.
            cache: Keys and values, or states of a recurrence, of the positions before `embeddings`; updated in place.
                Its mask replaces `mask`.
            attend: The attention function.

        Returns:
            Hidden states, (rows, length, dims).
        """
        return self.layer_states(embeddings, mask, memory, cache, attend)[-1]

    def layer_states(
        self,
        embeddings: mx.array,
        mask: mx.array | str | None = None,
        memory: Memory | None = None,
        cache: DecoderCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> list[mx.array]:
        """Run all layers and return num_layers + 1 hidden states: what the first layer reads, and each layer's output.

        The last one has the final norm, if the stack has one. The arguments are those of a call.
        """
        check_embeddings(embeddings, self.dims)
        start, length = 0 if cache is None else cache.length, embeddings.shape[1]
        states = [self.embed(embeddings, 0 if cache is None else cache.lengths)]
        if mask is None:
            mask = "causal" if self.is_decoder else full_mask(length)
        masks = self.masks(mask if cache is None else cache.mask(length), start, length)
        for index, layer in enumerate(self.layers):
            update_cache = None if cache is None else functools.partial(cache.update_and_fetch, index)
            layer_memory = None if memory is None else (memory.key_values[index], memory.mask)
            run = grad_checkpoint(layer) if self.recompute and self.training else layer
            states.append(run(states[-1], masks[index], update_cache, layer_memory, attend))
        if cache is not None:
            cache.length = cache.length + length
        return [*states[:-1], self.normalize(states[-1])]

    def embed(self, embeddings: mx.array, start: mx.array | int = 0) -> mx.array:
        """Scale token embeddings and add the positions from `start` on, one or (rows, 1); (rows, length, dims)."""
        x = embeddings if self.scale == 1 else embeddings * self.scale
        if "embedding_norm" in self and self.norm_before_positions:
            x = self.embedding_norm(x)
        if "positions" in self:
            x = x + self.positions(start + constant_arange(x.shape[1]))
        if "embedding_norm" in self and not self.norm_before_positions:
            x = self.embedding_norm(x)
        return dropout(x, self.dropout) if self.training else x

    def masks(self, mask: mx.array | str, start: mx.array | int, queries: int) -> list[mx.array | str]:
        """Return each layer's self-attention mask: `mask`, or a relative position bias that includes it."""
        if "buckets" not in self:
            return [mask] * len(self.layers)
        if isinstance(mask, str):
            mask = causal_mask(queries)
        if "relative_bias" in self:
            return [relative_position_bias(self.relative_bias, self.buckets, mask, start, queries)] * len(self.layers)
        tables = [layer.self_attention.get("relative_bias") for layer in self.layers]
        return [
            mask if table is None else relative_position_bias(table, self.buckets, mask, start, queries)
            for table in tables
        ]

    def normalize(self, x: mx.array) -> mx.array:
        """Apply the final norm, if the stack has one."""
        return self.norm(x) if "norm" in self else x


class Transformer(nn.Module):
    """The encoder-decoder model: `encode` a batch of sources once, then `decode` targets against that memory.

    A model whose configuration has no decoder is an encoder alone: `encode_hidden` returns its hidden states.

    Attributes:
        config: The model's configuration.
        search_defaults: The search configuration recommended for this model.
        tasks: TaskConfigs by name, for checkpoints that were trained for several tasks.
        weights_source: Where the weights were read from; None for a new model.
        adapter: The adapter that was added; see `mlx_transformer.model.adapters`.
        engine: The engine that runs the model for several threads; see `mlx_transformer.inference.engine`.
    """

    def __init__(self, config: ModelConfig, search_defaults: SearchConfig | None = None) -> None:
        check_process()
        super().__init__()
        self.config = config
        self.search_defaults = search_defaults or SearchConfig()
        self.source_embedding = embedding(config.source_vocab_size, config.dims)
        if not config.share_embeddings:
            self.target_embedding = embedding(config.target_vocab_size, config.dims)
        self.encoder = Stack(config, config.encoder, is_decoder=False)
        if config.decoder is not None:
            self.decoder = Stack(config, config.decoder, is_decoder=True)
        if not config.tie_output:
            self.output = linear(config.dims, config.target_vocab_size, bias=config.output_bias)
        elif config.output_bias:
            self.output_bias = mx.zeros(config.target_vocab_size)
        if config.pooling is not None and config.pooling.projection_dims is not None:
            self.projection = linear(config.dims, config.pooling.projection_dims, config.pooling.projection_bias)
        self.weights_source: WeightsSource | None = None
        self.adapter: Any = None
        self.engine: Any = None
        self._compiled = CompiledFunctions()
        object.__setattr__(self, "tasks", {})  # a plain attribute: nn.Module would take a dict for a submodule

    @property
    def recompute(self) -> bool:
        """Whether training recomputes activations in the backward pass to save memory (gradient checkpointing)."""
        return self.encoder.recompute

    @recompute.setter
    def recompute(self, recompute: bool) -> None:
        for name in self.config.stacks:
            self[name].recompute = recompute

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_compiled", "engine")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _compiled=CompiledFunctions(), engine=None)  # a copy compiles anew

    def __call__(self, source: mx.array, target: mx.array) -> mx.array:
        """Predict every next target token from the source and the preceding target tokens (teacher forcing).

        Args:
            source: Token ids, int32 (batch, source_length), padded on the right with `config.pad_id`.
            target: Token ids, int32 (batch, target_length), beginning with `config.start_id`.

        Returns:
            Logits, (batch, target_length, target_vocab_size).

        Raises:
            ValueError: If a sequence is longer than its stack has positions, or an id is not in the vocabulary.
        """
        return self.logits(self.hidden_states(source, target))

    def hidden_states(self, source: mx.array, target: mx.array) -> mx.array:
        """Return the decoder's output before the output layer, (batch, target_length, dims)."""
        attend = (
            attention_with_dropout(self.config.attention_dropout) if self.training else scaled_dot_product_attention
        )
        return self._decode(target, self.encode(source, attend=attend), attend=attend)

    def encode(
        self, source: mx.array, mask: mx.array | None = None, attend: AttentionFunction = scaled_dot_product_attention
    ) -> Memory:
        """Encode a batch of sources.

        Args:
            source: Token ids, int32 (batch, source_length), padded on the right.
            mask: True at tokens, bool (batch, source_length); by default everywhere except the trailing padding.
            attend: The attention function; a replacement sees all queries and keys.

        Raises:
            ValueError: If a source is longer than the encoder has positions, an id is not in the vocabulary, or the
                model has no decoder.
        """
        self.config.require_decoder()
        x = self.encode_hidden(source, mask, attend)
        key_values = [layer.cross_attention.key_values(x) for layer in self.decoder.layers]
        # Contiguous, because attention would otherwise copy them in every decode step.
        return Memory([mx.contiguous(layer) for layer in key_values], self._source_mask(source, mask))

    def encode_hidden(
        self, source: mx.array, mask: mx.array | None = None, attend: AttentionFunction = scaled_dot_product_attention
    ) -> mx.array:
        """Return the encoder's last hidden states, (batch, source_length, dims); see `encode`."""
        return self.encode_layers(source, mask, attend)[-1]

    def encode_layers(
        self, source: mx.array, mask: mx.array | None = None, attend: AttentionFunction = scaled_dot_product_attention
    ) -> list[mx.array]:
        """Return the hidden states of all encoder layers, as `output_hidden_states` of transformers does; see `encode`.

        Returns:
            num_layers + 1 arrays (batch, source_length, dims): the embeddings that the first layer reads, with their
            positions, and the output of each layer. The last one is the result of `encode_hidden`, with the final norm
            if the encoder has one.
        """
        check_token_ids("source", source, self.config.source_vocab_size)
        check_length("source", source.shape[1], self.config.encoder.max_length)
        embeddings = self.source_embedding(source)
        return self.encoder.layer_states(embeddings, self._source_mask(source, mask), attend=attend)

    def _source_mask(self, source: mx.array, mask: mx.array | None) -> mx.array:
        """Return the mask of a source's tokens, (batch, 1, 1, source_length)."""
        return padding_mask(source, self.config.pad_id) if mask is None else mask[:, None, None]

    def decode(
        self,
        target: mx.array,
        memory: Memory,
        cache: DecoderCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
        shortlist: Shortlist | None = None,
    ) -> mx.array:
        """Predict the token that follows each target position.

        Args:
            target: Token ids, int32 (rows, target_length). The number of rows is a multiple of the memory's batch, with
                the rows of one sentence (its beams) adjacent. With a cache, only the tokens that it does not hold yet.
            memory: The result of `encode`.
            cache: Keys and values, or states of a recurrence, of the positions before `target`; updated in place.
            attend: The attention function, as in `encode`.
            shortlist: The tokens that may be predicted, of the method `shortlist`; None for all.

        Returns:
            Logits, (rows, target_length, target_vocab_size). With a shortlist they have a column for each of its rows,
            -inf in rows that are not listed.

        Raises:
            ValueError: If a target is longer than the decoder has positions, an id is not in the vocabulary, or the
                number of rows is not a multiple of the memory's.
        """
        return self.logits(self._decode(target, memory, cache, attend), shortlist)

    def _decode(
        self,
        target: mx.array,
        memory: Memory,
        cache: DecoderCache | None = None,
        attend: AttentionFunction = scaled_dot_product_attention,
    ) -> mx.array:
        check_token_ids("target", target, self.config.target_vocab_size)
        check_target_rows(memory.mask.shape[0], target.shape[0])
        check_length("target", target.shape[1], self.config.require_decoder().max_length)
        x = self.decoder(self._target_embedding(target), "causal", memory, cache, attend)
        return x if self.config.logit_scale == 1 else x * self.config.logit_scale

    def new_cache(self, rows: int, capacity: int) -> DecoderCache:
        """Create an empty cache for `rows` sequences of up to `capacity` tokens."""
        num_heads = self.config.require_decoder().num_heads
        if self.config.decoder_self_attention != "attention":
            size = self.config.dims + (self.config.decoder_self_attention == "average")
            layers = [mx.zeros((rows, size)) for _ in self.decoder.layers]
        else:
            shape = (rows, num_heads, 2, capacity, self.decoder.layers[0].self_attention.head_dims)
            layers = [mx.zeros(shape, self.dtype) for _ in self.decoder.layers]
        return self.make_cache(layers, mx.array(0, mx.int32))

    def make_cache(self, layers: list[mx.array], length: mx.array, starts: mx.array | None = None) -> DecoderCache:
        """Return the decoder's cache with these arrays, one for each layer, of `length` positions; see `KVCache`."""
        return CACHES[self.config.decoder_self_attention](layers, length, starts)

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters; fixed positions do not count."""
        return tree_reduce(lambda total, array: total + array.size, self.trainable_parameters(), 0)

    @property
    def dtype(self) -> mx.Dtype:
        """The data type of activations."""
        return self.encoder.layers[0].feed_forward_residual.norm.weight.dtype

    def compiled(self, function: Callable, *options: Any) -> Callable:
        """Compile `function(model, *options, *arguments)`, with the weights as inputs, so that it sees later updates.

        Any thread may call the result.
        """

        def call(*arguments: Any) -> Any:
            check_process()
            return self._compiled.get(self, function, options)(self, *arguments)

        return call

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace modules, by path, and forget compiled functions, which hold the options of the old ones.

        The model may have no target embedding or output layer of its own before.
        """
        for path in UNTIED_MODULES & modules.keys():
            self[path] = modules[path]
        self.update_modules(tree_unflatten(list(modules.items())))
        self._compiled = CompiledFunctions()

    @property
    def _target_embedding(self) -> nn.Embedding:
        return self.target_embedding if "target_embedding" in self else self.source_embedding

    @property
    def output_layer(self) -> tuple[mx.array, mx.array | None]:
        """The output layer's weight, (target_vocab_size, dims), and its bias."""
        return self.output_module.weight, self.output_module.get("bias", self.get("output_bias"))

    def logits(self, hidden_states: mx.array, shortlist: Shortlist | None = None) -> mx.array:
        """Apply the output layer, (..., dims) -> (..., target_vocab_size); see `decode` for `shortlist`."""
        if shortlist is None:
            return self._apply_output(hidden_states, self._output_arrays)
        return mx.where(shortlist.is_listed, self._apply_output(hidden_states, shortlist.rows), -float("inf"))

    def shortlist(self, ids: np.ndarray, forced_ids: Sequence[int] = ()) -> Shortlist:
        """Return the output layer's rows for some token ids, for `decode`; it computes with these only.

        Rows for `forced_ids` are added, whose logits are -inf unless they are among the ids.
        """
        return select_rows(self._output_arrays, ids, forced_ids, self.config.target_vocab_size)

    @property
    def output_module(self) -> nn.Module:
        """The output layer, or the embeddings that it is tied to."""
        return self.output if "output" in self else self._target_embedding

    @property
    def _output_arrays(self) -> dict[str, Any]:
        bias = {"bias": self.output_bias} if "output_bias" in self else {}
        return {"layer": self.output_module.parameters()} | bias

    def _apply_output(self, hidden_states: mx.array, arrays: dict[str, Any]) -> mx.array:
        layer = with_arrays(self.output_module, arrays["layer"])
        if "bias" in arrays and isinstance(layer, nn.Embedding):
            logits = mx.addmm(arrays["bias"], hidden_states.flatten(0, -2), layer.weight.T)  # as in `add_linear`
            return logits.reshape(*hidden_states.shape[:-1], logits.shape[-1])
        logits = (layer if "output" in self else layer.as_linear)(hidden_states)
        return logits + arrays["bias"] if "bias" in arrays else logits
