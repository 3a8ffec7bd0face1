"""Make the README's film, an animated GIF: the sliders of the transfer explorer and of the budget explorer move.

    python docs/film.py                                    writes data/explorers.gif
    python docs/film.py --transfer RUN --curve FILE --output FILM.gif

It needs playwright and chromium, as the browser tests do (CONTRIBUTING.md).
"""

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mtanytime.explore.export import export_csv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data" / "results"
SIZES = {"transfer": (740, 560), "budget": (860, 651)}  # of the window, in the film's shape
WIDTH, HEIGHT = 700, 530  # of the film
SECONDS = 3.0  # per explorer
FRAMES = 18  # per explorer, at most
HOLD = 4  # the last frame of an explorer stays as long as this many
COLOURS = 160
BYTES_UP_TO = 600_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def frames(page: Page, size: tuple[int, int]) -> list[Image.Image]:
    """Move the page's slider from its first stop to its last, and return what is seen at up to `FRAMES` stops."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.wait_for_selector(".mtanytime svg")
    hide = "(boxes) => boxes.forEach((box) => { box.style.display = 'none'; })"  # a page's policy allows no style sheet
    page.locator(".detail, :has(> table.picks), main > .about").evaluate_all(hide)  # tables and lines that do not fit
    slider = page.locator("input[type=range]").first
    last = int(slider.get_attribute("max") or 0)
    count = min(FRAMES, last + 1)
    pictures = []
    for i in range(count):
        slider.evaluate(
            "(input, stop) => { input.value = stop; input.dispatchEvent(new Event('input', { bubbles: true })); }",
            round(i * last / max(count - 1, 1)),
        )
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        pictures.append(picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
    return pictures


def film(scenes: list[list[Image.Image]]) -> bytes:
    """Join scenes of equally large pictures to an animated GIF, with one palette for all."""
    pictures = [picture for scene in scenes for picture in scene]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(scenes)))
    for i, scene in enumerate(scenes):
        sheet.paste(scene[-1], (0, i * HEIGHT))
    palette = sheet.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)  # also keeps colours of thin lines
    times = []
    for scene in scenes:
        milliseconds = round(1000 * SECONDS / (len(scene) - 1 + HOLD), -1)  # a GIF counts hundredths of a second
        times += [milliseconds] * (len(scene) - 1) + [HOLD * milliseconds]
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=times, loop=0, optimize=True)
    return file.getvalue()


def main() -> None:
    """Write the explorers' pages, film them, and save the film if it is small enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--transfer", type=Path, default=RESULTS / "transfer_runs", help="a trace or a run's folder")
    parser.add_argument("--curve", type=Path, default=RESULTS / "anytime_cifar10_full.csv", help="accuracies and costs")
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "explorers.gif")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    scenes = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(color_scheme="light")
        for name, place in (("transfer", options.transfer), ("budget", options.curve)):
            path = Path(folder, f"{name}.html")
            export_csv(place, path)
            page.goto(path.as_uri())
            scenes.append(frames(page, SIZES[name]))
        browser.close()
    data = film(scenes)
    if len(data) > BYTES_UP_TO:
        parser.error(f"film: expected at most {BYTES_UP_TO:,} bytes, got {len(data):,}; use fewer frames or colours")
    options.output.write_bytes(data)
    print(f"{os.path.relpath(options.output)}: {len(data) / 1e3:.0f} kB, {sum(map(len, scenes))} frames")


if __name__ == "__main__":
    main()
