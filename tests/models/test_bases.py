"""One process, many jobs: base models stay open, and memory does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pinxit import Bases, GenerationRequest, generate
from pinxit.errors import ModelError
from tests.conftest import save_nano

# Train, generate, use another base model and return, six times. Prints the memory peaks.
_SCRIPT = """
import json, sys
from pathlib import Path
from pinxit import Bases
from pinxit import GenerationRequest, Recipe, generate, train

def peak():
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line))

first, second, images, out = sys.argv[1:]
bases, peaks = Bases(), []
for repetition in range(6):
    recipe = Recipe(method={"name": "dreambooth", "class_images": 0}, images=images,
                    token="<mytoy>", class_noun="toy", steps=2, preview_every=2, base=first,
                    score_previews=False)
    run = train(bases.open(first), recipe, f"{out}/{repetition}")
    generate(bases.open(first), GenerationRequest(prompt="a toy", steps=2))
    generate(bases.open(second), GenerationRequest(prompt="a toy", steps=2))
    generate(bases.open(first), GenerationRequest(prompt="a <mytoy>", steps=2), [run.concept])
    peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def wide_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two base models whose size stands out from the rest of the process's memory."""
    folder = tmp_path_factory.mktemp("wide")
    return save_nano(folder / "one", 1, 192), save_nano(folder / "other", 2, 192)


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux reports the peak"
)
def test_peak_memory_does_not_grow_over_repetitions(
    wide_bases: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    arguments = [*map(str, wide_bases), str(pictures), str(tmp_path)]
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peaks = json.loads(output.splitlines()[-1])[1:]
    assert max(peaks) <= 1.1 * peaks[0], peaks


def test_only_the_base_model_used_last_stays_loaded(nano: Path, tmp_path: Path) -> None:
    bases = Bases()
    first = bases.open(nano)
    before = generate(first, GenerationRequest(prompt="a toy", steps=2))[0].latents
    weights = list(first.networks["denoiser"].parameters())
    assert bases.open(nano) is first
    second = bases.open("pocket")
    assert not any(weight.numel() for weight in weights)
    assert bases.open("pocket") is second
    assert (generate(first, GenerationRequest(prompt="a toy", steps=2))[0].latents == before).all()
    assert bases.open(nano) is not first
    with pytest.raises(ModelError, match="there is no model"):
        bases.open(tmp_path / "nothing")


def test_two_base_models_can_stay_loaded(nano: Path) -> None:
    bases = Bases(max_loaded=2)
    first, second = bases.open(nano), bases.open("pocket")
    assert bases.open(nano) is first
    assert bases.open("pocket") is second
