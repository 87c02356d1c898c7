"""Stop signals end a command at once while code of a library reads a base model's files."""

import itertools
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pinxit.cli import main
from pinxit.models import tokenizers


def run_in_child(arguments: list[str], pipe: int) -> int:
    """The process id of a command in which reading a tokenizer would take hours in a C library."""
    child = os.fork()
    if child:
        return child

    def read(*_: object) -> None:
        os.write(pipe, b"reading")
        sum(itertools.repeat(1, 10**13))

    try:
        tokenizers._read_vocabulary = read  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        # A shell that starts the tests in the background makes all processes ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(pipe, f"ended with {main(arguments)}".encode())
    finally:
        os._exit(99)


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
    reader, writer = os.pipe()
    arguments = [command, *words, "--base", str(nano), "--out", str(tmp_path / "out")]
    child = run_in_child(arguments, writer)
    os.close(writer)
    watch = threading.Timer(60, os.kill, [child, signal.SIGKILL])
    try:
        assert os.read(reader, 100) == b"reading"
        watch.start()
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -number
    finally:
        watch.cancel()
        os.close(reader)
