"""Model folders and runs written by earlier versions, in tests/support/runs, load and resume."""

import dataclasses
import json
import shutil

import pytest
from support.paths import TESTS

import mlx_transformer as mt
from mlx_transformer.training.run_directory import load_run_options

# Written by: mlx-transformer train --train dates --valid dates --preset tiny --num-layers 1 --dims 16 --mlp-dims 16
# --num-heads 1 --vocab-size 270 --batch-tokens 256 --valid-every 2 --log-every 1 --bleu-sentences 4 --warmup-steps 2
# --samples 1 --dropout 0.1 --seed 5 --keep 1 --steps 4 --output run
VERSION_0_1_0 = TESTS / "support" / "runs" / "version_0.1.0"
# Results of that version: the score of its model, and the losses of the run resumed to 8 steps.
SCORE = -3.1484615802764893
LOSSES = {5: 5.657515048980713, 6: 5.709819793701172, 7: 5.589269638061523, 8: 5.618022441864014}
VALIDATION_LOSS = 5.4589765625


def test_a_model_folder_generates_the_same_hypothesis():
    model, tokenizer = mt.load(VERSION_0_1_0 / "best")
    search = dataclasses.replace(model.search_defaults, max_tokens=4)
    ((hypothesis,),) = mt.generate_hypotheses(model, tokenizer, ["on august 9 in 2092"], search)
    assert (hypothesis.text, hypothesis.finish_reason) == ("xxx<", "length")
    assert hypothesis.score == pytest.approx(SCORE, abs=1e-4)


@pytest.mark.cpu
def test_a_run_resumes_with_the_same_losses(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(VERSION_0_1_0, run)
    mt.train(dataclasses.replace(load_run_options(run), output=str(run), resume=True, steps=8))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["loss"] for entry in log if entry["event"] == "step" and entry["step"] > 4}
    assert losses == pytest.approx(LOSSES, abs=1e-3)
    assert [e["loss"] for e in log if e["event"] == "validation"][-1] == pytest.approx(VALIDATION_LOSS, abs=1e-3)
