"""A tiny BART checkpoint with random tensors, written without torch."""

import json

import mlx.core as mx
import numpy as np

VOCAB, DIMS = 11, 8
BART_CONFIG = {
    "model_type": "bart",
    "d_model": DIMS,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 10,
    "max_position_embeddings": 14,
    "activation_function": "gelu",
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "num_beams": 4,
    "max_length": 9,
}


def bart_tensors():
    """Return random tensors with the names of BART."""
    rng = np.random.default_rng(0)
    shapes = {"shared.weight": (VOCAB, DIMS)}
    for stack, layers, width in (("encoder", 1, 12), ("decoder", 2, 10)):
        shapes[f"{stack}.embed_positions.weight"] = (16, DIMS)
        norms = [f"{stack}.layernorm_embedding"]
        for layer in (f"{stack}.layers.{i}" for i in range(layers)):
            for attention in ("self_attn", "encoder_attn") if stack == "decoder" else ("self_attn",):
                norms.append(f"{layer}.{attention}_layer_norm")
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= {
                        f"{layer}.{attention}.{part}.weight": (DIMS, DIMS),
                        f"{layer}.{attention}.{part}.bias": (DIMS,),
                    }
            norms.append(f"{layer}.final_layer_norm")
            shapes |= {f"{layer}.fc1.weight": (width, DIMS), f"{layer}.fc1.bias": (width,)}
            shapes |= {f"{layer}.fc2.weight": (DIMS, width), f"{layer}.fc2.bias": (DIMS,)}
        shapes |= {f"{norm}.{leaf}": (DIMS,) for norm in norms for leaf in ("weight", "bias")}
    tensors = {f"model.{name}": shape for name, shape in shapes.items()} | {"final_logits_bias": (1, VOCAB)}
    return {name: mx.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in tensors.items()}


def write_checkpoint(folder, tensors, config=BART_CONFIG, generation=None):
    """Write a checkpoint folder with model.safetensors and config.json; return the folder."""
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
