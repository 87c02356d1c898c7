"""Stop signals end a command at once while code of a library reads a base model's files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

# A call of a library in C that would take hours, in place of reading a tokenizer.
SLOW = """
import itertools, signal, sys
from pinxit.cli import main
from pinxit.models import tokenizers

def read(*_):
    print("reading", flush=True)
    return sum(itertools.repeat(1, 10**13))

tokenizers._read_vocabulary = read
# A shell that starts the tests in the background makes all processes ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("command", "number"),
    [("generate", signal.SIGINT), ("train", signal.SIGINT), ("evaluate", signal.SIGTERM)],
)
def test_a_signal_while_a_tokenizer_is_read_ends_the_process(
    command: str, number: signal.Signals, nano: Path, pictures: Path, tmp_path: Path
) -> None:
    save_file({"emb_params": torch.ones(1, 32)}, tmp_path / "x.safetensors")
    words = {
        "generate": ["a toy"],
        "train": ["textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"],
        "evaluate": [str(tmp_path / "x.safetensors"), "--images", str(pictures)],
    }[command]
    if command == "evaluate":
        words += ["--class-noun", "toy"]
    arguments = [command, *words, "--base", str(nano), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        assert line == "reading\n", process.stderr.read()
        process.send_signal(number)
        try:
            assert process.wait(60) == -number
        finally:
            process.kill()
