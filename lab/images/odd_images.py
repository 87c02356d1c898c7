"""Odd pictures of every kind, with what must become of each; and damaged ones by the thousand.

`python -m lab.images.odd_images [--mutants N]` prints figures: files that were judged wrongly,
crashes, hangs, the slowest file and the most memory.
"""

import argparse
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter

from lab.images import heic
from pinxit.images.folder import Entry, look_through

CHUNK = 250
HANG = 2.0  # seconds


@dataclass(frozen=True)
class Kind:
    """How to make one odd picture in a folder, the verdict on it, and a word of the reason."""

    make: Callable[[Path], object]
    verdict: str
    says: str = ""


def scene(mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A small picture with a gradient, a disc and a corner mark."""
    high, wide = np.mgrid[0 : size[1], 0 : size[0]]
    levels = np.stack([high * 7 % 256, wide * 7 % 256, (high + wide) * 3 % 256], -1).astype("u1")
    levels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    return Image.fromarray(levels).convert(mode)


def saved(name: str, mode: str = "RGB", form: str | None = None, **how: object) -> Kind:
    """A picture that Pillow writes and that is used; `says` may be among the settings."""
    says = str(how.pop("says", ""))
    return Kind(lambda folder: scene(mode).save(folder / name, form, **how), "used", says)  # pyright: ignore[reportArgumentType]


def written(name: str, data: Callable[[], bytes] | bytes, verdict: str, says: str = "") -> Kind:
    """A file of these bytes."""

    def make(folder: Path) -> None:
        raw = data if isinstance(data, bytes) else data()
        (folder / name).write_bytes(raw)

    return Kind(make, verdict, says)


def raw(form: str, image: Image.Image | None = None, **how: object) -> bytes:
    """A picture's bytes in a format."""
    buffer = io.BytesIO()
    (image or scene()).save(buffer, form, **how)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def phone(turned: int = 0) -> bytes:
    """A phone's picture."""
    with tempfile.TemporaryDirectory() as folder:
        heic.save(scene(), Path(folder) / "a.heic", turned)
        return (Path(folder) / "a.heic").read_bytes()


def png(bits: int, kind: int, size: tuple[int, int], rows: bytes, *more: bytes) -> bytes:
    """A PNG from its header's numbers and its raw rows."""
    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    chunks = [b"IHDR" + head, *more, b"IDAT" + zlib.compress(rows, 1), b"IEND"]
    packed = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def deep(channels: int) -> bytes:
    """A PNG of 16 bits a channel."""
    rows = b"".join(b"\0" + bytes(range(32)) * 2 * channels for _ in range(32))
    return png(16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], (32, 32), rows)


def turned(orientation: int) -> Kind:
    """A photograph from a camera that was held in one of eight ways."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    says = "turned upright" if orientation > 1 else ""
    return saved(f"turned{orientation}.jpg", exif=exif, says=says)


def gamut() -> bytes:
    """A colour profile that is not sRGB's: its red and blue are exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at, to = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[at : at + 4], profile[to : to + 4] = b"bXYZ", b"rXYZ"
    for name in (b"s\0R\0G\0B", b"sRGB"):
        profile = profile.replace(name, name.replace(b"R", b"X"))
    return bytes(profile)


def moving(name: str, form: str, **how: object) -> Kind:
    """A film: the first frame is what is used."""
    frames = [scene(), scene().transpose(Image.Transpose.ROTATE_180)]
    data = lambda: raw(form, frames[0], save_all=True, append_images=frames[1:], **how)  # noqa: E731
    return written(name, data, "used", "several frames")


def cut(name: str, form: str, share: float, verdict: str = "refused") -> Kind:
    """The beginning of a file."""
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    whole = phone() if form == "HEIF" else raw(form, noise)
    return written(name, whole[: int(len(whole) * share)], verdict, "")


def in_folder(name: str, act: Callable[[Path], object], verdict: str, says: str = "") -> Kind:
    """Something that is done to a path: a link, a pipe, a folder."""
    return Kind(lambda folder: act(folder / name), verdict, says)


def linked(path: Path, to: str) -> None:
    """A symbolic link, and what it leads to if that is a picture."""
    if to.startswith("../real"):
        scene().save(path.parent.parent / Path(to).name)
    path.symlink_to(to)


def masked(path: Path, mask: Image.Image | bytes) -> None:
    """A picture with a mask beside it."""
    scene().save(path)
    beside = path.with_name(f"{path.stem}.mask.png")
    beside.write_bytes(mask if isinstance(mask, bytes) else raw("PNG", mask))


def captioned(path: Path, caption: bytes | None) -> None:
    """A picture with a caption's bytes beside it, or a folder of that name."""
    scene().save(path)
    beside = path.with_suffix(".txt")
    _ = beside.mkdir() if caption is None else beside.write_bytes(caption)


def _spot() -> Image.Image:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    return mask


def _kinds() -> Iterator[tuple[str, Kind]]:
    yield from ((f"EXIF orientation {number}", turned(number)) for number in range(1, 9))
    yield from _modes().items()
    yield from _formats().items()
    yield from _damaged().items()
    yield from _others().items()
    yield from _places().items()
    names = (
        "写真.png صورة.png 🦊.png e\u0301te\u0301.png a\u202eb.png -rf.png [red]$HOME.png '\".png"
    )
    names = [
        *names.split(),
        "a b.png",
        "two\nlines.png",
        "x" * 250 + ".png",
        os.fsdecode(b"\xff.png"),
    ]
    yield from ((f"name {name[:20]!a}", written(name, raw("PNG"), "used")) for name in names)


def _modes() -> dict[str, Kind]:
    cmyk = {"mode": "CMYK", "says": "CMYK made RGB"}
    return {
        "1 bit": saved("a.png", "1", says="1 made RGB"),
        "grey": saved("a.png", "L"),
        "grey with alpha": saved("a.png", "LA"),
        "grey with a transparent level": saved("a.png", "L", transparency=76, says="made white"),
        "palette": saved("a.png", "P"),
        "palette with transparency": written(
            "a.png", lambda: raw("PNG", _palette(), transparency=9), "used", "made white"
        ),
        "a transparent colour": saved("a.png", transparency=(255, 0, 0), says="made white"),
        "alpha that hides nothing": saved("a.png", "RGBA"),
        "16-bit grey": written("a.png", deep(1), "used", "I;16 made RGB"),
        "16-bit grey with alpha": written("a.png", deep(2), "used"),
        "16-bit colour": written("a.png", deep(3), "used"),
        "16-bit colour with alpha": written("a.png", deep(4), "used", "made white"),
        "CMYK photograph": saved("a.jpg", **cmyk),
        "CMYK for print": saved("a.tiff", **cmyk),
        "YCbCr": saved("a.tiff", "YCbCr"),
        "LAB": written("a.tif", lambda: raw("TIFF", _lab()), "used", "LAB by its colour profile"),
        "floats": saved("a.tif", "F"),
        "32-bit integers": saved("a.tif", "I"),
        "big-endian 16 bits": written("a.tif", lambda: raw("TIFF", _deep_big()), "used"),
        "another gamut": saved("a.png", icc_profile=gamut(), says="by its colour profile"),
        "another gamut, palette": saved("a.png", "P", icc_profile=gamut(), says="colour profile"),
        "sRGB said": saved("a.jpg", icc_profile=_srgb()),
        "damaged profile": saved("a.jpg", icc_profile=b"rubbish" * 9, says="profile is damaged"),
        "profile of another kind": saved("a.jpg", "L", icc_profile=gamut(), says="does not fit"),
        "damaged EXIF": saved("a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    }


def _palette() -> Image.Image:
    made = scene("P")
    made.paste(9, (0, 0, 8, 8))
    return made


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _lab() -> Image.Image:
    lab = ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(scene(), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert made
    return made


def _deep_big() -> Image.Image:
    levels = (np.arange(32 * 32).reshape(32, 32) * 60).astype(">u2")
    return Image.frombytes("I;16B", (32, 32), levels.tobytes())


def _formats() -> dict[str, Kind]:
    return {
        "progressive": saved("a.jpg", progressive=True),
        "grey photograph": saved("a.jpeg", "L"),
        "two pictures in one photograph": written(
            "a.jpg", lambda: raw("MPO", save_all=True, append_images=[scene()]), "used"
        ),
        "GIF": saved("a.gif", "P"),
        "moving GIF": moving("a.gif", "GIF"),
        "moving PNG": moving("a.png", "PNG"),
        "moving WebP": moving("a.webp", "WEBP"),
        "moving AVIF": moving("a.avif", "AVIF"),
        "pages": moving("a.tif", "TIFF"),
        "WebP": saved("a.webp"),
        "WebP with alpha": written("a.webp", lambda: raw("WEBP", _clear()), "used", "made white"),
        "AVIF": saved("a.avif"),
        "AVIF with alpha": written("a.avif", lambda: raw("AVIF", _clear()), "used", "made white"),
        "phone": written("a.heic", phone, "used"),
        "phone on its side": written("a.HEIC", lambda: phone(1), "used"),
        "JPEG 2000": saved("a.jp2"),
        "JPEG 2000 without a box": saved("a.j2k"),
        "LZW": saved("a.tif", compression="tiff_lzw"),
        "JPEG in TIFF": saved("a.tif", compression="jpeg"),
        "fax": saved("a.tif", "1", compression="group4"),
        "BMP": saved("a.bmp"),
        "BMP of 1 bit": saved("a.bmp", "1"),
        "JPEG called PNG": saved("a.png", form="JPEG", says="really JPEG"),
        "HEIC called JPEG": written("a.jpg", phone, "used", "really HEIF"),
        "WebP without a suffix": saved("download", form="WEBP", says="really WEBP"),
        "PNG called text": saved("a.dat", form="PNG", says="really PNG"),
        "capitals": saved("A.JPG"),
        "one pixel": written("a.png", lambda: raw("PNG", scene(size=(1, 1))), "used"),
        "a line across": written("a.png", lambda: raw("PNG", scene(size=(2000, 1))), "used"),
        "a line down": written("a.png", lambda: raw("PNG", scene(size=(1, 2000))), "used"),
        "rubbish after the end": written("a.jpg", raw("JPEG") + b"\0rubbish" * 99, "used"),
    }


def _clear() -> Image.Image:
    layer = scene("RGBA")
    layer.paste((0, 0, 0, 0), (0, 0, 16, 32))
    return layer


def _damaged() -> dict[str, Kind]:
    bmp = bytearray(raw("BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    flipped = bytearray(raw("PNG"))
    flipped[60] ^= 255
    text = b"zTXta\0\0" + zlib.compress(bytes(80_000_000), 9)
    gif = bytearray(raw("GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    little = b"\0" * 1251
    kinds = {
        "empty": written("a.png", b"", "refused", "empty"),
        "bomb": written("a.png", png(1, 0, (50_000, 50_000), b""), "refused", "2,500,000,000"),
        "just too large": written(
            "a.png", png(1, 0, (10_000, 10_000), little * 10_000), "refused", "100,000,000"
        ),
        "BMP bomb": written("a.bmp", bytes(bmp), "refused", "3,600,000,000"),
        "GIF bomb": written("a.gif", bytes(gif), "refused", "4,294,836,225"),
        "text bomb": written("a.png", png(8, 0, (1, 1), b"\0\0", text), "refused", "damaged"),
        "flipped bits": written("a.png", bytes(flipped), "refused", "damaged"),
        "PNG's beginning only": written("a.png", raw("PNG")[:8], "refused"),
    }
    cuts = [("JPEG", "jpg", s) for s in (0.02, 0.3, 0.6, 0.9)]
    cuts += [(form, form.lower(), 0.6) for form in ("PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")]
    cuts += [("JPEG2000", "jp2", 0.1), ("HEIF", "heic", 0.6)]
    for form, suffix, share in cuts:
        kinds[f"{share:.0%} of {form}"] = cut(f"a.{suffix}", form, share)
    return kinds


def _others() -> dict[str, Kind]:
    film = struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(500)
    page = b"<!DOCTYPE html><html><title>404</title></html>"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\nshowpage\n"
    none = "no picture format"
    return {
        "film": written("a.mp4", film, "left out", none),
        "film of a live photograph": written("IMG_1.MOV", film, "left out", none),
        "film called a phone's picture": written("a.heic", film, "refused", none),
        "archive": written("a.zip", b"PK\3\4" + bytes(99), "left out", none),
        "document": written("a.pdf", b"%PDF-1.7\n" + bytes(99), "left out", none),
        "words without a suffix": written("README", b"my toys", "left out", none),
        "nothing without a suffix": written("nothing", b"", "left out", "empty"),
        "web page called JPEG": written("a.jpg", page, "refused", none),
        "drawing": written("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "refused", none),
        "PostScript": written("a.eps", script, "refused", none),
        "PostScript called PNG": written("a.png", script, "refused", none),
        "Photoshop": written("a.psd", b"8BPS\0\1" + bytes(99), "refused", none),
        "raw file of a camera": written("a.dng", raw("TIFF"), "refused", "develop it"),
        "Finder's notes": written(".DS_Store", b"\0\0\0\1Bud1", "silent"),
        "Finder's other half": written("._a.jpg", b"\0\5\x16\7", "silent"),
        "Windows' thumbnails": written("Thumbs.db", b"\xd0\xcf\x11\xe0", "silent"),
        "Windows' settings": written("desktop.ini", b"[.ShellClassInfo]", "silent"),
        "a phone's edits": written("IMG_1.AAE", b"<?xml", "silent"),
    }


def _places() -> dict[str, Kind]:
    pipe = in_folder("a.png", os.mkfifo, "refused", "not a regular file")
    wide = Image.new("L", (64, 32), 255)
    return {
        "link to a picture": in_folder("a.png", lambda p: linked(p, "../real.png"), "used"),
        "link that dangles": in_folder("a.png", lambda p: linked(p, "gone"), "refused", "nowhere"),
        "link to itself": in_folder("a.png", lambda p: linked(p, "a.png"), "refused", "nowhere"),
        "link to its folder": in_folder("more", lambda p: linked(p, "."), "left out", "a folder"),
        "folder called JPEG": in_folder("a.jpg", Path.mkdir, "left out", "a folder"),
        "pipe": pipe,
        "pipe without a suffix": in_folder("pipe", os.mkfifo, "left out", "not a regular file"),
        "mask": in_folder("a.png", lambda p: masked(p, _spot()), "used"),
        "mask of another shape": in_folder(
            "a.png", lambda p: masked(p, wide), "refused", "another shape: 64x32 for 32x32"
        ),
        "black mask": in_folder(
            "a.png", lambda p: masked(p, Image.new("L", (32, 32))), "refused", "black all over"
        ),
        "damaged mask": in_folder(
            "a.png", lambda p: masked(p, raw("PNG")[:99]), "refused", "its mask a.mask.png"
        ),
        "mask of no picture": written("b.mask.png", raw("PNG"), "refused", "of no picture"),
        "caption in Latin-1": in_folder(
            "a.png", lambda p: captioned(p, "é".encode("latin-1")), "refused", "not UTF-8"
        ),
        "endless caption": in_folder(
            "a.png", lambda p: captioned(p, b"red " * 20_000), "refused", "over 65536 bytes"
        ),
        "folder called a caption": in_folder("a.png", lambda p: captioned(p, None), "used"),
    }


KINDS = dict(_kinds())


def judged(folder: Path) -> tuple[str, str, Entry | None]:
    """The verdict on the one odd picture of a folder, and what was said."""
    found = list(look_through(folder))
    if not found:
        return "silent", "", None
    (entry,) = found
    verdict = "used" if entry.picture else "refused" if entry.refused else "left out"
    return verdict, "; ".join(entry.said), entry


def mutants(seed: int, first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Small pictures of every format, each damaged in a way that follows from its number."""
    soft = scene().filter(ImageFilter.GaussianBlur(1))
    whole = {
        "png": raw("PNG", soft, icc_profile=_srgb()),
        "jpg": raw("JPEG", soft, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"),
        "webp": raw("WEBP", _clear()),
        "gif": raw("GIF", soft, save_all=True, append_images=[_clear()]),
        "tif": raw("TIFF", soft, compression="tiff_lzw"),
        "tiff": raw("TIFF", soft, compression="jpeg"),
        "bmp": raw("BMP", soft.convert("P")),
        "avif": raw("AVIF", soft),
        "heic": phone(1),
        "jp2": raw("JPEG2000", soft),
        "jpeg": raw("JPEG", soft.convert("CMYK"), icc_profile=gamut(), progressive=True),
        "apng": raw("PNG", soft.convert("P"), transparency=3),
    }
    for number in range(first, first + count):
        draw = random.Random(f"{seed}/{number}")
        suffix = sorted(whole)[number % len(whole)]
        yield f"{number:07}.{suffix}", _mutated(whole[suffix], draw)


def _mutated(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, doubled, lost or exchanged, more often early ones, which say most."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = int(len(out) * draw.random() ** draw.choice((1, 3)))
        some = draw.randrange(1, 9)
        change = draw.randrange(6)
        if change <= 1:
            out[at : at + 1] = bytes([draw.randrange(256)])
        elif change == 2:
            out[at : at + some] = draw.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * some
        elif change == 3:
            del out[at : at + some]
        elif change == 4:
            out[at:at] = out[at : at + 16 * some]
        elif draw.random() < 0.3:
            del out[max(at, 1) :]
    return bytes(out)


def work(seed: int, first: int, count: int) -> dict[str, float]:
    """Look at some mutants, a folder for all of them; what became of them."""
    told = Counter[str]()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [file for file, data in mutants(seed, first, count) if _put(folder / file, data)]
        looked = look_through(folder)
        for file in sorted(given):
            began = time.perf_counter()
            entry = next(looked)
            spent = time.perf_counter() - began
            slowest = max(slowest, spent)
            told["hangs"] += spent > HANG
            named = entry.path.name == file and (entry.picture or (entry.refused and entry.said))
            told["not named"] += not named
            told["read" if entry.picture else "refused"] += 1
        assert next(looked, None) is None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**told, "slowest": slowest, "megabytes": peak}


def _put(path: Path, data: bytes) -> bool:
    return path.write_bytes(data) >= 0


def campaign(seed: int, count: int) -> dict[str, float]:
    """Look at mutants, a process for each chunk of them; a process that dies is a crash."""
    total = Counter[str]()
    slowest = most = 0.0
    began = time.perf_counter()
    for first in range(0, count, CHUNK):
        some = min(CHUNK, count - first)
        command = [sys.executable, "-m", "lab.images.odd_images", "--seed", str(seed)]
        command += ["--work", str(first), str(some)]
        try:
            run = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=False, timeout=60 + some * HANG
            )
        except subprocess.TimeoutExpired:
            total["hangs"] += 1
            continue
        if run.returncode:
            total["crashes"] += 1
            continue
        answer: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        slowest = max(slowest, answer.pop("slowest"))
        most = max(most, answer.pop("megabytes"))
        total.update({name: int(number) for name, number in answer.items()})
    counted = ("crashes", "hangs", "not named", "refused", "read")
    return {
        "mutants": count,
        **{name: total[name] for name in counted},
        "slowest seconds": round(slowest, 3),
        "megabytes at most": round(most),
        "seconds": round(time.perf_counter() - began),
    }


def figures(seed: int, count: int) -> dict[str, object]:
    """How many kinds were judged rightly, and what became of the mutants."""
    wrong: list[str] = []
    verdicts = Counter[str]()
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as outer:
            folder = Path(outer) / "pictures"
            folder.mkdir()
            kind.make(folder)
            verdict, said, _ = judged(folder)
        verdicts[verdict] += 1
        if verdict != kind.verdict or kind.says not in said:
            wrong.append(f"{name}: {verdict}: {said}")
    return {"kinds": len(KINDS), **verdicts, "wrong": wrong, "damaged": campaign(seed, count)}


def main() -> None:
    """Print the figures, or those of one process's share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, type=int)
    asked = parser.parse_args()
    found = work(asked.seed, *asked.work) if asked.work else figures(asked.seed, asked.mutants)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
