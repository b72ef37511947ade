"""`python -m mlx_transformer`: the same as the command `mlx-transformer`."""

from mlx_transformer.cli import main

if __name__ == "__main__":
    main(prog_name="mlx-transformer")
