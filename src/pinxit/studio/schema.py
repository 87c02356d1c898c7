"""Fields of all options for forms and programs, made from the options themselves.

`python -m pinxit.studio.schema` writes them into `options.json`, since the server must not import
the options of methods and requests: these need torch.
"""

import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pinxit import registry
from pinxit.generation.png_parameters import sampler_names
from pinxit.generation.request import GenerationRequest
from pinxit.options import Options, default_text, limits_text
from pinxit.training.recipe import Recipe

# Texts that a form may set. Other texts are names of files or of things to download.
_TEXTS = frozenset({"negative_prompt", "scheduler", "source_prompt", "rare_token"})
_NOT_FOLDED = frozenset({"kind", "prompt"})
# What parts of names stand for in labels.
_WORDS = {"num": "number of", "lr": "learning rate", "ema": "EMA", "snr": "SNR", "clip": "CLIP"}
_INPUTS: dict[type, str] = {bool: "bool", int: "int", float: "float"}


def all_options() -> dict[str, Any]:
    """The fields of recipes, methods, requests and controls, and the file formats."""
    defaults = tomllib.loads(Path(__file__).with_name("defaults.toml").read_text("utf-8"))
    methods = {
        name: {
            "about": registry.summary("methods", name),
            "advice": defaults["advice"][name],
            "fields": option_fields(registry.load("methods", name)),
        }
        for name in sorted(registry.names("methods"), key=lambda name: name != defaults["method"])
    }
    controls = {
        name: {"about": registry.summary("controls", name), "fields": option_fields(control)}
        for name in registry.names("controls")
        if _needs_only_an_image(control := registry.load("controls", name))
    }
    formats = {
        name: {"about": f"for {format_.used_by}", "suffix": format_.suffixes[0]}
        for name in registry.names("formats")
        if (format_ := registry.load("formats", name)).suffixes[0]
    }
    return {
        "defaults": defaults,
        "recipe": option_fields(Recipe, leave_out=_NOT_FOLDED),
        "request": option_fields(GenerationRequest, leave_out=_NOT_FOLDED),
        "samplers": sampler_names(),
        "methods": methods,
        "controls": controls,
        "formats": formats,
    }


def option_fields(options: type[Options], leave_out: Collection[str] = ()) -> list[dict[str, Any]]:
    """A field for each option that a form may set: no path, and no name of something to load."""
    return [
        {
            "name": name,
            "label": " ".join(_WORDS.get(word, word) for word in name.split("_")),
            "input": input_kind,
            "choices": _choices(option),
            "default": default_text(option),
            "help": (option.description or "") + limits_text(option),
        }
        for name, option in options.model_fields.items()
        if name not in leave_out and (input_kind := _input(name, option))
    ]


def _needs_only_an_image(control: type[Options]) -> bool:
    """Whether a control takes a source image, and nothing else that a form cannot give."""
    fields = control.model_fields.items()
    return {name for name, option in fields if not _input(name, option)} == {"image"}


def _kinds(option: FieldInfo) -> tuple[Any, ...]:
    """The types of an option without None."""
    kind: Any = option.annotation
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    return tuple(kind for kind in kinds if kind is not NoneType)


def _choices(option: FieldInfo) -> list[str]:
    kinds = _kinds(option)
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _input(name: str, option: FieldInfo) -> str:
    """The input of a form for the option; empty if the form must not have one."""
    kind = _kinds(option)[0]
    if _choices(option):
        return "choice"
    return _INPUTS.get(kind, "text" if kind is str and name in _TEXTS else "")


def write_fields() -> None:
    """Write the fields into the package."""
    text = json.dumps(all_options(), indent=1) + "\n"
    Path(__file__).with_name("options.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_fields()
