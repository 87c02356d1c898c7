"""Recipe: all settings of a training run, immutable, in one TOML file."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, field_validator

from pinxit import registry
from pinxit.errors import RecipeError
from pinxit.files.text import read_toml
from pinxit.images.captions import with_dot
from pinxit.images.collected import image_folder
from pinxit.images.crop import MAX_RESOLUTION
from pinxit.images.folder import MaskSource, TrainingImage, read_images
from pinxit.models.model import Precision
from pinxit.models.prompt import check_braces, normal_form
from pinxit.models.text_encoder import CLIP_SKIP, PromptParsing
from pinxit.options import Option, Options
from pinxit.training.method import Method, Subject, SubjectKind

_OTHER_PROGRAMS = (
    "for settings of another program see docs/guides/coming-from-diffusers-or-kohya.md"
)
# Samples of a step are drawn before any is computed: more of them could fill the memory.
_MAX_BATCH = 4096
# Names of kohya's scripts.
_OPTIMIZERS = {"adamw8bit": "adamw-8bit"}
_READ_METHOD = BeforeValidator(partial(registry.from_table, "methods"))


class Recipe(Options):
    """The settings of one training run: method, images, token, base model and schedule.

    Options that are None are chosen by `TrainingPlan`, most of them by the method. `method` is a
    name, or a table with its name and options; `images` may also be a list of files or PIL images.
    """

    method: Annotated[Method, _READ_METHOD, PlainSerializer(registry.to_table)]
    """training method: a name, or a table with its name and options"""
    images: Annotated[Path, BeforeValidator(image_folder)] = Option(
        aliases=("pictures", "instance_data_dir", "train_data_dir")
    )
    """folder with the training images"""
    token: str = Option(aliases=("placeholder_token",))
    """placeholder token: the new word for the subject, best in angle brackets: <mytoy>"""
    class_noun: str = Option(aliases=("class_name",))
    """noun that the base model knows for this kind of subject, such as toy"""
    kind: SubjectKind = Option("object", aliases=("learnable_property",))
    """what the token stands for: an object or a style"""
    base: str = Option("pocket", aliases=("model", "pretrained_model_name_or_path"))
    """base model: a name, a folder, a checkpoint file or a Hugging Face id"""
    vae: str | None = Option(None, default_is="the VAE of the base model")
    """another VAE: a folder, a file or a Hugging Face id"""
    text_encoders: tuple[str, ...] = Option(
        (), aliases=("text_encoder",), default_is="those of the base model"
    )
    """text encoders and tokenizers, if the base model is a transformer in a file of its own: files,
    folders or Hugging Face ids; one for each time it is given"""
    assistant: str | None = Option(None, aliases=("assistant_lora",))
    """LoRA file that undoes the distillation of a base model while it is trained on, and is left
    out of previews and of the result; FILE:0.7 scales it by 0.7"""
    seed: int = Option(0, ge=0)
    """random seed; everything random in the run follows from it"""
    steps: int | None = Option(
        None,
        ge=1,
        aliases=("max_train_steps",),
        default_is="chosen by method, size of the base model and number of images",
    )
    """number of training steps"""
    batch_size: int | None = Option(
        None,
        ge=1,
        le=_MAX_BATCH,
        aliases=("train_batch_size",),
        default_is="chosen by method and size of the base model",
    )
    """training images per step, class images not counted"""
    optimizer: str = Option(
        "adamw",
        aliases=("optimizer_type",),
        help=f"optimizer: one of {', '.join(registry.names('optimizers'))}; "
        "prodigy finds the learning rate by itself",
    )
    learning_rate: float | None = Option(
        None,
        gt=0,
        aliases=("rate", "lr"),
        default_is=(
            "chosen by method and size of the base model; for Stable Diffusion: LoRA 1e-4, "
            "DreamBooth 5e-6, textual inversion 5e-3; lion: 0.3 of it; prodigy: 1"
        ),
    )
    """learning rate of the optimizer"""
    lr_schedule: Literal["constant", "linear", "cosine"] = Option(
        "constant", aliases=("lr_scheduler",)
    )
    """learning rate over the steps: constant, or falling to 0 in a line or as a cosine"""
    warmup_steps: int = Option(0, ge=0, aliases=("lr_warmup_steps",))
    """steps in which the learning rate rises to its full value"""
    weight_decay: float | None = Option(
        None, ge=0, aliases=("adam_weight_decay",), default_is="chosen by method"
    )
    """weight decay of the optimizer"""
    gradient_accumulation_steps: int = Option(1, ge=1, le=_MAX_BATCH)
    """batches whose gradients are added up for one step; the same as a batch size that is so many
    times larger, since a batch that does not fit into memory is computed in parts"""
    ema: bool = Option(False, aliases=("use_ema", "average_weights"))
    """save and generate with the average of the weights over the later steps, for every method;
    embeddings are averaged anyway"""
    caption_extension: str | None = Option(
        None, default_is=".txt, .caption or .json, and tables of the folder"
    )
    """suffix of the caption files, such as .tags; only these files are captions then"""
    caption_dropout: float | None = Option(
        None,
        ge=0,
        lt=1,
        aliases=("caption_dropout_rate",),
        default_is="styles: 0.1, for textual inversion 0; objects: 0",
    )
    """fraction of the samples that are trained with an empty prompt: guidance subtracts what the
    model predicts for it, so it should have the style too"""
    resolution: int | None = Option(
        None,
        ge=8,
        le=MAX_RESOLUTION,
        aliases=("size",),
        default_is="the resolution that the base model was trained at",
    )
    """width and height of square training images in pixels; other aspect ratios are trained at
    about the same area"""
    masks: MaskSource = Option("files", values={"beside": "files"})
    """train on the subject only, where a mask shows it: files takes toy.mask.png for toy.jpg, alpha
    takes the alpha channel, none trains on whole images"""
    skip_bad: bool = False
    """leave out images that cannot be read"""
    flip: bool = Option(True, aliases=("random_flip",))
    """mirror half of the training images at random"""
    max_grad_norm: float = Option(1.0, gt=0, aliases=("clip",))
    """maximum gradient norm of a concept (gradient clipping)"""
    min_snr_gamma: float | None = Option(
        None, gt=0, aliases=("min_snr", "snr_gamma"), default_is="no weighting"
    )
    """gamma of min-SNR loss weighting; 5 is usual"""
    clip_skip: int | None = Option(
        None,
        ge=1,
        help=f"{CLIP_SKIP}; generate with the same value",
        default_is="the layer that the base model uses",
    )
    precision: Precision | None = Option(
        None, aliases=("mixed_precision",), default_is="chosen by device"
    )
    """number format of the base model and of the computation"""
    device: str | None = Option(None, default_is="the accelerator that torch finds, else cpu")
    """device to compute on, by its name in torch: cpu, cuda, cuda:1, mps, xpu, ..."""
    cache_encodings: bool | None = Option(
        None,
        aliases=("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"),
        default_is=(
            "on for base models of 100 million weights and more; smaller ones encode in "
            "less time than it takes to check what is on disk"
        ),
    )
    """keep encoded images and prompts on disk, so that the next run on them need not encode them"""
    early_stop: float = Option(0.0, ge=0, le=1, aliases=("stop",))
    """stop when the validation loss improves by less than this fraction of its total improvement; 0
    trains all steps, 0.05 is a good start"""
    validate_every: int | None = Option(
        None,
        ge=1,
        aliases=("look_every",),
        default_is="chosen by batch size and the method's number of steps",
    )
    """steps between validation losses for early stopping"""
    preview_every: int = Option(100, ge=0)
    """steps between preview images; 0 for no previews"""
    preview_prompts: tuple[str, ...] = Option(
        (), aliases=("preview_prompt", "validation_prompt", "sample_prompts")
    )
    """prompts of your own to preview too, with {} for the token; one for each time it is given"""
    preview_base: str | None = Option(None, default_is="the base model that is trained on")
    """base model of the same family to generate the previews on, with its number of steps and
    guidance scale: a distilled one is faster"""
    checkpoint_every: int = Option(100, ge=1, aliases=("checkpointing_steps",))
    """steps between checkpoints"""
    score_previews: bool = Option(True, aliases=("score",))
    """score every preview and keep the concept with the best score"""
    save_every: int = Option(0, ge=0, aliases=("keep_every", "save_every_n_steps"))
    """steps between saved concepts that are all kept; 0 keeps only the last and the best"""

    @field_validator("caption_extension")
    @classmethod
    def _has_dot(cls, extension: str | None) -> str | None:
        return with_dot(extension)

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, optimizer: str) -> str:
        name = _OPTIMIZERS.get(optimizer.lower(), optimizer.lower().replace("_", "-"))
        registry.load("optimizers", name)  # raises RecipeError for an unknown one
        return name

    @field_validator("preview_prompts")
    @classmethod
    def _are_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            check_braces(prompt, RecipeError)
        if not all(map(str.strip, prompts)):
            raise RecipeError(
                "one of the `preview_prompts` is empty",
                'write a prompt, with {} for the token: --preview-prompt "{} on the beach"',
            )
        return prompts

    @field_validator("token")
    @classmethod
    def _is_one_word(cls, token: str) -> str:
        if token.split() != [token] or token.startswith("<") != token.endswith(">"):
            raise RecipeError(
                f"the token `{token}` is not one word, or lacks a bracket",
                "write it in angle brackets, such as <mytoy>",
            )
        return normal_form(token)

    @property
    def subject(self) -> Subject:
        """The subject of the training: token, class noun, kind and seed."""
        return Subject(self.token, self.class_noun, self.kind, self.seed)

    def read_images(self) -> tuple[TrainingImage, ...]:
        """The training images with their masks; ImageError names images that cannot be read."""
        return read_images(self.images, self.masks, self.caption_extension, skip_bad=self.skip_bad)

    @property
    def prompt_parsing(self) -> PromptParsing:
        """How prompts are parsed: literally, because brackets in captions are not weights."""
        return PromptParsing(clip_skip=self.clip_skip)

    @classmethod
    def _unknown_name_hint(cls, name: str) -> str:
        plugins: list[type[Method]] = [
            registry.load("methods", m) for m in registry.names("methods")
        ]
        methods = [registry.name_of(one) for one in plugins if name in one.option_names()]
        if methods:
            table = f'method={{"name": "{methods[0]}", "{name}": ...}}'
            place = f"write it below a line [method], in Python {table}"
            return f"it is an option of {', '.join(methods)}: {place}"
        return super()._unknown_name_hint(name) + f"; {_OTHER_PROGRAMS}"

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a recipe from a TOML file."""
        return cls.model_validate(read_toml(path, "recipe"))

    def to_toml(self) -> str:
        """The complete recipe as TOML text."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
