"""Times of functions of a decode step, compared with MLX's own."""

import pytest

from benchmarks import elementwise


@pytest.mark.cpu
def test_functions_have_the_results_of_mlx():
    table = elementwise.compare_functions(3, {"vocab": 600, "mlp": 64}, repeats=1)
    assert [row["function"] for row in table] == [comparison.name for comparison in elementwise.COMPARISONS]
    assert all(row["MLX, ms"] > 0 and row["ours, ms"] > 0 for row in table)
    assert all(float(row["largest difference"]) < 1e-5 for row in table)
