"""The systems whose generation is compared, behind one interface; systems that are not installed are skipped."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import mlx.core as mx
import numpy as np

import mlx_transformer as mt
from benchmarks.separate_process import SeparateSystem
from benchmarks.shapes import Shape
from mlx_transformer.model.precision import parse_dtype

REFERENCE_DTYPE = "float32"  # the dtype in which the tokens of all systems must be equal


class System(Protocol):
    """A model in one system. It generates exactly `tokens` tokens for each source; EOS is suppressed.

    Attributes:
        name: Name in tables.
        exact: Whether its tokens must equal those of transformers.
    """

    name: str
    exact: bool

    def supports(self, beams: int, batch: int) -> bool:
        """Return whether the system can run a setting."""

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """Return the tokens of the best hypothesis of each source, int32 (batch, length)."""

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """Return the time in seconds by the number of tokens generated so far, in greedy search."""


class Ours:
    """mlx_transformer."""

    def __init__(self, shape: Shape, folder: Path, dtype: str = REFERENCE_DTYPE, quantize: int | None = None) -> None:
        self.name = "mlx_transformer"
        self.exact = dtype == REFERENCE_DTYPE and not quantize
        self.model = mt.load_model(folder, dtype=dtype, quantize=quantize, allow_overflow=True)
        self.suppress_ids = (shape.eos_id,)

    def supports(self, beams: int, batch: int) -> bool:
        """See `System`."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """See `System`."""
        search = mt.SearchConfig(beam_size=beams, max_tokens=tokens, suppress_ids=self.suppress_ids)
        return [best.ids for best, *_ in mt.generate_ids(self.model, mx.array(source), search, scores=False)]

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See `System`; the host waits only at steps 8, 24, 40 and so on, so that the device can work ahead."""
        timestamps: dict[int, float] = {}
        issue = mx.async_eval

        def on_step(*arrays: Any) -> None:
            issue(*arrays)
            on_step.steps += 1
            if on_step.steps % 16 == 8:
                mx.eval(*arrays)
                timestamps[on_step.steps] = perf_counter()

        on_step.steps = 0
        with patch.object(mx, "async_eval", on_step):
            self.generate(source, 1, tokens)
        if on_step.steps != tokens:
            raise RuntimeError(
                f"The search must call mx.async_eval once for each token: {on_step.steps} calls for {tokens} tokens."
            )
        return timestamps


class Transformers:
    """Hugging Face transformers on torch."""

    def __init__(self, shape: Shape, folder: Path, dtype: str, device: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.torch = torch
        self.device = torch_device(torch, device)
        self.name = f"transformers, torch {self.device}" if device == "gpu" else "transformers"
        self.exact = dtype == REFERENCE_DTYPE
        model, loading = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=vars(torch)[dtype], output_loading_info=True
        )
        if loading["missing_keys"] or loading["unexpected_keys"]:
            raise RuntimeError(f"transformers must load exactly the tensors of the checkpoint: {loading}.")
        self.model = model.eval().to(self.device)

    def supports(self, beams: int, batch: int) -> bool:
        """See `System`."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int, **options: Any) -> list[list[int]]:
        """See `System`."""
        ids = self.torch.tensor(source, dtype=self.torch.long, device=self.device)
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        mask = self.torch.ones_like(ids)
        with self.torch.inference_mode():
            outputs = self.model.generate(
                ids, attention_mask=mask, num_beams=beams, do_sample=False, length_penalty=1.0, **limits, **options
            )
        return outputs[:, 1:].tolist()

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See `System`."""
        from transformers import StoppingCriteriaList

        timestamps: dict[int, float] = {}

        def on_step(ids: Any, scores: Any, **_: Any) -> Any:
            timestamps[ids.shape[1] - 1] = perf_counter()
            return self.torch.zeros(ids.shape[0], dtype=self.torch.bool, device=ids.device)

        self.generate(source, 1, tokens, stopping_criteria=StoppingCriteriaList([on_step]))
        return timestamps


def torch_device(torch: ModuleType, device: str) -> str:
    """Return torch's name of a device."""
    if device == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


class CTranslate2:
    """CTranslate2 with its own converter of transformers checkpoints; on the CPU unless CUDA is available."""

    def __init__(self, shape: Shape, folder: Path, compute_type: str, device: str, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        converted = folder.with_name(f"{folder.name}-ct2-{compute_type}")
        token_names = [f"<{number}>" for number in range(shape.vocab_size)]
        token_names[shape.pad_id], token_names[shape.eos_id], token_names[2] = "<pad>", "</s>", "<unk>"

        class Converter(TransformersConverter):
            """A converter that names tokens after their ids instead of loading a tokenizer."""

            def load_tokenizer(self, *_: Any, **__: Any) -> Any:
                return SimpleNamespace(
                    get_vocab=lambda: {name: number for number, name in enumerate(token_names)},
                    convert_ids_to_tokens=token_names.__getitem__,
                    bos_token="<pad>",
                    eos_token="</s>",
                    unk_token="<unk>",
                    pad_token="<pad>",
                )

        if not converted.exists():
            Converter(str(folder)).convert(str(converted), quantization=compute_type)
        ct2_device = "cuda" if device == "gpu" and ctranslate2.get_cuda_device_count() else "cpu"
        self.name = f"CTranslate2 {compute_type}{' on the CPU' if device == 'gpu' and ct2_device == 'cpu' else ''}"
        self.exact = compute_type == REFERENCE_DTYPE
        self.token_names, self.ids = token_names, {name: number for number, name in enumerate(token_names)}
        self.model = ctranslate2.Translator(
            str(converted), device=ct2_device, compute_type=compute_type, inter_threads=1, intra_threads=threads
        )

    def supports(self, beams: int, batch: int) -> bool:
        """See `System`."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int, **options: Any) -> list[list[int]]:
        """See `System`."""
        token_names = [[self.token_names[number] for number in row] for row in source.tolist()]
        limits = {"min_decoding_length": tokens, "max_decoding_length": tokens}
        results = self.model.translate_batch(token_names, beam_size=beams, **limits, **options)
        return [[self.ids[word] for word in result.hypotheses[0]] for result in results]

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See `System`."""
        timestamps: dict[int, float] = {}

        def on_step(step: Any) -> bool:
            timestamps[step.step + 1] = perf_counter()
            return False

        self.generate(source, 1, tokens, callback=on_step)
        return timestamps


class MlxExamples:
    """The unmodified T5 of mlx-examples, loaded from a clone; it supports greedy search of one source."""

    def __init__(self, folder: Path, examples: Path, dtype: str) -> None:
        self.name, self.exact = "mlx-examples T5", dtype == REFERENCE_DTYPE
        self.model = load_mlx_examples_model(examples, folder / "config.json")
        arrays = self.model.sanitize(mx.load(str(folder / "model.safetensors")))
        self.model.load_weights([(name, array.astype(parse_dtype(dtype))) for name, array in arrays.items()])
        mx.eval(self.model.parameters())

    def supports(self, beams: int, batch: int) -> bool:
        """See `System`."""
        return beams == batch == 1

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """See `System`."""
        return [self.greedy(source, tokens, lambda number: None)]

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See `System`."""
        timestamps: dict[int, float] = {}
        self.greedy(source, tokens, lambda number: timestamps.setdefault(number, perf_counter()))
        return timestamps

    def greedy(self, source: np.ndarray, tokens: int, on_token: Callable[[int], object]) -> list[int]:
        """Run the loop of its `generate` function without a tokenizer."""
        memory, cache, ids = self.model.encode(mx.array(source)), None, []
        last_token = mx.array([0])
        for number in range(1, tokens + 1):
            logits, cache = self.model.decode(last_token[None], memory, cache=cache)
            last_token = mx.argmax(logits[:, -1, :], axis=-1)
            ids.append(last_token.item())
            on_token(number)
        return ids


def load_mlx_examples_model(examples: Path, config: Path) -> Any:
    """Return the T5 of mlx-examples for a config.json, with random weights."""
    path = examples / "t5.py"
    spec = importlib.util.spec_from_file_location("mlx_examples_t5", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"--mlx-examples must be the folder t5 of mlx-examples: {examples} has no t5.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = json.loads(config.read_text())
    settings.pop("feed_forward_proj", None)  # any value makes this model gated
    return module.T5(SimpleNamespace(**settings))


def available_systems(
    shape: Shape, folder: Path, dtype: str, device: str, threads: int, examples: Path | None
) -> tuple[list[System], list[str]]:
    """Return all available systems, this package first, and notes on why others are skipped."""
    constructors: dict[str, Callable[[], System]] = {
        "transformers": lambda: SeparateSystem(Transformers, shape, folder, dtype, device, threads),
        "CTranslate2": lambda: SeparateSystem(CTranslate2, shape, folder, dtype, device, threads),
        "CTranslate2 int8": lambda: SeparateSystem(CTranslate2, shape, folder, "int8", device, threads),
    }
    available: list[System] = [Ours(shape, folder, dtype)]
    notes = []
    if shape.family == "t5" and examples is not None:
        constructors["mlx-examples T5"] = lambda: MlxExamples(folder, examples, dtype)
    elif shape.family == "t5":
        notes.append("mlx-examples T5 is skipped: --mlx-examples is not set.")
    for name, construct in constructors.items():
        try:
            available.append(construct())
        except (ImportError, ValueError) as error:
            notes.append(f"{name} is skipped: {error}")
    return available, notes
