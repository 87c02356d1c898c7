"""Options that check themselves: frozen, no unknown names, errors that a user can act on.

An option is one field with a docstring. Its flag, its key in files, its check, its help and its
page in the reference all come from that field.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pinxit.errors import PinxitError, RecipeError, did_you_mean

_KEY = "pinxit"
_MAX_SHOWN = 200  # characters of an invalid value in a message
# Words of pydantic's messages, and what they are here.
_PLAIN = {
    "input should be": "it must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "a valid integer, unable to parse string as an integer": "a whole number",
    "a valid integer, got a number with a fractional part": "a whole number",
    "a valid number, unable to parse string as a number": "a number, such as 0.001",
}
# As a default: the value must be given, but the parser does not check it.
REQUIRED = "required"


@dataclass(frozen=True)
class OptionDetails:
    """Details of an option apart from its type, default and help.

    `aliases`: other names it is accepted under. `values`: other spellings of its values, and what
    they mean. `default_is`: what the default depends on, where it is not one fixed value.
    """

    aliases: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    default_is: str = ""


def Option(  # noqa: N802 (a field specifier, like pydantic's Field)
    default: Any = ...,
    *,
    help: str | None = None,
    aliases: Iterable[str] = (),
    values: Mapping[str, str] | None = None,
    default_is: str = "",
    **limits: float,
) -> Any:
    """A field of `Options`: its default (required without one), help, other names and limits.

    Without `help`, the docstring below the field is its help. `limits` are pydantic's `ge`, `gt`,
    `le`, `lt` and `max_length`.
    """
    details = OptionDetails(tuple(aliases), dict(values or {}), default_is)
    extra: Any = {_KEY: details}
    return Field(default, description=help, json_schema_extra=extra, **cast("Any", limits))


def option_details(option: FieldInfo) -> OptionDetails:
    """Aliases, other spellings of values and the kind of default of a field."""
    extra = option.json_schema_extra
    details = extra.get(_KEY) if isinstance(extra, dict) else None
    return details if isinstance(details, OptionDetails) else OptionDetails()


def default_text(option: FieldInfo) -> str:
    """What help shows as the default of an option."""
    if option.is_required():
        return REQUIRED
    value: object = option.get_default(call_default_factory=True)
    return option_details(option).default_is or ("none" if value in (None, "", ()) else str(value))


def limits_text(option: FieldInfo) -> str:
    """The range that a number must be in, in words."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [
        f"{words[name]} {getattr(limit, name)}"
        for limit in option.metadata
        for name in words
        if hasattr(limit, name)
    ]
    return f" ({', '.join(limits)})" if limits else ""


class Options(BaseModel):
    """A frozen table of options; whatever is wrong with the values is one PinxitError."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    error_type: ClassVar[type[PinxitError]] = RecipeError
    table_title: ClassVar[str] = ""

    def __new__(cls, *values: object, **_: Any) -> Self:  # noqa: D102
        if values:
            first = next(iter(cls.model_fields))
            raise cls.error_type(
                f"{cls.__name__} takes options by name only, and has {values[0]!r:.80} without one",
                f"write the names: {cls.__name__}({first}=..., ...)",
            )
        return super().__new__(cls)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Options:"]
        for name, option in cls.model_fields.items():
            option.description = " ".join((option.description or "").split())
            default = option_details(option).default_is or repr(option.default)
            shown = "" if option.is_required() else f" (default: {default})"
            text = f"{name}: {option.description}{shown}"
            lines.append(fill(text, 96, initial_indent="    ", subsequent_indent=" " * 8))
        cls.__doc__ = "\n".join(lines)
        # Without the types, which are long: they hide the names of the options in help.
        cls.__signature__ = inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if option.is_required() else option.default,
                )
                for name, option in cls.model_fields.items()
            ]
        )

    def __repr_args__(self) -> Iterable[tuple[str | None, object]]:
        """The options that differ from their defaults."""
        for name, option in type(self).model_fields.items():
            if (value := getattr(self, name)) != option.default:
                yield name, str(value) if isinstance(value, Path) else value

    @classmethod
    def title(cls) -> str:
        """What to call the table in a message."""
        return cls.table_title or f"the {cls.__name__.lower()}"

    @classmethod
    @cache
    def option_names(cls) -> Mapping[str, str]:
        """Every name that an option is accepted under, and the option's own name."""
        names = {name: name for name in cls.model_fields}
        for name, option in cls.model_fields.items():
            names |= {alias: name for alias in option_details(option).aliases}
        return names

    @classmethod
    def chosen(cls, values: Mapping[str, object]) -> dict[str, object]:
        """Those of the values that are options of this table, under the options' own names.

        Raises the table's error if one option is given under two names.
        """
        names, chosen = cls.option_names(), dict[str, object]()
        for key, value in values.items():
            name = names.get(key.replace("-", "_"))
            if name is None:
                continue
            if name in chosen:
                raise cls.error_type(
                    f"`{key}` is another name of `{name}`, and both are given", "give one of them"
                )
            spellings = option_details(cls.model_fields[name]).values
            chosen[name] = spellings.get(value, value) if isinstance(value, str) else value
        return chosen

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(values, Mapping):
            given = cast("Mapping[str, object]", values)
            unknown = {key: given[key] for key in given if not cls.chosen({key: given[key]})}
            values = {**unknown, **cls.chosen(given)}
            cls._check_texts(values)
        try:
            return handler(values)
        except ValidationError as error:
            # A misspelt key is reported before a missing one: it is probably the cause.
            first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
            raise cls.error_type(*cls._message(first)) from error

    @classmethod
    def _check_texts(cls, values: Mapping[str, object]) -> None:
        """Raise the table's error for texts that cannot be stored: with a NUL, or not UTF-8."""
        for name, value in values.items():
            text = str(value)
            if "\0" in text:
                raise cls.error_type(f"`{name}` of {cls.title()} contains a NUL", "remove it")
            if text.encode(errors="ignore").decode() != text:
                raise cls.error_type(
                    f"`{name}` of {cls.title()} is not valid UTF-8: {text[:_MAX_SHOWN]!a}",
                    "rename the file or folder",
                )

    @classmethod
    def _message(cls, first: ErrorDetails) -> tuple[str, str]:
        name = ".".join(map(str, first["loc"])) or cls.title()
        if first["type"] == "extra_forbidden":
            return f"{cls.title()} has no `{name}`", cls._unknown_name_hint(name)
        if first["type"] == "missing":
            return f"`{name}` is missing", _about(cls, name)
        value = repr(first["input"])
        value = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."
        message = first["msg"][0].lower() + first["msg"][1:]
        for words, plain in _PLAIN.items():
            message = message.replace(words, plain)
        return f"`{name}` cannot be {value}: {message}", _about(cls, name)

    @classmethod
    def _unknown_name_hint(cls, name: str) -> str:
        return did_you_mean(name, cls.model_fields, cls.option_names())


def _about(options: type[Options], name: str) -> str:
    option = options.model_fields.get(name.partition(".")[0])
    return f"{name} is: {option.description}" if option and option.description else "see --help"
