"""Options that check themselves: frozen, nothing unknown, and errors in the user's words."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pinxit.errors import PinxitError, RecipeError, did_you_mean


class Checked(BaseModel):
    """A frozen table of options; whatever is wrong with the values is one PinxitError."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    trouble: ClassVar[type[PinxitError]] = RecipeError

    @classmethod
    def title(cls) -> str:
        """What to call the table in a message."""
        return f"the {cls.__name__.lower()}"

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise cls.trouble(*cls._explained(error.errors()[0])) from error

    @classmethod
    def _explained(cls, first: ErrorDetails) -> tuple[str, str]:
        name = ".".join(map(str, first["loc"])) or cls.title()
        if first["type"] == "extra_forbidden":
            return f"{cls.title()} has no `{name}`", did_you_mean(name, cls.model_fields)
        if first["type"] == "missing":
            return f"{cls.title()} needs `{name}`", _about(cls, name)
        given: object = first["input"]
        message = first["msg"][0].lower() + first["msg"][1:]
        return f"`{name}` of {cls.title()} cannot be {given!r}: {message}", _about(cls, name)


def read_toml(path: Path, what: str) -> dict[str, object]:
    """The values of a TOML file, which a message calls `what`; RecipeError if it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"there is no {what} {path}", "give a TOML file; a run keeps its own as recipe.toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as trouble:
        raise RecipeError(
            f"{what} {path} cannot be read: {trouble}", "mend the file: it must be TOML"
        ) from trouble


def _about(options: type[Checked], name: str) -> str:
    fields: Mapping[str, object] = options.model_fields
    field = options.model_fields.get(name.partition(".")[0]) if fields else None
    return f"{name} is: {field.description}" if field and field.description else "see --help"
