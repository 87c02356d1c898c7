"""The pickle language read as data: names stay text, and nothing is imported or called.

Only the instructions that containers, numbers, text and tensors need are known here.
"""

import struct
from collections.abc import Callable, Container, Mapping, Sized
from mmap import mmap

INSTRUCTIONS = 1_000_000
PICKLE_BYTES = 16 * 2**20
UNFOLDED = 1_000_000  # items, where a container that is used twice counts twice
DEPTH = 64  # of containers in containers
_SHOWN = 200  # letters of a name

# Names beside those of our tables: classes whose states Lightning keeps.
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")
_LITTLE = (("<",), ("|",))

Form = Callable[[tuple[object, ...]], object]


class RefusedError(Exception):
    """Why a file is not read, in a few words."""


class Name(str):
    """What a file calls a class or a function: text to look up in our tables, and never more."""

    __slots__ = ()


class Unfinished:
    """What one of our own functions makes for another of them, and a file may not leave behind."""


class Reading:
    """One pickle of a file, from `at` to `end` at most, and the values on its stack.

    `forms` says what our own code makes of a known name and its arguments, `stored` what it makes
    of a storage's description; `names` are others that may be mentioned.
    """

    def __init__(
        self,
        data: mmap,
        at: int,
        end: int,
        forms: Mapping[str, Form] | None = None,
        stored: Form | None = None,
        names: Container[str] = (),
    ) -> None:
        self.data, self.start, self.at = data, at, at
        self.end = min(end, at + PICKLE_BYTES)
        self.forms, self.stored, self.names = forms or {}, stored, names
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.spent = 0

    def value(self) -> object:
        """What the pickle describes; afterwards `at` is where it ended. RefusedError says where."""
        try:
            for _ in range(INSTRUCTIONS):
                code = self.take(1)
                if code == b".":
                    return _bounded(self.pop())
                if code not in _STEPS:
                    raise RefusedError(f"no weights need the pickle instruction {code!r}")
                _STEPS[code](self)
            raise RefusedError(f"it has more than {INSTRUCTIONS:,} pickle instructions")
        except RefusedError as trouble:
            raise RefusedError(f"{trouble} (byte {self.at - self.start} of its pickle)") from None

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self.data[self.at : min(self.end, self.at + count)]
        if len(found) < count:
            raise RefusedError(f"it breaks off, or has a pickle over {PICKLE_BYTES:,} bytes")
        self.at += count
        return found

    def number(self, packed: str) -> int:
        """The next number, packed in that form."""
        return struct.unpack(packed, self.take(struct.calcsize(packed)))[0]

    def text(self, count: int) -> str:
        """The next bytes as text."""
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise RefusedError("it has text that is no UTF-8") from None

    def line(self) -> str:
        """The next text up to a line's end."""
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + _SHOWN))
        if stop < 0:
            raise RefusedError("it has a name without an end")
        return self.text(stop + 1 - self.at)[:-1]

    def push(self, value: object) -> None:
        """One more value on the stack."""
        self.stack.append(value)

    def last(self, count: int) -> list[object]:
        """The last values, no longer on the stack."""
        low = len(self.stack) - count
        if low < (self.marks[-1] if self.marks else 0):
            raise RefusedError("it takes values where there are none")
        found = self.stack[low:]
        del self.stack[low:]
        return found

    def marked(self) -> list[object]:
        """The values since the last mark, no longer on the stack."""
        if not self.marks:
            raise RefusedError("it takes values where there are none")
        return self.last(len(self.stack) - self.marks.pop())

    def pop(self) -> object:
        """The last value, no longer on the stack."""
        return self.last(1)[0]

    def top(self) -> object:
        """The last value, left where it is."""
        self.push(value := self.pop())
        return value

    def spend(self, items: int) -> None:
        """Count what our code copies, so that a short file cannot have it copy without end."""
        self.spent += items
        if self.spent > UNFOLDED:
            raise RefusedError(f"it has over {UNFOLDED:,} items copied")


def _keep(reading: Reading, index: int) -> None:
    reading.memo[index] = reading.top()


def _recall(reading: Reading, index: int) -> None:
    if index not in reading.memo:
        raise RefusedError(f"it recalls value {index}, which it never kept")
    reading.push(reading.memo[index])


def _extend(reading: Reading, values: list[object]) -> None:
    target = reading.top()
    if type(target) is not list:
        raise RefusedError(f"it appends to {_shown(target)}")
    target += values


def _set_items(reading: Reading, values: list[object]) -> None:
    target = reading.top()
    if type(target) is not dict or len(values) % 2:
        raise RefusedError(f"it sets {len(values)} keys and values in {_shown(target)}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Integers of more than 63 bits could all have one hash, and then a dictionary crawls.
        if type(key) not in (str, Name) and not (type(key) is int and key.bit_length() < 64):
            raise RefusedError(f"it has {_shown(key)} as a key")
        target[key] = value


def _name(reading: Reading, module: object, name: object) -> None:
    """A name, if it is one that files of weights have."""
    if type(module) is not str or type(name) is not str:
        raise RefusedError("it makes a name of something that is no text")
    full = Name(f"{module}.{name}")
    if full not in reading.forms and full not in reading.names and not full.startswith(_LIGHTNING):
        raise RefusedError(f"it names {_shown(full)}, which no weights need")
    reading.push(full)


def _form(reading: Reading) -> None:
    """What stands for a call: our own code for that name, if there is any."""
    name, given = reading.last(2)
    if type(name) is not Name or name not in reading.forms or type(given) is not tuple:
        raise RefusedError(f"it would call {_shown(name)} with {_shown(given)}")
    reading.spend(sum(len(item) for item in given if isinstance(item, Sized)))
    reading.push(reading.forms[name](given))


def _state(reading: Reading) -> None:
    """What stands for setting an object's attributes: a module's parameters, or nothing."""
    state, target = reading.pop(), reading.top()
    if type(target) is dict and type(state) is dict:
        if type(parameters := state.get("_parameters")) is dict:
            reading.spend(len(parameters))
            target |= parameters
    # NumPy's description of a type has its byte order there; it is little in all real files.
    elif type(target) is not Name or type(state) is not tuple or state[1:2] not in _LITTLE:
        raise RefusedError(f"it would set the attributes of {_shown(target)}")


def _storage(reading: Reading) -> None:
    described = reading.pop()
    if type(described) is not tuple or reading.stored is None:
        raise RefusedError(f"it has {_shown(described)} where a storage is described")
    reading.push(reading.stored(described))


def _shown(value: object) -> str:
    """A value for a message, with nothing in it that a terminal would obey."""
    return repr(str(value[:_SHOWN])) if isinstance(value, str) else f"a {type(value).__name__}"


def _bounded(root: object) -> object:
    """The value, if it is neither too deep nor too large when it is walked through."""
    waiting, seen = [(root, 0)], 1
    while waiting:
        value, depth = waiting.pop()
        inside = list(value.values()) if type(value) is dict else value
        if not isinstance(inside, list | tuple):
            if isinstance(inside, Unfinished):
                raise RefusedError("it has a part of a tensor where a value should be")
            continue
        seen += len(inside)
        if seen > UNFOLDED or depth > DEPTH:
            raise RefusedError(f"it has over {UNFOLDED:,} items, or over {DEPTH} in one another")
        waiting.extend((item, depth + 1) for item in inside)
    return root


_STEPS: dict[bytes, Callable[[Reading], object]] = {
    b"\x80": lambda reading: reading.take(1),  # protocol
    b"\x95": lambda reading: reading.take(8),  # frame
    b"N": lambda reading: reading.push(None),
    b"\x88": lambda reading: reading.push(True),
    b"\x89": lambda reading: reading.push(False),
    b"J": lambda reading: reading.push(reading.number("<i")),
    b"K": lambda reading: reading.push(reading.number("<B")),
    b"M": lambda reading: reading.push(reading.number("<H")),
    b"G": lambda reading: reading.push(reading.number(">d")),
    b"\x8a": lambda reading: reading.push(
        int.from_bytes(reading.take(reading.number("<B")), "little", signed=True)
    ),
    b"X": lambda reading: reading.push(reading.text(reading.number("<I"))),
    b"\x8c": lambda reading: reading.push(reading.text(reading.number("<B"))),
    b"\x8d": lambda reading: reading.push(reading.text(reading.number("<Q"))),
    b"B": lambda reading: reading.push(reading.take(reading.number("<I"))),
    b"C": lambda reading: reading.push(reading.take(reading.number("<B"))),
    b"\x8e": lambda reading: reading.push(reading.take(reading.number("<Q"))),
    b"(": lambda reading: reading.marks.append(len(reading.stack)),
    b")": lambda reading: reading.push(()),
    b"\x85": lambda reading: reading.push(tuple(reading.last(1))),
    b"\x86": lambda reading: reading.push(tuple(reading.last(2))),
    b"\x87": lambda reading: reading.push(tuple(reading.last(3))),
    b"t": lambda reading: reading.push(tuple(reading.marked())),
    b"]": lambda reading: reading.push([]),
    b"a": lambda reading: _extend(reading, reading.last(1)),
    b"e": lambda reading: _extend(reading, reading.marked()),
    b"}": lambda reading: reading.push({}),
    b"s": lambda reading: _set_items(reading, reading.last(2)),
    b"u": lambda reading: _set_items(reading, reading.marked()),
    b"\x8f": lambda reading: reading.push([]),  # a set, which is a list here
    b"\x90": lambda reading: _extend(reading, reading.marked()),
    b"\x91": lambda reading: reading.push(tuple(reading.marked())),  # a frozen set
    b"q": lambda reading: _keep(reading, reading.number("<B")),
    b"r": lambda reading: _keep(reading, reading.number("<I")),
    b"\x94": lambda reading: _keep(reading, len(reading.memo)),
    b"h": lambda reading: _recall(reading, reading.number("<B")),
    b"j": lambda reading: _recall(reading, reading.number("<I")),
    b"c": lambda reading: _name(reading, reading.line(), reading.line()),
    b"\x93": lambda reading: _name(reading, *reading.last(2)),
    b"R": _form,
    b"\x81": _form,
    b"b": _state,
    b"Q": _storage,
}
