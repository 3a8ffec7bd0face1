"""A visitor's training, in a process of its own: `python -m mtanytime.app.training`.

It writes one JSON object per line: what the page's explorers show. It reads the page's buttons, "stop" and "resume",
one per line, and ends when its input ends, so that no training outlives its page or its server.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from mtanytime.anytime import AnytimeTrainer, CoarseToFineLoss, SlicedResNet, SliceShape, Taxonomy
from mtanytime.checks import one_line, require
from mtanytime.data import digits
from mtanytime.explore.live import LiveTraining
from mtanytime.explore.playground import AnytimePlayground

SIZE, CLASSES, IMAGES = 16, 10, 12
LEVELS = [1, 2, 2]
STOPPED_SECONDS = 600  # then a stopped training ends, and leaves its place to others
Send = Callable[..., None]


def build(per_class: int = 100, epochs: int = 12, seed: int = 0) -> tuple[AnytimeTrainer, Taxonomy]:
    """Return the trainer of a sliced network with three exits, as in notebook 07, and the digits' label tree."""
    task = digits(SIZE, per_class=per_class, seed=seed)
    taxonomy = Taxonomy(task.train.tree, task.classes)
    trainer = AnytimeTrainer(
        lambda: SlicedResNet(CLASSES, SliceShape(((2, 6, 16), (4, 12, 32), (8, 24, 64)), stem_stride=1)),
        task,
        loss=CoarseToFineLoss(taxonomy, LEVELS, fine=1.0),
        epochs=epochs,
        batch_size=50,
        nesterov=True,
        schedule="warm-up cosine",
        seed=seed,
        progress=False,
    )
    return trainer, taxonomy


def watch(trainer: AnytimeTrainer, taxonomy: Taxonomy, orders: Iterable[str], send: Send) -> None:
    """Train, send the figure twice per second and the playground at the end, and follow the page's orders.

    Args:
        trainer: a new trainer of digits.
        taxonomy: its label tree.
        orders: "stop" and "resume", as they come; read in a thread of their own.
        send: called with a message's kind and contents, as `app.js` takes them.

    Raises:
        ValueError: the training was stopped, and not resumed within `STOPPED_SECONDS`.
    """
    live, resumed = LiveTraining(trainer), threading.Event()
    live.observe(lambda change: send("training", content=change["new"]), "content")

    def obey() -> None:
        for order in orders:
            if order.strip() == "stop":
                live.stop()
            elif order.strip() == "resume":
                resumed.set()

    threading.Thread(target=obey, daemon=True).start()
    while not live.run():
        again = resumed.wait(STOPPED_SECONDS)
        require(again, "training", f"to be resumed within {STOPPED_SECONDS / 60:.0f} minutes", None, "start it again")
        resumed.clear()
    accuracy = trainer.result().accuracy
    test = trainer.test.subset(range(IMAGES)).to("cpu")
    images, labels = test.images.numpy(), test.labels.numpy()
    playground = AnytimePlayground(trainer.model, images, test.classes, labels, taxonomy, LEVELS, progress=False)
    state = {"content": playground.content, "image": playground.image, "deadline": playground.deadline}
    exits = ", ".join(f"exit {k}: {value:.0%}" for k, value in enumerate(accuracy, start=1))
    send("playground", state=state, text=f"Trained. Test images answered correctly: {exits}.")


def _lines_of_page() -> Iterable[str]:
    """Yield the page's orders; end the process when the page is gone."""
    yield from sys.stdin
    os._exit(0)


def _send(kind: str, **message: Any) -> None:
    print(json.dumps({"kind": kind, **message}), flush=True)


def main() -> int:
    """Train for the page; an error is its last message, one line."""
    try:
        watch(*build(), _lines_of_page(), _send)
    except Exception as error:
        _send("error", text=f"The training failed. {one_line(f'{type(error).__name__}: {error}')}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
