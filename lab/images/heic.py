"""Write a HEIC file without an encoder: HEVC with one block of 32x32 raw (PCM) samples.

No free encoder can be installed with pip alone; PCM blocks (ITU-T H.265, 7.3.8.7) need none.
"""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


class _Bits:
    def __init__(self) -> None:
        self.bits = ""

    def u(self, width: int, value: int) -> "_Bits":
        self.bits += f"{value:0{width}b}"
        return self

    def ue(self, *values: int) -> "_Bits":
        for value in values:
            code = f"{value + 1:b}"
            self.bits += "0" * (len(code) - 1) + code
        return self

    def align(self, first: str = "") -> "_Bits":
        self.bits += first
        self.bits += "0" * (-len(self.bits) % 8)
        return self

    def bytes(self) -> bytes:
        return int(self.bits, 2).to_bytes(len(self.bits) // 8, "big")


def _nal(kind: int, payload: bytes) -> bytes:
    """A NAL unit, with an emulation prevention byte after two zeros."""
    escaped, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes([kind << 1, 1]) + bytes(escaped)


def _profile(bits: _Bits) -> _Bits:
    return bits.u(8, 1).u(32, 0x60000000).u(4, 0b1011).u(44, 0).u(8, 30)


def _parameters() -> dict[int, bytes]:
    video = _profile(_Bits().u(4, 0).u(2, 3).u(6, 0).u(3, 0).u(1, 1).u(16, 0xFFFF))
    video.u(1, 1).ue(0, 0, 0).u(6, 0).ue(0).u(2, 0).align("1")
    sequence = _profile(_Bits().u(4, 0).u(3, 0).u(1, 1)).ue(0, 1, SIDE, SIDE).u(1, 0)
    sequence.ue(0, 0, 0).u(1, 1).ue(0, 0, 0).ue(2, 0, 0, 3, 0, 0)
    sequence.u(3, 0).u(1, 1).u(4, 7).u(4, 7).ue(2, 0).u(1, 1).ue(0).u(5, 0).align("1")
    parameters = _Bits().ue(0, 0).u(7, 0).ue(0, 0, 0).u(3, 0).ue(0, 0).u(7, 0)
    parameters.u(1, 1).u(1, 0).u(1, 1).u(2, 0).ue(0).u(2, 0).align("1")
    return {32: video.bytes(), 33: sequence.bytes(), 34: parameters.bytes()}


def _slice(planes: list[bytes]) -> bytes:
    header = _Bits().u(1, 1).u(1, 0).ue(0).ue(2).ue(0).align("1")
    # The bits of the arithmetic coder: one PCM block, then the end of the slice.
    low, interval = 270 - 2, 2
    header.bits += _flush_coder(low, interval)
    raw = header.align().bytes() + b"".join(planes)
    end = _Bits()
    end.bits = _flush_coder(510 - 2, 2)
    return raw + end.align().bytes()


def _flush_coder(low: int, interval: int) -> str:
    """The last bits of the arithmetic coder (9.3.4.3) for a low value and a range; no carry."""
    bits, first, outstanding = "", True, 0

    def put(bit: int) -> None:
        nonlocal bits, first, outstanding
        bits += "" if first else str(bit)
        first = False
        bits += str(1 - bit) * outstanding
        outstanding = 0

    while interval < 256:
        if low < 256:
            put(0)
        elif low >= 512:
            low -= 512
            put(1)
        else:
            low -= 256
            outstanding += 1
        interval, low = interval << 1, low << 1
    put(low >> 9 & 1)
    return bits + f"{low >> 7 & 3 | 1:02b}"


def _box(kind: str, *parts: bytes, full: int | None = None) -> bytes:
    version = b"" if full is None else struct.pack(">I", full)
    body = version + b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind.encode() + body


def save(image: Image.Image, path: Path, quarter_turns: int = 0) -> None:
    """Write an image of 32x32 with a rotation that the reader has to apply."""
    ycc = image.convert("YCbCr")
    assert ycc.size == (SIDE, SIDE)
    planes = np.asarray(ycc)
    chroma = [planes[..., channel].reshape(16, 2, 16, 2).mean(axis=(1, 3)) for channel in (1, 2)]
    luma = planes[..., 0].tobytes()
    coded = _nal(19, _slice([luma, *(plane.round().astype("u1").tobytes() for plane in chroma)]))
    coded = struct.pack(">I", len(coded)) + coded
    hvcc = struct.pack(">BBI", 1, 1, 0x60000000) + bytes.fromhex("b00000000000") + bytes([30])
    hvcc += bytes.fromhex("f000fcfdf8f800000f03")
    for kind, payload in _parameters().items():
        nal = _nal(kind, payload)
        hvcc += struct.pack(">BHH", 0x80 | kind, 1, len(nal)) + nal
    properties = [_box("hvcC", hvcc), _box("ispe", struct.pack(">II", SIDE, SIDE), full=0)]
    properties += [_box("irot", bytes([quarter_turns]))] if quarter_turns else []
    associations = bytes([0x81, 2, 0x83][: len(properties)])
    ftyp = _box("ftyp", b"heic", struct.pack(">I", 0), b"mif1heic")

    def meta(offset: int) -> bytes:
        handler = _box("hdlr", bytes(4), b"pict", bytes(13), full=0)
        location = struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, offset, len(coded))
        item = _box("infe", struct.pack(">HH", 1, 0), b"hvc1\0", full=2 << 24)
        entries = struct.pack(">IHB", 1, 1, len(associations)) + associations
        item_properties = _box("iprp", _box("ipco", *properties), _box("ipma", entries, full=0))
        items = _box("iinf", struct.pack(">H", 1), item, full=0)
        primary = _box("pitm", struct.pack(">H", 1), full=0)
        return _box(
            "meta", handler, primary, _box("iloc", location, full=0), items, item_properties, full=0
        )

    data_offset = len(ftyp) + len(meta(0)) + 8
    path.write_bytes(ftyp + meta(data_offset) + _box("mdat", coded))
