"""Which pairs to match, learned from the losses of trials; how a trial trains is left to the caller.

A linear model of the logarithm of the loss estimates what each pair contributes. It has one further effect, common to
all pairs whose target layer comes later in its network than the source layer does in its own, and proportional to how
much later it comes (see `later`). A second model also has an effect for each source layer, common to all its pairs;
whichever model makes the losses likelier is used. The first trials match each pair at least once. Then Thompson
sampling (Biometrika 25, 1933) proposes pairs: it draws effects from the model's posterior distribution and takes the
best pairs for them, so that good pairs are tried together and doubtful ones again. This is ours, not the paper's.
`trials.trial_search` is this search with `TransferTrainer`.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from jaxtyping import Float

from mtanytime.checks import Words, require
from mtanytime.randomness import derive_seed, generator_for
from mtanytime.transfer.meta_networks import Pair, network_of

TRIAL, CHOICE = -9, -10  # purposes of derived seeds
# The prior standard deviation of the effect that later target layers share, in units of that of a pair's own effect. On
# 128 validation trials, the leave-one-out error falls from 0.136 without it to 0.128 with 1 and 0.121 with 3.
_COMMON = 3.0
_DRAWS = 20  # of effects, until they give pairs that were not tried together
_SAMPLES = 10_000  # of effects, for probabilities: their standard error is at most 0.005


class PairSearch:
    """Propose pairs to match, learn from the loss of each trial, and name the best pairs.

    Example:
        >>> from mtanytime.transfer import PairSearch
        >>> def train(pairs):  # yours: train a target that matches these pairs, return its loss on held-out images
        ...     return 0.5 if ("layer2", "conv2") in pairs else 2.0
        >>> search = PairSearch([(m, n) for m in ("layer1", "layer2") for n in ("conv1", "conv2")], matched=2)
        >>> for _ in range(8):
        ...     pairs = search.propose()
        ...     search.add(pairs, train(pairs))
        >>> search.best(1)
        [('layer2', 'conv2')]

    Args:
        pairs: all (source layer, target layer) pairs, with the layers of each network in their order.
        matched: how many pairs a trial matches. With 1, each trial is about one pair, and nothing shows how much of the
            losses' differences is chance: `gap` and `probabilities` are then far too sure.
        seed: of the proposals.
        networks: the names of the source networks, if there are several and their layers are called "name/layer". None
            takes what comes before a "/", if there is one in every source layer's name.

    Attributes:
        losses: the loss of each trial so far.

    Raises:
        ValueError: a pair that is listed twice, or `matched` outside 1 … the number of pairs.
    """

    def __init__(
        self, pairs: Sequence[Pair], matched: int, seed: int = 0, networks: Sequence[str] | None = None
    ) -> None:
        pairs = [(source, target) for source, target in pairs]  # JSON gives lists
        repeated = Words(f"{len(pairs) - len(set(pairs))} again")
        require(len(set(pairs)) == len(pairs), "pairs", "each pair once", repeated)
        whole = isinstance(matched, Integral) and 1 <= matched <= len(pairs)
        require(whole, "matched", f"a number of pairs, 1 to {len(pairs)}", matched)
        self.pairs, self.matched, self.seed, self.networks = pairs, matched, seed, networks
        self.first = _each_once(self.pairs, matched, seed)  # the trials before there is a model
        self.losses: list[float] = []
        self._tried: list[list[float]] = []  # per trial, 1 for a matched pair

    def propose(self) -> list[Pair]:
        """The pairs for the next trial; a choice not tried before, unless the search is `exhausted`."""
        trial = len(self.losses)
        if trial < len(self.first):
            return self.first[trial]
        mean, covariance = self.effects()
        random = np.random.default_rng(derive_seed(self.seed, TRIAL, trial))
        for _ in range(_DRAWS):
            pairs = self._largest(random.multivariate_normal(mean, covariance, method="eigh"), self.matched)
            if self.exhausted or not self._was_tried(pairs):
                return pairs
        while self._was_tried(pairs):  # the model is sure of tried ones: exchange a pair
            others = [pair for pair in self.pairs if pair not in pairs]
            pairs[random.integers(len(pairs))] = others[random.integers(len(others))]
        return pairs

    @property
    def exhausted(self) -> bool:
        """Whether all choices of `matched` pairs have been tried."""
        chosen = {tuple(tried) for tried in self._tried if sum(tried) == self.matched}
        return len(chosen) == math.comb(len(self.pairs), self.matched)

    def add(self, pairs: Sequence[Sequence[str]], loss: float) -> None:
        """Add a trial: the pairs that it matched, and its loss, a number >= 0 (less is better).

        Raises ValueError for other pairs than those of the search, or a loss below 0 or not finite.
        """
        pairs = [(source, target) for source, target in pairs]  # JSON gives lists
        unknown = [pair for pair in pairs if pair not in self.pairs]
        require(not unknown, "pairs", "pairs of the search", unknown)
        require(0 <= loss < math.inf, "loss", "a finite number >= 0", loss)
        self._tried.append(self._row(pairs))
        self.losses.append(loss)

    def effects(self) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, "pairs pairs"]]:
        """By how much each pair lowers the logarithm of the loss: the posterior's mean and covariance."""
        from sklearn.linear_model import BayesianRidge

        require(len(self.losses) > 0, "losses", "at least one trial", self.losses)
        tried, gains = np.array(self._tried), -np.log(np.maximum(self.losses, 1e-6))
        own = np.column_stack([np.eye(len(self.pairs)), _COMMON * later(self.pairs, self.networks)])
        models = [
            (BayesianRidge(compute_score=True).fit(tried @ of_pairs, gains), of_pairs)
            for of_pairs in (own, np.column_stack([own, self._of_source_layers()]))
        ]
        fitted, of_pairs = max(models, key=lambda model: model[0].scores_[-1])  # by their marginal likelihood
        return of_pairs @ fitted.coef_, of_pairs @ fitted.sigma_ @ of_pairs.T

    def best(self, count: int) -> list[Pair]:
        """The pairs with the largest effects, the best first.

        Raises ValueError for a `count` outside 1 … the number of pairs.
        """
        self._check_count(count, len(self.pairs))
        return self._largest(self.effects()[0], count)

    def probabilities(self, count: int) -> Float[np.ndarray, " pairs"]:
        """Each pair's probability, in the order of `pairs`, of being among the `count` with the largest effects.

        Posterior effects are drawn 10,000 times. The probabilities add up to `count`. The last pairs of `best` may be
        hardly better than the next ones; the probabilities show it. With few more trials than pairs, they are too sure.

        Raises ValueError for a `count` outside 1 … the number of pairs.
        """
        self._check_count(count, len(self.pairs))
        mean, covariance = self.effects()
        values, vectors = np.linalg.eigh(covariance)
        # The symmetric root does not depend on the signs of eigenvectors, and exists for a singular covariance.
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        normal = np.random.default_rng(derive_seed(self.seed, CHOICE)).standard_normal((_SAMPLES, len(mean)))
        largest = np.argsort(-(mean + normal @ root), kind="stable")[:, :count]
        return np.bincount(largest.ravel(), minlength=len(mean)) / _SAMPLES

    def gap(self, count: int) -> tuple[float, float]:
        """How much more the best `count` pairs lower the log loss than the others: means, and the standard deviation.

        A gap of less than two standard deviations means that the trials hardly tell the pairs apart. None of our stored
        searches (`data/results/trials_builtin_search.csv`) has one; with shuffled losses, most have.

        Raises ValueError for a `count` that leaves no others.
        """
        self._check_count(count, len(self.pairs) - 1)
        mean, covariance = self.effects()
        best = np.array(self._row(self._largest(mean, count)))
        weights = best / count - (1 - best) / (len(best) - count)
        return float(weights @ mean), math.sqrt(weights @ covariance @ weights)

    def _check_count(self, count: object, most: int) -> None:
        whole = isinstance(count, Integral) and 1 <= count <= most
        require(whole, "count", f"a number of pairs, 1 to {most}", count)

    def _of_source_layers(self) -> Float[np.ndarray, "pairs layers"]:
        """1 where a pair is one of the source layer."""
        layers = dict.fromkeys(source for source, _ in self.pairs)
        return np.array([[float(source == layer) for layer in layers] for source, _ in self.pairs])

    def _row(self, pairs: Sequence[Pair]) -> list[float]:
        return [float(pair in pairs) for pair in self.pairs]

    def _was_tried(self, pairs: Sequence[Pair]) -> bool:
        return self._row(pairs) in self._tried

    def _largest(self, effects: np.ndarray, count: int) -> list[Pair]:
        return [self.pairs[i] for i in np.argsort(-effects, kind="stable")[:count]]


def later(pairs: Sequence[Pair], networks: Sequence[str] | None = None) -> Float[np.ndarray, " pairs"]:
    """The depth of each pair's target layer in its network, minus that of its source layer; 0 if that is negative.

    The depth of a layer is its place among its network's matched layers, in the order in which the pairs name them: 0
    for the first, 1 for the last, ½ for the only one. `networks`: see `PairSearch`.
    """
    layers = list(dict.fromkeys(source for source, _ in pairs))
    if networks is None:
        networks = [layer.partition("/")[0] for layer in layers] if all("/" in layer for layer in layers) else []
    sources: dict[str, list[str]] = {}  # by network
    for layer in layers:
        sources.setdefault(network_of(layer, networks), []).append(layer)
    of_source = {layer: depth for layers in sources.values() for layer, depth in _depths(layers).items()}
    of_target = _depths(list(dict.fromkeys(target for _, target in pairs)))
    return np.array([max(0.0, of_target[target] - of_source[source]) for source, target in pairs])


def _depths(layers: Sequence[str]) -> dict[str, float]:
    """The place of each layer among these, from 0 to 1; ½ for a single one."""
    places = np.linspace(0, 1, len(layers)) if len(layers) > 1 else [0.5]
    return dict(zip(layers, map(float, places), strict=True))


def _each_once(pairs: Sequence[Pair], count: int, seed: int) -> list[list[Pair]]:
    """Trials of `count` pairs, in random order, which contain every pair; random others fill the last trial."""
    order = torch.randperm(len(pairs), generator=generator_for(seed, TRIAL)).tolist()
    filled = order + order[: math.ceil(len(pairs) / count) * count - len(pairs)]
    return [[pairs[i] for i in filled[start : start + count]] for start in range(0, len(pairs), count)]
