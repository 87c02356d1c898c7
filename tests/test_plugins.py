"""A plug-in of each kind is one new file: it is listed and works with no other edit."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pinxit import GenerationRequest, Recipe, Run, generate, open_base, registry, train
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept, write_concept
from pinxit.models import family
from pinxit.models.model import Model

Add = Callable[[str, str, str], type]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """A function that adds a plug-in (kind, name, code) in a folder outside the package."""
    modules: list[str] = []

    def add_plugin(kind: str, name: str, code: str) -> type:
        package = import_module(f"pinxit.{registry.PLUGIN_KINDS[kind][0]}.{kind}")
        folder = tmp_path / kind
        folder.mkdir()
        file = folder / f"{name.replace('-', '_')}.py"
        file.write_text(dedent(code))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        modules.append(f"{package.__name__}.{file.stem}")
        forget_families()
        assert name in registry.names(kind)
        return registry.load(kind, name)

    yield add_plugin
    for name in modules:
        del sys.modules[name]
        package, _, stem = name.rpartition(".")
        delattr(sys.modules[package], stem)
    forget_families()


def forget_families() -> None:
    """Facts of families are read once per process."""
    for function in vars(family).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def generated(model: Model, **options: Any) -> np.ndarray[Any, Any]:
    request = GenerationRequest(prompt="a photo of a toy", steps=2, seed=1, **options)
    return np.asarray(next(iter(generate(model, request))).image)


def test_a_family(add: Add, nano: Path) -> None:
    expected = generated(open_base(nano))
    mirrored = add(
        "families",
        "mirrored",
        '''
        """Mirrored images, to test that a family is one file."""

        from pinxit.models.family import FamilyFacts
        from pinxit.models.unet_model import SingleTextEncoder


        class Mirrored(SingleTextEncoder):
            """The architecture of Stable Diffusion 1; its images are mirrored."""

            facts = FamilyFacts(
                title="Mirrored",
                released="2030-01",
                architecture="mirrored",
                native_size=32,
                networks={"unet": "denoiser", "text_encoder": "text"},
                text_widths=(31,),
            )

            @classmethod
            def matches(cls, source):
                """Whether it has one text encoder and 16 latent channels."""
                return source.config("vae")["latent_channels"] == 16

            def decode(self, latents):
                """Decode and mirror."""
                return super().decode(latents).flip(3)
        ''',
    )
    model = open_base(nano)
    assert type(model) is mirrored
    assert (generated(model) == expected[:, ::-1]).all()


def test_a_method(add: Add, model: Model, pictures: Path, tmp_path: Path) -> None:
    add(
        "methods",
        "plain-token",
        '''
        """The embedding of a token, to test that a method is one file."""

        from pinxit.adapters.kinds.embedding import EmbeddingAdapter
        from pinxit.options import Option
        from pinxit.training.method import Advice, ImagePool, Method, TrainableAdapter


        class PlainToken(Method):
            """Train one vector for the token."""

            template: str = Option("a photo of {}", help="prompt of all images")

            def advise(self, model, image_count):
                """Two steps."""
                return Advice(steps=2, batch_size=1, learning_rate=0.01)

            def create_adapters(self, model, subject, learning_rate):
                """The adapter of the token."""
                adapter = EmbeddingAdapter.of(model, subject.token, subject.class_noun, 1)
                return (TrainableAdapter(adapter, learning_rate),)

            def image_pools(self, subject, images, class_images=()):
                """The training images with the template."""
                prompts = ((self.template.format(subject.token),),) * len(images)
                return (ImagePool("own", images, prompts),)
        ''',
    )
    recipe = Recipe.model_validate(
        {
            "method": {"name": "plain-token", "template": "a painting of {}"},
            "images": pictures,
            "token": "<mytoy>",
            "class_noun": "toy",
            "preview_every": 0,
        }
    )
    run = train(model, recipe, tmp_path / "run")
    assert [len(step.losses) for step in run.state.steps] == [1, 1]
    assert Run.open(run.folder).recipe.method == recipe.method
    assert read_concept(run.folder).provenance.method == "plain-token"


def test_a_control(add: Add, model: Model) -> None:
    add(
        "controls",
        "brightness",
        '''
        """Brighter images, to test that a control is one file."""

        from pinxit.generation.control import Control, ControlHooks
        from pinxit.options import Option


        class Brightness(Control):
            """Add a number to all pixels of the result."""

            amount: float = Option(0.0, ge=0, help="number to add")

            def prepare(self, context):
                """Hooks that change the final pixels."""
                yield from ()
                return _Brighter(self.amount)


        class _Brighter(ControlHooks):
            def __init__(self, amount):
                self.amount = amount

            def finished(self, pixels):
                return pixels + self.amount
        ''',
    )
    controlled = generated(model, controls=[{"name": "brightness", "amount": 99}])
    assert (generated(model) < 255).any()
    assert (controlled == 255).all()


def test_a_format(
    add: Add, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(
        "formats",
        "sketchbook",
        '''
        """Files of a made-up program, to test that a format is one file."""

        import torch

        from pinxit.concepts.format import EmbeddingFormat, StoredEmbedding


        class Sketchbook(EmbeddingFormat):
            """A table with the key `sketch`, and a version."""

            suffixes = (".sketch",)
            used_by = "nobody"

            def confidence(self, file):
                """Whether the file has this key."""
                return "sketch" in file.tensors

            def unpack(self, file):
                """The embedding; its token is the file name."""
                return [StoredEmbedding("", {"text": file.tensors["sketch"]}, {})]

            def pack(self, embedding):
                """The table by key."""
                return {"sketch": embedding.tables["text"], "version": torch.tensor(1)}
        ''',
    )
    vectors = torch.rand(2, model.text_encoders["text"].width)
    torch.save({"emb_params": vectors}, tmp_path / "toy.pt")
    out = tmp_path / "toy.sketch"
    assert main(["convert", str(tmp_path / "toy.pt"), str(out), "--format", "sketchbook"]) == 0
    assert main(["inspect", str(out)]) == 0
    assert "sketchbook: Files of a made-up program" in capsys.readouterr().out
    (part,) = read_concept(out).parts
    assert torch.equal(part.tensors["text"], vectors)


def test_a_metric(add: Add) -> None:
    metric = add(
        "metrics",
        "redness",
        '''
        """Red pixels, to test that a metric is one file."""

        from dataclasses import dataclass

        from pinxit.evaluation.metric import Metric, stack_images


        @dataclass(frozen=True)
        class Redness(Metric):
            """The mean of the red channel."""

            better = "more"

            def score(self, images, references, prompts):
                """From -1 to 1 for each image."""
                return stack_images(images)[:, 0].mean((1, 2)).tolist()
        ''',
    )
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "black")]
    assert metric().score(images, [], []) == [1.0, -1.0]
    assert registry.summary("metrics", "redness").startswith("Red pixels")


@pytest.mark.long
def test_a_kind_of_adapter(add: Add, nano: Path, tmp_path: Path) -> None:
    kind = add(
        "kinds",
        "late-bias",
        '''
        """An offset of the output in late timesteps, to test that a kind of adapter is one file."""

        from contextlib import contextmanager

        import torch

        from pinxit.adapters.adapter import Adapter
        from pinxit.adapters.parts import Part


        class _LateBiasPart(Part):
            kind = "late-bias"

            def __init__(self, limit, offset):
                self.settings = {"limit": limit}
                self.tensors = {"offset": offset}

            settings = tensors = None

            @classmethod
            def from_stored(cls, settings, tensors):
                return cls(settings["limit"], tensors.get("offset"))

            def describe(self):
                return [("offset", f"below timestep {self.settings['limit']}")]


        class LateBias(Adapter):
            """Adds an offset to the denoiser's output below a timestep."""

            part_type = _LateBiasPart

            def __init__(self, part):
                self._part, self.timesteps = part, []

            @contextmanager
            def applied(self, model):
                hook = model.networks["denoiser"].conv_out.register_forward_hook(self._add)
                with hook:
                    yield

            def before_denoise(self, timesteps, concepts):
                self.timesteps.append(int(timesteps[0]))

            def _add(self, layer, inputs, output):
                is_late = self.timesteps[-1] < int(self._part.settings["limit"])
                return output + self._part.tensors["offset"] * is_late

            def part(self):
                return self._part

            @classmethod
            def restore(cls, part, model):
                return cls(part)
        ''',
    )
    model = open_base(nano)

    def image(limit: int) -> np.ndarray[Any, Any]:
        part = kind.part_type.from_stored({"limit": str(limit)}, {"offset": torch.ones(1)})
        file = tmp_path / f"{limit}.safetensors"
        write_concept(Concept((part,), Provenance.from_metadata("x", {})), file)
        (image,) = generate(model, "a toy", [file])
        return np.asarray(image.image)

    plain = np.asarray(generate(model, "a toy")[0].image)
    assert np.array_equal(image(0), plain)
    assert not np.array_equal(image(300), plain)
    assert not np.array_equal(image(300), image(1000))
    assert main(["inspect", str(tmp_path / "300.safetensors")]) == 0


def test_new_plug_ins_are_listed(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in registry.PLUGIN_KINDS:
        add(kind, "made-up", '"""A made-up plug-in."""\n\nclass MadeUp:\n    """Nothing."""\n')
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count("A made-up plug-in.") == len(registry.PLUGIN_KINDS)
