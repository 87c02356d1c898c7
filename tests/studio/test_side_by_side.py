"""Two steps side by side, the blind vote, and the zip file of a concept."""

import io
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pinxit.studio.jobs import Job
from pinxit.studio.side_by_side import Vote
from pinxit.studio.workspace import Workspace
from tests.studio.conftest import add_training


@pytest.fixture
def training(workspace: Workspace) -> Job:
    """A training with previews of two steps and a concept file."""
    return add_training(workspace)


def test_two_steps_are_shown_with_their_titles(client: TestClient, training: Job) -> None:
    page = client.get(f"/side?steps={training.id}:2").text
    assert f"/jobs/{training.id}/previews/2" in page
    assert f"/jobs/{training.id}/previews/4" in page
    assert "&lt;a&gt;, job 1, step 2" in page


def test_up_to_six_steps_are_columns(
    client: TestClient, training: Job, workspace: Workspace
) -> None:
    others = [add_training(workspace) for _ in range(3)]
    query = "&".join(f"concepts={job.id}" for job in others)
    page = client.get(f"/side?{query}").text
    columns = [f'<th scope="col">&lt;a&gt;, job {int(job.id)}, step 4</th>' for job in others]
    assert "".join(columns) in page  # of each concept one step
    assert page.count("<tr><th") == 4  # a row for each prompt
    assert f"/jobs/{training.id}/previews" not in page
    steps = [f"steps={job.id}:{step}" for job in (training, *others) for step in (2, 4)]
    page = client.get(f"/side?{'&'.join(steps)}&steps=none").text
    assert page.count('<th scope="col">') == 6
    assert "3 of what was chosen cannot be shown" in page
    page = client.get(f"/side?steps={training.id}&steps=none").text
    assert "1 of what was chosen cannot be shown" in page
    assert page.count("<figure>") == 4  # with the newest other one


def test_vote_is_blind_and_counts_the_sides(client: TestClient, training: Job) -> None:
    keys = {"left": f"{training.id}:2", "right": f"{training.id}:4"}
    answer = client.post("/votes", data=keys)
    address = answer.url.path
    left = client.get(f"/jobs/{training.id}/previews/2").content
    for number in range(8):
        page = client.get(address).text
        assert f"Pair {number + 1} of 8" in page
        main = page[page.index("<main") :]
        assert "step" not in main.replace("Which step it is from", "")
        assert f"/jobs/{training.id}" not in main
        sheets = {side: client.get(f"{address}/{number}/{side}").content for side in "ab"}
        assert len(set(sheets.values())) == 2
        choice = next(side for side, sheet in sheets.items() if sheet == left)
        for _ in range(2):  # pressed twice, it counts once
            client.post(address, data={"choice": choice, "number": str(number)})
    page = client.get(address).text
    assert "You prefer the left one." in page
    assert "&lt;a&gt;, job 1, step 2</th><td>8<" in page
    assert client.get(f"{address}/0/a").status_code == 400


def test_few_votes_do_not_decide(tmp_path: Path) -> None:
    vote = Vote(tmp_path, ("000001:1", "000001:2"), [(0, False), (0, True), (1, False)])
    (tmp_path / "choices.txt").write_text("a\nb\nequal\n")
    result = vote.result()
    assert (result["left"], result["right"], result["equal"]) == (2, 0, 1)
    assert result["sentence"] == "These votes cannot tell them apart."
    assert result["interval"] == pytest.approx((0.342, 1.0), abs=0.001)  # Wilson, for 2 of 2


def test_concept_comes_in_a_zip_file_with_its_card(client: TestClient, training: Job) -> None:
    answer = client.get(f"/jobs/{training.id}/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = ["concept.safetensors", "README.md", "recipe.toml", "0000002.png"]
        assert archive.namelist() == names
        assert archive.read("concept.safetensors") == b"tensors"
        card = archive.read("README.md").decode()
    assert "# `<a>`" in card
    assert "- base model: pocket" in card
    assert 'pinxit generate "a photo of <a>" --concept concept.safetensors' in card
