"""Sets of prompts that learned words are judged by, each in a file of its own."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinxit.errors import RequestError, did_you_mean

_FOLDER = Path(__file__).parent / "prompts"
_LIVING = "living"


@dataclass(frozen=True)
class Prompt:
    """Something to paint: `template` has `{}` for the word, `plain` does without the word.

    `meant` is what the picture should show, in words that those who judge it know.
    """

    template: str
    plain: str
    meant: str
    seed: int = 0

    def saying(self, word: str) -> str:
        """What the model is told, with the word."""
        return self.template.format(word)


def set_names() -> list[str]:
    """The names of all sets."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def suited(noun: str, *, style: bool, pocket: bool) -> str:
    """The set for a style, or for a thing of that class noun; pocket's world has its own."""
    if pocket:
        return "pocket-styles" if style else "pocket-objects"
    if style:
        return "styles"
    return (
        _LIVING if noun.split()[-1:] and noun.split()[-1] in _read(_LIVING)["nouns"] else "objects"
    )


def prompt_set(name: str, noun: str) -> tuple[Prompt, ...]:
    """The prompts of a set, for a word of that class noun; seeds are their numbers.

    A set of things to be painted in a style says how the style is named, and its plain prompts
    name none. RequestError if there is no such set.
    """
    if name not in set_names():
        raise RequestError(f"there is no set of prompts `{name}`", did_you_mean(name, set_names()))
    held = _read(name)
    manner: str | None = held.get("manner")
    prompts: list[Prompt] = []
    for seed, text in enumerate(held["prompts"]):
        plain = text if manner else text.format(noun)
        prompts.append(Prompt(manner.format(text, "{}") if manner else text, plain, plain, seed))
    return tuple(prompts)


def brief(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """So many of a set, evenly taken, with seeds of their own."""
    chosen = [prompts[at * len(prompts) // count] for at in range(min(count, len(prompts)))]
    return tuple(replace(prompt, seed=seed) for seed, prompt in enumerate(chosen))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
