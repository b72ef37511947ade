"""Converted models of every transformers family give the same logits, hypotheses and scores as transformers."""

import dataclasses
import json
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.reference_search import with_end
from support.tiny_families import MODELS, VOCAB, required_settings, torch_model, torch_sources
from support.training_cases import OPTIONS

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.layers import ACTIVATIONS as FUNCTIONS
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.weights import convert
from mlx_transformer.weights.families.transforms import ACTIVATIONS, activation, gate_activation, is_gated

pytestmark = pytest.mark.torch
EARLY_STOPPING = (False, True, "never")


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    theirs = torch_model(request.param)
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save_pretrained(folder)
    return request.param, theirs, convert.load(folder)[0]


def save_shards(model, folder):
    """Save a state dict in three files, as transformers 4 did: tied tensors may be in several of them."""
    import torch

    state = model.state_dict()
    weight_map = {name: f"pytorch_model-0000{1 + i % 3}-of-00003.bin" for i, name in enumerate(state)}
    for shard in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == shard}, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def save_state(model, folder, **options):
    import torch

    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)


# Name of the file -> a function that writes a model's weights; a .bin has every name of a tied tensor.
FORMATS = {
    "model.safetensors.index.json": lambda model, folder: model.save_pretrained(folder, max_shard_size=4000),
    "pytorch_model.bin": save_state,
    "legacy pytorch_model.bin": partial(save_state, _use_new_zipfile_serialization=False),
    "pytorch_model.bin.index.json": save_shards,
}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.slow
def test_every_file_format_gives_the_same_model(pair, file_format, tmp_path):
    _, theirs, ours = pair
    theirs.config.save_pretrained(tmp_path)
    theirs.generation_config.save_pretrained(tmp_path)
    FORMATS[file_format](theirs, tmp_path)
    assert (tmp_path / file_format.split()[-1]).exists() and not (tmp_path / "model.safetensors").exists()
    other = convert.load(tmp_path)[0]
    assert other.search_defaults == ours.search_defaults
    check_same_model(ours, other)


def save_tensors(theirs, folder, state, settings=None):
    """Save a checkpoint folder with these tensors; return the folder."""
    theirs.config.save_pretrained(folder)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    arrays = {name: mx.array(value.detach().numpy()) for name, value in state.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    return folder


def check_same_model(ours, other):
    assert other.config == ours.config
    arrays = dict(tree_flatten(ours.parameters()))
    for name, array in tree_flatten(other.parameters()):
        assert mx.array_equal(array, arrays.pop(name)), name
    assert not arrays


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
@pytest.mark.slow
def test_tied_embeddings_may_be_saved_under_any_name(pair, choice, tmp_path):
    _, theirs, ours = pair
    names = {}
    for name, value in theirs.state_dict().items():
        names.setdefault(value.data_ptr(), []).append(name)
    assert max(map(len, names.values())) > 1
    saved = {tied[min(choice, len(tied) - 1)] for tied in names.values()}
    state = {name: value for name, value in theirs.state_dict().items() if name in saved}
    check_same_model(ours, convert.load(save_tensors(theirs, tmp_path, state))[0])


def test_hidden_states_of_all_encoder_layers(pair):
    import torch

    _, theirs, ours = pair
    source = torch_sources(theirs)
    is_token = source != theirs.config.pad_token_id
    arguments = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(is_token.astype(np.int64))}
    with torch.no_grad():
        result = theirs.get_encoder()(**arguments, output_hidden_states=True)
    expected = [state.numpy() for state in result.hidden_states]
    source = mx.array(source.astype(np.int32))
    states = [np.array(state) for state in ours.encode_layers(source)]
    assert len(states) == len(expected) == ours.config.encoder.num_layers + 1
    for state, reference in zip(states, expected, strict=True):
        assert np.abs(state - reference)[is_token].max() < 1e-5 * max(1, np.abs(reference).max())
    assert np.array_equal(states[-1], np.array(ours.encode_hidden(source)))
    assert np.array_equal(expected[-1], result.last_hidden_state.numpy())


def check_logits(theirs, ours, source, target, limit):
    logits = np.array(ours(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32))))
    expected = compute_logits(theirs, source, target)
    assert np.abs(logits - expected).max() <= limit
    assert np.abs(expected).max() > 1, "the logits must not be trivial"


def check_folder(theirs, folder, tolerance):
    """Compare a converted folder with the model that transformers loads from it; return the converted model."""
    theirs = type(theirs).from_pretrained(folder)
    ours = convert.load(folder)[0]
    source = torch_sources(theirs)
    target = np.random.default_rng(1).integers(3, ours.config.target_vocab_size - 1, (len(source), 9))
    check_logits(theirs, ours, source, target, tolerance(1e-4))
    return ours


def test_an_untied_output_layer(pair, tmp_path, tolerance):
    import torch

    _, theirs, _ = pair
    state = theirs.state_dict() | {"lm_head.weight": torch.randn(theirs.lm_head.weight.shape)}
    assert not check_folder(theirs, save_tensors(theirs, tmp_path, state), tolerance).config.tie_output


def test_a_base_model_without_output_layer_and_prefix(pair, tmp_path, tolerance):
    _, theirs, _ = pair
    base = {name: value for name, value in theirs.state_dict().items() if name.split(".")[0] in theirs._modules}
    state = {name.removeprefix("model."): value for name, value in base.items() if not name.startswith("lm_head")}
    ours = check_folder(theirs, save_tensors(theirs, tmp_path, state), tolerance)
    assert ours.config.tie_output and not ours.config.output_bias


# Model -> unused tensors in old files.
UNUSED_TENSORS = {
    "m2m100": ["model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights"],
    "t5": ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
    "mt5": ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
}


@pytest.mark.parametrize("name", UNUSED_TENSORS)
def test_unused_tensors_of_old_files_are_ignored(name, tmp_path):
    import torch

    theirs = torch_model(name)
    plain, old = tmp_path / "plain", tmp_path / "old"
    theirs.save_pretrained(plain)
    theirs.save_pretrained(old)
    (old / "model.safetensors").unlink()
    tables = {key: torch.randn(8, 3) for key in UNUSED_TENSORS[name]}
    torch.save(theirs.state_dict() | tables, old / "pytorch_model.bin")
    check_same_model(convert.load(plain)[0], convert.load(old)[0])


@pytest.mark.parametrize("file_format", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["marian", "pegasus", "m2m100"])
def test_position_tables_of_a_file_are_used_where_transformers_uses_them(name, file_format, tmp_path, tolerance):
    import torch

    theirs = torch_model(name)
    tables = {f"model.{stack}.embed_positions.weight": torch.randn(40, 16) for stack in ("encoder", "decoder")}
    state = theirs.state_dict() | tables
    save_tensors(theirs, tmp_path, state)
    if file_format == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / file_format)
    positions = check_folder(theirs, tmp_path, tolerance).encoder.positions
    assert np.allclose(positions.weight, tables["model.encoder.embed_positions.weight"]) == (name != "m2m100")


def test_marian_positions_in_a_file_equal_those_that_are_computed(tmp_path):
    import torch

    theirs = torch_model("marian")
    plain, old = tmp_path / "plain", tmp_path / "old"
    theirs.save_pretrained(plain)
    theirs.config.save_pretrained(old)
    theirs.generation_config.save_pretrained(old)
    torch.save(theirs.state_dict(), old / "pytorch_model.bin")
    check_same_model(convert.load(plain)[0], convert.load(old)[0])


@pytest.mark.parametrize(
    "name", ["marian", "bart", "plbart", "mbart", "m2m100", "pegasus", "blenderbot", "blenderbot-small"]
)
def test_defaults_of_omitted_settings(name, tmp_path, tolerance):
    check_omitted_settings(name, tmp_path, tolerance)


@pytest.mark.parametrize("name", ["t5", "mt5", "umt5"])
def test_defaults_of_omitted_settings_with_relative_positions(name, tmp_path, tolerance):
    ours = check_omitted_settings(name, tmp_path, tolerance)
    assert (ours.config.pad_id, ours.config.eos_id) == (0, 1)


def check_omitted_settings(name, folder, tolerance):
    """Compare with transformers for a config.json of sizes and tokens only; return the converted model."""
    settings = required_settings(name)
    theirs = torch_model(name, settings=settings)
    if name in ("t5", "mt5", "umt5"):
        settings = {key: value for key, value in settings.items() if key not in ("pad_token_id", "eos_token_id")}
    save_tensors(theirs, folder, theirs.state_dict(), settings | {"model_type": theirs.config.model_type})
    theirs = type(theirs).from_pretrained(folder)
    ours = convert.load(folder)[0]
    # Use every position; relative positions have no limit, but far distances share buckets.
    source = np.random.default_rng(0).integers(3, VOCAB - 1, (2, 600 if "d_kv" in settings else 40))
    target = np.random.default_rng(1).integers(3, VOCAB - 1, (2, 38))
    check_logits(theirs, ours, source, target, tolerance(1e-4))
    assert norm_epsilons(theirs) == {ours.config.norm_eps}
    return ours


def norm_epsilons(theirs):
    norms = [vars(module) for module in theirs.modules() if type(module).__name__.endswith("Norm")]
    return {norm.get("eps", norm.get("variance_epsilon")) for norm in norms}


def test_normalisation_and_positions_equal_those_of_transformers(pair):
    """Logits of random models hardly depend on these settings."""
    _, theirs, ours = pair
    assert norm_epsilons(theirs) == {ours.config.norm_eps}
    learned = any("embed_positions" in name and value.requires_grad for name, value in theirs.named_parameters())
    assert learned == any("positions" in name for name, _ in tree_flatten(ours.trainable_parameters()))
    limits = {vars(theirs.config).get("max_position_embeddings", ours.config.encoder.max_length)}
    assert {ours.config.encoder.max_length, ours.config.decoder.max_length} == limits


SIZES = ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings")
SIZES += ("d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "relative_attention_num_buckets")


def test_sizes_that_contradict_the_tensors_are_errors(pair, tmp_path):
    _, theirs, ours = pair
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    computed = "max_position_embeddings" if ours.config.encoder.positions == "sinusoidal" else None
    for key in settings.keys() & set(SIZES) - {computed}:
        for wrong in {settings[key] + 2, max(settings[key] - 1, 1)} - {settings[key]}:
            (tmp_path / "config.json").write_text(json.dumps(settings | {key: wrong}))
            with pytest.raises(ValueError, match=r"\.$"):
                convert.load(tmp_path)


def compute_logits(theirs, source, target):
    import torch

    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
            decoder_input_ids=torch.tensor(target),
        ).logits.numpy()


def test_logits_equal_those_of_transformers(pair, tolerance):
    name, theirs, ours = pair
    source = torch_sources(theirs)
    target = np.random.default_rng(1).integers(3, ours.config.target_vocab_size - 1, (len(source), 12))
    target[:, 0] = ours.config.start_id
    check_logits(theirs, ours, source, target, tolerance(1e-4))


def test_logits_of_a_source_of_one_token(pair, tolerance):
    name, theirs, ours = pair
    source = np.array([[theirs.config.eos_token_id]])
    target = np.array([[ours.config.start_id, 5, 3]])
    logits = np.array(ours(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32))))
    assert np.abs(logits - compute_logits(theirs, source, target)).max() <= tolerance(1e-4)


def suppressed_ids(theirs):
    """Return the tokens that transformers must suppress: padding too, which the search here never generates."""
    return sorted({theirs.config.pad_token_id, *(theirs.generation_config.suppress_tokens or [])})


def generate_with_transformers(theirs, source, search, **settings):
    """Generate with transformers: ids without start and padding, and scores, None for greedy search."""
    import torch

    is_beam_search = search.beam_size > 1
    output = theirs.generate(
        torch.tensor(source),
        attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
        num_beams=search.beam_size,
        num_return_sequences=search.num_hypotheses,
        length_penalty=search.length_penalty if is_beam_search else None,
        early_stopping=search.early_stopping if is_beam_search else None,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        suppress_tokens=suppressed_ids(theirs),
        **settings,
    )
    eos_ids = theirs.generation_config.eos_token_id
    eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    sequences = []
    for _, *ids in output.sequences.tolist():
        # A forced first token may be the end token, after which beams of transformers continue; here they end.
        end = next((i for i, token in enumerate(ids, start=1) if token in eos_ids), len(ids))
        sequences.append(tuple(ids[:end]))
    return sequences, output.sequences_scores.numpy() if is_beam_search else None


OTHER_ENDS = {3, 6, 10, 13, 20}


@pytest.mark.parametrize("beam_size, rules", [(1, {}), (1, {"min_length": 5}), (4, {}), (4, {"min_length": 5})])
@pytest.mark.parametrize("name", ["nllb", "t5-v1.1", "flan"])
def test_several_end_tokens_equal_those_of_transformers(name, beam_size, rules, tmp_path, tolerance):
    theirs = torch_model(name, generation=rules)
    theirs.generation_config.eos_token_id = [theirs.config.eos_token_id, *OTHER_ENDS]
    theirs.save_pretrained(tmp_path)
    ours = convert.load(tmp_path)[0]
    search = dataclasses.replace(ours.search_defaults, beam_size=beam_size, num_hypotheses=beam_size)
    source = torch_sources(theirs)
    check_hypotheses(theirs, ours, source, search, tolerance)
    results = generate_ids(ours, mx.array(source.astype(np.int32)), search)
    assert {h.end_id for row in results for h in row} & OTHER_ENDS


def check_hypotheses(theirs, ours, source, search, tolerance):
    """Compare hypotheses and scores with those of transformers; return the finish reasons."""
    expected, scores = generate_with_transformers(theirs, source, search)
    hypotheses = [h for group in generate_ids(ours, mx.array(source.astype(np.int32)), search) for h in group]
    assert [with_end(hypothesis) for hypothesis in hypotheses] == expected
    if scores is not None:
        np.testing.assert_allclose([h.score for h in hypotheses], scores, atol=tolerance(1e-4))
    return {h.finish_reason for h in hypotheses}


@pytest.mark.parametrize("beam_size, num_hypotheses", [(1, 1), (3, 1), (4, 4)])
@pytest.mark.slow
def test_hypotheses_equal_those_of_transformers(pair, beam_size, num_hypotheses, tolerance):
    _, theirs, ours = pair
    source = torch_sources(theirs)
    for length_penalty in (0.0, 0.6, 2.0) if beam_size > 1 else (1.0,):
        for early_stopping in EARLY_STOPPING if beam_size > 1 else (False,):
            search = dataclasses.replace(
                ours.search_defaults,
                beam_size=beam_size,
                num_hypotheses=num_hypotheses,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
            )
            assert check_hypotheses(theirs, ours, source, search, tolerance) <= {"stop", "length"}


def test_generation_settings_of_the_checkpoint_are_the_defaults(pair, tolerance):
    """Both libraries generate with the settings of the checkpoint, none of them overridden."""
    import torch

    name, theirs, ours = pair
    source = torch_sources(theirs, seed=3)
    theirs.generation_config.num_beams = 2
    sequences = theirs.generate(
        torch.tensor(source),
        attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
        suppress_tokens=suppressed_ids(theirs),
    ).tolist()
    theirs.generation_config.num_beams = 1
    results = generate_ids(
        ours, mx.array(source.astype(np.int32)), dataclasses.replace(ours.search_defaults, beam_size=2)
    )
    for (hypothesis,), sequence in zip(results, sequences, strict=True):
        assert sequence[1 : 1 + len(hypothesis.ids)] == hypothesis.ids
    assert ours.search_defaults.max_tokens == 8


# Rules that depend on previous tokens, with their names in transformers; the prefixes below make them apply.
RULES = ({"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}, {"bad_words_ids": [[6, 5, 9], [11], [10, 7, 12]]})
PREFIXES = ([6, 5], [10, 7, 10, 7], [])


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: next(iter(rules)))
@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("name", ["bart", "marian", "t5", "m2m100", "mbart-50"])
@pytest.mark.slow
def test_hypotheses_after_a_prefix_equal_those_of_transformers(name, beam_size, rules, tmp_path, tolerance):
    """All prefixes are in one batch here; transformers needs one batch per prefix because of their lengths."""
    import torch

    theirs = torch_model(name)
    theirs.save_pretrained(tmp_path / "model")
    ours = convert.load(tmp_path / "model")[0]
    source = torch_sources(theirs)
    ours_rules = {"bad_words" if key == "bad_words_ids" else key: value for key, value in rules.items()}
    if "bad_words" in ours_rules:
        ours_rules["bad_words"] = tuple(map(tuple, rules["bad_words_ids"]))
    search = dataclasses.replace(
        ours.search_defaults, beam_size=beam_size, num_hypotheses=beam_size, max_tokens=7, min_tokens=4, **ours_rules
    )
    prefixes = [PREFIXES[row % len(PREFIXES)] for row in range(len(source))]
    results = generate_ids(ours, mx.array(source.astype(np.int32)), search, prefix_ids=prefixes)
    forced = [] if search.forced_bos_id is None else [search.forced_bos_id]
    for prefix in PREFIXES:
        rows = [row for row, other in enumerate(prefixes) if other == prefix]
        start = [ours.config.start_id, *(forced + prefix if prefix else [])]
        settings = {"min_length": None, "min_new_tokens": 3, "max_length": None, "max_new_tokens": 7, **rules}
        settings["decoder_input_ids"] = torch.tensor([start] * len(rows))
        expected, scores = generate_with_transformers(theirs, source[rows], search, **settings)
        hypotheses = [hypothesis for row in rows for hypothesis in results[row]]
        assert [with_end(hypothesis) for hypothesis in hypotheses] == expected
        if scores is not None:
            np.testing.assert_allclose([h.score for h in hypotheses], scores, atol=tolerance(1e-4))


@pytest.mark.parametrize("beam_size", [1, 3])
def test_ngrams_of_the_source_are_not_repeated(beam_size, tmp_path, tolerance):
    theirs = torch_model("blenderbot", seed=1)
    tokens = [3, 4, 5, theirs.config.eos_token_id]  # so few that trigrams repeat
    theirs.generation_config.suppress_tokens = [i for i in range(VOCAB) if i not in tokens]
    theirs.save_pretrained(tmp_path / "model")
    ours = convert.load(tmp_path / "model")[0]
    source = torch_sources(theirs)
    source[source > 2] = 3 + source[source > 2] % 2
    search = dataclasses.replace(ours.search_defaults, beam_size=beam_size, num_hypotheses=beam_size)
    check_hypotheses(theirs, ours, source, search, tolerance)
    assert search.source_no_repeat_ngram_size == 3
    unrestricted = dataclasses.replace(search, source_no_repeat_ngram_size=0)
    ids = mx.array(source.astype(np.int32))
    assert generate_ids(ours, ids, unrestricted) != generate_ids(ours, ids, search), "the rule must have an effect"


@pytest.mark.parametrize("name", [*ACTIVATIONS, "relu", "gelu", "silu", "tanh"])
def test_activations_equal_those_of_transformers(name, tolerance):
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    values = np.array(FUNCTIONS[activation(name)](mx.array(x)))
    np.testing.assert_allclose(values, ACT2FN[name](torch.tensor(x)).numpy(), atol=tolerance(1e-6))


@pytest.mark.parametrize("name", ["relu", "gelu", "gated-relu", "gated-gelu", "gated-silu", "gated-gelu_new"])
def test_gated_activations_equal_those_of_transformers(name):
    import transformers

    theirs = transformers.T5Config(feed_forward_proj=name)
    assert (gate_activation(name), is_gated(name)) == (activation(theirs.dense_act_fn), theirs.is_gated_act)


@pytest.mark.slow
def test_every_family_can_be_trained_further(pair):
    """All parameters change, except key biases, which softmax cancels, and the loss decreases."""
    _, _, ours = pair
    model = model_folder.uninitialized_model(dataclasses.replace(ours.config, dropout=0.0), ours.search_defaults)
    model.update(ours.parameters())
    rng = np.random.default_rng(0)
    source = np.full((4, 7), model.config.eos_id, np.int32)
    source[:, :6] = rng.integers(5, VOCAB, (4, 6))
    target = np.concatenate([np.full((4, 1), model.config.start_id), source], axis=1).astype(np.int32)
    options = dataclasses.replace(OPTIONS, learning_rate=1e-3, warmup_steps=1, schedule="constant", clip_norm=0.0)
    trainer = TrainState(model, options)
    before = {name: array + 0 for name, array in split_projections(model.trainable_parameters()).items()}
    losses = [trainer.update([Batch(source, target)])[0].item() for _ in range(6)]
    after = split_projections(model.trainable_parameters())
    unchanged = {name for name in before if mx.array_equal(before[name], after[name])}
    assert [name for name in unchanged if not name.endswith("key_proj.bias")] == []
    assert losses[-1] < losses[0]
