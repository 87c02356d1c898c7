"""Command line flags made from options, so that an option is declared once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from inspect import Parameter as Argument
from inspect import Signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter, Token
from pydantic.fields import FieldInfo

from pinxit.cli import help_texts
from pinxit.errors import RequestError
from pinxit.options import REQUIRED, Options, default_text, limits_text, option_details

Values = Mapping[str, Any]
_GROUP = "Parameters"
# The help of a hidden flag begins with this, and the name that it stands for follows.
SAME_AS = "same as --"


def flags(
    options: type[Options], leave_out: frozenset[str] = frozenset(), group: str = _GROUP
) -> list[Argument]:
    """A flag for each option, and a hidden one for each of its aliases.

    A flag that is not typed has no value here: the option's own default applies.
    """
    fields = options.model_fields.items()
    return [
        argument
        for name, option in fields
        if name not in leave_out
        for argument in option_flags(name, option, group=group)
    ]


def command(signature: Iterable[Argument], run: Callable[[Values], None]) -> Callable[..., None]:
    """A function with that signature, which calls `run` with the values that were typed.

    Raises RequestError for a value that is given under two names.
    """
    call = Signature(sorted(signature, key=lambda argument: argument.kind))
    names = {argument.name: _original_name(argument) for argument in call.parameters.values()}

    def typed(*args: object, **kwargs: object) -> None:
        values: dict[str, object] = {}
        for name, value in call.bind(*args, **kwargs).arguments.items():
            if value is not None and names[name] in values:
                flag = f"--{flag_name(names[name])}"
                raise RequestError(f"{flag} is given twice", f"--{flag_name(name)} is the same")
            if value is not None:
                values[names[name]] = value
        run(values)

    # The parser reads both attributes.
    typed.__signature__ = call  # pyright: ignore[reportFunctionMemberAccess]
    typed.__annotations__ = {name: part.annotation for name, part in call.parameters.items()}
    return typed


def flag(
    name: str, kind: object, help: str, default: str = "", group: str = _GROUP, *, show: bool = True
) -> Argument:
    """A flag that has no value unless it is typed; `default` is only what help shows.

    A flag that is not shown is another name of one that is.
    """
    parameter = Parameter(
        name=(f"--{name}", f"-{name}") if len(name) == 1 else None,
        help=_with_required(help, default),
        show_default=_shown_default(default),
        group=group,
        negative_iterable="",
        converter=next((_CONVERTERS[k] for k in (kind, *get_args(kind)) if k in _CONVERTERS), None),
        show=show,
    )
    return Argument(
        name, Argument.KEYWORD_ONLY, default=None, annotation=Annotated[_or_none(kind), parameter]
    )


def aliased(argument: Argument, *aliases: str) -> list[Argument]:
    """An argument that is no option, and hidden flags for its other names."""
    kind = get_args(argument.annotation)[0]
    return [argument, *(_alias(alias, argument.name, kind) for alias in aliases)]


def flag_name(name: str) -> str:
    """An option's name as it is typed: with hyphens."""
    return name.replace("_", "-")


def positional(name: str, kind: object, help: str, default: str = "") -> Argument:
    """A positional argument; with `default`, which help shows, it may be left out."""
    if not default:
        parameter = Parameter(help=help)
        return Argument(name, Argument.POSITIONAL_OR_KEYWORD, annotation=Annotated[kind, parameter])
    parameter = Parameter(help=_with_required(help, default), show_default=_shown_default(default))
    return Argument(
        name,
        Argument.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[_or_none(kind), parameter],
    )


def positional_option(options: type[Options], name: str) -> list[Argument]:
    """An option as a positional argument, and hidden flags for its aliases."""
    option = options.model_fields[name]
    kind = option.annotation
    hidden = [_alias(alias, name, kind) for alias in option_details(option).aliases]
    # The parser does not require it, since an alias may be typed instead; the options do.
    return [positional(name, kind, option.description or "", default_text(option)), *hidden]


def positionals(name: str, kind: object, help: str) -> Argument:
    """Positional arguments, any number of them."""
    return Argument(name, Argument.VAR_POSITIONAL, annotation=Annotated[kind, Parameter(help=help)])


def option_flags(
    name: str, option: FieldInfo, note: str = "", default: str = "", group: str = _GROUP
) -> list[Argument]:
    """The flag of an option and hidden ones for its aliases; `note` and `default` are for help."""
    details = option_details(option)
    help = (option.description or "") + limits_text(option) + note
    kind = option.annotation
    # A required flag is not marked as required where another name of it may be typed instead;
    # the options themselves check that it was given.
    if option.is_required() and not details.aliases:
        parameter = Parameter(help=help, group=group)
        return [Argument(name, Argument.KEYWORD_ONLY, annotation=Annotated[kind, parameter])]
    if details.values:  # only the option knows the other spellings of its values
        help, kind = help + _choices(kind), str
    hidden = [_alias(alias, name, kind) for alias in details.aliases]
    return [flag(name, kind, help, default or default_text(option), group), *hidden]


def _alias(alias: str, name: str, kind: object) -> Argument:
    return flag(alias, kind, f"{SAME_AS}{flag_name(name)}", show=False)


def _original_name(argument: Argument) -> str:
    """The name of the argument that a hidden flag is another name of, or its own name."""
    parameter = get_args(argument.annotation)[1]
    same = parameter.help.removeprefix(SAME_AS).replace("-", "_")
    return same if parameter.show is False else argument.name


def _choices(kind: Any) -> str:
    """The values of a `Literal`, or of one that may be None, as a part of the help."""
    kinds = [kind, *get_args(kind)]
    values = [value for one in kinds if get_origin(one) is Literal for value in get_args(one)]
    return f" (one of: {', '.join(values)})" if values else ""


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    """The number in a text such as 100 or 1e3; the parser itself would round 1.5 to 2."""
    text = tokens[0].value
    with suppress(ValueError):
        return int(text, 0)
    with suppress(ValueError):
        if (number := float(text)).is_integer():
            return int(number)
    raise ValueError(f"`{text:.40}` is not a whole number")


def _number(_: object, tokens: Sequence[Token]) -> float:
    """The number in a text."""
    with suppress(ValueError):
        return float(tokens[0].value)
    raise ValueError(f"`{tokens[0].value:.40}` is not a number, such as 0.001")


_CONVERTERS: dict[object, Callable[[object, Sequence[Token]], float]] = {
    int: _whole_number,
    float: _number,
}


def _shown_default(default: str) -> bool | Callable[[object], str]:
    return (lambda _: default) if default not in ("", REQUIRED) else False


def _with_required(help: str, default: str) -> str:
    return f"{help} [required]" if default == REQUIRED else help


def _or_none(kind: Any) -> Any:
    optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
    return kind if optional else kind | None


DEVICE = flag("device", str, help_texts.DEVICE, help_texts.DEVICE_DEFAULT)
DOWNLOAD = flag("download", bool, help_texts.DOWNLOAD, "False")
GPUS = flag("gpus", int, help_texts.GPUS, "1")
SHARD_WEIGHTS = flag("shard_weights", bool, help_texts.SHARD, "False")
COMPILE = flag("compile", bool, help_texts.COMPILE, "False")
CUDA_GRAPHS = flag(
    "cuda_graphs", bool, "compile the whole denoiser and replay it as CUDA graphs", "False"
)
