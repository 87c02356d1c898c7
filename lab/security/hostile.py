"""Read files that try to run code, to access memory outside the file or to hang the reader.

They are made here: every callable of the modules that exploits use, with every instruction that
calls or imports, in every layout; published bypasses of scanners and of `weights_only`; files with
wrong sizes, counts and offsets. `python -m lab.security.hostile [--every N]` prints figures.
"""

import argparse
import importlib
import io
import json
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab.security.watch import FOLDER, Watch
from pinxit.files.pickle.torch_file import read_torch_file

MODULES = """
    _aix_support _codecs _io _operator _osx_support _pickle _posixsubprocess _socket _thread
    asyncio asyncio.unix_events bdb builtins bz2 cProfile code codecs codeop concurrent.futures
    copyreg ctypes ctypes.util dbm difflib distutils.file_util distutils.spawn doctest ensurepip
    fileinput ftplib functools gc getpass glob gzip http.client http.server idlelib.autocomplete
    idlelib.calltip idlelib.debugobj idlelib.pyshell idlelib.run imaplib imp importlib
    importlib.machinery importlib.util inspect io itertools lib2to3.pgen2.grammar
    lib2to3.pgen2.pgen linecache logging logging.config lzma marshal mmap modulefinder
    multiprocessing multiprocessing.util nntplib nt ntpath numpy numpy.f2py.crackfortran
    numpy.testing numpy.testing._private.utils operator os os.path pathlib pdb pickle pip
    pip._internal pipes pkgutil platform poplib posix posixpath profile pty pydoc readline reprlib
    runpy select shelve shutil signal site smtplib socket socketserver sqlite3 ssl string
    subprocess sys sysconfig tarfile telnetlib tempfile test.support.script_helper threading
    timeit torch torch._C torch._utils torch.hub torch.jit torch.package torch.serialization
    torch.storage torch.utils.collect_env torch.utils.cpp_extension trace tracemalloc types
    typing unittest.mock urllib.request uuid venv weakref webbrowser xmlrpc.client zipfile
    zipimport
"""

# Names in published exploits that may not exist here, because of the system or the version.
PUBLISHED = """
    nt.system posix.system __builtin__.eval __builtin__.apply builtins.exec builtins.getattr
    commands.getoutput torch.utils.bottleneck.__main__.run_cprofile
    torch.utils.bottleneck.__main__.run_autograd_prof torch._dynamo.guards.GuardBuilder.get
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.utils.data.datapipes.utils.decoder.basichandlers torch._inductor.codecache.compile_file
    torch.jit.unsupported_tensor_ops.execWrapper torch.utils._config_module.ConfigModule.load_config
    trace.Trace.run trace.Trace.runctx profile.Profile.run profile.Profile.runctx cProfile.runctx
    lib2to3.pgen2.grammar.Grammar.loads idlelib.debugobj.ObjectTreeItem.SetText
    idlelib.autocomplete.AutoComplete.get_entity idlelib.autocomplete.AutoComplete.fetch_completions
    idlelib.calltip.Calltip.fetch_tip idlelib.calltip.get_entity idlelib.run.Executive.runcode
    idlelib.pyshell.ModifiedInterpreter.runcode idlelib.pyshell.ModifiedInterpreter.runcommand
    code.InteractiveInterpreter.runcode ensurepip._run_pip
    lib2to3.pgen2.pgen.ParserGenerator.make_label
    doctest.debug_script asyncio.unix_events._UnixSubprocessTransport._start ctypes.CDLL
    distutils.file_util.write_file pydoc.locate pydoc.pipepager pty.spawn pip.main
    numpy.f2py.crackfortran.getlincoef numpy.testing._private.utils.runstring _operator.attrgetter
    _operator.methodcaller operator.itemgetter functools.partial pkgutil.resolve_name
    importlib.import_module types.CodeType types.FunctionType
    cloudpickle.cloudpickle._make_function dill._dill._create_code
    cloudpickle.cloudpickle._function_setstate cloudpickle.cloudpickle.subimport
    uuid._get_command_stdout _osx_support._read_output _aix_support._read_cmd_output
    imaplib.IMAP4_stream _pyrepl.pager.pipe_pager test.support.script_helper.assert_python_ok
    logging.FileHandler _io.FileIO urllib.request.urlopen ssl.get_server_certificate bdb.Bdb.run
    pdb.run timeit.timeit marshal.loads aiohttp.request requests.api.get httplib.HTTPSConnection
    linecache.getlines difflib.context_diff gc.get_objects platform.popen _frozen_importlib._load
    _imp.create_dynamic venv.create pipes.Template imp.load_source smtplib.SMTP telnetlib.Telnet
    torch.load torch.serialization.load torch.storage._load_from_bytes torch.jit.load
    torch.package.PackageImporter numpy.load joblib.load pandas.read_pickle transformers.pipeline
    omegaconf.OmegaConf.load hydra.utils.instantiate sklearn.utils.validation.warn
"""

ARGUMENT = "pinxit-canary"  # harmless to every callable that would be called with it
LONGEST = 2**63


def text(value: str) -> bytes:
    """The instruction for a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    """The instruction for an integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(module: str, name: str) -> bytes:
    """The instruction for a global name."""
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """The instructions for a call."""
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """The instructions for a storage."""
    return (
        b"("
        + text("storage")
        + named("torch", kind)
        + text(key)
        + text("cpu")
        + whole(count)
        + b"tQ"
    )


def int_tuple(*values: int) -> bytes:
    """The instructions for a tuple of integers."""
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    offset: int = 0, size: bytes = int_tuple(4), stride: bytes = int_tuple(1), **of: Any
) -> bytes:
    """The instructions for a tensor."""
    hooks = called("collections", "OrderedDict")
    base = storage(**of)
    arguments = (base, whole(offset), size, stride, b"\x89", hooks)
    return called("torch._utils", "_rebuild_tensor_v2", *arguments)


def member(name: str, data: bytes, position: int, **lies: Any) -> tuple[bytes, bytes]:
    """A member of a zip archive, and its directory entry; `lies` overrides fields."""
    raw, size = name.encode(), lies.get("size", len(data))
    fields = (20, lies.get("flags", 0), lies.get("method", 0), 0, 0)
    sizes = (lies.get("crc", zlib.crc32(data)), lies.get("packed", size), size, len(raw))
    local_name = lies.get("own_name", raw)
    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", *fields, *sizes[:3], len(raw), 0) + local_name + data
    )
    rest = (0, 0, 0, 0, 0, lies.get("offset", position))
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *fields, *sizes, *rest) + raw
    return local, entry


def zipped(members: list[tuple[str, bytes, dict[str, Any]]], **lies: Any) -> bytes:
    """A zip archive as torch writes it; `lies` overrides fields."""
    body, directory = b"", b""
    for name, data, member_lies in members:
        local, entry = member(name, data, len(body), **member_lies)
        body, directory = body + local, directory + entry
    count = lies.get("count", len(members))
    length, start = lies.get("length", len(directory)), lies.get("at", len(body))
    end = struct.pack(
        "<4sHHHHIIH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, length, start, 0
    )
    return body + directory + end


def in_zip(pickle: bytes, data: bytes = bytes(16), **lies: Any) -> bytes:
    """A pickle in torch's zip layout, with one storage."""
    return zipped([("a/data.pkl", pickle, lies), ("a/data/0", data, {})])


MAGIC = b"\x80\x02" + whole(0x1950A86A20F9469CFC6C) + b"."
PROTOCOL = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}" + text("little_endian") + b"\x88s."
KEYS = b"\x80\x02]" + text("0") + b"a."


def in_legacy(pickle: bytes, data: bytes = bytes(16)) -> bytes:
    """A pickle in torch's layout before 1.6, with one storage."""
    return MAGIC + PROTOCOL + SYSTEM + pickle + KEYS + struct.pack("<q", len(data) // 4) + data


def as_magic(pickle: bytes) -> bytes:
    """A pickle in place of the magic number (bypasses a scanner)."""
    return pickle + PROTOCOL + SYSTEM + KEYS


def as_system(pickle: bytes) -> bytes:
    """A pickle in place of the description of the system."""
    return MAGIC + PROTOCOL + pickle + KEYS


def as_keys(pickle: bytes) -> bytes:
    """A pickle in place of the list of storage keys."""
    return MAGIC + PROTOCOL + SYSTEM + b"\x80\x02}." + pickle


LAYOUTS: tuple[Callable[[bytes], bytes], ...] = (in_zip, in_legacy, as_magic, as_system, as_keys)


def routes(module: str, name: str) -> Iterator[bytes]:
    """Pickle code that uses a name by each instruction that imports or calls."""
    argument, name_ = text(ARGUMENT), named(module, name)
    memoized = b"\x8c" + bytes([len(module) & 255]) + module.encode()[:255] + b"\x94"
    lines = f"{module}\n{name}\n".encode()
    yield name_ + b"(" + argument + b"tR"
    yield text(module) + text(name) + b"\x93(" + argument + b"tR"
    yield memoized + b"0" + text(name) + b"\x94" + b"h\x00h\x01\x93(" + argument + b"tR"
    yield b"(" + argument + b"i" + lines
    yield b"(" + name_ + argument + b"o"
    yield name_ + b"(" + argument + b"t\x81"
    yield name_ + b"(" + argument + b"t}\x92"
    yield name_ + b")\x81}" + text("__setstate__") + argument + b"sb"
    yield b"}" + name_ + argument + b"s"
    yield b"(" + text("storage") + name_ + text("0") + text("cpu") + b"K\x04tQ"
    yield b"(" + text("module") + name_ + argument + argument + b"tQ" + b")\x81"
    yield called("torch._utils", "_rebuild_parameter", name_, b"\x89", b"}")
    yield called("torch.serialization", "_get_layout", name_)
    yield called("collections", "OrderedDict") + b"}" + text("__reduce__") + name_ + b"sb"
    yield text("torch") + text(f"_utils._rebuild_tensor_v2.__globals__.{name}") + b"\x93" + b")R"


def callables() -> Iterator[tuple[str, str]]:
    """Every callable of the modules that exploits use, including methods."""
    for module in MODULES.split():
        try:
            items = vars(importlib.import_module(module))
        except (Exception, SystemExit):
            items = {}
        for name, value in sorted(items.items()):
            if not callable(value) or "\n" in name:
                continue
            yield module, name
            if isinstance(value, type) and value.__module__ == module:
                methods = sorted(key for key, item in vars(value).items() if callable(item))
                yield from ((module, f"{name}.{key}") for key in methods)


def published() -> Iterator[tuple[str, str]]:
    """The names in published exploits, split into module and name at every dot."""
    for full in PUBLISHED.split():
        parts = full.split(".")
        for cut in range(1, len(parts)):
            yield ".".join(parts[:cut]), ".".join(parts[cut:])


def gadgets(every: int) -> Iterator[tuple[str, bytes]]:
    """Files for every name, route and layout, or every N-th of them."""
    number = 0
    for module, name in (*published(), *callables()):
        for route, body in enumerate(routes(module, name)):
            number += 1
            if number % every:
                continue
            pickle = b"\x80\x02" + body + b"."
            layout = LAYOUTS[number // every % len(LAYOUTS)]
            yield f"{module}.{name} by route {route}, {layout.__name__}", layout(pickle)


def tricks() -> Iterator[tuple[str, bytes]]:
    """Published bypasses of scanners and checks, each with a payload that would run."""
    system = b"\x80\x02" + called("posix", "system", text("touch " + ARGUMENT)) + b"."
    good = b"\x80\x02" + tensor() + b"."
    pickle = "a/data.pkl"
    yield "broken after the payload (nullifAI)", in_zip(system[:-1] + b"X\xff\xff")
    yield "7z instead of zip (nullifAI)", b"7z\xbc\xaf\x27\x1c" + in_zip(system)
    yield "two pickles in an archive", zipped([(pickle, good, {}), ("b/data.pkl", system, {})])
    yield "two members of one name", zipped([(pickle, good, {}), (pickle, system, {})])
    yield "wrong CRC (CVE-2025-10156)", in_zip(system, crc=1)
    yield "other name in the header (CVE-2025-1944)", in_zip(system, own_name=b"a/data.txt")
    for flag in (0x1, 0x20, 0x40, 0x2000):
        yield f"flag {flag:#x} (CVE-2025-1945)", in_zip(good, flags=flag)
    yield "other name of the pickle (CVE-2025-1889)", zipped([("a/config.p", system, {})])
    yield (
        "a subclass or inner module (CVE-2025-10157)",
        in_zip(
            b"\x80\x02" + called("asyncio.unix_events", "_UnixSubprocessTransport._start") + b"."
        ),
    )
    yield "another pickle after the first (GHSA-9gvj)", in_legacy(good + system)
    yield "legacy after zip (polyglot)", in_zip(good) + in_legacy(system)
    yield "zip after legacy (polyglot)", in_legacy(system) + in_zip(good)
    yield "zip with something before it", b"\x80\x02N." + in_zip(good)
    yield "tar of before torch 0.1.2 (CVE-2025-32434)", b"storages".ljust(512, b"\0") + system
    yield "payload hidden in a storage", in_zip(b"\x80\x02" + called("torch", "load", text("x")))
    inner = b"B" + struct.pack("<I", len(system)) + system
    yield (
        "pickle in a pickle (GHSA-84r2)",
        in_zip(b"\x80\x02" + called("pickle", "loads", inner) + b"."),
    )
    yield "tensor's numbers set (CVE-2026-24747)", in_zip(b"\x80\x02" + tensor() + b"K\0K\1s.")
    yield "tensor's numbers set by a mark", in_zip(b"\x80\x02" + tensor() + b"(K\0K\1u.")
    yield "tensor's attributes set", in_zip(b"\x80\x02" + tensor() + b"}" + text("data") + b"Nsb.")
    for letter in b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00":
        yield f"extension registry {letter!r}", in_zip(b"\x80\x02" + letter + b".")
    yield "text as a persistent id", in_zip(b"\x80\x02Pos.system\n.")
    yield "name from an empty memo entry", in_zip(b"\x80\x04h\x63h\x64\x93.")
    yield "name from numbers", in_zip(b"\x80\x04K\x2aX\x02\0\0\0os\x93.")
    yield "name from a name", in_zip(b"\x80\x04" + named("torch", "float32") + text("x") + b"\x93.")
    yield (
        "memo overwritten between name and use",
        in_zip(
            b"\x80\x04"
            + text("torch")
            + b"q\0"
            + text("posix")
            + b"q\0"
            + text("system")
            + b"\x93."
        ),
    )
    yield "protocol 0 text", in_zip(b"cos\nsystem\n(S'touch x'\ntR.")
    yield "unknown protocol", in_zip(b"\x80\xff" + system[2:])
    yield "buffers out of band", in_zip(b"\x80\x05\x97.")
    yield (
        "dictionary that gets attributes",
        in_zip(
            b"\x80\x02"
            + called("collections", "OrderedDict")
            + b"}"
            + text("__class__")
            + named("os", "system")
            + b"sb."
        ),
    )
    yield (
        "module's hooks",
        in_zip(
            b"\x80\x02"
            + named("torch.nn.modules.container", "ParameterDict")
            + b")\x81}"
            + text("_forward_hooks")
            + b"}K\0"
            + named("os", "system")
            + b"ssb."
        ),
    )


def lies() -> Iterator[tuple[str, bytes]]:
    """Files with wrong sizes, counts and offsets, with endless nesting, or that grow when read."""
    bodies = {
        "view after its storage": tensor(offset=1),
        "view over its storage": tensor(size=int_tuple(5)),
        "stride out of its storage": tensor(stride=int_tuple(2)),
        "negative size": tensor(size=int_tuple(-1)),
        "negative stride": tensor(offset=3, stride=int_tuple(-1)),
        "negative offset": tensor(offset=-1),
        "sizes whose product is over 64 bits": tensor(
            size=int_tuple(2**33, 2**33), stride=int_tuple(0, 0)
        ),
        "a size over 64 bits": tensor(size=int_tuple(2**80), stride=int_tuple(0)),
        "empty but large": tensor(size=int_tuple(0, 2**62, 2**62), stride=int_tuple(0, 0, 0)),
        "endless repetition of one number": tensor(size=int_tuple(LONGEST), stride=int_tuple(0)),
        "sizes without strides": tensor(stride=b")"),
        "a size that is text": tensor(size=b"(" + text("4") + b"t"),
        "a size that is a fraction": tensor(size=b"(G" + bytes(8) + b"t"),
        "a thousand dimensions": tensor(size=int_tuple(*[1] * 1000), stride=int_tuple(*[1] * 1000)),
        "more numbers than bytes": tensor(count=5),
        "fewer numbers than bytes": tensor(count=3, size=int_tuple(3)),
        "negative count": tensor(count=-4),
        "a storage and no tensor": storage(),
        "a storage among values": b"}" + text("a") + storage() + b"s",
        "huge count": tensor(count=LONGEST),
        "no such storage": tensor(key="1"),
        "path for a key": tensor(key="../data.pkl"),
        "absolute path for a key": tensor(key="/etc/passwd"),
        "storage of another width": tensor(kind="DoubleStorage"),
        "storage of a kind that is none": tensor(kind="SystemStorage"),
        "list in itself": b"]q\0h\0a",
        "dictionary in itself": b"}q\0K\1h\0s",
        "nest of a million lists": b"]" * 400_000 + b"a" * 399_999,
        "doubling 60 times": b"]" + b"q\0(h\0h\0t" * 60,
        "doubling by lists": b"]q\0" + b"](h\0h\0eq\0" * 60,
        "instructions without end": b"N0" * 2_000_000,
        "a million marks": b"(" * 999_000,
        "integer keys of one hash": b"}("
        + b"".join(whole(n * (2**61 - 1)) + b"N" for n in range(100_000))
        + b"u",
        "set copied a thousand times": b"]("
        + b"N" * 100_000
        + b"eq\0"
        + (b"c__builtin__\nset\n(h\0tR" * 1000),
        "parameters copied a thousand times": b"}("
        + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(50_000))
        + b"uq\0}"
        + text("_parameters")
        + b"h\0sq\1"
        + b"}h\1b" * 1000,
        "text longer than the file": b"X\xff\xff\xff\xff",
        "text of 64 bits' length": b"\x8d" + b"\xff" * 8,
        "bytes of 64 bits' length": b"\x8e\0\0\0\0\0\0\0\x80",
        "frame longer than the file": b"\x95" + b"\xff" * 8,
        "integer of 2040 bits for a key": b"}\x8a\xff" + b"\x7f" * 255 + b"Ns",
        "memo of four billion": b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff",
        "empty stack": b"",
        "values before the mark": b"N(0t",
        "odd count of keys and values": b"}(NNNu",
        "a key that is a list": b"}]Ns",
        "text with no UTF-8": b"X\2\0\0\0\xff\xfe",
        "name without an end": b"c" + b"a" * 100_000,
        "name with escape codes": named("\x1b]0;owned\x07\x1b[2J", "x"),
    }
    for label, body in bodies.items():
        for layout in LAYOUTS[:2]:
            yield f"{label}, {layout.__name__}", layout(b"\x80\x02" + body + b".")
    good = b"\x80\x02" + tensor() + b"."
    for lie in ({"size": LONGEST // 2**40}, {"offset": 7}, {"method": 8}, {"packed": 1}):
        yield f"archive with {lie}", in_zip(good, bytes(16), **lie)
    for lie in ({"count": 65535}, {"length": 10**9}, {"at": 10**9}, {"at": 0}, {"length": 0}):
        yield f"directory with {lie}", zipped([("a/data.pkl", good, {})], **lie)
    yield (
        "overlapping members",
        zipped([("a/data.pkl", good, {}), ("a/data/0", b"x", {"offset": 0})]),
    )
    end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2**63, 2**63, 2**63, 2**63)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1)
    yield "64-bit directory", end_64 + locator + zipped([])
    for count in (0, 3, 5, -1, 2**62):
        yield (
            f"legacy storage of {count} numbers",
            in_legacy(good)[:-24] + struct.pack("<q", count) + bytes(16),
        )


def run(every: int) -> dict[str, object]:
    """Read the files and return the figures: their number and the count of each outcome."""
    files = [*tricks(), *lies()]
    truncated = [
        (f"{label}, cut to {part}%", content[: len(content) * part // 100])
        for label, content in files
        for part in (30, 60, 90, 99)
        if len(content) < 10_000
    ]
    counts: Counter[str] = Counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        warnings.simplefilter("ignore")
        all_files = [*files, *truncated, *gadgets(every)]
        path = Path(folder) / "hostile.pt"
        watch = Watch()
        for label, content in all_files:
            path.write_bytes(content)
            outcome = watch.outcome(read_torch_file, path)
            counts[outcome] += 1
            if outcome != "refused":
                print(f"{outcome}: {label}", file=sys.stderr)
    return {
        "hostile files": len(all_files),
        "names": len({*published(), *callables()}),
        "refused": counts["refused"],
        "read": counts["read"],
        "code run": counts["code run"],
        "crashes": counts["crash"],
        "hangs": counts["hang"],
        "audit events": dict(watch.events),
    }


def main() -> None:
    """Make the files, read them, print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="use only every N-th gadget")
    arguments = parser.parse_args()
    sys.stdout, stdout = io.StringIO(), sys.stdout  # some modules print when they are imported
    figures = run(arguments.every)
    sys.stdout = stdout
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
