"""The studio in a real browser, with a real worker and the base model pocket."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pinxit.pocket import gallery
from pinxit.pocket.world import held_out_subjects
from pinxit.studio.submit import train_job
from pinxit.studio.token_count import token_count
from tests.studio.conftest import (
    Keyboard,
    Studio,
    add_images,
    must_be_accessible,
    new_context,
    wait_for,
)

pytestmark = pytest.mark.long
NOUN = held_out_subjects()[gallery.SUBJECT].class_noun
PAGES = ("library", "train", "generate", "transfer", "compare", "files", "queue")


class Person:
    """A person at the page, whose actions are counted."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.actions = 0

    def chooses(self, label: str, files: list[Path]) -> None:
        self.page.get_by_label(label).set_input_files(files)
        self.actions += 1

    def types(self, label: str, text: str) -> None:
        self.page.get_by_label(label).fill(text)
        self.actions += 1

    def presses(self, role: Any, name: str) -> None:
        self.page.get_by_role(role, name=name, exact=True).click()
        self.actions += 1


@pytest.fixture(scope="module")
def journey(page: Page, studio: Studio, eight_images: list[Path]) -> Person:
    """A person who goes from eight images to the button Generate, and has pressed it."""
    quick = "method=textual-inversion&steps=12&preview_every=12&checkpoint_every=6"
    page.goto(f"{studio.address}/train?{quick}")
    person = Person(page)
    person.chooses("3 to 12 images", eight_images)
    person.types("A noun for it", NOUN)
    person.presses("button", "Train")
    person.presses("link", f"Generate with <my{NOUN}>")
    person.presses("button", "Generate")
    return person


def test_eight_images_to_a_generated_image_in_five_actions(
    journey: Person, page: Page, studio: Studio
) -> None:
    image = page.locator(".results img")
    expect(image).to_be_visible()
    assert journey.actions <= 5
    job = studio.workspace.queue.all()[-1]
    with Image.open(studio.workspace.generated(job)[0]) as generated:
        assert generated.size == (64, 64)
    assert f"<my{NOUN}>" in job.options["request"]["prompt"]


@pytest.mark.usefixtures("journey")
def test_every_page_is_accessible_in_both_themes_at_both_widths(
    page: Page, studio: Studio, browser: Browser
) -> None:
    jobs = [f"jobs/{job.id}" for job in studio.workspace.queue.all()]
    sets = [f"images/{path.name}" for path in (studio.workspace.folder / "images").iterdir()]
    paths = [*PAGES, *jobs, *sets[:1], "jobs/999999"]
    must_be_accessible(page, browser, [f"{studio.address}/{path}" for path in paths])


@pytest.mark.usefixtures("journey")
def test_token_is_completed_and_the_form_sent_by_keyboard_alone(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.address}/generate")
    prompt = page.get_by_label("Prompt", exact=True)
    Keyboard(page).reach(prompt)
    page.keyboard.press("Control+A")
    page.keyboard.type("a photo of <m")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(prompt).to_have_value(f"a photo of <my{NOUN}>")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    expect(page.locator(".results img")).to_be_visible()


@pytest.mark.usefixtures("journey")
def test_tokens_and_costs_appear_while_the_page_is_open(page: Page, studio: Studio) -> None:
    workspace = studio.workspace
    wait_for(lambda: token_count(workspace, "pocket", "a", [], weights=True))
    page.goto(f"{studio.address}/generate")
    page.get_by_label("Prompt", exact=True).fill("a photo of (a dog:1.2)")
    expect(page.locator("#prompt-tokens")).to_have_text("5 tokens, 30 fit into one window")
    page.goto(f"{studio.address}/images/000001")
    page.locator("textarea").first.fill("toy " * 31)
    expect(page.locator("#caption0-tokens")).to_contain_text("31 tokens")
    expect(page.locator("#caption0-tokens")).to_contain_text("1 too many")
    wait_for(lambda: workspace.cost("pocket", "dreambooth"))
    page.goto(f"{studio.address}/train")
    expect(page.locator("#cost-dreambooth")).to_contain_text("On pocket, expected: ")
    workspace.cost_file("pocket", "dreambooth", "cuda:9").write_text("last time: 7 steps in 3 s")
    expect(page.locator("#cost-dreambooth")).to_have_text("On pocket, last time: 7 steps in 3 s")


A1111_PARAMETERS = """a photo of a cat, masterpiece
Negative prompt: blurry, dark
Steps: 31, Sampler: Euler a, CFG scale: 6.5, Seed: 1234, Size: 96x64, Model: abc"""


def test_settings_of_automatic1111_are_pasted(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.address}/generate")
    page.get_by_label("Prompt", exact=True).evaluate(
        """(element, text) => {
          const data = new DataTransfer();
          data.setData("text", text);
          element.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        A1111_PARAMETERS,
    )
    expected = {"prompt": "a photo of a cat, masterpiece", "negative_prompt": "blurry, dark"}
    expected |= {"steps": "31", "guidance_scale": "6.5", "seed": "1234"}
    expected |= {"width": "96", "height": "64"}
    shown = {name: page.locator(f"#{name}").input_value() for name in expected}
    assert shown == expected


def test_everything_can_be_read_and_started_without_javascript(
    page: Page, studio: Studio, browser: Browser, eight_images: list[Path]
) -> None:
    context = new_context(browser, java_script_enabled=False)
    context.add_cookies(page.context.cookies())
    plain = context.new_page()
    plain.goto(f"{studio.address}/train?method=textual-inversion&steps=2000&preview_every=0")
    plain.get_by_label("3 to 12 images").set_input_files(eight_images[:3])
    plain.get_by_label("A noun for it").fill(NOUN)
    plain.get_by_role("button", name="Train").click()
    expect(plain.get_by_role("heading", name=f"<my{NOUN}>")).to_be_visible()
    plain.get_by_role("button", name="Stop and keep").click()
    wait_for(lambda: studio.workspace.queue.all()[-1].state == "stopped")
    expect(plain.get_by_role("button", name="Continue")).to_be_visible()
    context.close()


def test_a_dead_worker_is_shown_and_its_job_continues(page: Page, studio: Studio) -> None:
    answers = {"class_noun": NOUN, "method": "textual-inversion", "steps": 2000, "preview_every": 0}
    images = add_images(studio.workspace)
    job = train_job(studio.workspace, {**answers, "images": images.id})
    page.goto(f"{studio.address}/jobs/{job.id}")
    is_training = re.compile("left, done at")
    expect(page.locator("#summary")).to_contain_text(is_training)
    os.kill(int((studio.workspace.worker_folder("cpu") / "pid").read_text()), signal.SIGKILL)
    wait_for(studio.workspace.last_words)
    page.goto(f"{studio.address}/queue")
    expect(page.get_by_text("Last words of a worker on cpu")).to_be_visible()
    page.goto(f"{studio.address}/jobs/{job.id}")
    expect(page.locator("#summary")).to_contain_text(is_training)
    # A notice from before the worker had started goes with the next event.
    notice = '<p id="no-worker">No worker is running</p>'
    page.evaluate(f"document.querySelector('main').insertAdjacentHTML('afterbegin', '{notice}')")
    expect(page.locator("#no-worker")).to_have_count(0)
    page.get_by_role("button", name="Stop and keep").click()
    wait_for(lambda: job.state == "stopped")
