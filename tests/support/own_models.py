"""A tiny model of one's own: parts of torch.nn.Transformer in a module with embeddings, as files of safetensors."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from support.checkpoint_files import tensor, zip_file
from support.tiny_models import config, stack

from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.parameter_map import expand_layers

IDS = {"pad_id": 1, "start_id": 2, "eos_id": 3}
OWN_CONFIG = config(
    encoder=stack(num_layers=2, positions="learned", final_norm=True),
    decoder=stack(num_layers=2, positions="learned", final_norm=True),
    target_vocab_size=17,
    share_embeddings=False,
    tie_output=False,
    output_bias=True,
    norm_eps=1e-5,
    **IDS,
)
TOP_LEVEL = ("src_tok_emb", "tgt_tok_emb", "src_positional_encoding", "tgt_positional_encoding", "generator")


def own_parameters(seed=0, config=OWN_CONFIG):
    """Return random parameters of the tiny model by their own names."""
    mx.random.seed(seed)
    parameters = split_projections(Transformer(config).parameters())
    return {name: mx.random.normal(array.shape) for name, array in parameters.items()}


def family_tensors(parameters, family="torch"):
    """Return parameters under the names that a family has for them, the first of several."""
    names = expand_layers(FAMILIES[family].names, layers=4)
    return {names[parameter][0].name: array for parameter, array in parameters.items() if parameter in names}


def own_tensors(seed=0, inner="transformer."):
    """Return the tiny model as a state dict of torch: layers within one module, all else beside it."""
    tensors = family_tensors(own_parameters(seed))
    return {name if name.startswith(TOP_LEVEL) else inner + name: array for name, array in tensors.items()}


def write_tensors(path, tensors):
    """Write a file of safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), tensors)
    return path


def assert_parameters(model, expected):
    """Check that a model has exactly these parameters."""
    parameters = dict(tree_flatten(split_projections(model.parameters())))
    assert parameters.keys() == expected.keys()
    assert all(mx.array_equal(array, expected[name]) for name, array in parameters.items())


def with_settings(**changes):
    """Return the settings that the tiny model's file does not show."""
    return {"num_heads": 2} | IDS | changes


def write_torch(path, tensors, key="model", second=None, **extras):
    """Write a checkpoint of torch with a state dict under a key, perhaps a second one, and other values beside them."""
    root, storages = dict(extras), {}
    for name, state in filter(None, ((key, tensors), second)):
        root[name] = {}
        for parameter, array in state.items():
            number = str(len(storages))
            storages[number] = np.array(array, np.float32).tobytes()
            root[name][parameter] = tensor(key=number, shape=array.shape)
    path.write_bytes(zip_file(root, storages))
    return path
