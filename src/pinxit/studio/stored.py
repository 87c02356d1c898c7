"""What a stored job must contain, since its file can be damaged, older, or edited by hand."""

from collections.abc import Mapping
from typing import Any, Literal, cast

JobKind = Literal["train", "generate", "inspect", "convert", "compare", "texts", "drift", "damaged"]

# A form is a type, a tuple of texts to choose from, a list of one form, or a table of forms, whose
# keys with a "?" may be missing.
RECIPE = {
    "token": str,
    "class_noun": str,
    "kind": ("object", "style"),
    "base": str,
    "method": {"name": str},
    "images?": str,
    "steps?": int,
}
RUN_RECIPE = {f"{name.rstrip('?')}?": form for name, form in RECIPE.items() if name != "method"}
RESULT = {"state": ("done", "failed"), "message?": str, "hint?": str}
_REQUEST = {
    "prompt": str,
    "seed?": int,
    "num_images?": int,
    "image?": str,
    "control?": {"name": str},
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "train": {"recipe": RECIPE, "images?": str, "snapshot?": str},
    "texts": {"recipe": RECIPE, "images": str},
    "generate": {"request": _REQUEST, "concepts": [str], "strengths?": dict},
    "inspect": {"file?": str},
    "convert": {"concept": str, "format": str},
    "compare": {"concepts": [str]},
    "drift": {"concept": str},
}
_TEXT = {"tokens": list, "cut": str}
REPORTS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"prompt": _TEXT},
    "texts": {"texts": [{"text": str, **_TEXT}], "images": dict},
    "inspect": {"rows": [list], "token?": str, "has_strength?": bool},
}


def problem_of(value: object, form: Any, name: str) -> str:
    """What in a value is missing or has not its form; empty if nothing. `name` is the value's."""
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return f"{name} is not a table"
        table = cast("dict[str, object]", value)
        keys = cast("Mapping[str, Any]", form)
        return next(filter(None, (_problem_at(table, key, keys[key], name) for key in keys)), "")
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        items = cast("list[object]", value)
        return next(filter(None, (problem_of(item, form[0], name) for item in items)), "")
    fits = value in form if isinstance(form, tuple) else isinstance(value, form)
    return "" if fits else f"{name} cannot be {value!r:.40}"


def _problem_at(table: Mapping[str, object], key: str, form: Any, name: str) -> str:
    plain = key.rstrip("?")
    if plain in table:
        return problem_of(table[plain], form, f"{name}.{plain}")
    return "" if key != plain else f"{name}.{plain} is missing"


def job_of(content: object) -> tuple[JobKind, Mapping[str, Any], str]:
    """Kind and options in the content of a job's file, and what is wrong with them.

    If something is wrong, the kind is "damaged", without options.
    """
    problem = problem_of(content, {"kind": tuple(_OPTIONS), "options": dict}, "job.json")
    if not problem:
        job = cast("dict[str, Any]", content)
        kind, options = job["kind"], _with_defaults(job["options"])
        problem = problem_of(options, _OPTIONS[kind], "options")
        if not problem:
            return kind, options, ""
    return "damaged", {}, problem


def _with_defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options in whose recipe nothing is missing that a recipe need not say."""
    recipe: Any = options.get("recipe")
    if not isinstance(recipe, dict):
        return options
    recipe = cast("dict[str, Any]", {"kind": "object", "base": "pocket", **recipe})
    if isinstance(recipe.get("method"), str):
        recipe["method"] = {"name": recipe["method"]}
    return {**options, "recipe": recipe}
