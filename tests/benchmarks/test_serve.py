"""The server under load."""

import pytest

from benchmarks import serve

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def test_many_clients_get_the_answers_of_one(monkeypatch):
    monkeypatch.setattr(serve, "TEXTS", serve.TEXTS[:4])
    monkeypatch.setattr(serve, "ARRIVAL_RATES", (9,))
    clients, arrivals = serve.load_tables(3, 0.5).split("\n\n")
    header, _, *rows = clients.splitlines()
    assert header == f"| {' | '.join(serve.HEADER)} |" and len(rows) == 2
    assert [cell.strip() for cell in arrivals.splitlines()[2].split("|")][1:5] == ["9", "4", "0", "0"]
    for row, clients in zip(rows, ("1", "3"), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == clients and int(cells[1]) > 0 and cells[2:4] == ["0", "0"]


def test_errors_and_other_answers_count():
    with serve.running_server() as server:
        row = serve.load_row(server, {"Good morning!": "Bonjour !", "I love you.": "something else"}, 2, 0.2)
        assert row[2] == 0 and 0 < row[3] < row[1]
        assert serve.load_row(server, {"x" * 30_000: ""}, 1, 0.1)[2] > 0
