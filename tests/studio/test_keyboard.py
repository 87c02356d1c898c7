"""Everything by keyboard alone: every control is reached, and every action of every page is done.

The studio has no worker: what is tested are the pages.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, expect

from pinxit.studio.image_set import FULL, MASK
from pinxit.studio.trash import Trash
from pinxit.studio.workspace import Workspace
from tests.studio.conftest import (
    IS_FOCUSED,
    Keyboard,
    Studio,
    add_images,
    add_training,
    must_be_accessible,
    new_context,
    next_page,
    start_studio,
)

pytestmark = pytest.mark.long
# A radio button stands for its group: Tab stops at one, arrows go to the others.
CONTROLS = """() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const kinds = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const found = [...document.querySelectorAll(kinds)].filter((element) =>
    element.checkVisibility() && (element.type !== "radio" || element.checked));
  found.forEach((element, index) => { element.dataset.index = index; });
  return found.map((element) => element.outerHTML.slice(0, 90));
}"""
FOCUSED = """() => {
  const active = document.activeElement;
  return [active.dataset.index ?? "", getComputedStyle(active).outlineStyle !== "none"];
}"""
PARAMETERS = "a cat\nNegative prompt: dark\nSteps: 31, Sampler: Euler a, Seed: 7, Size: 96x64"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio without a worker, with an image set, a training, an image, and texts."""
    workspace = Workspace(tmp_path_factory.mktemp("keyboard") / "work")
    workspace.create()
    images = add_images(workspace)
    add_training(workspace, steps=(2, 3, 4))
    generation = workspace.queue.add("generate", {"request": {"prompt": "a <a>"}, "concepts": []})
    request = {"prompt": "a <a>", "image": images.id}
    control = {"name": "inversion", "preserve": 0.75}
    transfer = {"request": {**request, "control": control}, "concepts": ["000001"]}
    strengths = {"000001": 0.8}
    transferred = workspace.queue.add("generate", {**transfer, "strengths": strengths})
    for job in (generation, transferred):
        folder = workspace.folder / "generated" / job.id
        folder.mkdir()
        Image.new("RGB", (64, 64), "teal").save(folder / "0000.png")
        job.finish()
    recipe = {"token": "<a>", "class_noun": "toy", "method": {"name": "lora"}}
    texts = workspace.queue.add("texts", {"recipe": recipe, "images": images.id})
    (texts.folder / "report.json").write_text(
        '{"texts": [{"text": "a <a>", "tokens": ["a", "<a>"], "cut": ""}], "images": '
        '{"0.png": {"caption": "a crimson square", "texts": [0]},'
        ' "1.png": {"caption": "", "texts": [0]}}}'
    )
    texts.finish()
    Trash(workspace).add(workspace.queue.add("convert", {"concept": "000001", "format": "kohya"}))
    running = start_studio(workspace.folder, "none")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def addresses(page: Page, studio: Studio) -> list[str]:
    """All pages, also those of this workspace; a blind vote is started for it."""
    page.goto(f"{studio.address}/side?steps=000001:2&steps=000001:4")
    Keyboard(page).press("button", "Vote without names")
    page.wait_for_url(re.compile("/votes/"))
    names = ["library", "train", "train?images=000001", "generate", "transfer", "compare", "files"]
    names += ["queue", *(f"jobs/{number:06}" for number in range(1, 5)), "images/000001"]
    names += ["images/000001/0/edit", "side", "side?steps=000001:2&steps=000001:3&steps=000001:4"]
    names += ["votes/000001"]
    return [f"{studio.address}/{name}" for name in names]


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page, addresses: list[str]) -> None:
    for address in addresses:
        page.goto(address)
        controls: list[str] = page.evaluate(CONTROLS)
        reached = set[str]()
        for _ in range(len(controls) + 5):
            page.keyboard.press("Tab")
            index, outlined = page.evaluate(FOCUSED)
            if index:
                assert outlined, (address, controls[int(index)])
                reached.add(index)
        missed = [text for index, text in enumerate(controls) if str(index) not in reached]
        assert not missed, (address, missed)


def test_pages_are_accessible_in_both_themes_at_both_widths(
    page: Page, browser: Browser, addresses: list[str]
) -> None:
    must_be_accessible(page, browser, addresses)


def test_training_is_queued_stopped_and_continued(
    page: Page, studio: Studio, eight_images: list[Path]
) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/library")
    keys.press("link", "Train")
    page.wait_for_url(re.compile("/train"))
    keys.choose("#files", eight_images[:3])
    expect(page.get_by_text("3 images", exact=True)).to_be_visible()
    keys.write("A noun for it", "toy")
    keys.reach(page.get_by_role("radio", name="lora"))
    page.keyboard.press("ArrowDown")
    keys.write("New word, the placeholder token", "<keys>")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    job = studio.workspace.queue.all()[-1]
    assert job.options["recipe"]["token"] == "<keys>"
    assert job.options["recipe"]["method"]["name"] != "lora"
    keys.follow("button", "Stop and keep")
    assert job.state == "stopped"
    keys.follow("button", "Continue")
    assert job.state == "waiting"
    page.goto(f"{studio.address}/queue")
    keys.follow("button", "Stop")
    assert job.state == "stopped"
    page.goto(f"{studio.address}/jobs/{job.id}")
    keys.follow("button", "Move to the trash")
    assert job not in studio.workspace.queue.all()
    keys.follow("button", "Bring it back")
    assert job in studio.workspace.queue.all()


def test_captions_crop_and_mask(page: Page, studio: Studio) -> None:
    keys, images = Keyboard(page), studio.workspace.images_of("000001")
    page.goto(f"{studio.address}/images/{images.id}")
    keys.reach(page.get_by_text("Change all captions"))
    page.keyboard.press("Enter")
    keys.write("Put before every caption", "photo of")
    with next_page(page):
        page.keyboard.press("Control+Enter")
    expect(page.get_by_label("Caption of 0.png")).to_have_value("photo of a crimson square")
    keys.follow("button", "Undo the last change of captions")
    expect(page.get_by_label("Caption of 0.png")).to_have_value("a crimson square")
    keys.follow("link", "Crop and mask of 0.png")
    page.locator("#canvas[data-ready]").wait_for()
    keys.reach(page.get_by_role("img", name="0.png with its rectangle and mask"))
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowUp", "Enter"):
        page.keyboard.press(key)
    edges = [page.locator(f"#{edge}").input_value() for edge in ("left", "top", "right", "bottom")]
    assert edges == ["12", "13", "32", "37"]
    expect(page.locator("#mask-state")).to_have_text("The mask shows 24% of the image.")
    page.keyboard.press("Delete")
    expect(page.locator("#mask-state")).to_contain_text("No mask")
    keys.press("button", "Undo")
    keys.reach(page.get_by_label("Crop the image to this rectangle"))
    page.keyboard.press("Space")
    keys.press("button", "Save")
    page.wait_for_url(re.compile(f"/images/{images.id}$"))
    with (
        Image.open(images.folder / FULL / f"0{MASK}") as mask,
        Image.open(images.files[0]) as image,
    ):
        assert (mask.size, image.size) == ((40, 50), (20, 24))
        assert mask.getbbox() == (12, 13, 32, 37)


def test_mask_is_painted_and_crop_dragged_with_the_mouse(page: Page, studio: Studio) -> None:
    images = studio.workspace.images_of("000001")
    page.goto(f"{studio.address}/images/{images.id}/1/edit")
    canvas = page.locator("#canvas[data-ready]")

    def drag(*points: tuple[float, float]) -> None:
        canvas.scroll_into_view_if_needed()
        area = canvas.bounding_box()
        assert area
        places = [
            (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in points
        ]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place)
        page.mouse.up()

    drag((0.25, 0.2), (0.75, 0.8))
    assert page.locator("#left").input_value() == "10"
    assert page.locator("#bottom").input_value() == "40"
    page.get_by_label("Crop the image to this rectangle").check()
    page.get_by_label("Dragging paints the mask").check()
    drag((0.3, 0.5), (0.7, 0.5))
    expect(page.locator("#mask-state")).to_contain_text("The mask shows")
    page.get_by_role("button", name="Save").click()
    page.wait_for_url(re.compile(f"/images/{images.id}$"))
    with Image.open(images.files[1]) as image:
        assert image.size == (20, 30)
    assert 0 < images.checks["images"][1]["mask_share"] < 0.5


def test_prompt_settings_and_unknown_words(page: Page, studio: Studio, tmp_path: Path) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/generate")
    keys.write("Prompt", "a <b> and <")
    expect(page.locator("#unknown")).to_contain_text("<b> is not the token of a concept here")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a <b> and <a>")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", PARAMETERS)
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    keys.reach(page.get_by_text("All settings"))
    page.keyboard.press("Enter")
    keys.choose("#restore", [tmp_path / "old.png"])
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat")
    expected = {"negative_prompt": "dark", "steps": "31", "scheduler": "euler-a", "seed": "7"}
    expected |= {"width": "96", "height": "64", "guidance_scale": ""}
    for name, value in expected.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page.locator("#unknown")).to_be_hidden()
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    request = studio.workspace.queue.all()[-1].options["request"]
    assert (request["prompt"], request["scheduler"], request["seed"]) == ("a cat", "euler-a", 7)


def test_image_is_transferred(page: Page, studio: Studio, eight_images: list[Path]) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/transfer")
    keys.choose("#files", eight_images[:1])
    expect(page.get_by_text("1 image", exact=True)).to_be_visible()
    keys.reach(page.get_by_role("radio", name="img2img"))
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Preserve, with img2img")).to_be_hidden()
    keys.reach(page.get_by_label("Preserve, with inversion"))
    expect(page.locator("output:visible")).to_have_text("0.5")
    page.keyboard.press("ArrowRight")
    expect(page.locator("output:visible")).to_have_text("0.55")
    keys.write("Prompt", "<a> in the snow")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    request = studio.workspace.queue.all()[-1].options["request"]
    assert request["control"] == {"name": "inversion", "preserve": 0.55}
    with Image.open(studio.workspace.images_of(request["image"]).files[0]) as source:
        assert source.size == Image.open(eight_images[0]).size


def test_source_and_result_are_divided_in_one_place(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.address}/jobs/000003")
    divider = page.get_by_role("slider", name="seed 0")
    source = page.get_by_role("img", name="the source image")
    result = page.get_by_role("img", name="a <a>, seed 0")
    assert source.bounding_box() == result.bounding_box()
    clip = "element => getComputedStyle(element).clipPath"
    load = "async () => { rendered = ''; replace(await renderedPage(location.href)); }"
    page.evaluate("document.querySelector('#live').replaceChildren()")
    page.evaluate(load)  # as when the image is done while the page is open
    assert result.evaluate(clip) == "inset(0px 0px 0px 50%)"
    Keyboard(page).reach(divider)
    page.keyboard.press("ArrowLeft")
    assert result.evaluate(clip) == "inset(0px 0px 0px 49%)"
    page.evaluate(load)
    assert divider.evaluate(IS_FOCUSED)
    assert result.evaluate(clip) == "inset(0px 0px 0px 49%)"
    divider.click(position={"x": 3, "y": 10})
    assert result.evaluate(clip) == "inset(0px 0px 0px 0%)"


def test_source_and_result_are_side_by_side_without_javascript(
    page: Page, studio: Studio, browser: Browser
) -> None:
    context = new_context(browser, java_script_enabled=False)
    context.add_cookies(page.context.cookies())
    plain = context.new_page()
    plain.goto(f"{studio.address}/jobs/000003")
    source = plain.get_by_role("img", name="the source image").bounding_box()
    result = plain.get_by_role("img", name="a <a>, seed 0").bounding_box()
    assert source and result
    assert source["x"] + source["width"] < result["x"]
    expect(plain.get_by_role("slider", name="seed 0")).to_be_hidden()
    context.close()


def test_strength_is_set_and_comes_back(page: Page, studio: Studio) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/generate")
    strength = page.get_by_label("Strength of <a>")
    keys.reach(page.get_by_role("checkbox", name="<a>"))
    page.keyboard.press("Space")
    expect(strength).to_be_hidden()
    page.keyboard.press("Space")
    keys.write("Strength of <a>", "0.7")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    assert studio.workspace.queue.all()[-1].options["strengths"] == {"000001": 0.7}
    keys.follow("link", "Generate more like these")
    expect(strength).to_have_value("0.7")
    page.goto(f"{studio.address}/transfer?like=000003")
    expect(page.get_by_label("Preserve, with inversion")).to_have_value("0.75")


def test_file_is_opened_and_a_concept_converted(page: Page, studio: Studio, tmp_path: Path) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/files")
    (tmp_path / "old.pt").write_bytes(b"any bytes: the page never reads them")
    keys.choose("#file", [tmp_path / "old.pt"])
    keys.press("button", "Open and inspect")
    page.wait_for_url(re.compile("/jobs/"))
    expect(page.locator("#summary")).to_have_text("waiting")
    job = studio.workspace.queue.all()[-1]
    assert (job.kind, (studio.workspace.concept_file(job) or job.folder).name) == (
        "inspect",
        "old.pt",
    )
    page.goto(f"{studio.address}/files")
    keys.reach(page.get_by_role("radio", name="<a>"))
    keys.reach(page.get_by_label("To the format"))
    page.keyboard.type("kohya")
    keys.press("button", "Convert")
    page.wait_for_url(re.compile("/jobs/"))
    assert studio.workspace.queue.all()[-1].options == {"concept": "000001", "format": "kohya"}


def test_trash_is_emptied(page: Page, studio: Studio) -> None:
    keys, trash = Keyboard(page), Trash(studio.workspace)
    trash.add(studio.workspace.queue.add("inspect", {}))
    page.goto(f"{studio.address}/files")
    keys.reach(page.locator("summary", has_text="Empty the trash"))
    page.keyboard.press("Enter")
    keys.reach(page.get_by_role("checkbox", name="for good"))
    page.keyboard.press("Space")
    keys.follow("button", "Empty the trash")
    expect(page.get_by_role("heading", name="Trash")).to_have_count(0)
    assert not trash.jobs()


def test_question_mark_lists_the_keys(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.address}/generate")
    prompt, keys = page.get_by_label("Prompt", exact=True), page.get_by_text("sends the form")
    prompt.press("?")
    expect(prompt).to_have_value(re.compile(r"\?"))
    expect(keys).to_be_hidden()
    page.locator("main").press("?")
    expect(keys).to_be_visible()


def test_concepts_are_compared(page: Page, studio: Studio) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/compare")
    keys.reach(page.get_by_role("checkbox"))
    page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    page.wait_for_url(re.compile("/jobs/"))
    job = studio.workspace.queue.all()[-1]
    assert (job.kind, job.options) == ("compare", {"concepts": ["000001"]})
    keys.follow("button", "Stop")
    assert job.state == "stopped"
    page.goto(f"{studio.address}/queue")
    keys.follow("button", "Continue")
    assert job.state == "waiting"


def test_a_filled_form_survives_reload_and_back(
    page: Page, studio: Studio, eight_images: list[Path]
) -> None:
    page.goto(f"{studio.address}/train")
    page.get_by_label("3 to 12 images").set_input_files(eight_images[:3])
    expect(page.get_by_text("3 images", exact=True)).to_be_visible()
    page.get_by_label("A noun for it").fill("toy")
    page.get_by_label("A noun for it").blur()
    page.reload()
    expect(page.get_by_text("3 images", exact=True)).to_be_visible()
    page.get_by_role("link", name="Library").click()
    page.wait_for_url(re.compile("/library"))
    page.go_back()
    expect(page.get_by_text("3 images", exact=True)).to_be_visible()
    expect(page.get_by_label("A noun for it")).to_have_value("toy")


def test_own_png_restores_its_concepts_and_strengths(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", PARAMETERS.replace("a cat", "a <a>"))
    info.add_text("pinxit", '{"concepts": ["~/work/runs/000001/best.safetensors:0.8"]}')
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png", pnginfo=info)
    page.goto(f"{studio.address}/generate")
    page.locator("#restore").set_input_files(tmp_path / "own.png")
    expect(page.get_by_label("Strength of <a>")).to_have_value("0.8")
    expect(page.get_by_role("checkbox", name="<a>")).to_be_checked()


def test_dropped_png_restores_its_settings(page: Page, studio: Studio, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", PARAMETERS.replace("a cat", "ein Kätzchen"))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    page.goto(f"{studio.address}/generate")
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "old.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        list((tmp_path / "old.png").read_bytes()),
    )
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("ein Kätzchen")


def test_two_steps_are_flipped_and_voted_on(page: Page, studio: Studio) -> None:
    keys = Keyboard(page)
    page.goto(f"{studio.address}/jobs/000001")
    keys.follow("link", "Compare steps side by side")
    left, right = page.locator("svg.left").first, page.locator("svg.right").first
    keys.press("button", "Show in one place")
    expect(right).to_be_hidden()
    keys.press("button", "Flip")
    expect(left).to_be_hidden()
    expect(right).to_be_visible()
    keys.press("button", "Vote without names")
    page.wait_for_url(re.compile("/votes/"))
    for number in range(1, 9):
        expect(page.get_by_text(f"Pair {number} of 8")).to_be_visible()
        keys.follow("button", ("A is better", "B is better", "No difference")[number % 3])
    expect(page.get_by_role("link", name="Look at both")).to_be_visible()


def test_images_chosen_one_after_the_other_are_in_one_set(
    page: Page, studio: Studio, eight_images: list[Path]
) -> None:
    page.goto(f"{studio.address}/train")
    images, chooser = page.locator("#images"), page.get_by_label("3 to 12 images")
    chooser.set_input_files(eight_images[:1])
    chooser.set_input_files(eight_images[1:2])  # the first one is still being checked
    expect(images).to_contain_text("2 images")
    page.route("**/images?*", lambda route: route.fulfill(body='<p class="error">The disk</p>'))
    chooser.set_input_files(eight_images[2:3])
    expect(images.locator(".error")).to_have_text("The disk")
    expect(images).to_contain_text("2 images")  # an upload that fails takes nothing away
    page.unroute("**/images?*")
    chooser.set_input_files(eight_images[2:3])
    expect(images).to_contain_text("3 images")
    expect(images.locator(".error")).to_have_count(0)
