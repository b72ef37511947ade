"""Time of matrix products by the number of rows."""

from benchmarks import rows


def test_every_number_of_rows_is_measured_in_every_format(monkeypatch):
    monkeypatch.setattr(rows, "ROWS", (1, 3))
    monkeypatch.setattr(rows, "LAYERS", 1)
    results = rows.measure_rows(dims=64, mlp_dims=128, repeats=1, device="gpu")
    assert [row["rows"] for row in results] == [1, 3]
    assert all(row[name] > 0 for row in results for name in rows.FORMATS)
    assert rows.rows_table(results).splitlines()[0] == "| rows | float32 | float16 | 8 bits |"
