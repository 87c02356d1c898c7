"""What a worker without a job finds out, and the pages that show it."""

from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from pinxit.errors import ModelError
from pinxit.files.atomic_write import write_text
from pinxit.models.open_base import Bases, open_base
from pinxit.models.prompt import TokenEmbedding
from pinxit.models.text_encoder import PromptParsing
from pinxit.studio.measure import Measuring, measure_next
from pinxit.studio.workspace import TOKENS, Workspace
from tests.studio.conftest import add_images, add_training, wait_for


@pytest.fixture
def workspace(tmp_path: Path, nano: Path) -> Workspace:
    workspace = Workspace(tmp_path / "studio", (str(nano),))
    workspace.create()
    return workspace


@pytest.mark.long
def test_costs_are_known_before_the_first_training(
    workspace: Workspace, client: TestClient, nano: Path
) -> None:
    bases = Bases()
    assert not measure_next(workspace, bases, "cpu")  # nobody has images to train on
    add_images(workspace)
    rounds = 0
    while measure_next(workspace, bases, "cpu"):
        rounds += 1
    methods = workspace.options["methods"]
    assert rounds == 1 + len(methods)
    page = client.get("/train").text
    for method in methods:
        cost = workspace.cost(str(nano), method)
        assert cost.startswith("expected: ")
        assert " steps in " in cost
        assert f"On {nano}, {cost}" in page
    weights = bases.open(str(nano), "cpu").network("denoiser").state_dict()
    for name, weight in open_base(nano, "cpu").network("denoiser").state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_what_ended_a_worker_is_not_tried_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "studio", (str(tmp_path / "gone"),))
    workspace.create()
    add_images(workspace)
    for _ in ("the tokenizer", *workspace.options["methods"]):
        with pytest.raises(ModelError, match="gone"):
            measure_next(workspace, Bases(), "cpu")
    assert not measure_next(workspace, Bases(), "cpu")
    assert not workspace.cost(workspace.bases[0], "lora")


@pytest.mark.long
def test_a_job_ends_the_process_that_measures(workspace: Workspace, nano: Path) -> None:
    add_images(workspace)
    measuring = Measuring(workspace, "cpu")
    measuring.start()
    wait_for(lambda: next(workspace.base_folder(str(nano)).glob("*.json"), None))
    measuring.stop()
    files = [*workspace.base_folder(str(nano)).rglob("*")]
    assert all(file.stat().st_size for file in files if file.is_file())
    measuring.start()  # and goes on later
    wait_for(lambda: workspace.cost(str(nano), "lora"))
    measuring.stop()


TEXTS = ("a photo of (a <a>:1.3), (the <b>) and <c>", "a <b><c> toy", "word " * 90, "<a>")


@pytest.mark.parametrize("weights", [True, False])
def test_tokens_are_counted_as_by_the_text_encoder(
    workspace: Workspace, client: TestClient, nano: Path, weights: bool
) -> None:
    assert client.get("/tokens?text=a").text == ""  # before a worker has looked
    add_images(workspace)
    bases = Bases()
    measure_next(workspace, bases, "cpu")
    job = add_training(workspace)
    write_text(job.folder / TOKENS, '{"<a>": ["a", 3], "<b>": ["old toys", 0]}')
    (encoder,) = bases.open(str(nano), "cpu").text_encoders.values()
    vectors = {encoder.name: torch.zeros(3, encoder.width)}
    known = {"<a>": TokenEmbedding("a", vectors), "<b>": TokenEmbedding("old toys")}
    kind = "prompt" if weights else "caption"
    for text in TEXTS:
        count = len(encoder.token_texts(text, known, PromptParsing(weights)))
        query = {"text": text, "base": str(nano), "kind": kind, "concepts": job.id}
        sentence = client.get("/tokens", params=query).text
        assert sentence.startswith(f"{count} token")
        assert (": " in sentence) == bool(encoder.truncated_text(text, known))
