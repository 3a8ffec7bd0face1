"""One HTML page that runs an exported network in the browser: drop a picture, move the deadline. No server."""

import base64
import html
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mtanytime.checks import Words, require
from mtanytime.data.images import LabelledImages
from mtanytime.graphs import installed
from mtanytime.pages import HEAD, content_policy
from mtanytime.whole_files import write_whole

FRONT = Path(__file__).with_name("front")
RUNTIME, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # of onnxruntime-web
REMEDY = "`npm pack onnxruntime-web` downloads the package"
EXAMPLES_UP_TO = 12


def export_page(
    folder: str | Path,
    file: str | Path,
    onnxruntime_web: str | Path,
    *,
    examples: LabelledImages | None = None,
    force: bool = False,
) -> Path:
    """Write an exported network as one HTML page, which classifies pictures in the browser, under a deadline.

    The page holds the graphs, their weights and onnxruntime-web (on one thread, some 20 MB), and loads nothing.

    Args:
        folder: of `export`.
        file: the page.
        onnxruntime_web: the npm package of that name: its folder, or its archive as `npm pack onnxruntime-web` leaves
            it. Nothing is downloaded here.
        examples: pictures to click on, of which 12 are spread over the set.
        force: overwrite the page if it exists.

    Returns:
        The page's path.

    Raises:
        ImportError: onnxruntime, which checks the folder, is not installed.
        FileNotFoundError: there is no exported network, or no package.
        ValueError: a damaged folder, a package without its files, a page that exists, examples of another size.
    """
    installed("onnxruntime")
    from mtanytime.deploy.predict import Predictor  # imported here because it needs onnxruntime

    file, folder, package = (Path(path).expanduser() for path in (file, folder, onnxruntime_web))
    require(force or not file.exists(), "file", "a file that does not exist yet", str(file), "or force=True")
    manifest = Predictor(folder).manifest
    shape = tuple(manifest["image_shape"])
    require(shape[0] in (1, 3), "folder", "a network for pictures of 1 or 3 channels", shape[0])
    if examples is not None:
        got = examples.image_shape
        require(got == shape, "examples", f"images of shape {shape}", got)
    read = _package(package)
    parts = manifest["steps"] or manifest["exits"]
    contents = {part["graph"]: (folder / part["graph"]).read_bytes() for part in parts}
    contents |= {"weights": (folder / "weights.bin").read_bytes(), "runtime": read(RUNTIME), "wasm": read(WASM)}
    page = _page(manifest, contents, examples)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, page)
    return file


def check_package(onnxruntime_web: Path) -> None:
    """Raise as `export_page` unless this is onnxruntime-web."""
    _package(onnxruntime_web)


def _package(place: Path) -> Callable[[str], bytes]:
    """A function that reads a file in the `dist` folder of onnxruntime-web."""
    if not place.exists():
        raise FileNotFoundError(f"onnxruntime_web: expected the npm package, got {place}; {REMEDY}")
    if place.is_dir():
        for name in (RUNTIME, WASM):
            there = (place / "dist" / name).exists()
            require(there, "onnxruntime_web", f"a package with dist/{name}", str(place), REMEDY)
        return lambda name: (place / "dist" / name).read_bytes()
    try:
        with tarfile.open(place) as archive:
            found = {name: archive.extractfile(f"package/dist/{name}").read() for name in (RUNTIME, WASM)}
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        got = Words(f"{place} ({error})")
        require(False, "onnxruntime_web", f"an archive of the npm package with dist/{WASM}", got, REMEDY)
    return found.__getitem__


def _page(manifest: dict[str, Any], contents: dict[str, bytes], examples: LabelledImages | None) -> str:
    style, script = (_content(name) for name in ("page.css", "page.js"))
    policy = content_policy(style, script, images="data: blob:", scripts="'wasm-unsafe-eval' blob:")
    data = "\n".join(
        f'<script type="application/octet-stream" id="{html.escape(name)}">{_base64(content)}</script>'
        for name, content in contents.items()
    )
    shown = {name: manifest[name] for name in ("image_shape", "classes", "exits", "steps")}
    about = json.dumps(shown).replace("<", "\\u003c")
    kind = "in steps that build on each other" if manifest["steps"] else "each on its own"
    if len(manifest["exits"]) == 1:
        answers = "one answer"
    else:
        answers = f"{len(manifest['exits'])} answers, thin to wide, computed {kind}"
    height, width = manifest["image_shape"][1:]
    return PAGE.format(
        policy=policy,
        style=style,
        script=script,
        title=f"{html.escape(manifest['network'])}: a picture, a deadline, an answer",
        about=f"{answers}; pictures are resized and cropped to {width} × {height} pixels",
        examples=_examples(examples),
        manifest=about,
        data=data,
    )


def _examples(examples: LabelledImages | None) -> str:
    if examples is None:
        return ""
    buttons = []
    count = min(EXAMPLES_UP_TO, len(examples))
    for i in (k * len(examples) // count for k in range(count)):  # folders are sorted by class
        stream = io.BytesIO()
        image = examples.load(torch.tensor([i]))[0].cpu()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
        name = html.escape(examples.classes[int(examples.labels[i])])
        source = f"data:image/png;base64,{_base64(stream.getvalue())}"
        buttons.append(f'<button type="button" class="example"><img src="{source}" alt="example: {name}"></button>')
    return f'<div id="examples">{"".join(buttons)}</div>'


def _content(name: str) -> str:
    return "\n" + (FRONT / name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


PAGE = (
    HEAD
    + """<p>{about}. The picture stays on this machine: the page loads nothing and sends nothing.</p>
<p id="status" role="status">Loading the network …</p>
<fieldset id="controls" disabled>
<legend hidden>picture and deadline</legend>
<div id="drop">
<label for="file">Drop a picture here, paste one, or choose a file:</label>
<input type="file" id="file" accept="image/*">
</div>
{examples}
<div class="deadline">
<label for="deadline">Deadline</label>
<input type="range" id="deadline" min="0" max="1000" step="10" value="1000">
<output id="deadline-text" for="deadline"></output>
</div>
</fieldset>
<p id="error" role="alert"></p>
<section id="picture" aria-label="answer" hidden>
<canvas id="small" role="img" aria-label="the picture as the network sees it"></canvas>
<div aria-live="polite"><div id="answer"></div><div id="how"></div></div>
</section>
<div class="scroll" tabindex="0" role="region" aria-label="all answers"><table id="answers"></table></div>
<noscript><p>The page needs JavaScript.</p></noscript>
</main>
<script type="application/json" id="manifest">{manifest}</script>
{data}
<script type="module">{script}</script>
</body>
</html>
"""
)
