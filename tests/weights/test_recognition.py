"""Checkpoints are recognised by their structure: any prefix, wrapper or company, and names of one's own."""

import dataclasses

import mlx.core as mx
import pytest
from support.own_models import (
    OWN_CONFIG,
    assert_parameters,
    family_tensors,
    own_parameters,
    own_tensors,
    with_settings,
    write_tensors,
    write_torch,
)

import mlx_transformer as mt
from mlx_transformer.model.positions import sinusoidal_positions
from mlx_transformer.weights import convert
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.formats.tensors import Tensor
from mlx_transformer.weights.inspection import inspect_checkpoint
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers
from mlx_transformer.weights.recognition import fit_families, rename_tensors, unify_stack_names


def load(tmp_path, tensors, **options):
    """Load the tiny model from a file of these tensors."""
    options["settings"] = with_settings() | options.get("settings", {})
    return convert.load(write_tensors(tmp_path / "mine.safetensors", tensors), **options)[0]


def with_prefix(prefix, tensors):
    return {f"{prefix}{name}": array for name, array in tensors.items()}


def fake_tensors(names, dtype="float32"):
    return {name: Tensor(dtype, (2, 2), (2, 1), 0, storage=None, name=name) for name in names}


@pytest.mark.parametrize("prefix", ["", "net.transformer.", "some.wrapper.of.3.mine."])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recognised_under_any_prefix(family, prefix):
    names = [
        prefix + source.name
        for sources in expand_layers(FAMILIES[family].names, layers=2).values()
        for source in sources[:1]
    ]
    tensors = fake_tensors(dict.fromkeys(names))
    fits = fit_families(rename_tensors(tensors, {}), tensors)
    best = {fit.family: fit for fit in fits if len(fit.fitting) == len(fits[0].fitting)}
    assert family in best and len(best[family].fitting) == len(tensors)
    assert set(best[family].prefixes) == {prefix} and not best[family].left_out
    if not FAMILIES[family].model_types:
        assert fits[0].family == family


@pytest.mark.parametrize("prefix", ["module.", "seq2seq.", "tf.", "_orig_mod.", "module._orig_mod.net.", "a.b.1.c."])
@pytest.mark.parametrize("inner", ["", "transformer.", "core.body."])
def test_prefixes_are_removed(tmp_path, prefix, inner):
    model = load(tmp_path, with_prefix(prefix, own_tensors(inner=inner)))
    assert model.config == OWN_CONFIG
    assert_parameters(model, own_parameters())


def test_wrappers_inside_of_names_are_removed(tmp_path):
    tensors = {
        name.replace("layers.1.", "layers.1._orig_mod.").replace("encoder.", "encoder.module."): array
        for name, array in own_tensors().items()
    }
    assert_parameters(load(tmp_path, tensors), own_parameters())


@pytest.mark.parametrize(
    "names",
    [
        ("transformer_encoder", "transformer_decoder"),
        ("enc", "dec"),
        ("my_enc", "the_decoder"),
        ("encoder.transformer_encoder", "decoder.transformer_decoder"),
        ("encoder.transformer", "decoder.transformer"),
    ],
)
def test_other_names_of_the_stacks(tmp_path, names):
    replacements = dict(zip(("encoder.", "decoder."), names, strict=True))
    tensors = {}
    for name, array in own_tensors(inner="").items():
        for stack, other in replacements.items():
            name = f"{other}.{name.removeprefix(stack)}" if name.startswith(stack) else name
        tensors[name] = array
    assert_parameters(load(tmp_path, tensors), own_parameters())


@pytest.mark.parametrize(
    "layers", ["{s}oder", "{s}_layers", "{s}oder_layers", "{s}oder.blocks", "{s}.stack", "net.{s}oder"]
)
def test_other_names_of_layers(tmp_path, layers):
    tensors = own_tensors(inner="")
    for stack in ("encoder", "decoder"):
        names = {name: name.replace(f"{stack}.layers", layers.format(s=stack[:3])) for name in tensors}
        tensors = {names[name]: array for name, array in tensors.items()}
    assert_parameters(load(tmp_path, tensors), own_parameters())


def test_stack_names_that_would_collide_are_kept():
    names = {name: name for name in ("enc.layers.0.norm1.weight", "encoder.layers.0.norm1.weight")}
    assert unify_stack_names(names) is None
    assert unify_stack_names({"encoder.layers.0.norm1.weight": ""}) is None


def test_what_stands_beside_the_model_is_left_out(tmp_path):
    tensors = with_prefix("net.", own_tensors())
    beside = {
        "criterion.weight": mx.ones(17),
        "net.loss_fn.weight": mx.ones(17),
        "net.step": mx.array(7),
        "net.tgt_mask": mx.zeros((5, 5)),
        "net.position_ids": mx.arange(9)[None],
    }
    path = write_tensors(tmp_path / "mine.safetensors", tensors | beside)
    report = convert.convert(path, settings=with_settings(), dry_run=True)
    assert set(report.left_out) == set(beside) and report.prefixes == ("net.transformer.",)
    assert_parameters(load(tmp_path, tensors | beside), own_parameters())


@pytest.mark.parametrize("plain, averaged", [("online_model.", "ema_model."), ("", "ema."), ("net.", "avg.net.")])
@pytest.mark.parametrize("inner", ["", "transformer."])
def test_averaged_weights_beside_plain_ones_are_listed_by_a_prefix_that_chooses_them(tmp_path, plain, averaged, inner):
    tensors = own_tensors(inner=inner)
    doubled = {name: 2 * array for name, array in tensors.items()}
    path = write_tensors(tmp_path / "mine.safetensors", with_prefix(plain, tensors) | with_prefix(averaged, doubled))
    report = convert.convert(path, dry_run=True, settings=with_settings())
    assert len(report.other_weights) == 1
    model, _ = convert.load(path, settings=with_settings(), weights=report.other_weights[0])
    assert_parameters(model, {name: 2 * array for name, array in own_parameters().items()})


def test_other_models_beside_the_model_do_not_matter(tmp_path):
    beside = {
        "critic.rnn.weight_hh_l0": mx.zeros((32, 8)),
        "discriminator.conv.weight": mx.zeros((4, 4, 3, 3)),
        "language_model.h.0.attn.c_attn.weight": mx.zeros((3, 3)),
    }
    tensors = with_prefix("net.", own_tensors()) | beside
    with pytest.raises(ConversionError, match="1 unexpected .language_model.h.0.attn.c_attn.weight"):
        load(tmp_path, tensors)  # it might be a part of the model
    assert_parameters(load(tmp_path, tensors, ignore=["^language_model"]), own_parameters())


def test_a_tensor_within_the_model_that_does_not_fit_is_an_error(tmp_path):
    tensors = own_tensors() | {"transformer.encoder.layers.0.gate.weight": mx.zeros((16, 16))}
    with pytest.raises(ConversionError, match="1 unexpected .transformer.encoder.layers.0.gate.weight"):
        load(tmp_path, tensors)
    assert_parameters(load(tmp_path, tensors, ignore=[r"\.gate\."]), own_parameters())


@pytest.mark.parametrize("plain, averaged", [("online_model.", "ema_model."), ("model.", "model_ema."), ("z.", "swa.")])
def test_plain_weights_are_preferred_to_averaged_ones(tmp_path, plain, averaged):
    tensors = with_prefix(averaged, own_tensors(seed=1)) | with_prefix(plain, own_tensors())
    path = write_tensors(tmp_path / "mine.safetensors", tensors | {"initted": mx.array(1), "n_averaged": mx.array(5)})
    assert_parameters(convert.load(path, settings=with_settings())[0], own_parameters())
    assert convert.convert(path, dry_run=True).other_weights == (averaged.rstrip("."),)
    assert_parameters(convert.load(path, settings=with_settings(), weights=averaged.rstrip("."))[0], own_parameters(1))


NAMES_OF_TABLES = [
    {"src_tok_emb": "words_in", "tgt_tok_emb": "words_out", "generator": "head"},
    {"src_tok_emb": "lookup.source", "tgt_tok_emb": "lookup.target", "generator": "to_logits"},
    {"src_tok_emb": "input_table", "generator": "classifier.1"},
    {"tgt_tok_emb": "other"},
]


@pytest.mark.parametrize("names", NAMES_OF_TABLES, ids=str)
def test_embeddings_and_the_output_are_found_by_shape(tmp_path, names):
    tensors = {}
    for name, array in own_tensors().items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{names.get(module, module)}.{leaf}"] = array
    path = write_tensors(tmp_path / "mine.safetensors", tensors)
    assert_parameters(convert.load(path, settings=with_settings())[0], own_parameters())
    assumed = {item.setting: item.value for item in convert.convert(path, dry_run=True).assumptions}
    parameters = {"src_tok_emb": "source_embedding", "tgt_tok_emb": "target_embedding", "generator": "output"}
    for module, name in names.items():
        assert assumed[parameters[module]] == f"{name}.weight"


def test_tables_without_words_in_their_names_are_told_apart_by_the_size_of_the_output(tmp_path):
    for names in ({"src_tok_emb": "b", "tgt_tok_emb": "a"}, {"src_tok_emb": "a", "tgt_tok_emb": "b"}):
        tensors = {
            f"{names.get(n.partition('.')[0], n.partition('.')[0])}.{n.partition('.')[2]}": array
            for n, array in own_tensors().items()
        }
        assert_parameters(load(tmp_path, tensors), own_parameters())


@pytest.mark.parametrize("shape", [(40, 16), (1, 40, 16), (40, 1, 16)], ids=str)
@pytest.mark.parametrize("names", [("table_pos", "table_pos"), ("in_pos", "out_pos"), ("the.pe", "the.pe")], ids=str)
def test_positions_are_found_by_shape(tmp_path, names, shape):
    parameters = own_parameters()
    if names[0] == names[1]:
        parameters["decoder.positions.weight"] = parameters["encoder.positions.weight"]
    tensors = {name: array for name, array in own_tensors().items() if "positional" not in name}
    for stack, name in zip(("encoder", "decoder"), names, strict=True):
        tensors[name] = parameters[f"{stack}.positions.weight"].reshape(shape)
    path = write_tensors(tmp_path / "mine.safetensors", tensors)
    report = convert.convert(path, settings=with_settings(), dry_run=True)
    assert {"encoder.positions", "decoder.positions"} <= {item.setting for item in report.assumptions}
    assert_parameters(convert.load(path, settings=with_settings())[0], parameters)
    rename = {f"^{names[0]}$": "encoder.positions.weight"}
    if names[0] != names[1]:
        rename |= {f"^{names[1]}$": "decoder.positions.weight"}
    model, _ = convert.load(path, settings=with_settings(), rename=rename)
    assert_parameters(model, parameters)
    assert model.config.encoder.positions == model.config.decoder.positions == "learned"


def test_one_table_of_unknown_name_is_shared(tmp_path):
    parameters = own_parameters()
    del parameters["target_embedding.weight"]
    tensors = family_tensors(parameters | {"output.weight": mx.ones((19, 16)), "output.bias": mx.ones(19)})
    tensors["pieces.weight"] = tensors.pop("src_tok_emb.weight")
    config = load(tmp_path, tensors).config
    assert config.share_embeddings and not config.tie_output


def test_two_tables_that_may_be_either_are_an_error_with_candidates(tmp_path):
    tensors = own_tensors()
    tensors["a.weight"] = tensors.pop("src_tok_emb.weight")
    with pytest.raises(ConversionError, match="1 missing .source_embedding.weight") as caught:
        load(tmp_path, tensors | {"b.weight": mx.ones((19, 16))})
    (line,) = (line for line in caught.value.details if line.startswith("missing"))
    assert "looked for src_tok_emb.weight" in line and "unused and like it: b.weight, a.weight" in line


class TestRename:
    def test_to_the_models_own_names(self, tmp_path):
        """A file of which the family knows no name at all."""
        tensors = {f"my.{number}": array for number, array in enumerate(own_parameters().values())}
        rename = {rf"^my\.{number}$": name for number, name in enumerate(own_parameters())}
        model = load(tmp_path, tensors, family="torch", rename=rename, settings={"positions": "learned"})
        assert_parameters(model, own_parameters())

    @pytest.mark.parametrize("family", ["torch", "annotated", "joeynmt", "hkproj"])
    def test_works_in_every_family(self, tmp_path, family):
        tensors = family_tensors(own_parameters(), family)
        name = next(iter(tensors))
        tensors["odd"] = tensors.pop(name)
        path = write_tensors(tmp_path / "mine.safetensors", tensors)
        report = inspect_checkpoint_with(path, rename={"^odd$": name}, settings=with_settings(norm_first=False))
        assert report.family == family and report.num_tensors == len(tensors)

    def test_errors_say_what_each_renaming_did(self, tmp_path):
        rename = {"^src_tok_emb": "nothing.of.this.name", "absent": "present"}
        with pytest.raises(ConversionError) as caught:
            load(tmp_path, own_tensors() | {"b.weight": mx.ones((19, 16))}, rename=rename)
        details = "\n".join(caught.value.details)
        assert "'^src_tok_emb': 1 tensors, such as src_tok_emb.weight to nothing.of.this.name.weight" in details
        assert "'absent' matches no tensor" in details

    def test_like_tensors_of_all_layers_are_one_line_each(self, tmp_path):
        tensors = {name.replace("linear1", "grow"): array for name, array in own_tensors().items()}
        with pytest.raises(ConversionError) as caught:
            load(tmp_path, tensors)
        unused = {stack: f"transformer.{stack}.layers.0.grow.weight" for stack in ("encoder", "decoder")}
        missing, unexpected = caught.value.details[:2], caught.value.details[2:]
        for stack, line in zip(unused, missing, strict=True):
            assert line.startswith(
                f"missing {stack}.layers.0.feed_forward.up_proj.weight: looked for {stack}.layers.0.l"
            )
            assert f"unused and like it: {unused[stack]}, " in line
        assert len(unexpected) == 4 and f"unexpected {unused['encoder']} (24, 16) and 1 like it" in unexpected

    @pytest.mark.parametrize("option", ["rename", "ignore"])
    def test_bad_patterns_are_errors(self, tmp_path, option):
        value = {"(": ""} if option == "rename" else ["("]
        with pytest.raises(ValueError, match=f"{option} must .* regular expressions: '\\(' is not valid"):
            load(tmp_path, own_tensors(), **{option: value})


def inspect_checkpoint_with(path, **options):
    return convert.convert(path, dry_run=True, **options)


def test_a_checkpoint_of_transformers_without_its_config_is_named(tmp_path):
    names = expand_layers(FAMILIES["t5"].names, layers=2)
    path = write_tensors(tmp_path / "t5.safetensors", {s[0].name: mx.zeros((2, 2)) for s in names.values()})
    with pytest.raises(
        ValueError, match="A checkpoint of t5 or mt5 or umt5, as this one by its tensors, needs its con"
    ):
        convert.load(path)


def test_a_dry_run_writes_nothing(tmp_path):
    path = write_tensors(tmp_path / "mine.safetensors", own_tensors())
    assert mt.convert(path, tmp_path / "new", dry_run=True).config.dims == 16
    assert mt.convert(path, dry_run=True).family == inspect_checkpoint(path)[1].family == "torch"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="convert needs a destination, unless it is a dry run"):
        mt.convert(path)


def test_loading_warns_of_tensors_that_are_left_out(tmp_path, caplog):
    load(tmp_path, with_prefix("net.", own_tensors()))
    assert "Left out" not in caplog.text
    load(tmp_path, with_prefix("net.", own_tensors()) | {"criterion.weight": mx.ones(17)})
    assert "Left out, as not of the model in" in caplog.text and "criterion.weight" in caplog.text


@pytest.mark.parametrize("name", ["tidy", "net.tidy", "mask_norm", "scaler", "net.scaler", "temperature"])
def test_what_may_change_logits_is_never_left_out(tmp_path, name):
    """Whatever it is called, and whether it is in the model's module or beside it."""
    tensor = mx.ones(1) if name == "temperature" else mx.ones(16)
    for tensors in (own_tensors(), with_prefix("net.", own_tensors())):
        with pytest.raises(ConversionError, match=f"1 unexpected .{name}.weight"):
            load(tmp_path, tensors | {f"{name}.weight": tensor})


def test_renamed_tensors_are_used_wherever_they_were(tmp_path):
    """A norm of embeddings that stands beside the Transformer; the settings follow from the tensors."""
    norm = {f"tidy.{leaf}": mx.full(16, value) for leaf, value in (("weight", 2.0), ("bias", 3.0))}
    rename = {"^tidy": "encoder.embedding_norm"}
    model = load(tmp_path, with_prefix("core.", own_tensors(inner="")) | norm, rename=rename)
    assert model.config.encoder.embedding_norm == "after" and model.config.decoder.embedding_norm == "none"
    assert mx.array_equal(model.encoder.embedding_norm.bias, norm["tidy.bias"])


def test_gates_and_biases_of_renamed_tensors_give_the_settings(tmp_path):
    parameters = own_parameters(config=dataclasses.replace(OWN_CONFIG, gated_mlp=True))
    tensors = {f"my.{number}": array for number, array in enumerate(parameters.values())}
    rename = {rf"^my\.{number}$": name for number, name in enumerate(parameters)}
    model = load(tmp_path, tensors, rename=rename)
    assert model.config.gated_mlp and model.config.encoder.positions == "learned"
    assert_parameters(model, parameters)


@pytest.mark.parametrize("names", [("a", "b"), ("x.embed_1", "x.embed_2")])
def test_tables_of_one_size_without_words_in_their_names_are_not_guessed(tmp_path, names):
    config = dataclasses.replace(OWN_CONFIG, target_vocab_size=OWN_CONFIG.source_vocab_size)
    tensors = family_tensors(own_parameters(config=config))
    for module, name in zip(("src_tok_emb", "tgt_tok_emb"), names, strict=True):
        tensors[f"{name}.weight"] = tensors.pop(f"{module}.weight")
    with pytest.raises(ConversionError, match="2 missing .source_embedding.weight"):
        load(tmp_path, tensors)


def test_computed_positions_of_another_name_stay_fixed(tmp_path):
    tensors = {name: array for name, array in own_tensors().items() if "positional" not in name}
    model = load(tmp_path, tensors | {"my_pos": sinusoidal_positions(40, 16)[None]})
    assert model.config.encoder.positions == model.config.decoder.positions == "sinusoidal"


def test_patterns_that_match_nothing_are_named(tmp_path, caplog):
    load(tmp_path, own_tensors(), rename={"^typo": "x"}, ignore=["^nothing"])
    assert "--rename '^typo' matches no tensor" in caplog.text and "--ignore '^nothing' matches no" in caplog.text


def test_errors_know_what_earlier_renamings_did(tmp_path):
    rename = {"^src_tok_emb": "first", "^first": "second"}
    with pytest.raises(ConversionError) as caught:
        load(tmp_path, own_tensors() | {"b.weight": mx.ones((19, 16))}, rename=rename)
    assert "convert --rename '^first': 1 tensors, such as src_tok_emb.weight to second.weight" in caught.value.details


def test_two_files_of_the_stacks_are_told_how_to_become_one(tmp_path):
    """And one file with both, as advised, converts; the output and the embeddings belong to the stacks."""
    tensors = own_tensors(inner="")
    moved = {"src_tok_emb": "encoder.tok_emb", "src_pos": "encoder.pos", "tgt_tok_emb": "decoder.tok_emb"}
    moved |= {"tgt_pos": "decoder.pos", "generator": "decoder.out"}
    for old, new in moved.items():
        tensors = {f"{new}{name.removeprefix(old)}" if name.startswith(old) else name: a for name, a in tensors.items()}
    stacks = {
        stack: {name.removeprefix(f"{stack}."): a for name, a in tensors.items() if name.startswith(stack)}
        for stack in ("encoder", "decoder")
    }
    for stack, part in stacks.items():
        write_tensors(tmp_path / "two" / f"{stack}.safetensors", part)
    with pytest.raises(ValueError, match="save both in one file by torch.save.{.encoder.: ..., .decoder.: ...}, ...."):
        convert.load(tmp_path / "two")
    path = write_torch(tmp_path / "both.pt", stacks["encoder"], key="encoder", second=("decoder", stacks["decoder"]))
    assert_parameters(convert.load(path, settings=with_settings())[0], own_parameters())
