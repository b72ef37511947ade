"""Rules of form that a machine can check: where code lives, what may import what, what the library never does."""

import ast
import re
import statistics
from pathlib import Path

import pytest

import mlx_transformer

ROOT = Path(__file__).resolve().parent.parent
# cli/ and weights/ appear a second time inside mlx_transformer/, as the links that make one installed package of them.
FILES = sorted(
    path
    for folder in ("mlx_transformer", "cli", "weights")
    for path in (ROOT / folder).rglob("*.py")
    if path.relative_to(ROOT).parts[:2] not in {("mlx_transformer", "cli"), ("mlx_transformer", "weights")}
)
LIBRARY = [path for path in FILES if path.is_relative_to(ROOT / "mlx_transformer")]
FAMILIES = re.compile(r"bart|marian|m2m|nllb|t5|pegasus|madlad|opus", re.IGNORECASE)
NETWORK = {f"mlx_transformer/model/{name}.py" for name in ("transformer", "layers", "adapters")}
PUBLIC_FUNCTIONS = {"attention", "convert", "evaluate", "generate", "load", "save", "score", "train"}

# The import rule, highest floor first: a part imports lower floors and itself, never its own floor or a higher one.
PARTS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"plotting", "server"},
    {"training", "documents"},
    {"pretrained"},
    {"weights", "inference"},
    {"decoding", "data", "checkpoints"},
    {"model", "tokenization", "arguments"},
    {"config", "storage", "metrics"},
    {"messages", "environment", "blas"},
]
WEIGHTS = [
    {"__init__"},
    {"inspection"},
    {"convert", "adapters"},
    {"tokenizers"},
    {"conversion_plan"},
    {"assumptions"},
    {"embedding_search", "mismatches"},
    {"recognition"},
    {"parameter_map"},
    {"generation_config", "sentence_transformers"},
    {"families", "source_config"},
    {"formats", "language_pairs"},
]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """The module of a file under its installed name, as a tuple: cli/options.py is mlx_transformer.cli.options."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mlx_transformer" else ("mlx_transformer", *parts)
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts


MODULES = {module_of(path): path for path in FILES}


def imported_modules(tree, module):
    """The modules of the package that a module's code imports, as tuples."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (*module[: len(module) - node.level], *base)
            names |= {(*base, alias.name) for alias in node.names}
    names -= {("mlx_transformer", "__version__")}  # set before anything is imported
    names = {name for name in names if name[0] == "mlx_transformer"}
    return {name if name in MODULES else name[:-1] if len(name) > 2 else (*name[:1], "__init__") for name in names}


def floor(name, floors):
    return next(number for number, names in enumerate(floors) if name in names)


def broken_rules(tree, module):
    """The imports of a module that its floor does not allow."""
    broken = []
    for other in imported_modules(tree, module):
        for depth, floors in ((1, PARTS), (2, WEIGHTS)):
            if depth == 2 and (module[1], other[1]) != ("weights", "weights"):
                continue
            own, used = ((*name, "__init__")[depth] for name in (module, other))
            if own != used and floor(used, floors) <= floor(own, floors):
                broken.append(".".join(other))
    return sorted(set(broken))


def functions(path):
    return [node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    return node.end_lineno - node.lineno + 1


def strip_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return tree


def test_every_part_of_the_package_is_seen():
    assert {module[1] for module in MODULES} == set().union(*PARTS)
    assert {module[2] for module in MODULES if module[1] == "weights" and len(module) > 2} == set().union(*WEIGHTS[1:])
    assert len(FILES) > 90


def test_every_folder_of_code_is_a_package():
    assert [name_of(path.parent) for path in FILES if not (path.parent / "__init__.py").exists()] == []


def test_no_module_hides_a_public_function():
    names = {path.stem for path in LIBRARY if path.parent.name == "mlx_transformer"}
    names |= {path.parent.name for path in LIBRARY if path.parent.parent.name == "mlx_transformer"}
    assert names & PUBLIC_FUNCTIONS == set()


def test_files_open_with_a_short_docstring():
    for path in FILES:
        docstring = ast.get_docstring(parse(path))
        assert docstring and len(docstring.splitlines()) <= 6, name_of(path)
        assert path.stem not in ("utils", "helpers", "common", "misc"), name_of(path)


def test_functions_are_short():
    lengths = {f"{name_of(path)}:{node.name}": length(node) for path in FILES for node in functions(path)}
    assert [name for name, lines in lengths.items() if lines > 60] == []
    assert statistics.median(lengths.values()) <= 12
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 30


def forbidden_code(tree):
    """What a module of the package must not contain, with the reason."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    modules |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    rules = {
        "assert: raise ValueError": any(isinstance(node, ast.Assert) for node in ast.walk(tree)),
        "hasattr, getattr or TYPE_CHECKING": names & {"hasattr", "getattr", "TYPE_CHECKING"},
        "print: only cli writes, with click.echo": "print" in names,
        "torch or transformers: they are references for tests": modules & {"torch", "transformers"},
        "a bare except": any(isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree)),
    }
    return [rule for rule, broken in rules.items() if broken]


def test_the_package_avoids_forbidden_code():
    for path in FILES:
        assert forbidden_code(parse(path)) == [], name_of(path)
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8")), name_of(path)


@pytest.mark.parametrize(
    "code",
    ["assert x", "getattr(x, 'y')", "print(x)", "import torch.nn", "from transformers import x", "try: x\nexcept: y"],
)
def test_forbidden_code_is_seen(code):
    assert len(forbidden_code(ast.parse(code))) == 1


def test_the_library_names_no_family_outside_comments_and_docstrings():
    for path in LIBRARY:
        assert FAMILIES.findall(ast.unparse(strip_docstrings(parse(path)))) == [], name_of(path)


def test_families_are_found_in_code_and_ignored_in_docstrings():
    code = ast.parse('"""T5."""\nname = "marian"  # bart')
    assert FAMILIES.findall(ast.unparse(strip_docstrings(code))) == ["marian"]


def test_the_network_is_in_two_files_and_adapters_in_one():
    bases = {
        name_of(path)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and any("Module" in ast.unparse(base) for base in node.bases)
    }
    assert bases == NETWORK


def test_imports_follow_the_rule():
    for path in FILES:
        assert broken_rules(parse(path), module_of(path)) == [], name_of(path)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("mlx_transformer.model.transformer", "from mlx_transformer.decoding.beam_search import generate_ids"),
        ("mlx_transformer.model.transformer", "from mlx_transformer.tokenization import tokenizer"),
        ("mlx_transformer.config.model", "def late():\n    import mlx_transformer.storage.files"),
        ("mlx_transformer.data.dataset", "from mlx_transformer.checkpoints.model_folder import load"),
        ("mlx_transformer.inference.generation", "from mlx_transformer.weights import convert"),
        ("mlx_transformer.training.trainer", "from mlx_transformer import plotting"),
        ("mlx_transformer.training.trainer", "from ..plotting import figures"),
        ("mlx_transformer.training.trainer", "import mlx_transformer as mt"),
        ("mlx_transformer.weights.formats.checkpoint", "from mlx_transformer.weights.families.spec import Family"),
        ("mlx_transformer.weights.source_config", "from mlx_transformer.weights.families.spec import Family"),
        ("mlx_transformer.weights.tokenizers.loading", "from mlx_transformer.weights.convert import convert"),
    ],
)
def test_a_forbidden_import_is_seen(module, code):
    assert len(broken_rules(ast.parse(code), tuple(module.split(".")))) == 1


def test_an_allowed_import_is_allowed():
    code = "from mlx_transformer.model.transformer import Transformer\nfrom mlx_transformer.config import ModelConfig"
    assert broken_rules(ast.parse(code), ("mlx_transformer", "decoding", "beam_search")) == []


def test_no_import_cycles():
    graph = {
        module: {other for other in imported_modules(parse(path), module) if other != module}
        for module, path in MODULES.items()
        if module[1] != "__init__"
    }
    # What a package's __init__ re-exports counts as the package, which its own modules do not import.
    while free := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in free:
            del graph[module]
    assert graph == {}


def test_config_imports_no_mlx():
    for path in FILES:
        if path.parent.name == "config":
            assert not any(
                isinstance(node, ast.Import)
                and any(alias.name.startswith("mlx.") for alias in node.names)
                or isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] == "mlx"
                for node in ast.walk(parse(path))
            ), name_of(path)


def test_public_names_exist_and_agree_with_the_stub():
    stub = parse(ROOT / "mlx_transformer" / "__init__.pyi")
    declared = {
        alias.asname: node.module for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == mlx_transformer._MODULES
    for name in declared:
        assert name in dir(mlx_transformer)
        assert eval(f"mlx_transformer.{name}") is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        mlx_transformer.__getattr__("nonsense")


def test_no_path_of_a_machine_in_the_repository():
    files = [path for folder in (ROOT / "tests", ROOT / "benchmarks") for path in folder.rglob("*.py")] + FILES
    pattern = re.compile(r"(?<![\w.])/(root|home|Users)/")
    found = [name_of(path) for path in files if path != Path(__file__).resolve() and pattern.search(path.read_text())]
    assert found == []
