"""The systems that generate, each behind the same three methods; one that is not installed is left out."""

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
from benchmarks.shapes import Shape
from mlx_transformer.model.precision import parse_dtype

EXACT = "float32"  # only in this type must a system's tokens be transformers' tokens


class System(Protocol):
    """A model in one system; `tokens` new tokens are generated for each source, the end token being forbidden.

    Attributes:
        name: What tables call it.
        exact: Whether its tokens must be transformers' tokens.
    """

    name: str
    exact: bool

    def can(self, beams: int, batch: int) -> bool:
        """Whether it can run such a setting at all."""

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """The tokens of the best output of each source, int32 (batch, length)."""

    def stamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """When each token was there, in greedy search: seconds by the number of tokens."""


class Ours:
    """This package."""

    def __init__(self, shape: Shape, folder: Path, dtype: str = EXACT, quantize: int | None = None) -> None:
        self.name = "mlx_transformer"
        self.exact = dtype == EXACT and not quantize
        self.model, _ = mt.load(folder, dtype=dtype, quantize=quantize, allow_overflow=True)
        self.forbidden = (shape.eos_id,)

    def can(self, beams: int, batch: int) -> bool:
        """See System."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """See System."""
        search = mt.SearchConfig(beam_size=beams, max_tokens=tokens, suppress_ids=self.forbidden)
        return [best.ids for best, *_ in mt.generate_ids(self.model, mx.array(source), search)]

    def stamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See System; steps 8, 24, 40 and so on are waited for, between them the device works ahead."""
        found: dict[int, float] = {}
        issue = mx.async_eval

        def watch(*arrays: Any) -> None:
            issue(*arrays)
            watch.steps += 1
            if watch.steps % 16 == 8:
                mx.eval(*arrays)
                found[watch.steps] = perf_counter()

        watch.steps = 0
        with patch.object(mx, "async_eval", watch):
            self.generate(source, 1, tokens)
        if watch.steps != tokens:
            raise RuntimeError(f"Growth is measured from calls of mx.async_eval: {watch.steps} for {tokens} tokens.")
        return found


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
        self.exact = dtype == EXACT
        model, loading = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=vars(torch)[dtype], output_loading_info=True
        )
        if loading["missing_keys"] or loading["unexpected_keys"]:
            raise RuntimeError(f"transformers reads other tensors than were written: {loading}.")
        self.model = model.eval().to(self.device)

    def can(self, beams: int, batch: int) -> bool:
        """See System."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int, **options: Any) -> list[list[int]]:
        """See System."""
        ids = self.torch.tensor(source, dtype=self.torch.long, device=self.device)
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        mask = self.torch.ones_like(ids)
        with self.torch.inference_mode():
            found = self.model.generate(
                ids, attention_mask=mask, num_beams=beams, do_sample=False, length_penalty=1.0, **limits, **options
            )
        return found[:, 1:].tolist()

    def stamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See System."""
        from transformers import StoppingCriteriaList

        found: dict[int, float] = {}

        def watch(ids: Any, scores: Any, **_: Any) -> Any:
            found[ids.shape[1] - 1] = perf_counter()
            return self.torch.zeros(ids.shape[0], dtype=self.torch.bool, device=ids.device)

        self.generate(source, 1, tokens, stopping_criteria=StoppingCriteriaList([watch]))
        return found


def torch_device(torch: ModuleType, device: str) -> str:
    """The name of a device in torch."""
    if device == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


class CTranslate2:
    """CTranslate2, by its own converter of transformers' checkpoints; on the CPU unless there is CUDA."""

    def __init__(self, shape: Shape, folder: Path, kind: str, device: str, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        made = folder.with_name(f"{folder.name}-ct2-{kind}")
        words = [f"<{number}>" for number in range(shape.vocab)]
        words[shape.pad_id], words[shape.eos_id], words[2] = "<pad>", "</s>", "<unk>"

        class Converter(TransformersConverter):
            """Without a tokenizer: every id has a word of its own."""

            def load_tokenizer(self, *_: Any, **__: Any) -> Any:
                return SimpleNamespace(
                    get_vocab=lambda: {word: number for number, word in enumerate(words)},
                    convert_ids_to_tokens=words.__getitem__,
                    bos_token="<pad>",
                    eos_token="</s>",
                    unk_token="<unk>",
                    pad_token="<pad>",
                )

        if not made.exists():
            Converter(str(folder)).convert(str(made), quantization=kind)
        on = "cuda" if device == "gpu" and ctranslate2.get_cuda_device_count() else "cpu"
        self.name = f"CTranslate2 {kind}{' on the CPU' if device == 'gpu' and on == 'cpu' else ''}"
        self.exact = kind == EXACT
        self.words, self.ids = words, {word: number for number, word in enumerate(words)}
        self.model = ctranslate2.Translator(
            str(made), device=on, compute_type=kind, inter_threads=1, intra_threads=threads
        )

    def can(self, beams: int, batch: int) -> bool:
        """See System."""
        return True

    def generate(self, source: np.ndarray, beams: int, tokens: int, **options: Any) -> list[list[int]]:
        """See System."""
        words = [[self.words[number] for number in row] for row in source.tolist()]
        limits = {"min_decoding_length": tokens, "max_decoding_length": tokens}
        found = self.model.translate_batch(words, beam_size=beams, **limits, **options)
        return [[self.ids[word] for word in result.hypotheses[0]] for result in found]

    def stamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See System."""
        found: dict[int, float] = {}

        def watch(step: Any) -> bool:
            found[step.step + 1] = perf_counter()
            return False

        self.generate(source, 1, tokens, callback=watch)
        return found


class MlxExamples:
    """T5 of mlx-examples, its model as it is: greedy search, one source; one that was cloned, for it is no package."""

    def __init__(self, folder: Path, examples: Path, dtype: str) -> None:
        self.name, self.exact = "mlx-examples T5", dtype == EXACT
        self.model = load_example(examples, folder / "config.json")
        arrays = self.model.sanitize(mx.load(str(folder / "model.safetensors")))
        self.model.load_weights([(name, array.astype(parse_dtype(dtype))) for name, array in arrays.items()])
        mx.eval(self.model.parameters())

    def can(self, beams: int, batch: int) -> bool:
        """See System."""
        return beams == batch == 1

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """See System."""
        return [self.greedy(source, tokens, lambda number: None)]

    def stamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See System."""
        found: dict[int, float] = {}
        self.greedy(source, tokens, lambda number: found.setdefault(number, perf_counter()))
        return found

    def greedy(self, source: np.ndarray, tokens: int, tell: Callable[[int], object]) -> list[int]:
        """The loop of its `generate` and of its command, without a tokenizer."""
        memory, cache, ids = self.model.encode(mx.array(source)), None, []
        newest = mx.array([0])
        for number in range(1, tokens + 1):
            logits, cache = self.model.decode(newest[None], memory, cache=cache)
            newest = mx.argmax(logits[:, -1, :], axis=-1)
            ids.append(newest.item())
            tell(number)
        return ids


def load_example(examples: Path, config: Path) -> Any:
    """The model of mlx-examples for a config.json, with its own random weights."""
    path = examples / "t5.py"
    spec = importlib.util.spec_from_file_location("mlx_examples_t5", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"--mlx-examples must be the folder t5 of mlx-examples, with t5.py: {examples} is not.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = json.loads(config.read_text())
    settings.pop("feed_forward_proj", None)  # its presence alone would make the model gated
    return module.T5(SimpleNamespace(**settings))


def systems(
    shape: Shape, folder: Path, dtype: str, device: str, threads: int, examples: Path | None
) -> tuple[list[System], list[str]]:
    """All systems that are there, this package first, and why others are not."""
    makers: dict[str, Callable[[], System]] = {
        "transformers": lambda: Transformers(shape, folder, dtype, device, threads),
        "CTranslate2": lambda: CTranslate2(shape, folder, dtype, device, threads),
        "CTranslate2 int8": lambda: CTranslate2(shape, folder, "int8", device, threads),
    }
    found: list[System] = [Ours(shape, folder, dtype)]
    notes = []
    if shape.kind == "t5" and examples is not None:
        makers["mlx-examples T5"] = lambda: MlxExamples(folder, examples, dtype)
    elif shape.kind == "t5":
        notes.append("mlx-examples T5 is left out: --mlx-examples names no folder of it.")
    for name, make in makers.items():
        try:
            found.append(make())
        except (ImportError, ValueError) as error:
            notes.append(f"{name} is left out: {error}")
    return found, notes
