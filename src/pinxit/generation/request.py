"""Generation requests, and the PNG files that store them with the image."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from PIL.Image import Image
from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, field_validator
from torch import Tensor

from pinxit import registry
from pinxit.concepts.read import ConceptReference
from pinxit.errors import PinxitError, RequestError, typed
from pinxit.files.atomic_write import atomic_write, make_folder
from pinxit.files.portable import portable, with_tilde, without_tilde
from pinxit.generation.control import ControlField, read_image
from pinxit.generation.png_parameters import PARAMETERS_KEY, parameters_text, parse_parameters
from pinxit.generation.schedulers import SCHEDULER_ALIASES, SCHEDULERS, scheduler_name
from pinxit.images.collected import ImageFile
from pinxit.images.decode import UnreadableError, open_image
from pinxit.models.model import Model, Precision
from pinxit.models.prompt import parse_weights
from pinxit.models.text_encoder import CLIP_SKIP, PromptParsing
from pinxit.options import Option, Options

_KEY = "pinxit"
_COMFYUI_KEY = "prompt"
_PNG_HINT = "give a PNG that pinxit or AUTOMATIC1111 generated"
# Options with paths; a relative path of a model could be read as a hub id.
_MODEL_KEYS = ("base", "vae", "text_encoders", "weights")
_PATH_KEYS = (*_MODEL_KEYS, "concepts", "init_image", "init", "image", "picture", "mask")
# Limits for requests that come from files of other people.
_MAX_PROMPT = 1_000_000
_MAX_NAME = 4096
_MAX_SIDE = 16_384
_MAX_IMAGES = 100_000
_MAX_SEED = 2**63 - 1


def _concept_reference(value: object) -> object:
    return ConceptReference.parse(value) if isinstance(value, str | Path) else value


class GenerationRequest(Options):
    """Everything that determines generated images, except the weights of the base model."""

    error_type: ClassVar[type[PinxitError]] = RequestError
    table_title: ClassVar[str] = "the request"

    prompt: str = Option(max_length=_MAX_PROMPT)
    """text prompt; may contain tokens of loaded concepts, like <mytoy>"""
    negative_prompt: str = Option("", aliases=("negative",), max_length=_MAX_PROMPT)
    """negative prompt: what the images should not show"""
    concepts: tuple[
        Annotated[ConceptReference, BeforeValidator(_concept_reference), PlainSerializer(str)], ...
    ] = Option((), aliases=("concept",))
    """run folders or concept files to load; FILE:0.7 scales a LoRA by 0.7"""
    num_images: int = Option(1, ge=1, le=_MAX_IMAGES, aliases=("count", "n"))
    """number of images"""
    seed: int = Option(0, ge=0, le=_MAX_SEED)
    """seed of the first image; each further image adds 1"""
    steps: int = Option(
        25,
        ge=1,
        le=1000,
        aliases=("num_inference_steps",),
        default_is="25, or what suits the base model: few for a distilled one",
    )
    """number of denoising steps"""
    guidance_scale: float = Option(
        5.0,
        ge=1,
        aliases=("guidance", "cfg", "cfg_scale"),
        default_is="5, or what suits the base model",
    )
    """classifier-free guidance scale: higher follows the prompt more closely, 1 turns it off"""
    scheduler: str | None = Option(
        None,
        aliases=("sampler",),
        values=SCHEDULER_ALIASES,
        help=f"noise scheduler (sampler): {', '.join(SCHEDULERS)}",
        default_is="ddim; euler for base models that are rectified flows",
    )
    clip_skip: int | None = Option(
        None, ge=1, help=CLIP_SKIP, default_is="the base model's own layer"
    )
    width: int | None = Option(
        None, ge=8, le=_MAX_SIDE, default_is="the height, or the base model's image size"
    )
    """image width in pixels"""
    height: int | None = Option(None, ge=8, le=_MAX_SIDE, default_is="the width")
    """image height in pixels"""
    init_image: ImageFile | None = Option(None, aliases=("init",))
    """image to start from (image-to-image)"""
    denoising_strength: float = Option(0.6, gt=0, le=1, aliases=("strength",))
    """how much of the initial image is replaced: the fraction of the steps that run"""
    controls: tuple[ControlField, ...] = ()
    """controls that preserve the structure of an image: see `pinxit transfer --help`"""
    base: str = Option(
        "pocket",
        default_is="the one that the concept was trained on, else pocket",
        max_length=_MAX_NAME,
    )
    """base model: a name, a folder, a checkpoint file or a hub id"""
    vae: str | None = Option(None, default_is="the base model's own", max_length=_MAX_NAME)
    """VAE: a folder, a file or a hub id"""
    text_encoders: tuple[str, ...] = Option(
        (), aliases=("text_encoder",), default_is="those of the base model"
    )
    """text encoders and tokenizers, if the base model is a transformer in a file of its own: files,
    folders or hub ids; one for each time it is given"""
    precision: Precision | None = Option(None, default_is="chosen for the device")
    """number format to compute in"""

    @field_validator("scheduler")
    @classmethod
    def _is_scheduler(cls, name: str | None, _info: ValidationInfo) -> str | None:
        return name and scheduler_name("diffusion", name)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(range(self.seed, self.seed + self.num_images))

    def size(self, model: Model) -> tuple[int, int]:
        """Width and height in pixels on this model; RequestError if the latents do not allow it."""
        width = self.width or self.height or model.default_size
        height = self.height or width
        multiple = model.size_multiple
        if width % multiple or height % multiple:
            raise RequestError(
                f"{model.name} cannot generate {width}x{height} pixels: both sides must be "
                f"multiples of {multiple}",
                f"try {_nearest(width, multiple)}x{_nearest(height, multiple)}",
            )
        return width, height

    def with_defaults(self, model: Model) -> Self:
        """The request with the model's defaults for the options that were not given."""
        defaults = model.generation_defaults.items()
        changes = {name: value for name, value in defaults if name not in self.model_fields_set}
        return self.model_copy(update=changes) if changes else self

    def check(self) -> None:
        """Raise RequestError for what is wrong in every base model: weights in prompts, images."""
        for prompt in (self.prompt, self.negative_prompt):
            parse_weights(prompt)
        self.check_start()
        if self.init_image:
            read_image(self.init_image)
        for control in self.controls:
            control.check()

    def check_start(self) -> None:
        """Raise RequestError if the images would start from several images."""
        starts = ["--init-image"] if self.init_image else []
        starts += [registry.name_of(type(one)) for one in self.controls if one.sets_initial_latents]
        if len(starts) > 1:
            raise RequestError(
                f"{' and '.join(starts)} cannot be used together: both choose the image to start "
                "from",
                "leave one of them out",
            )

    @property
    def prompt_parsing(self) -> PromptParsing:
        """How the prompts are parsed: with attention weights, as long as the model allows."""
        return PromptParsing(weights=True, long_prompts=True, clip_skip=self.clip_skip)

    @classmethod
    def from_png(cls, path: Path | str) -> Self:
        """The request that is stored in a generated image; RequestError if there is none.

        The settings of AUTOMATIC1111 and of programs that write them alike are read as well.
        """
        try:
            with open_image(Path(path)) as image:
                text: object = image.info.get(_KEY)
                foreign: object = image.info.get(PARAMETERS_KEY)
                graph: object = image.info.get(_COMFYUI_KEY)
        except UnreadableError as error:
            raise RequestError(f"image {path} cannot be read: {error}", _PNG_HINT) from error
        try:
            values = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) and text is None and isinstance(foreign, str):
            values = parse_parameters(foreign)
        if not isinstance(values, dict) and str(graph).startswith("{"):
            raise RequestError(
                f"{path} has a graph of ComfyUI, whose nodes can do more than a request can say",
                f"see its prompts, seed and sampler with: pinxit show {typed(Path(path))}",
            )
        if not isinstance(values, dict):
            raise RequestError(f"{path} contains no generation request", _PNG_HINT)
        return cls.model_validate(_with_paths(values, without_tilde, without_tilde))


def is_own_png(path: Path) -> bool:
    """Whether pinxit stored a request in an image; False if it has settings of another program."""
    with open_image(path) as image:
        return _KEY in image.info


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image, the request that generates it again, and its latents (C, H, W)."""

    image: Image
    request: GenerationRequest
    latents: Tensor

    def __repr__(self) -> str:
        """One line without pixels."""
        size, request = self.image.size, self.request
        return f"<GeneratedImage {size[0]}x{size[1]}, seed {request.seed}: {request.prompt!r:.60}>"

    def _repr_png_(self) -> bytes:
        """The image, which a notebook shows."""
        png = BytesIO()
        self.image.save(png, "PNG")
        return png.getvalue()

    def save(self, path: Path | str) -> None:
        """Write a PNG with the request stored in its metadata; RequestError for other names."""
        from PIL.PngImagePlugin import PngInfo

        path = Path(path)
        if path.suffix.lower() != ".png":
            raise RequestError(
                f"{path} is not a PNG, and only a PNG stores the request",
                f"try {path.with_suffix('.png')}, or result.image.save",
            )
        make_folder(path.parent)
        info = PngInfo()
        values = self.request.model_dump(mode="json", exclude_none=True)
        text = json.dumps(_with_paths(values, portable, with_tilde), ensure_ascii=False)
        info.add_text(_KEY, text)
        info.add_text(PARAMETERS_KEY, parameters_text(values, self.image.size))
        atomic_write(path, lambda draft: self.image.save(draft, "PNG", pnginfo=info))


def _with_paths(
    values: Mapping[str, Any], change: Callable[[str], str], change_model: Callable[[str], str]
) -> dict[str, Any]:
    """The values of a request with another notation of the paths of files and of models."""
    changed = dict(values)
    for key, value in values.items():
        convert = change_model if key in _MODEL_KEYS else change
        if key in _PATH_KEYS and isinstance(value, str):
            changed[key] = convert(value)
        elif key in _PATH_KEYS and isinstance(value, list):
            items = cast("list[object]", value)
            changed[key] = [convert(item) if isinstance(item, str) else item for item in items]
        elif key == "controls" and isinstance(value, list):
            tables = cast("list[object]", value)
            changed[key] = [
                _with_paths(cast("Mapping[str, Any]", table), change, change_model)
                if isinstance(table, Mapping)
                else table
                for table in tables
            ]
    return changed


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
