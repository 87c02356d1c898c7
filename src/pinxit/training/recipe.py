"""Recipe: all settings of a training run, immutable, in one TOML file."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, field_validator

from pinxit import registry
from pinxit.errors import RecipeError
from pinxit.images.collected import image_folder
from pinxit.images.folder import MaskSource, TrainingImage, read_images
from pinxit.models.model import Precision
from pinxit.models.prompt import normal_form
from pinxit.models.text_encoder import CLIP_SKIP, PromptParsing
from pinxit.options import Option, Options, read_toml
from pinxit.training.method import Method, Subject, SubjectKind

# Names of kohya's scripts.
_OPTIMIZERS = {"adamw8bit": "adamw-8bit"}
_READ_METHOD = BeforeValidator(partial(registry.from_table, "methods"))


class Recipe(Options):
    """The settings of one training run: method, images, token, base model and schedule.

    Options that are None are chosen by `TrainingPlan`, most of them by the method. `method` is a
    name, or a table with its name and options; `images` may also be a list of files or PIL images.
    """

    method: Annotated[Method, _READ_METHOD, PlainSerializer(registry.to_table)] = Option(
        help="training method: a name, or a table with its name and options"
    )
    images: Annotated[Path, BeforeValidator(image_folder)] = Option(
        aliases=("pictures", "instance_data_dir", "train_data_dir"),
        help="folder with the training images",
    )
    token: str = Option(
        aliases=("placeholder_token",),
        help="placeholder token: the new word for the subject, best in angle brackets: <mytoy>",
    )
    class_noun: str = Option(
        aliases=("class_name",),
        help="noun that the base model knows for this kind of subject, such as toy",
    )
    kind: SubjectKind = Option(
        "object",
        aliases=("learnable_property",),
        help="what the token stands for: an object or a style",
    )
    base: str = Option(
        "pocket",
        aliases=("model", "pretrained_model_name_or_path"),
        help="base model: a name, a folder, a checkpoint file or a Hugging Face id",
    )
    vae: str | None = Option(
        None,
        help="another VAE: a folder, a file or a Hugging Face id",
        default_is="the VAE of the base model",
    )
    text_encoders: tuple[str, ...] = Option(
        (),
        aliases=("text_encoder",),
        help="text encoders and tokenizers, if the base model is a transformer in a file of its "
        "own: files, folders or Hugging Face ids; one for each time it is given",
        default_is="those of the base model",
    )
    assistant: str | None = Option(
        None,
        aliases=("assistant_lora",),
        help="LoRA file that undoes the distillation of a base model while it is trained on, and "
        "is left out of previews and of the result; FILE:0.7 scales it by 0.7",
    )
    seed: int = Option(0, help="random seed; everything random in the run follows from it")
    steps: int | None = Option(
        None,
        ge=1,
        aliases=("max_train_steps",),
        help="number of training steps",
        default_is="chosen by method, size of the base model and number of images",
    )
    batch_size: int | None = Option(
        None,
        ge=1,
        aliases=("train_batch_size",),
        help="training images per step, class images not counted",
        default_is="chosen by method and size of the base model",
    )
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
        help="learning rate of the optimizer",
        default_is="chosen by method and size of the base model; for Stable Diffusion: LoRA 1e-4, "
        "DreamBooth 5e-6, textual inversion 5e-3; lion: 0.3 of it; prodigy: 1",
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Option(
        "constant",
        aliases=("lr_scheduler",),
        help="learning rate over the steps: constant, or falling to 0 in a line or as a cosine",
    )
    warmup_steps: int = Option(
        0,
        ge=0,
        aliases=("lr_warmup_steps",),
        help="steps in which the learning rate rises to its full value",
    )
    weight_decay: float | None = Option(
        None,
        ge=0,
        aliases=("adam_weight_decay",),
        help="weight decay of the optimizer",
        default_is="chosen by method",
    )
    gradient_accumulation_steps: int = Option(
        1,
        ge=1,
        help="batches whose gradients are added up for one step; the same as a batch size that is "
        "so many times larger, since a batch that does not fit into memory is computed in parts",
    )
    ema: bool = Option(
        False,
        aliases=("use_ema", "average_weights"),
        help="save and generate with the average of the weights over the later steps, for every "
        "method; embeddings are averaged anyway",
    )
    caption_extension: str | None = Option(
        None,
        help="suffix of the caption files, such as .tags; only these files are captions then",
        default_is=".txt, .caption or .json, and tables of the folder",
    )
    caption_dropout: float = Option(
        0.0,
        ge=0,
        lt=1,
        aliases=("caption_dropout_rate",),
        help="fraction of the samples that are trained with an empty prompt",
    )
    resolution: int | None = Option(
        None,
        ge=8,
        aliases=("size",),
        help="width and height of square training images in pixels; other aspect ratios are "
        "trained at about the same area",
        default_is="the resolution that the base model was trained at",
    )
    masks: MaskSource = Option(
        "files",
        values={"beside": "files"},
        help="train on the subject only, where a mask shows it: files takes toy.mask.png for "
        "toy.jpg, alpha takes the alpha channel, none trains on whole images",
    )
    skip_bad: bool = Option(False, help="leave out images that cannot be read")
    flip: bool = Option(
        True,
        aliases=("random_flip",),
        help="mirror half of the training images at random",
    )
    max_grad_norm: float = Option(
        1.0, gt=0, aliases=("clip",), help="maximum gradient norm of a concept (gradient clipping)"
    )
    min_snr_gamma: float | None = Option(
        None,
        gt=0,
        aliases=("min_snr", "snr_gamma"),
        help="gamma of min-SNR loss weighting; 5 is usual",
        default_is="no weighting",
    )
    clip_skip: int | None = Option(
        None,
        ge=1,
        help=f"{CLIP_SKIP}; generate with the same value",
        default_is="the layer that the base model uses",
    )
    precision: Precision | None = Option(
        None,
        aliases=("mixed_precision",),
        help="number format of the base model and of the computation",
        default_is="chosen by device",
    )
    device: str | None = Option(
        None,
        help="device to compute on, by its name in torch: cpu, cuda, cuda:1, mps, xpu, ...",
        default_is="the accelerator that torch finds, else cpu",
    )
    cache_encodings: bool | None = Option(
        None,
        aliases=("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"),
        help="keep encoded images and prompts on disk, so that the next run on them need not "
        "encode them",
        default_is="on for base models of 100 million weights and more; smaller ones encode in "
        "less time than it takes to check what is on disk",
    )
    early_stop: float = Option(
        0.0,
        ge=0,
        aliases=("stop",),
        help="stop when the validation loss improves by less than this fraction of its total "
        "improvement; 0 trains all steps, 0.05 is a good start",
    )
    validate_every: int | None = Option(
        None,
        ge=1,
        aliases=("look_every",),
        help="steps between validation losses for early stopping",
        default_is="chosen by batch size and the method's number of steps",
    )
    preview_every: int = Option(100, ge=0, help="steps between preview images; 0 for no previews")
    preview_prompts: tuple[str, ...] = Option(
        (),
        aliases=("preview_prompt", "validation_prompt", "sample_prompts"),
        help="prompts of your own to preview too, with {} for the token; one for each time it is "
        "given",
    )
    checkpoint_every: int = Option(
        100, ge=1, aliases=("checkpointing_steps",), help="steps between checkpoints"
    )
    score_previews: bool = Option(
        True,
        aliases=("score",),
        help="score every preview and keep the concept with the best score",
    )
    save_every: int = Option(
        0,
        ge=0,
        aliases=("keep_every", "save_every_n_steps"),
        help="steps between saved concepts that are all kept; 0 keeps only the last and the best",
    )

    @field_validator("caption_extension")
    @classmethod
    def _has_dot(cls, extension: str | None) -> str | None:
        return extension and f".{extension.lower().removeprefix('.')}"

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, optimizer: str) -> str:
        name = _OPTIMIZERS.get(optimizer.lower(), optimizer.lower().replace("_", "-"))
        registry.load("optimizers", name)  # raises RecipeError for an unknown one
        return name

    @field_validator("token")
    @classmethod
    def _is_one_word(cls, token: str) -> str:
        if token.split() != [token]:
            raise RecipeError(
                f"the token `{token}` is not one word",
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
    def from_toml(cls, path: Path) -> Self:
        """Read a recipe from a TOML file."""
        return cls.model_validate(read_toml(path, "recipe"))

    def to_toml(self) -> str:
        """The complete recipe as TOML text."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
