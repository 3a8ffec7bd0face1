"""Options that several commands share: `--seed` and `--set`."""

import argparse
from typing import Any

from mtanytime.checks import require


class _Seeds(argparse.Action):
    """`--seed 0 --seed 1` is `--seed 0 1`; the default does not stay among them."""

    def __call__(self, parser: Any, options: argparse.Namespace, values: Any, name: str | None = None) -> None:
        before = [] if options.seed is self.default else options.seed
        options.seed = [*before, *values]


def add_run_options(parser: argparse.ArgumentParser, about_set: str) -> None:
    """Declare `--seed` and `--set`, each of which may be given several times."""
    seeds = "one or more; one run per seed"
    parser.add_argument("--seed", type=int, nargs="+", action=_Seeds, default=[0], help=seeds)
    add_settings(parser, about_set)


def add_settings(parser: argparse.ArgumentParser, about: str) -> None:
    """Declare `--set`, which may be given several times."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=about)


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """The settings in `--set KEY=VALUE …`. ValueError for another form, or a setting given twice."""
    return pairs("--set", options.set)


def pairs(option: str, texts: list[str]) -> dict[str, str]:
    """What an option's KEY=VALUE texts hold. ValueError for another form, or a key given twice."""
    for text in texts:
        require("=" in text, option, "KEY=VALUE", text)
    found = dict(text.split("=", 1) for text in texts)
    require(len(found) == len(texts), option, "each setting once", " ".join(texts))
    return found
