"""Every kind of odd picture gets its verdict; damaged ones are named, and harm nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.images import odd_images as odd
from pinxit.errors import PictureError
from pinxit.images.decode import decode
from pinxit.images.folder import read_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", odd.KINDS)
def test_every_kind_gets_its_verdict(kind: str, folder: Path) -> None:
    odd.KINDS[kind].make(folder)
    verdict, said, entry = odd.judged(folder)
    assert (verdict, said) == (odd.KINDS[kind].verdict, said)
    assert odd.KINDS[kind].says in said
    if entry and entry.picture:
        image = entry.picture.open()
        assert image.mode == "RGB"
        assert image.tobytes() == entry.decoded.image.tobytes()


def test_there_are_kinds_enough() -> None:
    assert len(odd.KINDS) >= 60


@pytest.mark.long
def test_a_thousand_damaged_files() -> None:
    asked = [sys.executable, "-m", "lab.images.odd_images", "--mutants", "1000", "--seed", "1"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    print(found)
    damaged = found["damaged"]
    assert damaged["refused"] + damaged["read"] == 1000
    assert not found["wrong"]
    assert {damaged[what] for what in ("crashes", "hangs", "not named")} == {0}
    assert min(damaged["refused"], damaged["read"]) > 100  # the damage is neither none nor all
    assert damaged["slowest seconds"] < 2
    assert damaged["megabytes at most"] < 512


def test_colours_go_through_their_profile(folder: Path) -> None:
    image = odd.scene()
    image.save(folder / "plain.png")
    image.save(folder / "other.png", icc_profile=odd.gamut())
    image.save(folder / "known.png", icc_profile=odd._srgb())
    known, other, plain = (np.asarray(p.open(), dtype=int) for p in read_pictures(folder))
    assert (plain == np.asarray(image)).all()
    assert (known == plain).all()
    # Red and blue lie where the other had them, so what was said to be red is blue.
    assert abs(other[..., ::-1] - plain).mean() < 3 < abs(other - plain).mean()


def test_a_phones_picture_is_upright_in_its_colours(folder: Path) -> None:
    for turned in (0, 1, 2, 3):
        odd.heic.save(odd.scene(), folder / f"{turned}.heic", turned)
    plain, *others = (picture.open() for picture in read_pictures(folder))
    halved = odd.scene().resize((16, 16), Image.Resampling.BOX)  # colours are stored so
    smooth = np.asarray(plain.resize((16, 16), Image.Resampling.BOX), dtype=int)
    assert abs(smooth - np.asarray(halved, dtype=int)).mean() < 12
    for quarters, image in enumerate(others, 1):
        turn = np.rot90(np.asarray(plain), quarters)
        assert (np.asarray(image) == turn).all()


@pytest.mark.long
def test_the_largest_picture_fits_into_memory(folder: Path) -> None:
    """In a process of its own: the most that any picture takes, with its opacity."""
    path = folder / "a.png"
    wide = (9_459, 9_459)
    path.write_bytes(odd.png(8, 3, wide, bytes(9_460) * 9_459, b"PLTE\1\2\3", b"tRNS\0"))
    code = (
        "import resource, sys; from pathlib import Path; from pinxit.images.decode import decode\n"
        "decode(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    print(int(answer.stdout) // 1024, "megabytes")
    assert int(answer.stdout) < 1.8 * 2**20


def test_no_permission_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd.scene().save(folder / "a.png")
    odd.scene().save(folder / "b.png")
    whole = Path.open

    def guarded(path: Path, *how: str) -> object:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return whole(path, *how)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(PictureError, match=r"a\.png \(no permission to read it\)"):
        read_pictures(folder)


def test_a_folder_without_permission_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(PictureError, match="cannot be read: Permission denied"):
        read_pictures(folder)


def test_only_the_listed_decoders_run(folder: Path) -> None:
    """Pillow would start Ghostscript on this one."""
    marker = folder / "ran"
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({marker}) (w) file closefile\n"
    (folder / "a.png").write_text(script)
    with pytest.raises(PictureError, match="no picture format"):
        read_pictures(folder)
    assert not marker.exists()


def test_names_that_are_no_text_come_through(folder: Path) -> None:
    path = folder / os.fsdecode(b"\xff\xfe.png")
    odd.scene().save(path)
    (picture,) = read_pictures(folder)
    assert decode(picture.path).image.size == (32, 32)
