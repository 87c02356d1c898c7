"""Every kind of unusual image is used, rejected or ignored as expected; damage never crashes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.images import odd_images as odd
from pinxit.errors import ImageError
from pinxit.images.decode import decode
from pinxit.images.folder import read_images


@pytest.mark.parametrize("kind", odd.KINDS)
def test_every_kind_is_treated_as_expected(kind: str, folder: Path) -> None:
    odd.KINDS[kind].make(folder)
    outcome, notes, entry = odd.check_single(folder)
    assert (outcome, notes) == (odd.KINDS[kind].outcome, notes)
    assert odd.KINDS[kind].note in notes
    if entry and entry.image:
        image = entry.image.open()
        assert image.mode == "RGB"
        assert image.tobytes() == entry.decoded.image.tobytes()


def test_there_are_at_least_60_kinds() -> None:
    assert len(odd.KINDS) >= 60


@pytest.mark.long
def test_a_thousand_damaged_files() -> None:
    figures: Any = odd.figures(seed=1, count=1000)
    print(figures)
    damaged = figures["damaged"]
    assert damaged["refused"] + damaged["read"] == 1000
    assert not figures["wrong"]
    assert {damaged[what] for what in ("crashes", "hangs", "not named")} == {0}
    assert min(damaged["refused"], damaged["read"]) > 100  # some damage is harmless, some is not
    assert damaged["slowest seconds"] < 2
    assert damaged["megabytes at most"] < 512


def test_color_profiles_are_applied(folder: Path) -> None:
    image = odd.scene()
    image.save(folder / "plain.png")
    image.save(folder / "other.png", icc_profile=odd.gamut())
    image.save(folder / "known.png", icc_profile=odd._srgb())
    known, other, plain = (np.asarray(p.open(), dtype=int) for p in read_images(folder))
    assert (plain == np.asarray(image)).all()
    assert (known == plain).all()
    # The profile exchanges red and blue.
    assert abs(other[..., ::-1] - plain).mean() < 3 < abs(other - plain).mean()


def test_heic_images_are_upright_and_have_correct_colors(folder: Path) -> None:
    for quarter_turns in (0, 1, 2, 3):
        (folder / f"{quarter_turns}.heic").write_bytes(odd.phone(quarter_turns))
    plain, *others = (image.open() for image in read_images(folder))
    halved = odd.scene().resize(
        (16, 16), Image.Resampling.BOX
    )  # the resolution of the stored colors
    smooth = np.asarray(plain.resize((16, 16), Image.Resampling.BOX), dtype=int)
    assert abs(smooth - np.asarray(halved, dtype=int)).mean() < 12
    for quarter_turns, image in enumerate(others, 1):
        rotated = np.rot90(np.asarray(plain), quarter_turns)
        assert (np.asarray(image) == rotated).all()


@pytest.mark.long
def test_the_largest_image_fits_into_memory(folder: Path) -> None:
    """Peak memory of decoding the largest allowed image with an alpha channel, in a new process."""
    path = folder / "a.png"
    wide = (9_459, 9_459)
    path.write_bytes(odd.png(8, 3, wide, bytes(9_460) * 9_459, b"PLTE\1\2\3", b"tRNS\0"))
    code = (
        "import resource, sys; from pathlib import Path; from pinxit.images.decode import decode\n"
        "decode(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    print(int(process.stdout) // 1024, "megabytes")
    assert int(process.stdout) < 1.8 * 2**20


def test_a_file_without_read_permission_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd.scene().save(folder / "a.png")
    odd.scene().save(folder / "b.png")
    original = Path.open

    def guarded(path: Path, *mode: str) -> object:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return original(path, *mode)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(ImageError, match=r"a\.png \(no permission to read it\)"):
        read_images(folder)


def test_a_folder_without_read_permission_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        read_images(folder)


def test_only_the_listed_decoders_are_used(folder: Path) -> None:
    """Pillow would start Ghostscript on this one."""
    marker = folder / "ran"
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({marker}) (w) file closefile\n"
    (folder / "a.png").write_text(script)
    with pytest.raises(ImageError, match="not in a supported image format"):
        read_images(folder)
    assert not marker.exists()


def test_file_names_that_are_not_utf_8_work(folder: Path) -> None:
    path = folder / os.fsdecode(b"\xff\xfe.png")
    odd.scene().save(path)
    (image,) = read_images(folder)
    assert decode(image.path).image.size == (32, 32)


def test_a_jpeg_with_thousands_of_scans_is_refused(folder: Path) -> None:
    Image.new("RGB", (2000, 1500)).save(folder / "a.jpg", progressive=True)
    data = (folder / "a.jpg").read_bytes()
    assert decode(folder / "a.jpg").image.size == (2000, 1500)
    last = data.rindex(b"\xff\xda")
    (folder / "a.jpg").write_bytes(data[:last] + data[last:-2] * 1000 + data[-2:])
    with pytest.raises(ImageError, match="scans"):
        read_images(folder)
