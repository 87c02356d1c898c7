"""Check a folder of images before training: what is used, and what looks wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pinxit.images import crop
from pinxit.images.captions import TEXT_SUFFIXES, with_dot
from pinxit.images.folder import ImageEntry, MaskSource, TrainingImage, check_images

if TYPE_CHECKING:
    from PIL.Image import Image

# Measured on the tutorial's images: a blur of 2 pixels is below, every sharp image above.
_BLURRED = 0.08
# Correlation of gray thumbnails: an image that was saved again or cropped is above, others below.
_DUPLICATE = 0.95
_SIMILAR = 0.85
_UNIFORM = 2.0  # standard deviation of the thumbnail
_ENLARGED = 1.25
_FEW, _MANY = 3, 40
_MIN_MASK_SHARE = 0.01
_THUMBNAIL = 16
_PREVIEW = 256
# CLIP's window without its start and end tokens; a word, a digit and a mark are a token or more.
_CAPTION_TOKENS = 75
# What is at least one token: no token of CLIP has more letters, and Chinese, Japanese and Korean
# letters are tokens of their own.
_EASTERN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_EASTERN}]|(?:(?![{_EASTERN}\d_])\w){{1,24}}|\d|[^\s\w]+|_+")


@dataclass(frozen=True)
class ImageCheck:
    """What was measured of one image.

    `bucket` is the size (width, height) it is trained at, `box` the crop (left, top, right, bottom)
    in pixels, `mask_share` the fraction of the image inside its mask, `has_photo_mask` whether that
    mask looks like a photograph. `thumbnail` is (16, 16, 3), 0 to 255; `preview` has at most 256
    pixels per side.
    """

    image: TrainingImage
    size: crop.Size
    notes: tuple[str, ...]
    bucket: crop.Size
    box: tuple[float, float, float, float]
    mask_share: float | None
    has_photo_mask: bool
    sharpness: float
    thumbnail: NDArray[np.float64]
    preview: "Image"

    @property
    def name(self) -> str:
        """The file's name."""
        return self.image.path.name


@dataclass(frozen=True)
class FolderCheck:
    """The content of a folder: usable images, rejected files, and ignored files."""

    folder: Path
    checks: tuple[ImageCheck, ...]
    rejected: tuple[ImageEntry, ...]
    ignored: tuple[ImageEntry, ...]
    caption_extension: str | None = None

    @property
    def images(self) -> tuple[TrainingImage, ...]:
        """The usable images, as `read_images` gives them."""
        return tuple(check.image for check in self.checks)

    def warnings(self) -> dict[str, list[str]]:
        """Warnings by file name; under "" those about the folder as a whole."""
        warnings: dict[str, list[str]] = {check.name: _warnings(check) for check in self.checks}
        similarity = _similarity(self.checks) if self.checks else np.zeros((0, 0))
        for index, check in enumerate(self.checks):
            duplicates = np.flatnonzero(similarity[index, :index] >= _DUPLICATE)
            if len(duplicates):
                other = self.checks[int(duplicates[0])]
                same = check.image.sha256 == other.image.sha256
                warnings[check.name].append(f"{'' if same else 'nearly '}the same as {other.name}")
        warnings[""] = self._folder_warnings(similarity)
        return {name: texts for name, texts in warnings.items() if texts}

    def _folder_warnings(self, similarity: NDArray[np.float64]) -> list[str]:
        warnings: list[str] = []
        count, images = len(self.checks), [check.image for check in self.checks]
        if 0 < count < _FEW:
            warnings.append(
                f"only {count}: 3 to 12 images from different sides and places are usual"
            )
        if count > _MANY:
            warnings.append(f"{count} images, 3 to 12 are usual: check that each shows the subject")
        if count >= _FEW and similarity.min() >= _SIMILAR:
            warnings.append("all images look alike: background and pose will be learned too")
        if self.caption_extension and not any(image.caption for image in images):
            warnings.append(f"no image has a caption file {self.caption_extension}{self._texts()}")
        incomplete = {
            "caption": [image.path.name for image in images if not image.caption],
            "mask": [image.path.name for image in images if not image.mask],
        }
        for kind, names in incomplete.items():
            if 0 < len(names) < count:
                warnings.append(f"no {kind} for {', '.join(names)}, but for the other images")
        return warnings

    def _texts(self) -> str:
        """The kinds of text files in the folder that were not read."""
        found = {entry.path.suffix.lower() for entry in self.ignored} & TEXT_SUFFIXES
        return f"; there are {', '.join(sorted(found))}" if found else ""


def check_folder(
    folder: Path,
    resolution: int,
    size_multiple: int = 8,
    masks: MaskSource = "files",
    caption_extension: str | None = None,
) -> FolderCheck:
    """Check the images of a folder, one at a time, for training at a resolution.

    Raises ImageError if the folder cannot be read.
    """
    checks: list[ImageCheck] = []
    rejected: list[ImageEntry] = []
    ignored: list[ImageEntry] = []
    for entry in check_images(folder, masks, caption_extension):
        if entry.image and entry.decoded:
            checks.append(
                _check(entry, entry.image, entry.decoded.image, resolution, size_multiple)
            )
        elif entry.rejected:
            rejected.append(entry)
        else:
            ignored.append(entry)
    extension = with_dot(caption_extension)
    return FolderCheck(folder, tuple(checks), tuple(rejected), tuple(ignored), extension)


def _check(
    entry: ImageEntry, source: TrainingImage, image: "Image", resolution: int, size_multiple: int
) -> ImageCheck:
    from PIL import Image

    mask = entry.mask
    bucket = crop.bucket_for(image.size, resolution, size_multiple)
    center = crop.crop_center(image, bucket, mask)
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=3.0)
    preview = image.copy()
    preview.thumbnail((_PREVIEW, _PREVIEW))
    return ImageCheck(
        source,
        image.size,
        entry.notes,
        bucket,
        crop.crop_box(image.size, bucket, center),
        float(np.asarray(mask).mean() / 255) if mask else None,
        mask is not None and crop.is_photo_like(mask),
        _sharpness(image, resolution),
        np.asarray(thumbnail, dtype=np.float64),
        preview,
    )


def _warnings(check: ImageCheck) -> list[str]:
    warnings: list[str] = []
    scale = max(want / has for want, has in zip(check.bucket, check.size, strict=True))
    if scale > _ENLARGED:
        width, height = check.bucket
        warnings.append(f"small: enlarged {scale:.1f} times to {width}x{height}")
    if float(check.thumbnail.std(axis=(0, 1)).max()) < _UNIFORM:
        warnings.append("a single color")
    elif check.sharpness < _BLURRED:
        warnings.append("blurred")
    if check.mask_share is not None and check.mask_share < _MIN_MASK_SHARE:
        warnings.append(f"its mask covers {check.mask_share:.2%} of it")
    if check.has_photo_mask:
        warnings.append("its mask is mostly grey, as a photograph; white is trained, black is not")
    if cut := _cut_caption(check.image.caption or ""):
        warnings.append(
            f"its caption is too long: text encoders read {_CAPTION_TOKENS} tokens, and this is "
            f"left out, at least, but not the placeholder token: `{cut}`"
        )
    return warnings


def _cut_caption(caption: str) -> str:
    """What the text encoders of Stable Diffusion leave out of a caption if each word is a token."""
    words = list(_WORD.finditer(caption))
    return caption[words[_CAPTION_TOKENS].start() :] if len(words) > _CAPTION_TOKENS else ""


def _sharpness(image: "Image", resolution: int) -> float:
    """The 99.5th percentile of the Laplacian at training resolution, divided by the contrast."""
    from PIL import Image

    scale = min(1.0, resolution / min(image.size))
    size = (max(3, round(image.width * scale)), max(3, round(image.height * scale)))
    gray = image.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(gray, dtype=np.float32)
    vertical = pixels[:-2, 1:-1], pixels[2:, 1:-1]
    horizontal = pixels[1:-1, :-2], pixels[1:-1, 2:]
    laplacian = 4 * pixels[1:-1, 1:-1] - vertical[0] - vertical[1] - horizontal[0] - horizontal[1]
    low, high = np.percentile(pixels, (1, 99))
    return float(np.percentile(np.abs(laplacian), 99.5) / (high - low + 1))


def _similarity(checks: Sequence[ImageCheck]) -> NDArray[np.float64]:
    """The correlation of the gray thumbnails of each pair, (n, n), -1 to 1."""
    colors = np.stack([check.thumbnail for check in checks]).reshape(len(checks), -1, 3)
    gray = colors.mean(axis=2)
    gray -= gray.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(gray, axis=1)
    similarity = gray @ gray.T / np.maximum(np.outer(norms, norms), 1e-9)
    for uniform in np.flatnonzero(norms < _UNIFORM * _THUMBNAIL):  # only their colors can differ
        same = np.abs(colors - colors[uniform]).mean(axis=(1, 2)) < 2 * _UNIFORM
        similarity[uniform] = similarity[:, uniform] = same
    return similarity
