"""One process, many jobs: bases stay warm, and memory does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pinxit import Bases, Request, paint
from pinxit.errors import ModelError
from tests.conftest import save_nano

# Train, paint, another base, back: five times over. Each time prints its peak of memory.
_SESSION = """
import json, sys
from pathlib import Path
from pinxit import Bases
from pinxit import Recipe
from pinxit import Request
from pinxit import paint
from pinxit import teach

def peak():
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # from here on, a new peak
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line))

one, other, pictures, out = sys.argv[1:]
bases, peaks = Bases(), []
for turn in range(6):
    recipe = Recipe(method={"name": "dreambooth", "prior_pictures": 0}, pictures=pictures,
                    token="<mytoy>", class_noun="toy", steps=2, preview_every=2, base=one,
                    score=False)
    run = teach(bases.open(one), recipe, f"{out}/{turn}")
    paint(bases.open(one), Request(prompt="a toy", steps=2))
    paint(bases.open(other), Request(prompt="a toy", steps=2))
    paint(bases.open(one), Request(prompt="a <mytoy>", steps=2), [run.concept])
    peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bases large enough to be seen among all else that is in memory."""
    folder = tmp_path_factory.mktemp("wide")
    return save_nano(folder / "one", 1, 192), save_nano(folder / "other", 2, 192)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_five_alternations_take_no_more_memory_than_one(
    wide: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    words = [*map(str, wide), str(pictures), str(tmp_path)]
    run = [sys.executable, "-c", _SESSION, *words]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    peaks = json.loads(said.splitlines()[-1])[1:]
    assert max(peaks) <= 1.1 * peaks[0], peaks


def test_the_base_used_last_is_warm_and_others_rest(nano: Path, tmp_path: Path) -> None:
    bases = Bases()
    first = bases.open(nano)
    before = paint(first, Request(prompt="a toy", steps=2))[0].latents
    weights = list(first.networks["denoiser"].parameters())
    assert bases.open(nano) is first
    second = bases.open("pocket")
    assert not any(weight.numel() for weight in weights)
    assert bases.open("pocket") is second
    assert (paint(first, Request(prompt="a toy", steps=2))[0].latents == before).all()
    assert bases.open(nano) is not first
    with pytest.raises(ModelError, match="no base"):
        bases.open(tmp_path / "nothing")


def test_two_may_be_warm(nano: Path) -> None:
    bases = Bases(most=2)
    first, second = bases.open(nano), bases.open("pocket")
    assert bases.open(nano) is first
    assert bases.open("pocket") is second
