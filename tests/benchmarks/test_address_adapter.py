"""The worked example of an adapter, with pairs of its own."""

import gzip

import mlx.core as mx
import pytest
from click.testing import CliRunner

from benchmarks import address_adapter


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Où êtes-vous ?", "formal"),
        ("Donnez-moi votre main.", "formal"),
        ("T'es où, toi ?", "informal"),
        ("Je t'aime.", "informal"),
        ("Tu et vous.", "both"),
        ("Il est tuteur d'un têtu.", "none"),
    ],
)
def test_forms_of_address(text, form):
    assert address_adapter.form_of(text) == form


PLACES = ("Paris", "Rome", "Lyon", "London", "Nice", "Berlin", "Madrid", "Lille")


@pytest.fixture
def data(tmp_path):
    """Corpora with each sentence in both forms, and sentences that address nobody."""
    pairs = [
        pair
        for place in PLACES
        for word in ("now", "today")
        for pair in (
            (f"Are you in {place} {word}?", f"Êtes-vous à {place} ?"),
            (f"Are you in {place} {word}?", f"Es-tu à {place} ?"),
            (f"I am in {place} {word}.", f"Je suis à {place}."),
        )
    ]
    for name in ("en-fr-more/cocoa_mt", "tatoeba-en-fr/train", "tatoeba-en-fr/dev"):
        path = tmp_path / f"{name}.tsv.gz"
        path.parent.mkdir(exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(f"{source}\t{target}\n" for source, target in pairs)
    return tmp_path


@pytest.mark.slow
def test_the_adapter_learns_a_form_of_address(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(address_adapter, "NUM_VALIDATION_PAIRS", 4)
    result = CliRunner().invoke(
        address_adapter.main, [str(data), "--pairs", "20", "--steps", "12", "--output", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    before, after = (line.split(" | ") for line in result.output.splitlines() if "%" in line)
    assert (before[0], after[0]) == ("| before", "| after")
    assert float(after[1].rstrip("%")) > float(before[1].rstrip("%"))
    assert "The adapter has 1." in result.output and mx.load(tmp_path / "run/best/adapters.safetensors")
