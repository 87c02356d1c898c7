"""Read a pickle as data: names stay text, and nothing is imported or called.

Only the instructions that containers, numbers, text and tensors need are supported.
"""

import struct
from collections.abc import Callable, Container, Mapping, Sized
from mmap import mmap

MAX_INSTRUCTIONS = 1_000_000
MAX_PICKLE_BYTES = 16 * 2**20
MAX_ITEMS = 1_000_000  # a container that is referenced twice counts twice
MAX_DEPTH = 64  # nested containers
_MAX_NAME = 200  # characters

# Also allowed: names of the classes whose state Lightning stores in a checkpoint.
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")
_BYTE_ORDERS = (("<",), ("|",))

Builder = Callable[[tuple[object, ...]], object]


class RefusedError(Exception):
    """The file is not read; the message says why, as a sentence about the file ("it has ...")."""


class GlobalName(str):
    """The name of a class or function in a file: text to look up in our tables, nothing else."""

    __slots__ = ()


class Intermediate:
    """A value that one builder makes for another, and that must not be part of the result."""


class PickleMachine:
    """Interprets one pickle of a file, which begins at `position` and ends before `end`.

    `builders` maps each callable name to our own function, which gets the arguments of the call;
    `build_storage` gets the description of a storage; `names` may be mentioned, but not called.
    """

    def __init__(
        self,
        data: mmap,
        position: int,
        end: int,
        builders: Mapping[str, Builder] | None = None,
        build_storage: Builder | None = None,
        names: Container[str] = (),
    ) -> None:
        self.data, self.start, self.position = data, position, position
        self.end = min(end, position + MAX_PICKLE_BYTES)
        self.builders, self.build_storage, self.names = builders or {}, build_storage, names
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.copied = 0

    def load(self) -> object:
        """Run the pickle and return its value; `position` is then the byte after it.

        Raises RefusedError, with the position of the byte.
        """
        try:
            for _ in range(MAX_INSTRUCTIONS):
                opcode = self.read_bytes(1)
                if opcode == b".":
                    return _check_limits(self.pop())
                if opcode not in _INSTRUCTIONS:
                    raise RefusedError(
                        f"it has the pickle instruction {opcode!r}, which no weights need"
                    )
                _INSTRUCTIONS[opcode](self)
            raise RefusedError(f"it has more than {MAX_INSTRUCTIONS:,} pickle instructions")
        except RefusedError as error:
            raise RefusedError(
                f"{error} (byte {self.position - self.start} of its pickle)"
            ) from None

    def read_bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        chunk = self.data[self.position : min(self.end, self.position + count)]
        if len(chunk) < count:
            raise RefusedError(f"it is cut off, or has a pickle of over {MAX_PICKLE_BYTES:,} bytes")
        self.position += count
        return chunk

    def read_number(self, layout: str) -> int:
        """The next number, in a format of the `struct` module."""
        return struct.unpack(layout, self.read_bytes(struct.calcsize(layout)))[0]

    def read_text(self, count: int) -> str:
        """The next `count` bytes as UTF-8 text."""
        try:
            return self.read_bytes(count).decode()
        except UnicodeDecodeError:
            raise RefusedError("it has text that is not UTF-8") from None

    def read_line(self) -> str:
        """The text up to the next line end."""
        end = self.data.find(b"\n", self.position, min(self.end, self.position + _MAX_NAME))
        if end < 0:
            raise RefusedError("it has a name that does not end")
        return self.read_text(end + 1 - self.position)[:-1]

    def push(self, value: object) -> None:
        """Push a value onto the stack."""
        self.stack.append(value)

    def pop_many(self, count: int) -> list[object]:
        """Pop the last `count` values, in the order they were pushed."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise RefusedError("it takes values from an empty stack")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_to_mark(self) -> list[object]:
        """Pop all values that were pushed after the last mark."""
        if not self.marks:
            raise RefusedError("it takes values from an empty stack")
        return self.pop_many(len(self.stack) - self.marks.pop())

    def pop(self) -> object:
        """Pop the last value."""
        return self.pop_many(1)[0]

    def top(self) -> object:
        """The last value, which stays on the stack."""
        self.push(value := self.pop())
        return value

    def count_copies(self, items: int) -> None:
        """Count copied items, so that a short file cannot make us copy without limit."""
        self.copied += items
        if self.copied > MAX_ITEMS:
            raise RefusedError(f"it makes over {MAX_ITEMS:,} copies of items")


def _memoize(machine: PickleMachine, index: int) -> None:
    machine.memo[index] = machine.top()


def _recall(machine: PickleMachine, index: int) -> None:
    if index not in machine.memo:
        raise RefusedError(f"it uses memo entry {index}, which it never stored")
    machine.push(machine.memo[index])


def _extend(machine: PickleMachine, values: list[object]) -> None:
    target = machine.top()
    if type(target) is not list:
        raise RefusedError(f"it appends to {_quoted(target)}")
    target += values


def _set_items(machine: PickleMachine, values: list[object]) -> None:
    target = machine.top()
    if type(target) is not dict or len(values) % 2:
        raise RefusedError(f"it sets {len(values)} keys and values in {_quoted(target)}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Integers of more than 63 bits could all have one hash, and then a dictionary crawls.
        if type(key) not in (str, GlobalName) and not (type(key) is int and key.bit_length() < 64):
            raise RefusedError(f"it has {_quoted(key)} as a key")
        target[key] = value


def _push_name(machine: PickleMachine, module: object, name: object) -> None:
    """Push a global name, if it is one that files of weights have."""
    if type(module) is not str or type(name) is not str:
        raise RefusedError("it makes a name from a value that is not text")
    full_name = GlobalName(f"{module}.{name}")
    if (
        full_name not in machine.builders
        and full_name not in machine.names
        and not full_name.startswith(_LIGHTNING)
    ):
        raise RefusedError(f"it names {_quoted(full_name)}, which no weights need")
    machine.push(full_name)


def _build(machine: PickleMachine) -> None:
    """Replace a call in the file by our own builder of that name; without one, refuse."""
    name, arguments = machine.pop_many(2)
    if type(name) is not GlobalName or name not in machine.builders or type(arguments) is not tuple:
        raise RefusedError(f"it would call {_quoted(name)} with {_quoted(arguments)}")
    machine.count_copies(sum(len(item) for item in arguments if isinstance(item, Sized)))
    machine.push(machine.builders[name](arguments))


def _set_state(machine: PickleMachine) -> None:
    """Replace setting attributes: a module's parameters are merged, a NumPy type ignores it."""
    state, target = machine.pop(), machine.top()
    if type(target) is dict and type(state) is dict:
        if type(parameters := state.get("_parameters")) is dict:
            machine.count_copies(len(parameters))
            target |= parameters
    # The state of a NumPy dtype contains its byte order, little-endian in all real files.
    elif (
        type(target) is not GlobalName or type(state) is not tuple or state[1:2] not in _BYTE_ORDERS
    ):
        raise RefusedError(f"it would set the attributes of {_quoted(target)}")


def _push_storage(machine: PickleMachine) -> None:
    description = machine.pop()
    if type(description) is not tuple or machine.build_storage is None:
        raise RefusedError(f"it has {_quoted(description)} in place of a description of a storage")
    machine.push(machine.build_storage(description))


def _quoted(value: object) -> str:
    """A value for a message, without control characters that a terminal would interpret."""
    return repr(str(value[:_MAX_NAME])) if isinstance(value, str) else f"a {type(value).__name__}"


def _check_limits(root: object) -> object:
    """Return the value; RefusedError if it is nested too deeply or has too many items."""
    pending, count = [(root, 0)], 1
    while pending:
        value, depth = pending.pop()
        items = list(value.values()) if type(value) is dict else value
        if not isinstance(items, list | tuple):
            if isinstance(items, Intermediate):
                raise RefusedError("it has a part of a tensor in place of a value")
            continue
        count += len(items)
        if count > MAX_ITEMS or depth > MAX_DEPTH:
            raise RefusedError(
                f"it has over {MAX_ITEMS:,} items, or over {MAX_DEPTH} nested levels"
            )
        pending.extend((item, depth + 1) for item in items)
    return root


_INSTRUCTIONS: dict[bytes, Callable[[PickleMachine], object]] = {
    b"\x80": lambda machine: machine.read_bytes(1),  # protocol
    b"\x95": lambda machine: machine.read_bytes(8),  # frame
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"J": lambda machine: machine.push(machine.read_number("<i")),
    b"K": lambda machine: machine.push(machine.read_number("<B")),
    b"M": lambda machine: machine.push(machine.read_number("<H")),
    b"G": lambda machine: machine.push(machine.read_number(">d")),
    b"\x8a": lambda machine: machine.push(
        int.from_bytes(machine.read_bytes(machine.read_number("<B")), "little", signed=True)
    ),
    b"X": lambda machine: machine.push(machine.read_text(machine.read_number("<I"))),
    b"\x8c": lambda machine: machine.push(machine.read_text(machine.read_number("<B"))),
    b"\x8d": lambda machine: machine.push(machine.read_text(machine.read_number("<Q"))),
    b"B": lambda machine: machine.push(machine.read_bytes(machine.read_number("<I"))),
    b"C": lambda machine: machine.push(machine.read_bytes(machine.read_number("<B"))),
    b"\x8e": lambda machine: machine.push(machine.read_bytes(machine.read_number("<Q"))),
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b")": lambda machine: machine.push(()),
    b"\x85": lambda machine: machine.push(tuple(machine.pop_many(1))),
    b"\x86": lambda machine: machine.push(tuple(machine.pop_many(2))),
    b"\x87": lambda machine: machine.push(tuple(machine.pop_many(3))),
    b"t": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    b"]": lambda machine: machine.push([]),
    b"a": lambda machine: _extend(machine, machine.pop_many(1)),
    b"e": lambda machine: _extend(machine, machine.pop_to_mark()),
    b"}": lambda machine: machine.push({}),
    b"s": lambda machine: _set_items(machine, machine.pop_many(2)),
    b"u": lambda machine: _set_items(machine, machine.pop_to_mark()),
    b"\x8f": lambda machine: machine.push([]),  # a set, read as a list
    b"\x90": lambda machine: _extend(machine, machine.pop_to_mark()),
    # A frozen set, read as a tuple.
    b"\x91": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    b"q": lambda machine: _memoize(machine, machine.read_number("<B")),
    b"r": lambda machine: _memoize(machine, machine.read_number("<I")),
    b"\x94": lambda machine: _memoize(machine, len(machine.memo)),
    b"h": lambda machine: _recall(machine, machine.read_number("<B")),
    b"j": lambda machine: _recall(machine, machine.read_number("<I")),
    b"c": lambda machine: _push_name(machine, machine.read_line(), machine.read_line()),
    b"\x93": lambda machine: _push_name(machine, *machine.pop_many(2)),
    b"R": _build,
    b"\x81": _build,
    b"b": _set_state,
    b"Q": _push_storage,
}
