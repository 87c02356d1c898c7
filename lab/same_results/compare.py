"""Compare the results of two versions of pinxit to the bit: losses, pixels and tensors.

`python -m lab.same_results record OUT.json [--source REV]` writes a manifest.
`python -m lab.same_results compare [REV]` exits with 1 if this source tree gives other results.
With `--chain NAME` only that chain of commands runs, which takes seconds instead of minutes.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from lab.same_results.commands import CHAINS, Command
from lab.same_results.inputs import write_inputs
from lab.same_results.manifest import Difference, Manifest, Result, differences, file_hashes, result
from pinxit.pocket import package

ROOT = Path(__file__).resolve().parents[2]
FIRST_VERSION = "efab1db"
_WORKERS = 2
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")
# Both versions use the weights of pocket in this source tree: it is the code that is compared.
_WEIGHTS = Path("src/pinxit/pocket/weights")
_LOADED_FROM = "import pinxit; print(pinxit.__file__)"


class CommandError(Exception):
    """A command of the list failed, or another source tree than the wanted one was loaded."""


def cache_folder() -> Path:
    """Where inputs and manifests of baselines are, `~/.cache/pinxit-same-results`."""
    return Path.home() / ".cache" / "pinxit-same-results"


def record(source: Path, names: Sequence[str]) -> Manifest:
    """Run chains of commands with the package in `source`/src; the results by command name.

    Raises CommandError with the end of the output of a command that fails.
    """
    inputs = write_inputs(cache_folder() / f"inputs-{_inputs_hash()}")
    program = _program(source)
    with tempfile.TemporaryDirectory(prefix="pinxit-same-results-") as folder:
        with ThreadPoolExecutor(_WORKERS) as pool:
            chains = [
                pool.submit(_run_chain, CHAINS[name], program, source, inputs, Path(folder, name))
                for name in names
            ]
        return {name: files for chain in chains for name, files in chain.result().items()}


def baseline(rev: str, names: Sequence[str]) -> Manifest:
    """The manifest of a revision, from the cache if it was recorded on such a machine before."""
    commit = _git("rev-parse", "--short=12", f"{rev}^{{commit}}")
    key = f"{commit}-{_digest(_cpu_model())[:8]}-{version('torch')}-{_commands_hash(names)}"
    key += f"-{package.digest(ROOT / _WEIGHTS)[:8]}"
    file = cache_folder() / f"{key}.json"
    if not file.is_file():
        with worktree(commit) as source:
            _write(file, record(source, names))
    return json.loads(file.read_text(encoding="utf-8"))


@contextmanager
def worktree(rev: str) -> Generator[Path]:
    """A temporary git worktree of a revision with today's pocket; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="pinxit-worktree-") as folder:
        source = Path(folder) / "source"
        _git("worktree", "add", "--detach", str(source), rev)
        try:
            shutil.rmtree(source / _WEIGHTS)
            shutil.copytree(ROOT / _WEIGHTS, source / _WEIGHTS)
            yield source
        finally:
            _git("worktree", "remove", "--force", str(source))


def compare(rev: str, names: Sequence[str] = tuple(CHAINS)) -> list[Difference]:
    """The differences between the results of a revision and those of this source tree."""
    return differences(baseline(rev, names), record(ROOT, names))


def table(differences: Sequence[Difference]) -> str:
    """Differences as lines of text, failures first."""
    lines = [
        f"{'note' if one.note else 'DIFFERENT':9}  {one.command:24}  {one.what:7}  {one.text}"
        for one in sorted(differences, key=lambda one: one.note)
    ]
    failures = sum(not one.note for one in differences)
    return "\n".join([*lines, f"{failures} differences, {len(differences) - failures} notes"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 if results differ or a command fails."""
    parser = argparse.ArgumentParser(prog="python -m lab.same_results", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="write a manifest")
    recording.add_argument("out", type=Path)
    recording.add_argument("--source", metavar="REV", help="a revision, else this tree")
    comparing = actions.add_parser("compare", help="compare this tree with a revision")
    comparing.add_argument("rev", nargs="?", default=FIRST_VERSION)
    for action in (recording, comparing):
        action.add_argument("--chain", action="append", choices=CHAINS, help="only this one")
    options = parser.parse_args(arguments)
    names: Sequence[str] = options.chain or tuple(CHAINS)
    try:
        if options.action == "record":
            _record_to(options.out, options.source, names)
            return 0
        differences = compare(options.rev, names)
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(differences))
    return int(any(not one.note for one in differences))


def _record_to(out: Path, rev: str | None, names: Sequence[str]) -> None:
    if rev is None:
        _write(out, record(ROOT, names))
        return
    with worktree(rev) as source:
        _write(out, record(source, names))


def _run_chain(
    chain: Sequence[Command], program: Sequence[str], source: Path, inputs: Path, folder: Path
) -> dict[str, Result]:
    """Run commands one after another in a folder of their own."""
    folder.mkdir()
    results: dict[str, Result] = {}
    for command in chain:
        before = file_hashes(folder)
        words = shlex.split(command.line.format(inputs=shlex.quote(str(inputs))))
        _run([*program, *words], source, folder)
        results[command.name] = result(folder, before, foreign=command.foreign)
    return results


def _run(words: Sequence[str], source: Path, folder: Path) -> str:
    """The standard output of a process that imports from `source`; CommandError if it fails."""
    # Class images go into the chain's own folder, which makes them part of the results.
    changed = {
        "PYTHONPATH": str(source / "src"),
        "PINXIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {**os.environ, **changed}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandError(f"{shlex.join(words)}\nexit status {done.returncode}:\n{done.stderr}")
    return done.stdout


def _program(source: Path) -> list[str]:
    """The start of a command line that runs the package in `source`.

    The entry point is read from the project's file, for the module's name may change.
    """
    loaded = _run([sys.executable, "-c", _LOADED_FROM], source, source).strip()
    if not Path(loaded).is_relative_to(source / "src"):
        raise CommandError(f"pinxit was loaded from {loaded} instead of {source / 'src'}")
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    module, function = project["project"]["scripts"]["pinxit"].split(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-c", code]


def _inputs_hash() -> str:
    code = Path(__file__).with_name("inputs.py").read_text(encoding="utf-8")
    return _digest(code, *map(version, _LIBRARIES))[:12]


def _commands_hash(names: Sequence[str]) -> str:
    """What a manifest depends on besides the revision: commands, inputs and its own form."""
    code = Path(__file__).with_name("manifest.py").read_text(encoding="utf-8")
    commands = repr([CHAINS[name] for name in names])
    return _digest(commands, code, _inputs_hash())[:12]


def _cpu_model() -> str:
    """The processor's name; kernels are chosen by it, so results may differ between two."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _digest(*texts: str) -> str:
    return sha256("\0".join(texts).encode()).hexdigest()


def _write(file: Path, manifest: Manifest) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"git {shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()
