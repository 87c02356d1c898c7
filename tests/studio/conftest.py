"""A studio with its worker, and a browser that has entered it."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from starlette.testclient import TestClient

from pinxit.images.tensors import contact_sheet
from pinxit.pocket import gallery
from pinxit.pocket.world import held_out_subjects
from pinxit.runs.events import Preview, to_line
from pinxit.studio.app import create_app
from pinxit.studio.image_set import ImageSet
from pinxit.studio.intake import check
from pinxit.studio.jobs import Job
from pinxit.studio.workspace import Workspace

IS_FOCUSED = "element => element === document.activeElement"
IS_TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"
PATIENCE = 240.0  # seconds: a busy machine takes its time, and a condition ends the wait anyway
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@dataclass
class Studio:
    """A running studio."""

    workspace: Workspace
    process: subprocess.Popen[str]
    link: str

    @property
    def address(self) -> str:
        return self.link.partition("/enter")[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def start_studio(folder: Path, device: str = "cpu", *options: str) -> Studio:
    """Start a studio at a free port, and read its link."""
    command = [sys.executable, "-m", "pinxit", "studio", str(folder), "--device", device, *options]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if link := re.search(r"http://\S+/enter\S+", line):
            return Studio(Workspace(folder), process, link[0])
    raise AssertionError(lines)


def add_training(workspace: Workspace, *, steps: Sequence[int] = (2, 4), **options: str) -> Job:
    """A training that has ended, with previews of some steps and a concept file."""
    recipe: dict[str, Any] = {"token": "<a>", "class_noun": "toy", "kind": "object"}
    recipe |= {"base": "pocket", "method": {"name": "lora"}}
    job = workspace.queue.add("train", {"recipe": recipe, **options})
    run = workspace.folder / "runs" / job.id
    (run / "previews").mkdir(parents=True)
    (run / "recipe.toml").write_text("steps = 4\n")
    (run / "concept.safetensors").write_bytes(b"tensors")
    lines: list[str] = []
    for step in steps:
        color = "crimson" if step == 2 else "teal"
        path = run / "previews" / f"{step:07}.png"
        contact_sheet([Image.new("RGB", (16, 16), color)] * 4).save(path)
        lines.append(to_line(Preview(step, path, 0)))
    (run / "journal.jsonl").write_text("".join(lines))
    return job


def add_images(workspace: Workspace) -> ImageSet:
    """A set of two checked images with captions."""
    images = ImageSet(workspace.new_folder("images"))
    for number, color in enumerate(("crimson", "teal")):
        Image.new("RGB", (40, 50), color).save(images.folder / f"{number}.png")
        (images.folder / f"{number}.txt").write_text(f"a {color} square")
    check(images.folder, workspace.resolution)
    return images


def wait_for(condition):
    """Wait until a condition returns something true, and return that."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not reached in {PATIENCE} s")


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """A context of the browser that waits long."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE)
    return context


@contextmanager
def next_page(page: Page) -> Iterator[None]:
    """Wait for the page to which the block leads, even if its address is that of the old one."""
    page.evaluate("window.isOld = true")
    yield
    page.wait_for_function("() => !window.isOld && document.readyState === 'complete'")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "studio")
    workspace.create()
    return workspace


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    """A program that has the token."""
    headers = {"authorization": f"Bearer {workspace.token_for('api')}"}
    return TestClient(create_app(workspace, 1), "http://127.0.0.1:1", headers=headers)


@pytest.fixture(scope="session")
def eight_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight photos of a subject, as a phone would name them."""
    folder = tmp_path_factory.mktemp("phone")
    places = ("snow", "desert", "night")
    subject = held_out_subjects()[gallery.SUBJECT]
    photos = [*gallery.subject_pictures(), *gallery.portraits(subject, places, (5,))]
    paths: list[Path] = []
    for number, photo in enumerate(photos):
        paths.append(folder / f"IMG_{number:04}.png")
        photo.image().save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    running = start_studio(tmp_path_factory.mktemp("studio") / "work")
    yield running
    running.stop()


@contextmanager
def entered(browser: Browser, studio: Studio) -> Iterator[Page]:
    """A page that has entered; AssertionError for an error in its console, or a foreign request."""
    expect.set_options(timeout=1000 * PATIENCE)
    context = new_context(browser, viewport=DESKTOP)
    page = context.new_page()
    problems: list[str] = []
    own = (studio.address, "blob:")
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("request", lambda asked: asked.url.startswith(own) or problems.append(asked.url))
    # From the start: a listener that is added right before the key can miss the dialog.
    page.on("filechooser", lambda _: None)
    page.goto(studio.link)
    page.wait_for_url(re.compile("/(train|library)"))
    yield page
    assert not problems
    context.close()


@pytest.fixture(scope="module")
def page(studio: Studio, browser: Browser) -> Iterator[Page]:
    with entered(browser, studio) as page:
        yield page


class Keyboard:
    """A person who has only a keyboard."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def reach(self, control: Locator) -> None:
        """Press Tab until a control has the focus."""
        expect(control).to_be_visible()
        for _ in range(150):
            if control.evaluate(IS_FOCUSED):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {control}")

    def press(self, role: Any, name: str) -> None:
        self.reach(self.page.get_by_role(role, name=name).first)
        self.page.keyboard.press("Enter")

    def follow(self, role: Any, name: str) -> None:
        """Press what leads to another page, and wait for that page."""
        with next_page(self.page):
            self.press(role, name)

    def write(self, label: str, text: str) -> None:
        self.reach(self.page.get_by_label(label, exact=True))
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def choose(self, selector: str, files: list[Path]) -> None:
        """Open the file dialog of an input by its key."""
        self.reach(self.page.locator(selector))
        with self.page.expect_file_chooser() as opened:
            self.page.keyboard.press("Space")
        opened.value.set_files(files)


def must_be_accessible(page: Page, browser: Browser, addresses: list[str]) -> None:
    """Check addresses with axe in both themes and at both widths: no violation, not too wide."""
    from axe_playwright_python.sync_playwright import Axe

    for theme, size in itertools.product(("light", "dark"), (PHONE, DESKTOP)):
        context = new_context(browser, viewport=size, color_scheme=theme)
        context.add_cookies(page.context.cookies())
        other = context.new_page()
        for address in addresses:
            other.goto(address)
            other.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            violations = Axe().run(other).response["violations"]
            where = (address, theme, size)
            assert not violations, (where, [(v["id"], v["nodes"][0]["html"]) for v in violations])
            assert not other.evaluate(IS_TOO_WIDE), where
        context.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium of the system, since playwright's own cannot be downloaded everywhere."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and not os.environ.get("CI"):
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=path, args=flags)
        yield running
        running.close()
