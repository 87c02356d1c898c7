"""The notebook: its stored outputs, and that it runs from top to bottom without growing memory."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "personalize.ipynb"
MAX_BYTES = 1_000_000
PEAK = "import resource\nresource.getrusage(resource.RUSAGE_SELF).ru_maxrss"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def sections(cells: Sequence[Any]) -> dict[str, list[Any]]:
    """The cells by the number of their section; the settings are in section 0."""
    groups: dict[str, list[Any]] = {"0": []}
    for cell in cells:
        heading = re.search(r"^## (\d)\.", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and heading:
            groups[heading[1]] = []
        groups[next(reversed(groups))].append(cell)
    return groups


def peak_memory(cells: Sequence[Any], folder: Path) -> int:
    """Run cells with a fiftieth of the steps; the largest resident memory of the kernel, in KB."""
    notebook = read()
    notebook.cells = [*cells, nbformat.v4.new_code_cell(PEAK)]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source, count = re.subn(r"SHORTEN = [\d.]+", "SHORTEN = 0.02", cell.source)
            assert count == 1
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1200, resources=resources).execute()
    return int(notebook.cells[-1].outputs[0]["data"]["text/plain"])


def test_the_notebook_has_its_outputs_and_is_small() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 12
    papers = ("2208.01618", "2208.12242", "2106.09685", "2211.12572")
    text = "".join(cell.source for cell in notebook.cells)
    assert [paper for paper in papers if paper not in text] == []


def test_the_notebook_installs_from_the_repository_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (cell,) = [cell.source for cell in read().cells if "%pip" in cell.source]
    assert f'"git+{project["urls"]["Repository"]}"' in cell
    assert '".." if Path("../pyproject.toml").is_file()' in cell
    assert cell.endswith("%pip install --quiet {source}")


@pytest.mark.slow
def test_the_notebook_runs_and_frees_memory_between_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    groups = sections(read().cells)
    assert list(groups) == ["0", "1", "2", "3", "4", "5"]
    definitions = [cell for cell in groups["1"] if re.search(r"^OBJECT = ", cell.source)]
    places = nbformat.v4.new_code_cell('places = ["on the beach", "in the snow"]')
    alone = peak_memory([*groups["0"], *definitions, places, *groups["2"]], tmp_path / "alone")
    everything = peak_memory(
        [cell for cells in groups.values() for cell in cells], tmp_path / "all"
    )
    assert everything <= 1.1 * alone
