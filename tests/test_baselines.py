"""The rivals' loss terms against numbers computed by hand or by plain loops."""

import itertools
import math
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtanytime.transfer.attention import AttentionTransfer
from mtanytime.transfer.distillation import LearningWithoutForgetting, distillation_loss
from mtanytime.transfer.fine_tuning import FineTuning, with_head
from mtanytime.transfer.l2sp import L2SP, PenalizedLoss
from mtanytime.transfer.reviewkd import ReviewKD, hierarchical_context_loss
from mtanytime.transfer.semckd import SemCKD


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Random maps."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_distillation_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2) at T = 1: 3/4 log 3/2 + 1/4 log 1/2; doubled logits at T = 2: four times that."""
    teacher, logits = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation_loss(logits, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(logits, 2 * teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-5)
    assert distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_learning_without_forgetting_reads_its_head() -> None:
    """The source's answers are compared with the head's, on the mean of one layer; the teacher gets no gradient."""
    term = LearningWithoutForgetting(4, 7, "b", generator=torch.Generator().manual_seed(0))
    features = {"a": maps(3, 2, 5, 5), "b": maps(3, 4, 2, 2, seed=1)}
    source = maps(3, 7, seed=2).requires_grad_()
    loss = term(features, source)
    expected = distillation_loss(features["b"].mean((2, 3)) @ term.head.weight.T + term.head.bias, source)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert source.grad is None
    assert term.head.weight.grad.abs().sum() > 0


def test_attention_by_hand() -> None:
    """Two places: energies (1, 0) against (0.6, 0.8) after normalization: mean of 0.16 and 0.64."""
    source = torch.tensor([[[[2.0, 0.0]]]])
    target = torch.tensor([[[[math.sqrt(0.6), math.sqrt(0.8)]]]]).repeat(1, 5, 1, 1)
    term = AttentionTransfer([("s", "t")])
    assert term({"s": source}, {"t": target}).item() == pytest.approx((0.16 + 0.64) / 2, rel=1e-5)
    assert term({"s": target}, {"t": target}).item() == pytest.approx(0, abs=1e-10)
    larger = nn.functional.interpolate(source, size=(2, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        term({"s": source}, {"t": maps(1, 3, 2, 4)}), term({"s": larger}, {"t": maps(1, 3, 2, 4)})
    )


@torch.no_grad()
def attention_by_loops(term: SemCKD, sources: list[Tensor], targets: list[Tensor]) -> Tensor:
    """The attention that the class describes, number by number."""

    def embedded(embedding: nn.Module, layer: Tensor, i: int) -> Tensor:
        row = torch.stack([(layer[i] * layer[j]).sum() for j in range(len(layer))])
        hidden = (embedding.first.weight @ row + embedding.first.bias).clamp(min=0)
        value = embedding.second.weight @ hidden + embedding.second.bias
        return value / value.norm()

    weights = torch.zeros(len(sources[0]), len(targets), len(sources))
    for i, n in itertools.product(range(len(weights)), range(len(targets))):
        query = embedded(term.queries[n], targets[n], i)
        powers = [
            math.exp((query @ embedded(key, maps, i)).item()) for key, maps in zip(term.keys, sources, strict=True)
        ]
        weights[i, n] = torch.tensor(powers) / sum(powers)
    return weights


def test_semckd_is_the_weighted_sum_of_errors() -> None:
    """Attention sums to 1 over source layers; the loss is that of a plain loop over images and pairs."""
    torch.manual_seed(0)
    term = SemCKD({"s1": 3, "s2": 5}, {"t1": 4, "t2": 6}, batch_size=6, embedding=8).eval()
    source = {"s1": maps(6, 3, 8, 8), "s2": maps(6, 5, 2, 2, seed=1)}
    target = {"t1": maps(6, 4, 4, 4, seed=2), "t2": maps(6, 6, 2, 2, seed=3)}
    attention = term.attention(list(source.values()), list(target.values()))
    torch.testing.assert_close(attention.sum(2), torch.ones(6, 2))
    torch.testing.assert_close(attention, attention_by_loops(term, list(source.values()), list(target.values())))
    loss, pool = term(source, target), nn.functional.adaptive_avg_pool2d
    for i in range(6):
        total = 0.0
        for n, t in enumerate(target.values()):
            for m, s in enumerate(source.values()):
                size = min(s.shape[2], t.shape[2])
                error = term.projections[n][m](pool(t, size))[i] - pool(s, size)[i]
                total += attention[i, n, m] * error.square().mean() / 2
        torch.testing.assert_close(loss[i], total)
    with pytest.raises(ValueError, match="images: expected batches of 6, got 5"):
        term({k: v[:5] for k, v in source.items()}, {k: v[:5] for k, v in target.items()})


def test_hierarchical_context_by_hand() -> None:
    """A map that differs by ±1 in a checkerboard: 1 at its own size, 0 pooled, divided by 1 + ½ + ¼ + ⅛ = 1.875."""
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    assert hierarchical_context_loss(board, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(1 / 1.875)
    assert hierarchical_context_loss(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)).item() == pytest.approx(1)


def test_reviewkd_goes_from_the_last_layer_backwards() -> None:
    """An early target layer changes the loss of its own rank alone; a late one is reviewed at all ranks."""
    torch.manual_seed(0)
    term = ReviewKD({"s1": 3, "s2": 5}, {"t0": 2, "t1": 4, "t2": 6}, width=4).eval()
    source = {"s1": maps(2, 3, 8, 8), "s2": maps(2, 5, 4, 4, seed=1)}
    target = {"t0": maps(2, 2, 8, 8), "t1": maps(2, 4, 8, 8, seed=2), "t2": maps(2, 6, 2, 2, seed=3)}
    for value in target.values():
        value.requires_grad_()
    term(source, target).sum().backward()
    assert target["t0"].grad is None
    assert target["t1"].grad.abs().sum() > 0
    target["t2"].grad = None
    last = ReviewKD({"s2": 5}, {"t2": 6}, width=4).eval()
    last.fusions[0].load_state_dict(term.fusions[0].state_dict())
    _, output = last.fusions[0](target["t2"], None, (4, 4))
    torch.testing.assert_close(last(source, target), hierarchical_context_loss(output, source["s2"]))
    early, late = term.fusions[1], term.fusions[0].reduce(target["t2"])
    reduced = early.reduce(target["t1"])
    wide = late.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # 2×2 to 8×8
    weights = early.attention(torch.cat([reduced, wide], dim=1)).sigmoid()
    fused = early.expand(reduced * weights[:, :1] + wide * weights[:, 1:])
    expected = hierarchical_context_loss(output, source["s2"]) + hierarchical_context_loss(fused, source["s1"])
    torch.testing.assert_close(term(source, target), expected)
    with pytest.raises(ValueError, match="target_layers: expected at least 2 layers"):
        ReviewKD({"s1": 3, "s2": 5}, {"t1": 4})


def test_l2sp_by_hand() -> None:
    """Distance² 4 of the shared weight, norm² 9 of the new bias: (0.1·4 + 0.01·9) / 2."""
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.bias.fill_(3.0)
    penalty = L2SP({"weight": torch.tensor([[3.0]]), "bias": torch.zeros(2)})(network)
    assert penalty.item() == pytest.approx((0.1 * 4 + 0.01 * 9) / 2)
    with pytest.raises(ValueError, match="source: expected a network with the target's layers"):
        L2SP({"other": torch.zeros(1)})(network)


def test_l2sp_of_a_head_for_as_many_classes() -> None:
    """Its parameters have the old head's names and shapes, but are drawn to 0, not to the answers for other classes."""
    source, network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    network.load_state_dict(source.state_dict())
    with torch.no_grad():
        network[1].weight.fill_(2.0)
        network[1].bias.fill_(1.0)
    assert L2SP(source, beta=0.1, new=["1"])(network).item() == pytest.approx(0.1 * 5 / 2)
    assert L2SP(dict(source.named_parameters()), new=["1"]).start.keys() == {"0.weight", "0.bias"}
    with pytest.raises(ValueError, match=r"^new: expected paths of modules with parameters in the source, got 'fc'"):
        L2SP(source, new=["fc"])


def test_l2sp_in_a_training(tmp_path: Path) -> None:
    """The loss is cross-entropy plus the penalty by hand; another strength is another run."""
    source, data = tiny.made(4, classes=5).eval(), tiny.images(12)

    def run(alpha: float) -> FineTuning:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = with_head(source, data)
        options = {"steps": 2, "batch_size": 12, "weight_decay": 0.0, "device": "cpu", "progress": False}
        loss = PenalizedLoss(network, L2SP(source, alpha=alpha))
        return FineTuning(source, network, data, loss=loss, folder=tmp_path, **options)

    first = run(0.5)
    images, labels = next(first.batches.epoch(0))
    head = first.model.classifier
    expected = F.cross_entropy(first.model.train()(images), labels) + 0.01 / 2 * sum(
        value.square().sum() for value in (head.weight, head.bias)
    )
    assert next(iter(run(0.5))).metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="another run"):
        run(0.1)
