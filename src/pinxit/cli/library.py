"""`pinxit runs`, `pinxit concepts` and `pinxit show`: what was trained and generated."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pinxit.cli.screen import data, labelled, say, table
from pinxit.errors import PinxitError, RequestError
from pinxit.files.atomic_write import check_claim, claim_folder
from pinxit.images.decode import UnreadableError, open_image
from pinxit.runs.file_names import JOURNAL, RECIPE
from pinxit.runs.reader import RunState, read_run

# Folders inside of a folder are searched to this depth.
_DEPTH = 3
_CONCEPT_SUFFIXES = (".safetensors", ".pt", ".bin")
_MAX_CONCEPT_BYTES = 2**30
# What ComfyUI's graph says about an image, by the names of a node's inputs.
_COMFYUI_INPUTS = (
    *("text", "seed", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    *("ckpt_name", "lora_name", "strength_model", "width", "height"),
)


def runs(folder: Path = Path("runs")) -> None:
    """List the runs in a folder: token, method, state, steps, base model, likeness.

    Args:
        folder: folder to search
    """
    states = [read_run(path) for path in _run_folders(folder)]
    if not states:
        say(f"no runs in {folder}")
        return
    head = ("run", "token", "method", "state", "steps", "base model", "likeness")
    table(head, [_run_row(state) for state in states])


def concepts(folder: Path = Path()) -> None:
    """List the concepts in a folder: those of runs, and files of any format.

    Args:
        folder: folder to search
    """
    run_folders = list(_run_folders(folder))
    rows = [row for path in run_folders for row in _concept_rows(read_run(path).result_file)]
    for parent, _, names in _walk(folder):
        if not any(parent.is_relative_to(run) for run in run_folders):
            files = (parent / name for name in sorted(names) if name.endswith(_CONCEPT_SUFFIXES))
            rows += [row for file in files for row in _concept_rows(file)]
    if not rows:
        say(f"no concepts in {folder}")
        return
    table(("concept", "token", "contains", "method", "steps", "base model", "likeness"), rows)


def tensorboard(folder: Path = Path("runs"), *, out: Path = Path("tensorboard")) -> None:
    """Write the logs of runs for TensorBoard: losses, scores and preview images.

    Args:
        folder: a run folder, or a folder of runs
        out: folder for the event files; those of earlier calls are replaced
    """
    from pinxit.runs.tensorboard import write_event_file

    states = [read_run(path) for path in _run_folders(folder)]
    if not states:
        raise RequestError(f"there are no runs in {folder}", "give a run folder")
    check_claim(out, "tensorboard")
    claim_folder(out, "tensorboard")
    for state in states:
        place = state.folder.relative_to(folder)
        data(str(write_event_file(state, out / (place if place.parts else state.folder.name))))
    say(f"to look at them: pip install tensorboard; tensorboard --logdir {out}")


def show(image: Path) -> None:
    """Show how an image was generated: its request, or the settings of another program.

    Args:
        image: an image of pinxit, AUTOMATIC1111 or ComfyUI
    """
    texts = _image_texts(image)
    rows: list[tuple[str, object]] = []
    if "pinxit" in texts:
        request = _object_in(texts["pinxit"])
        if not request.get("init_image"):
            request.pop("denoising_strength", None)
        rows += [(name, value) for name, value in request.items() if value not in ("", [])]
    elif "parameters" in texts:
        lines = texts["parameters"].splitlines() or [""]
        rows += [("prompt", lines[0]), *(("", line) for line in lines[1:])]
    elif "prompt" in texts:
        rows += list(_comfyui_rows(_object_in(texts["prompt"])))
    if not rows:
        raise RequestError(
            f"{image} does not say how it was generated",
            "such texts are in PNGs of pinxit, AUTOMATIC1111 and ComfyUI; many web pages remove "
            "them",
        )
    for label, value in rows:
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        text = ", ".join(map(str, values))
        labelled(label, text, 21)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders with the names of their folders and files, sorted, no hidden ones."""
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}", "give the folder to search")
    for parent, folders, names in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(one for one in folders if one[0] != "." and depth < _DEPTH)
        yield Path(parent), folders, names


def _run_folders(folder: Path) -> Iterator[Path]:
    for parent, folders, names in _walk(folder):
        if RECIPE in names and JOURNAL in names:
            folders.clear()
            yield parent


def _run_row(state: RunState) -> tuple[str, ...]:
    recipe = state.recipe
    method: Any = recipe.get("method", "")
    name = cast("Mapping[str, object]", method).get("name") if isinstance(method, dict) else method
    likeness = state.best.likeness if state.best else None
    return (
        str(state.folder),
        str(recipe.get("token", "")),
        str(name),
        state.state,
        f"{state.saved_step or 0} of {state.total_steps or '?'}",
        str(recipe.get("base", "")),
        _percent(likeness),
    )


def _concept_rows(file: Path) -> Iterator[tuple[str, ...]]:
    """The row of a concept file; none if the file contains no concept."""
    from pinxit.concepts.read import read_concept

    try:
        if file.stat().st_size > _MAX_CONCEPT_BYTES:
            return
        concept = read_concept(file)
    except (PinxitError, OSError):
        return
    provenance = concept.provenance
    yield (
        str(file),
        concept.token,
        concept.content,
        provenance.method or "another program",
        str(provenance.steps or ""),
        provenance.base,
        _percent(provenance.scores.get("likeness")),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{min(max(share, 0.0), 1.0):.0%}"


def _image_texts(image: Path) -> dict[str, str]:
    """The texts in the metadata of an image."""
    try:
        with open_image(image) as opened:
            entries = cast("Mapping[object, object]", opened.info)
            return {str(key): value for key, value in entries.items() if isinstance(value, str)}
    except UnreadableError as error:
        raise RequestError(f"{image} cannot be read: {error}", "give an image file") from error


def _object_in(text: str) -> dict[str, Any]:
    """The object in a text; empty if it is not one."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", values) if isinstance(values, dict) else {}


def _comfyui_rows(graph: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The plain values of the nodes in ComfyUI's graph; links to other nodes are lists."""
    for node in graph.values():
        inputs: Any = node.get("inputs") if isinstance(node, dict) else None
        for name in _COMFYUI_INPUTS if isinstance(inputs, dict) else ():
            value: object = cast("Mapping[str, object]", inputs).get(name)
            if isinstance(value, str | int | float):
                yield f"{cast('Mapping[str, object]', node).get('class_type')} {name}", value
