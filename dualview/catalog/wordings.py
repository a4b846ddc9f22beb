"""The stock of wordings of inclusions and exclusions, split for training, development and test."""

from functools import cache
from pathlib import Path
import random
import re
from typing import Any, Literal, get_args

import yaml

Split = Literal["train", "development", "test"]
_SHARES: dict[Split, float] = {"train": 0.75, "development": 0.1, "test": 0.15}
SPLITS: tuple[Split, ...] = get_args(Split)


def say(include: bool, what: str, split: Split, rng: random.Random) -> str:
    """A sentence that asks for `what`, or for anything else, in a wording of the split drawn by `rng`."""
    stock = _stock()
    wordings = stock["inclusions" if include else "exclusions"]
    if rng.random() < 0.5:
        verb = rng.choice(_part(wordings["verbs"])[split])
        text = rng.choice(stock["frames"]).replace("{verb}", verb)
    else:
        text = rng.choice(_part(wordings["sentences"])[split])
    text = str(text).replace("{what}", what)
    return text[0].upper() + text[1:]


def includes(clause: str) -> bool:
    """Whether a clause asks for what it names: decided by the longest wording of the stock that it contains.

    A clause without any is an inclusion, unless it says "nothing".
    """
    text = " ".join(clause.casefold().split())
    for wording, include in _polarities():
        if re.search(rf"(?<!\w){re.escape(wording)}(?!\w)", text):
            return include
    return re.search(r"\bnothing\b", text) is None


@cache
def _polarities() -> list[tuple[str, bool]]:
    """The fixed words of each wording, longest first, and whether it is an inclusion."""
    found = []
    for polarity in ("inclusions", "exclusions"):
        for entry in [*_stock()[polarity]["verbs"], *_stock()[polarity]["sentences"]]:
            words = max(entry.split("{what}"), key=len).strip(" .,?:").casefold()
            if words:
                found.append((words, polarity == "inclusions"))
    return sorted(found, key=lambda pair: (-len(pair[0]), pair))


@cache
def _stock() -> Any:
    return yaml.safe_load(Path(__file__).with_name("wordings.yaml").read_text())


_parts: dict[int, dict[Split, list[str]]] = {}


def _part(entries: list[str]) -> dict[Split, list[str]]:
    """The entries of each split; which one an entry belongs to never depends on a run's seed."""
    if id(entries) not in _parts:
        _parts[id(entries)] = split_of(entries, seed=0)
    return _parts[id(entries)]


def split_of(entries: list[str], seed: int) -> dict[Split, list[str]]:
    """A random partition with the shares of the splits. Every split gets at least one entry if there are three."""
    shuffled = random.Random(seed).sample(entries, len(entries))
    num_test = max(1, round(_SHARES["test"] * len(entries)))
    num_development = max(1, round(_SHARES["development"] * len(entries)))
    held = num_test + num_development
    return {
        "test": shuffled[:num_test],
        "development": shuffled[num_test:held],
        "train": shuffled[held:],
    }
