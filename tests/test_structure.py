"""The rules of form that a machine can check: where things live, how long they are, and what the library never does."""

import ast
import re
import statistics
from pathlib import Path

import pytest

import mlx_transformer

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "mlx_transformer").glob("*.py"))
PACKAGE = [*LIBRARY, *sorted((ROOT / "cli").glob("*.py")), *sorted((ROOT / "weights").rglob("*.py"))]
FAMILIES = re.compile(r"bart|marian|m2m|nllb|t5|pegasus|madlad|opus", re.IGNORECASE)

# What each part may import of the package: arrows point one way (lower modules never import upper ones).
LAYERS = [
    {"fields", "dates", "positions", "initial", "layout", "subwords", "tracing", "activations", "dropout"},
    {"config", "recipe", "languages", "vocabularies", "cache", "evaluation", "products", "corpora", "interrupts"},
    {"merges", "norms", "sentencepieces", "shapes", "lettering"},
    {"tokenizer"},
    {"data", "model", "batches", "streaming"},
    {"precision", "hypotheses", "request", "attending", "alignment"},
    {"processors"},
    {"selection"},
    {"step"},
    {"search", "checkpoint", "loss", "scoring", "sentences", "optimizing"},
    {"trainer", "runs"},
    {"generation", "meter", "logs"},
    {"validation", "pictures"},
    {"weights", "hub"},
    {"pretrained"},
    {"learner"},
    {"training"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# What each reader in weights/ may import of the others.
READERS = ["tensors", "objects", "archives", "pickles", "containers", "readers"]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def functions(path):
    return [node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    return node.end_lineno - node.lineno + 1


def strip_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return tree


def part(path):
    """The part of the package that a file belongs to: its module, or cli or weights."""
    return path.stem if path in LIBRARY else path.relative_to(ROOT).parts[0]


def imports(path):
    """The parts of the package that a file imports."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                above = ("mlx_transformer",) if path in LIBRARY else ("mlx_transformer", part(path))
                base = above[: len(above) + 1 - node.level] + base
            found |= {(*base, alias.name) for alias in node.names}
    found -= {("mlx_transformer", "__version__")}  # set before anything is imported
    names = {name[1] if len(name) > 1 else "__init__" for name in found if name[0] == "mlx_transformer"}
    return {name if name in LEVEL else "__init__" for name in names}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_file_opens_with_a_short_docstring_and_is_short(path):
    docstring = ast.get_docstring(parse(path))
    assert docstring and len(docstring.splitlines()) <= 5
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_functions_are_short():
    lengths = {f"{name_of(path)}:{node.name}": length(node) for path in PACKAGE for node in functions(path)}
    assert [name for name, lines in lengths.items() if lines > 60] == []
    assert statistics.median(lengths.values()) <= 12
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 30


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_the_package_never(path):
    tree = parse(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    modules |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "asserts: raise ValueError"
    assert not names & {"hasattr", "getattr", "TYPE_CHECKING"}
    assert "print" not in names, "prints: only cli writes, and it uses click.echo"
    assert not modules & {"torch", "transformers"}, "torch and transformers are references for tests only"
    assert not any(isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree))
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_names_no_family_outside_comments_and_docstrings(path):
    code = ast.unparse(strip_docstrings(parse(path)))
    assert FAMILIES.findall(code) == []


def test_families_are_found_in_code_and_ignored_in_docstrings():
    assert FAMILIES.findall(ast.unparse(strip_docstrings(ast.parse('"""T5."""\nname = "marian"  # bart')))) == [
        "marian"
    ]


def test_the_network_is_in_model_py():
    bases = {
        name_of(path)
        for path in PACKAGE
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and any("Module" in ast.unparse(base) for base in node.bases)
    }
    assert bases == {"mlx_transformer/model.py", "mlx_transformer/norms.py"}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_point_one_way(path):
    own = part(path)
    upper = {name for name in imports(path) if name != own and LEVEL[name] >= LEVEL[own]}
    assert upper == set()


@pytest.mark.parametrize("name", READERS)
def test_readers_import_one_way_and_nothing_but_readers(name):
    modules = {
        node.module or ""
        for node in ast.walk(parse(ROOT / "weights" / f"{name}.py"))
        if isinstance(node, ast.ImportFrom)
    }
    own = {module.removeprefix("mlx_transformer.") for module in modules if module.startswith("mlx_transformer")}
    lower = READERS[: READERS.index(name)]
    assert own - {"weights"} <= {f"weights.{module}" for module in lower}


def test_imports_of_every_kind_are_seen():
    assert imports(ROOT / "mlx_transformer" / "corpora.py") >= {"dates"}
    assert imports(ROOT / "cli" / "train.py") >= {"recipe", "__init__"}


def test_public_names_exist_and_agree_with_the_stub():
    stub = parse(ROOT / "mlx_transformer" / "__init__.pyi")
    declared = {
        alias.asname: node.module for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == mlx_transformer._MODULES
    for name in mlx_transformer.__all__:
        assert name in dir(mlx_transformer)
        assert eval(f"mlx_transformer.{name}") is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        mlx_transformer.__getattr__("nonsense")


def test_no_path_of_a_machine_in_the_repository():
    files = [path for folder in (ROOT / "tests", ROOT / "benchmarks") for path in folder.rglob("*.py")] + PACKAGE
    pattern = re.compile(r"(?<![\w.])/(root|home|Users)/")
    found = [name_of(path) for path in files if path != Path(__file__).resolve() and pattern.search(path.read_text())]
    assert found == []
