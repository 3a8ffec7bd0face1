"""Runs that break off within a step, memory, and other runs in the same folder."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from transfer_runs import ODD, copied, same, steps, transfer


def test_an_error_within_the_lookahead(tmp_path: Path) -> None:
    """A run never continues from a half-finished step's weights, and a lookahead leaves no trace in the target."""
    calls = iter(range(100))

    def outer(forward: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == broken:
            raise MemoryError("no room")
        return F.cross_entropy(forward(images), labels)

    broken = -1
    whole = transfer(outer=outer)
    whole.train()
    for folder in (None, tmp_path / "run"):
        calls, broken = iter(range(100)), 3
        trainer = transfer(folder, outer=outer)
        parameters, before = list(trainer.model.parameters()), torch.get_rng_state()
        with pytest.raises(MemoryError):
            trainer.train()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(a is b and a.is_leaf for a, b in zip(trainer.model.parameters(), parameters, strict=True))
        assert not any(module._forward_hooks for module in trainer.model.modules())
        if folder is None:
            with pytest.raises(RuntimeError, match="broke off within a step and has no folder"):
                trainer.train()
        else:
            trainer.train()
            assert same(copied(trainer.student), copied(whole.student))
            assert trainer.tables["trace"] == whole.tables["trace"]


@pytest.mark.parametrize(
    ("options", "graphs"),  # of φ, the real step's two losses, the lookahead's three or four, the outer loss
    [({}, 7), ({"mode": "recompute"}, 10), ({"stages": 2, "where": "constant"}, 8)],
    ids=str,
)
def test_no_graph_outlives_its_step(options: dict[str, Any], graphs: int) -> None:
    """Memory does not grow: every graph is freed when its step ends, without the garbage collector."""

    class Token:
        """Lives as long as the graph node that it is attached to."""

    tokens: list[weakref.ref] = []

    def mark(value: Tensor) -> None:
        value.grad_fn.metadata["token"] = token = Token()
        tokens.append(weakref.ref(token))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        if output.requires_grad:
            mark(output)
        return F.cross_entropy(output, labels)

    trainer = transfer(loss=loss, target=tiny.made(4, dropout=0.3), **options)
    aligned_loss = trainer.student.matching.aligned_loss

    def marked(*inputs: Any) -> Tensor:
        mark(value := aligned_loss(*inputs))
        return value

    trainer.student.matching.aligned_loss = marked
    trainer.meta.register_forward_hook(lambda module, inputs, weights: mark(weights.pairs["first", "second"]))
    gc.collect()
    gc.disable()
    try:
        for _ in trainer:
            assert len(tokens) == graphs
            assert not any(token() for token in tokens)
            tokens.clear()
    finally:
        gc.enable()


def test_another_run_is_refused(tmp_path: Path) -> None:
    """A run's record holds all that identifies it: the source's weights, the pairs and every switch."""
    folder = tmp_path / "run"
    steps(transfer(folder), 1)
    others = {
        "sources": {"source": tiny.made(5, seed=3)},
        "pairs": {"pairs": ODD},
        "what": {"what": False},
        "where": {"where": "relu"},
        "where_start": {"where_start": "even"},
        "beta": {"beta": 0.6},
        "inner_steps": {"inner_steps": 1},
        "stages": {"stages": 2},
        "meta_lr": {"meta_lr": 0.1},
        "meta_weight_decay": {"meta_weight_decay": 0.0},
        "outer": {"outer": lambda forward, images, labels: F.cross_entropy(forward(images), labels)},
        "first_order": {"first_order": True},
        "trace_every": {"trace_every": 2},
    }
    for name, options in others.items():
        with pytest.raises(ValueError, match=rf"already holds another run \({name}: there "):
            transfer(folder, **options)
    assert transfer(folder, mode="recompute").step == 1  # the same numbers, computed in another way
