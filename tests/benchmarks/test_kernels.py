"""Tests of counting kernels, host synchronisations and traces."""

from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.tiny_models import config, padded, random_model, random_sources, stack

from benchmarks import kernels
from mlx_transformer.decoding import running_search


def test_kernels_of_a_graph_exclude_views():
    a, b, w = mx.ones((2, 3)), mx.ones((3, 4)), mx.ones(8)
    mx.eval(a, b, w)
    product = (a @ b).T.reshape(8)
    assert kernels.count_kernels([mx.exp(product[1:]).sum(), product * w]) == Counter(
        Matmul=1, Exp=1, Sum=1, Multiply=1
    )


def test_the_longest_chain_excludes_views_and_kernels_beside_it():
    a, b = mx.ones((2, 2)), mx.ones((2, 2))
    mx.eval(a, b)
    assert kernels.longest_chain([mx.exp(a), mx.sin(b)]) == 1
    assert kernels.longest_chain([mx.exp(mx.sin(a).T @ b) + mx.cos(b), a]) == 4
    assert kernels.longest_chain([a]) == 0


def test_simulated_gpu_has_one_kernel_per_norm_and_attention():
    norm, q, mask = nn.LayerNorm(4), mx.ones((1, 1, 2, 4)), mx.array([[0.0, 1.0], [0.0, 2.0]])
    mx.eval(norm.parameters(), q, mask)
    originals = dict(vars(mx.fast))

    def build():
        return mx.fast.scaled_dot_product_attention(norm(q), q, q, scale=1.0, mask=mx.exp(mask))

    with kernels.simulate_gpu_kernels():
        counts, chain = kernels.count_kernels(build()), kernels.longest_chain(build())
        late_keys = mx.sin(mx.exp(mx.cos(q)))
        assert kernels.longest_chain(mx.fast.scaled_dot_product_attention(q, late_keys, q, scale=1.0)) == 4
    assert counts.pop("Exp") == 1  # kernels of the mask are counted too
    assert counts.total() == 2
    assert chain == 2
    assert dict(vars(mx.fast)) == originals


def test_split_by_layer():
    total, layer, outside = kernels.split_by_layer(lambda layers: Counter(Matmul=3 * layers + 1, Sum=2), layers=6)
    assert (total, layer, outside) == (Counter(Matmul=19, Sum=2), Counter(Matmul=3), Counter(Matmul=1, Sum=2))


@pytest.mark.parametrize("beams", [1, 3])
def test_step_kernels_cover_exactly_one_step(beams):
    counts = []
    for layers in (1, 2, 3):
        model = random_model(config(decoder=stack(num_layers=layers)))
        source = np.array(padded(random_sources(model.config, [5]), model.config))
        counts.append(kernels.count_step_kernels(model, source, beams, (model.config.eos_id,)))
    assert counts[1] - counts[0] == counts[2] - counts[1]
    # Queries, keys and values, output; queries, output; up, down. None belongs to another step.
    assert (counts[1] - counts[0])["AddMM"] == 7


def test_host_reads_and_steps_are_counted(monkeypatch):
    monkeypatch.setattr(running_search, "to_host", lambda *arrays: arrays)
    with kernels.count_host_reads() as counts:
        running_search.to_host(mx.array(1))
        mx.async_eval(mx.array(1))
        mx.async_eval(mx.array(1))
    assert counts == Counter(reads=1, steps=2)
    monkeypatch.delattr(running_search, "to_host")
    with kernels.count_host_reads() as counts:
        assert counts is None


def test_each_new_shape_counts_as_a_trace():
    mx.enable_compile()
    with kernels.count_traces() as counts:
        double = mx.compile(lambda x: 2 * x)
        for length in (2, 3, 2, 3):
            double(mx.ones(length))
    assert counts == Counter({"<lambda>": 2})
