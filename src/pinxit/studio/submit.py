"""Turn what a form or a program has sent into a job; everything is checked, nothing is a path."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pinxit.errors import RequestError, did_you_mean
from pinxit.studio.image_set import ImageSet
from pinxit.studio.jobs import Job
from pinxit.studio.uploads import snapshot
from pinxit.studio.workspace import Workspace

KINDS = ("object", "style")
MAX_NUM_IMAGES, MAX_SIDE = 64, 2048
MAX_TEXT = 2000
_STRENGTH = {"label": "the strength", "input": "float", "help": "1 is as trained, 0.5 half of it"}


def train_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a training; RequestError names the first answer that is missing or wrong."""
    images, recipe = _images_and_recipe(workspace, values)
    own = snapshot(workspace, images)
    recipe["images"] = str(own.folder.resolve())
    sets = {"images": images.id, "snapshot": own.id}
    return workspace.queue.add("train", {"recipe": recipe, **sets})


def texts_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue the tokenization of the texts that such a training would use."""
    images, recipe = _images_and_recipe(workspace, values)
    return workspace.queue.add("texts", {"recipe": recipe, "images": images.id})


def _images_and_recipe(
    workspace: Workspace, values: Mapping[str, Any]
) -> tuple[ImageSet, dict[str, Any]]:
    images = workspace.images_of(_text(values, "images"))
    if not images.files:
        raise RequestError("there is no usable image", "choose 3 to 12 images of the subject")
    noun = _text(values, "class_noun")
    if not noun:
        raise RequestError("what it is, is missing", "write a common noun, such as dog or toy")
    token = _text(values, "token") or f"<my{re.sub(r'[^a-z0-9]', '', noun.split()[-1].lower())}>"
    options = workspace.options
    name = _choice(values, "method", [options["defaults"]["method"], *options["methods"]])
    method = option_values(options["methods"][name]["fields"], values, name)
    token = token if token.startswith("<") else f"<{token}>"
    if not re.fullmatch(r"<[^<>\s]+>", token):
        raise RequestError(f"the token {token} is not one word", "write one such as <mytoy>")
    return images, {
        **option_values(options["recipe"], values),
        "method": {"name": name, **method},
        "images": str(images.folder.resolve()),
        "token": token,
        "class_noun": noun,
        "kind": _choice(values, "kind", KINDS),
        "base": _choice(values, "base", workspace.bases),
    }


def generate_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a generation, also one from a source image; RequestError for a wrong value."""
    options = workspace.options
    request = option_values(options["request"], values)
    request["prompt"] = _text(values, "prompt")
    if not request["prompt"]:
        raise RequestError("the prompt is missing", "write what the image should show")
    if request.get("num_images", 1) > MAX_NUM_IMAGES:
        raise RequestError(f"more than {MAX_NUM_IMAGES} images", "generate them in several jobs")
    if max(request.get("width", 0), request.get("height", 0)) > MAX_SIDE:
        raise RequestError(f"more than {MAX_SIDE} pixels", "choose a smaller size")
    typed = [text.partition(":") for text in _numbers(values)]  # NUMBER or NUMBER:0.8
    concepts = [_concept(workspace, number) for number, _, _ in typed]
    strengths = {
        number: _converted(_STRENGTH, text)
        for number, _, after in typed
        if (text := after or _text(values, f"strength.{number}"))
    }
    trained = [job.options["recipe"]["base"] for job in concepts if job.kind == "train"]
    request["base"] = _choice(values, "base", [*trained[:1], *workspace.bases])
    if number := _text(values, "image"):
        control = _choice(values, "control", [options["defaults"]["control"], *options["controls"]])
        fields = options["controls"][control]["fields"]
        request["image"] = workspace.images_of(number).id
        request["control"] = {"name": control, **option_values(fields, values, control)}
    elif _text(values, "control"):
        raise RequestError("the source image is missing", "choose the image whose structure stays")
    chosen = {"request": request, "concepts": [job.id for job in concepts]}
    return workspace.queue.add("generate", {**chosen, "strengths": strengths})


def convert_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a conversion of a concept to another file format, by default the usual one for it."""
    concept = _concept(workspace, _text(values, "concept"))
    formats = workspace.options["formats"]
    name = _text(values, "format")
    if name and name not in formats:
        raise RequestError(f"unknown format {name!r}", did_you_mean(name, formats))
    return workspace.queue.add("convert", {"concept": concept.id, "format": name})


def compare_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a comparison of trained concepts."""
    concepts = [_concept(workspace, number) for number in _numbers(values)]
    if not concepts:
        raise RequestError("nothing to compare", "choose at least one concept")
    return workspace.queue.add("compare", {"concepts": [job.id for job in concepts]})


def drift_job(workspace: Workspace, training: Job) -> Job:
    """Queue images of a training's prompts without its token: what else has it changed?"""
    concept = _concept(workspace, training.id)
    return workspace.queue.add("drift", {"concept": concept.id})


def option_values(
    fields: Iterable[Mapping[str, Any]], values: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """The options that were set, in their types; `prefix.name` and `name` both set an option."""
    chosen: dict[str, Any] = {}
    for field in fields:
        name: str = field["name"]
        given = values.get(f"{prefix}.{name}", values.get(name))
        text = "" if given is None else str(given).strip()
        if text:
            chosen[name] = _converted(field, text)
    return chosen


def _converted(field: Mapping[str, Any], text: str) -> object:
    kind, label = field["input"], field["label"]
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            if math.isfinite(number := float(text)):
                return number
            raise ValueError
    except ValueError:
        raise RequestError(f"{label} must be a number, not {text[:40]!r}", field["help"]) from None
    if kind == "bool" and text.lower() not in ("true", "false"):
        raise RequestError(f"{label} must be true or false, not {text[:40]!r}", field["help"])
    if kind == "choice" and text not in field["choices"]:
        raise RequestError(
            f"{label} cannot be {text[:40]!r}", f"choose one of: {', '.join(field['choices'])}"
        )
    return text.lower() == "true" if kind == "bool" else text[:MAX_TEXT]


def _concept(workspace: Workspace, number: str) -> Job:
    job = workspace.job(number)
    if not workspace.has_concept(job):
        raise RequestError(f"job {number} has no concept", "wait until it has saved one")
    return job


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return str(value).strip()[:MAX_TEXT] if isinstance(value, str | int | float) else ""


def _numbers(values: Mapping[str, Any]) -> list[str]:
    """The numbers of the chosen concepts."""
    value = values.get("concepts", [])
    return [str(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _choice(values: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """The value of a field if it is a known one; the first of them if the field is empty."""
    value = _text(values, name) or known[0]
    if value not in known:
        raise RequestError(f"unknown {name} {value[:60]!r}", did_you_mean(value[:60], known))
    return value
