"""Unusual images of many kinds with the expected outcome for each, and many damaged images.

`python -m lab.images.odd_images [--mutants N]` prints figures: unexpected outcomes, crashes, hangs,
the slowest file and the peak memory.
"""

import argparse
import io
import json
import os
import random
import re
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

from pinxit.images.captions import TEXT_SUFFIXES
from pinxit.images.folder import ImageEntry, check_images

CHUNK = 250
HANG = 2.0  # seconds


@dataclass(frozen=True)
class Kind:
    """How to make one unusual file in a folder, the expected outcome and a part of its note."""

    make: Callable[[Path], object]
    outcome: str
    note: str = ""


def scene(mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A small image with a gradient and a red corner."""
    high, wide = np.mgrid[0 : size[1], 0 : size[0]]
    levels = np.stack([high * 7 % 256, wide * 7 % 256, (high + wide) * 3 % 256], -1).astype("u1")
    levels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    return Image.fromarray(levels).convert(mode)


def saved(name: str, mode: str = "RGB", format_name: str | None = None, **settings: object) -> Kind:
    """An image written by Pillow, which is used; `settings` may contain the expected `note`."""
    note = str(settings.pop("note", ""))
    return Kind(
        lambda folder: scene(mode).save(folder / name, format_name, **settings), "used", note
    )  # pyright: ignore[reportArgumentType]


def written(name: str, data: Callable[[], bytes] | bytes, outcome: str, note: str = "") -> Kind:
    """A file with these bytes."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return Kind(make, outcome, note)


def raw(format_name: str, image: Image.Image | None = None, **settings: object) -> bytes:
    """The bytes of an image in a format of Pillow."""
    buffer = io.BytesIO()
    (image or scene()).save(buffer, format_name, **settings)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def phone(quarter_turns: int = 0) -> bytes:
    """The bytes of a HEIC file of `scene`, as phones write them: readers must rotate it.

    The file has its pixels uncompressed (PCM blocks, ITU-T H.265, 7.3.8.7), for no free encoder can
    be installed with pip; the byte after `irot` is the number of quarter turns.
    """
    data = Path(__file__).with_name("scene.heic").read_bytes()
    return data.replace(b"irot\0", b"irot" + bytes([quarter_turns]))


def png(bits: int, color_type: int, size: tuple[int, int], rows: bytes, *more: bytes) -> bytes:
    """The bytes of a PNG with these header fields, rows and additional chunks."""
    header = struct.pack(">IIBBBBB", *size, bits, color_type, 0, 0, 0)
    chunks = [b"IHDR" + header, *more, b"IDAT" + zlib.compress(rows, 1), b"IEND"]
    encoded = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


def deep(channels: int) -> bytes:
    """The bytes of a PNG with 16 bits per channel."""
    rows = b"".join(b"\0" + bytes(range(32)) * 2 * channels for _ in range(32))
    return png(16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], (32, 32), rows)


def rotated(orientation: int) -> Kind:
    """A photo with one of the eight EXIF orientations."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    note = "rotated upright" if orientation > 1 else ""
    return saved(f"rotated{orientation}.jpg", exif=exif, note=note)


def gamut() -> bytes:
    """A color profile unlike sRGB: red and blue are exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    for name in (b"s\0R\0G\0B", b"sRGB"):
        profile = profile.replace(name, name.replace(b"R", b"X"))
    return bytes(profile)


def animated(name: str, format_name: str, **settings: object) -> Kind:
    """An animation, of which the first frame is used."""
    frames = [scene(), scene().transpose(Image.Transpose.ROTATE_180)]
    data = lambda: raw(format_name, frames[0], save_all=True, append_images=frames[1:], **settings)  # noqa: E731
    return written(name, data, "used", "has several frames")


def truncated(name: str, format_name: str, fraction: float, outcome: str = "refused") -> Kind:
    """A file that is cut off."""
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    whole = phone() if format_name == "HEIF" else raw(format_name, noise)
    return written(name, whole[: int(len(whole) * fraction)], outcome, "")


def in_folder(name: str, act: Callable[[Path], object], outcome: str, note: str = "") -> Kind:
    """Something else than a written file, image by `act`, such as a link, a pipe or a folder."""
    return Kind(lambda folder: act(folder / name), outcome, note)


def make_link(path: Path, target: str) -> None:
    """A symbolic link, and its target if that is an image."""
    if target.startswith("../real"):
        scene().save(path.parent.parent / Path(target).name)
    path.symlink_to(target)


def make_masked(path: Path, mask: Image.Image | bytes) -> None:
    """An image with a mask file."""
    scene().save(path)
    mask_file = path.with_name(f"{path.stem}.mask.png")
    mask_file.write_bytes(mask if isinstance(mask, bytes) else raw("PNG", mask))


def make_captioned(path: Path, caption: bytes | None) -> None:
    """An image with a caption file, or with a folder of that name if `caption` is None."""
    scene().save(path)
    caption_file = path.with_suffix(".txt")
    if caption is None:
        caption_file.mkdir()
    else:
        caption_file.write_bytes(caption)


def _spot() -> Image.Image:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    return mask


def _kinds() -> Iterator[tuple[str, Kind]]:
    yield from ((f"EXIF orientation {number}", rotated(number)) for number in range(1, 9))
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
    cmyk = {"mode": "CMYK", "note": "converted from CMYK to RGB"}
    return {
        "1 bit": saved("a.png", "1", note="converted from 1 to RGB"),
        "gray": saved("a.png", "L"),
        "gray with alpha": saved("a.png", "LA"),
        "gray with a transparent level": saved(
            "a.png", "L", transparency=76, note="filled with white"
        ),
        "palette": saved("a.png", "P"),
        "palette with transparency": written(
            "a.png", lambda: raw("PNG", _palette(), transparency=9), "used", "filled with white"
        ),
        "a transparent color": saved("a.png", transparency=(255, 0, 0), note="filled with white"),
        "alpha that hides nothing": saved("a.png", "RGBA"),
        "16-bit gray": written("a.png", deep(1), "used", "converted from I;16 to RGB"),
        "16-bit gray with alpha": written("a.png", deep(2), "used"),
        "16-bit color": written("a.png", deep(3), "used"),
        "16-bit color with alpha": written("a.png", deep(4), "used", "filled with white"),
        "CMYK photo": saved("a.jpg", **cmyk),
        "CMYK for print": saved("a.tiff", **cmyk),
        "YCbCr": saved("a.tiff", "YCbCr"),
        "LAB": written("a.tif", lambda: raw("TIFF", _lab()), "used", "converted from LAB to sRGB"),
        "floats": saved("a.tif", "F"),
        "32-bit integers": saved("a.tif", "I"),
        "big-endian 16 bits": written("a.tif", lambda: raw("TIFF", _deep_big()), "used"),
        "another gamut": saved("a.png", icc_profile=gamut(), note="to sRGB by its color profile"),
        "another gamut, palette": saved(
            "a.png", "P", icc_profile=gamut(), note="by its color profile"
        ),
        "sRGB profile": saved("a.jpg", icc_profile=_srgb()),
        "damaged profile": saved(
            "a.jpg", icc_profile=b"rubbish" * 9, note="damaged or unsuitable color profile"
        ),
        "profile of another kind": saved(
            "a.jpg", "L", icc_profile=gamut(), note="damaged or unsuitable color profile"
        ),
        "damaged EXIF": saved("a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    }


def _palette() -> Image.Image:
    image = scene("P")
    image.paste(9, (0, 0, 8, 8))
    return image


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _lab() -> Image.Image:
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
    )
    assert image
    return image


def _deep_big() -> Image.Image:
    levels = (np.arange(32 * 32).reshape(32, 32) * 60).astype(">u2")
    return Image.frombytes("I;16B", (32, 32), levels.tobytes())


def _formats() -> dict[str, Kind]:
    return {
        "progressive": saved("a.jpg", progressive=True),
        "gray photo": saved("a.jpeg", "L"),
        "two images in one photo": written(
            "a.jpg", lambda: raw("MPO", save_all=True, append_images=[scene()]), "used"
        ),
        "GIF": saved("a.gif", "P"),
        "animated GIF": animated("a.gif", "GIF"),
        "animated PNG": animated("a.png", "PNG"),
        "animated WebP": animated("a.webp", "WEBP"),
        "animated AVIF": animated("a.avif", "AVIF"),
        "pages": animated("a.tif", "TIFF"),
        "WebP": saved("a.webp"),
        "WebP with alpha": written(
            "a.webp", lambda: raw("WEBP", _clear()), "used", "filled with white"
        ),
        "AVIF": saved("a.avif"),
        "AVIF with alpha": written(
            "a.avif", lambda: raw("AVIF", _clear()), "used", "filled with white"
        ),
        "phone photo": written("a.heic", phone, "used"),
        "rotated phone photo": written("a.HEIC", lambda: phone(1), "used"),
        "JPEG 2000": saved("a.jp2"),
        "raw JPEG 2000 codestream": saved("a.j2k"),
        "LZW": saved("a.tif", compression="tiff_lzw"),
        "JPEG in TIFF": saved("a.tif", compression="jpeg"),
        "fax": saved("a.tif", "1", compression="group4"),
        "BMP": saved("a.bmp"),
        "BMP of 1 bit": saved("a.bmp", "1"),
        "JPEG named PNG": saved("a.png", format_name="JPEG", note="is in JPEG format"),
        "HEIC named JPEG": written("a.jpg", phone, "used", "is in HEIF format"),
        "WebP without a suffix": saved("download", format_name="WEBP", note="is in WEBP format"),
        "PNG named text": saved("a.dat", format_name="PNG", note="is in PNG format"),
        "capitals": saved("A.JPG"),
        "one pixel": written("a.png", lambda: raw("PNG", scene(size=(1, 1))), "used"),
        "one row": written("a.png", lambda: raw("PNG", scene(size=(2000, 1))), "used"),
        "one column": written("a.png", lambda: raw("PNG", scene(size=(1, 2000))), "used"),
        "extra data after the end": written("a.jpg", raw("JPEG") + b"\0rubbish" * 99, "used"),
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
    row = b"\0" * 1251
    kinds = {
        "empty": written("a.png", b"", "refused", "empty"),
        "bomb": written("a.png", png(1, 0, (50_000, 50_000), b""), "refused", "2,500,000,000"),
        "just too large": written(
            "a.png", png(1, 0, (10_000, 10_000), row * 10_000), "refused", "100,000,000"
        ),
        "BMP bomb": written("a.bmp", bytes(bmp), "refused", "3,600,000,000"),
        "GIF bomb": written("a.gif", bytes(gif), "refused", "4,294,836,225"),
        "text bomb": written("a.png", png(8, 0, (1, 1), b"\0\0", text), "refused", "damaged"),
        "flipped bits": written("a.png", bytes(flipped), "refused", "damaged"),
        "only the signature of a PNG": written("a.png", raw("PNG")[:8], "refused"),
    }
    truncations = [("JPEG", "jpg", s) for s in (0.02, 0.3, 0.6, 0.9)]
    truncations += [
        (format_name, format_name.lower(), 0.6)
        for format_name in ("PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
    ]
    truncations += [("JPEG2000", "jp2", 0.1), ("HEIF", "heic", 0.6)]
    for format_name, suffix, fraction in truncations:
        name = f"{fraction:.0%} of {format_name}"
        kinds[name] = truncated(f"a.{suffix}", format_name, fraction)
    return kinds


def _others() -> dict[str, Kind]:
    video = struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(500)
    page = b"<!DOCTYPE html><html><title>404</title></html>"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\nshowpage\n"
    unknown = "not in a supported image format"
    return {
        "video": written("a.mp4", video, "left out", unknown),
        "video of a live photo": written("IMG_1.MOV", video, "left out", unknown),
        "video named like a phone photo": written("a.heic", video, "refused", unknown),
        "archive": written("a.zip", b"PK\3\4" + bytes(99), "left out", unknown),
        "document": written("a.pdf", b"%PDF-1.7\n" + bytes(99), "left out", unknown),
        "text without a suffix": written("README", b"my toys", "left out", unknown),
        "empty file without a suffix": written("nothing", b"", "left out", "empty"),
        "web page named JPEG": written("a.jpg", page, "refused", unknown),
        "drawing": written(
            "a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "refused", unknown
        ),
        "PostScript": written("a.eps", script, "refused", unknown),
        "PostScript named PNG": written("a.png", script, "refused", unknown),
        "Photoshop": written("a.psd", b"8BPS\0\1" + bytes(99), "refused", unknown),
        "raw file of a camera": written("a.dng", raw("TIFF"), "refused", "convert it"),
        "Finder's settings": written(".DS_Store", b"\0\0\0\1Bud1", "silent"),
        "Finder's metadata of an image": written("._a.jpg", b"\0\5\x16\7", "silent"),
        "Windows' thumbnails": written("Thumbs.db", b"\xd0\xcf\x11\xe0", "silent"),
        "Windows' settings": written("desktop.ini", b"[.ShellClassInfo]", "silent"),
        "a phone's edits": written("IMG_1.AAE", b"<?xml", "silent"),
    }


def _places() -> dict[str, Kind]:
    pipe = in_folder("a.png", os.mkfifo, "refused", "not a regular file")
    wide = Image.new("L", (64, 32), 255)
    return {
        "link to an image": in_folder("a.png", lambda p: make_link(p, "../real.png"), "used"),
        "broken link": in_folder("a.png", lambda p: make_link(p, "gone"), "refused", "broken link"),
        "link to itself": in_folder(
            "a.png", lambda p: make_link(p, "a.png"), "refused", "broken link"
        ),
        "link to its folder": in_folder(
            "more", lambda p: make_link(p, "."), "left out", "a folder"
        ),
        "folder named JPEG": in_folder("a.jpg", Path.mkdir, "left out", "a folder"),
        "pipe": pipe,
        "pipe without a suffix": in_folder("pipe", os.mkfifo, "left out", "not a regular file"),
        "mask": in_folder("a.png", lambda p: make_masked(p, _spot()), "used"),
        "mask with another aspect ratio": in_folder(
            "a.png",
            lambda p: make_masked(p, wide),
            "refused",
            "does not fit the image: 64x32 for 32x32",
        ),
        "black mask": in_folder(
            "a.png", lambda p: make_masked(p, Image.new("L", (32, 32))), "refused", "is all black"
        ),
        "damaged mask": in_folder(
            "a.png", lambda p: make_masked(p, raw("PNG")[:99]), "refused", "its mask a.mask.png"
        ),
        "mask without an image": written("b.mask.png", raw("PNG"), "refused", "without an image"),
        "caption in Latin-1": in_folder(
            "a.png", lambda p: make_captioned(p, "a café".encode("latin-1")), "used", "not UTF-8"
        ),
        "very long caption": in_folder(
            "a.png", lambda p: make_captioned(p, b"red " * 20_000), "refused", "over 65536 bytes"
        ),
        "folder named a caption": in_folder("a.png", lambda p: make_captioned(p, None), "used"),
    }


KINDS = dict(_kinds())


def check_single(folder: Path) -> tuple[str, str, ImageEntry | None]:
    """The outcome for the only image of a folder, its notes and its entry."""
    entries = list(check_images(folder))
    if not entries:
        return "silent", "", None
    (entry,) = (one for one in entries if one.path.suffix not in TEXT_SUFFIXES)
    outcome = "used" if entry.image else "refused" if entry.rejected else "left out"
    return outcome, "; ".join(entry.notes), entry


def mutants(seed: int, first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of small images of every format, damaged depending on seed and number."""
    blurred = scene().filter(ImageFilter.GaussianBlur(1))
    originals = {
        "png": raw("PNG", blurred, icc_profile=_srgb()),
        "jpg": raw("JPEG", blurred, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"),
        "webp": raw("WEBP", _clear()),
        "gif": raw("GIF", blurred, save_all=True, append_images=[_clear()]),
        "tif": raw("TIFF", blurred, compression="tiff_lzw"),
        "tiff": raw("TIFF", blurred, compression="jpeg"),
        "bmp": raw("BMP", blurred.convert("P")),
        "avif": raw("AVIF", blurred),
        "heic": phone(1),
        "jp2": raw("JPEG2000", blurred),
        "jpeg": raw("JPEG", blurred.convert("CMYK"), icc_profile=gamut(), progressive=True),
        "apng": raw("PNG", blurred.convert("P"), transparency=3),
    }
    for number in range(first, first + count):
        rng = random.Random(f"{seed}/{number}")
        suffix = sorted(originals)[number % len(originals)]
        yield f"{number:07}.{suffix}", _mutated(originals[suffix], rng)


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Change, repeat or delete some bytes, more often near the beginning, where the headers are."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        index = int(len(mutated) * rng.random() ** rng.choice((1, 3)))
        length = rng.randrange(1, 9)
        change = rng.randrange(6)
        if change <= 1:
            mutated[index : index + 1] = bytes([rng.randrange(256)])
        elif change == 2:
            mutated[index : index + length] = (
                rng.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * length
            )
        elif change == 3:
            del mutated[index : index + length]
        elif change == 4:
            mutated[index:index] = mutated[index : index + 16 * length]
        elif rng.random() < 0.3:
            del mutated[max(index, 1) :]
    return bytes(mutated)


def work(seed: int, first: int, count: int) -> dict[str, float]:
    """Check mutants, all in one folder, and count the outcomes."""
    counts = Counter[str]()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [file for file, data in mutants(seed, first, count) if _put(folder / file, data)]
        entries = check_images(folder)
        for file in sorted(files):
            start = time.perf_counter()
            entry = next(entries)
            seconds = time.perf_counter() - start
            slowest = max(slowest, seconds)
            counts["hangs"] += seconds > HANG
            correct = entry.path.name == file and (entry.image or (entry.rejected and entry.notes))
            counts["not named"] += not correct
            counts["read" if entry.image else "refused"] += 1
        assert next(entries, None) is None
    return {**counts, "slowest": slowest, "megabytes": _peak_kilobytes() / 1024}


def _peak_kilobytes() -> int:
    """The most memory that this process has used."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage also counts the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _put(path: Path, data: bytes) -> bool:
    return path.write_bytes(data) >= 0


def campaign(seed: int, count: int) -> dict[str, float]:
    """Check mutants in one process per chunk; a process that dies counts as a crash."""
    total = Counter[str]()
    slowest = peak = 0.0
    start = time.perf_counter()
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        command = [sys.executable, "-m", "lab.images.odd_images", "--seed", str(seed)]
        command += ["--work", str(first), str(size)]
        try:
            run = subprocess.run(
                command,
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60 + size * HANG,
            )
        except subprocess.TimeoutExpired:
            total["hangs"] += 1
            continue
        if run.returncode:
            total["crashes"] += 1
            continue
        answer: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        slowest = max(slowest, answer.pop("slowest"))
        peak = max(peak, answer.pop("megabytes"))
        total.update({name: int(number) for name, number in answer.items()})
    names = ("crashes", "hangs", "not named", "refused", "read")
    return {
        "mutants": count,
        **{name: total[name] for name in names},
        "slowest seconds": round(slowest, 3),
        "megabytes at most": round(peak),
        "seconds": round(time.perf_counter() - start),
    }


def figures(seed: int, count: int) -> dict[str, object]:
    """Count the kinds by outcome, list unexpected outcomes, and check the mutants."""
    wrong: list[str] = []
    outcomes = Counter[str]()
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as outer:
            folder = Path(outer) / "images"
            folder.mkdir()
            kind.make(folder)
            outcome, notes, _ = check_single(folder)
        outcomes[outcome] += 1
        if outcome != kind.outcome or kind.note not in notes:
            wrong.append(f"{name}: {outcome}: {notes}")
    return {"kinds": len(KINDS), **outcomes, "wrong": wrong, "damaged": campaign(seed, count)}


def main() -> None:
    """Print the figures, or with --work those of one chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, type=int)
    arguments = parser.parse_args()
    results = (
        work(arguments.seed, *arguments.work)
        if arguments.work
        else figures(arguments.seed, arguments.mutants)
    )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
