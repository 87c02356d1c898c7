"""The studio in a real browser, with a real worker and the base model pocket."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pinxit.pocket import gallery
from pinxit.pocket.world import held_out_subjects
from tests.studio.conftest import Studio

pytestmark = pytest.mark.long
NOUN = held_out_subjects()[gallery.SUBJECT].class_noun
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


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
        self.page.get_by_role(role, name=name).click(timeout=120_000)
        self.actions += 1


@pytest.fixture(scope="module")
def page(studio: Studio, browser: Browser) -> Any:
    """A page that has entered the studio; the test fails on any error in its console."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    problems: list[str] = []
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((studio.address, "blob:"))
            else problems.append(request.url)
        ),
    )
    page.goto(studio.link)
    page.wait_for_url(re.compile("/train"))
    yield page
    assert not problems
    context.close()


def test_eight_images_to_a_generated_image_in_five_actions(
    page: Page, studio: Studio, eight_images: list[Path]
) -> None:
    page.goto(f"{studio.address}/train?steps=12&preview_every=6&checkpoint_every=6")
    person = Person(page)
    person.chooses("3 to 12 images", eight_images)
    person.types("A noun for it", NOUN)
    person.presses("button", "Train")
    person.presses("link", f"Generate with <my{NOUN}>")
    person.presses("button", "Generate")
    image = page.locator(".results img")
    expect(image).to_be_visible(timeout=120_000)
    assert person.actions <= 5
    job = studio.workspace.queue.all()[-1]
    with Image.open(studio.workspace.generated(job)[0]) as generated:
        assert generated.size == (64, 64)
    assert f"<my{NOUN}>" in job.options["request"]["prompt"]
