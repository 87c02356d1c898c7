"""Prompt sets for evaluation, one TOML file each."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinxit.errors import FileError, RecipeError, RequestError, did_you_mean
from pinxit.files.text import read_text, read_toml
from pinxit.models.prompt import check_braces

_FOLDER = Path(__file__).parent / "prompts"
_LIVING = "living"
_PROMPT_HINT = "write prompts such as: a photo of a {} on the beach"


@dataclass(frozen=True)
class Prompt:
    """A prompt: `template` has `{}` for the placeholder token, `plain` has none.

    `target_text` describes the image in words that the metrics know.
    """

    template: str
    plain: str
    target_text: str
    seed: int = 0

    def with_token(self, token: str) -> str:
        """The prompt with a placeholder token."""
        return self.template.format(token)


def prompt_set_names() -> list[str]:
    """The names of all prompt sets."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def suitable_set(noun: str, *, style: bool, pocket: bool) -> str:
    """The name of the set for a style or a class noun; pocket's world has its own sets."""
    if pocket:
        return "pocket-styles" if style else "pocket-objects"
    if style:
        return "styles"
    living, words = _read_set(_LIVING), noun.split()
    is_living = {*words[-1:]} & {*living["nouns"]} and not {*words} & {*living["unless"]}
    return _LIVING if is_living else "objects"


def prompt_set(name: str, noun: str) -> tuple[Prompt, ...]:
    """The prompts of a set for a class noun; their seeds are 0, 1, 2 and so on.

    A set for styles has a template for naming a style, and its plain prompts name none. Raises
    RequestError if there is no such set. A name with the suffix .txt or .toml is a file of the
    user: a prompt on each line, or a table as the sets have it; `{}` stands for the subject.
    """
    if Path(name).suffix in (".txt", ".toml"):
        return _prompts(_read_file(Path(name)), noun)
    if name not in prompt_set_names():
        hint = f"{did_you_mean(name, prompt_set_names())}; or give a .txt file with your prompts"
        raise RequestError(f"unknown prompt set `{name}`", hint)
    return _prompts(_read_set(name), noun)


def _prompts(table: Mapping[str, Any], noun: str) -> tuple[Prompt, ...]:
    style_template: str | None = table.get("manner")
    prompts: list[Prompt] = []
    for seed, text in enumerate(table["prompts"]):
        plain = text if style_template else text.format(noun)
        template = style_template.format(text, "{}") if style_template else text
        prompts.append(Prompt(template, plain, plain, seed))
    return tuple(prompts)


def evenly_spaced(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """A number of prompts at even distances in a set, with new seeds from 0."""
    chosen = [prompts[i * len(prompts) // count] for i in range(min(count, len(prompts)))]
    return tuple(replace(prompt, seed=seed) for seed, prompt in enumerate(chosen))


def _read_file(file: Path) -> dict[str, Any]:
    """The table of a file of the user; RequestError if its prompts do not have `{}` once each."""
    try:
        if file.suffix == ".txt":
            lines = read_text(file).splitlines()
            table: dict[str, Any] = {"prompts": [line.strip() for line in lines if line.strip()]}
        else:
            table = read_toml(file, "prompt set")
    except (FileError, RecipeError) as error:
        raise RequestError(
            f"the prompts {file} cannot be read: {error.message}",
            "give a text file with a prompt per line",
        ) from error
    prompts, template = table.get("prompts"), table.get("manner")
    if not isinstance(prompts, list) or not prompts:
        raise RequestError(f"{file} has no prompts", _PROMPT_HINT)
    places = [(prompt, 1 if template is None else 0) for prompt in prompts]
    for text, count in places if template is None else [*places, (template, 2)]:
        check_braces(str(text), RequestError)
        if (found := str(text).count("{}")) != count:
            raise RequestError(
                f"the prompt `{text}` has {{}} {found} times instead of {count}",
                _PROMPT_HINT,
            )
    return {**table, "prompts": [str(prompt) for prompt in prompts]}


def _read_set(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
