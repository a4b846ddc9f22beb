"""How many mistakes do the checks catch? python tests/k8s/mutate.py --mistakes 200 --seed 1

Each mistake is made in a file under k8s/ as a hurried person would make it: a key misspelt or lost, a word misspelt, a
switch turned, a number that makes no sense, an item lost or twice. Prose (titles, summaries) is left out: what it says
breaks nothing. All overlays, and those with an option on top, are then built and checked.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
import copy
import json
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from manifest_checks import built, problems
from manifests import ROOT
from test_manifests import with_option
import yaml

PROSE = {"summary", "action", "description", "title", "label", "tags"}
# Which builds a file is part of; each is built only for the files that it has.
BUILDS = (
    ("kind", None),
    ("aws", None),
    ("onprem", None),
    ("aws", "kueue"),
    ("aws", "volcano"),
    ("aws", "nightly"),
)
Place = tuple[str | int, ...]


class Patch(list[Any]):
    """A patch that is written as a text inside of a kustomization."""


def read(path: Path) -> list[Any]:
    def opened(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: Patch(yaml.safe_load(part)) if key == "patch" else opened(part)
                for key, part in value.items()
            }
        return [opened(part) for part in value] if isinstance(value, list) else value

    documents = list(yaml.load_all(path.read_text(), yaml.CSafeLoader))
    # `opened` copies, and what an alias shares must stay shared: a mistake in it is one in all its places.
    return [opened(one) for one in documents] if path.name == "kustomization.yaml" else documents


def write(path: Path, documents: list[Any]) -> None:
    def closed(value: Any) -> Any:
        if isinstance(value, Patch):
            return yaml.safe_dump(list(value))
        if isinstance(value, dict):
            return {key: closed(part) for key, part in value.items()}
        return [closed(part) for part in value] if isinstance(value, list) else value

    if path.name == "kustomization.yaml":
        documents = [closed(one) for one in documents]
    if path.suffix == ".json":
        path.write_text(json.dumps(documents[0]))
    else:
        path.write_text(yaml.safe_dump_all(documents, sort_keys=False))


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Every key and item below, once where an alias repeats it."""
    seen: set[int] = set()

    def walk(value: Any, path: Place) -> Iterator[Place]:
        if isinstance(value, dict | list):
            if id(value) in seen:
                return
            seen.add(id(value))
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                if key not in PROSE:
                    yield (*path, key)
                    yield from walk(part, (*path, key))

    yield from walk(value, path)


def misspelt(word: str, dice: random.Random) -> str:
    letters = [index for index, letter in enumerate(word) if letter.isalnum()]
    index = dice.choice(letters) if letters else 0
    match dice.randrange(3):
        case 0:
            return word[:index] + word[index + 1 :]
        case 1:
            return word[:index] + word[index : index + 1] + word[index:]
    return word[:index] + dice.choice("xq7") + word[index + 1 :]


def mistake(documents: list[Any], place: Place, dice: random.Random) -> str:
    """Makes one, in place, and says which."""
    *above, last = place
    parent: Any = documents
    for key in above:
        parent = parent[key]
    value = parent[last]
    kinds = ["lost"]
    if isinstance(parent, dict):
        kinds.append("key")
    else:
        kinds.append("twice")
    if not isinstance(value, dict | list):
        kinds += ["value"] * 2
    match dice.choice(kinds):
        case "lost":
            del parent[last]
            return f"without {last}"
        case "twice":
            parent.insert(last, copy.deepcopy(value))
            return f"item {last} twice"
        case "key":
            wrong = misspelt(str(last), dice)
            items = [(wrong if key == last else key, part) for key, part in parent.items()]
            parent.clear()
            parent.update(items)
            return f"{last} -> {wrong}"
    if isinstance(value, bool):
        parent[last] = not value
    elif isinstance(value, int | float):
        parent[last] = dice.choice([-value or -1, f"{value}x", value * 1000 or 1000])
    else:
        parent[last] = misspelt(str(value), dice) if value else "x"
    return f"{value!r} -> {parent[last]!r}"


def build(k8s: Path, overlay: str, option: str | None) -> list[Any]:
    folder = k8s / "overlays" / overlay
    original = (folder / "kustomization.yaml").read_text()
    if option:
        with_option(k8s, overlay, option)
    try:
        return built(folder)
    finally:
        (folder / "kustomization.yaml").write_text(original)


def found_wrong(k8s: Path, right: dict[Any, list[Any]]) -> str | None:
    """The first thing that is found; None where nothing is. Raises NoMistake where all objects are what they were."""
    same = True
    for overlay, option in BUILDS:
        try:
            objects = build(k8s, overlay, option)
            found = problems(objects)
        except subprocess.CalledProcessError as error:
            return f"kustomize: {error.stderr.strip().splitlines()[-1][:200]}"
        except Exception as error:  # a shape that the checks did not think of is noticed too
            return f"{type(error).__name__}: {error}"
        if found:
            return found[0]
        same = same and objects == right[overlay, option]
    if same:
        raise NoMistake
    return None


class NoMistake(Exception):
    """For example the same replacement twice, or a kind that a patch's target need not name."""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--mistakes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="each mistake and what was found")
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    files = sorted(path for path in (ROOT / "k8s").rglob("*") if path.suffix in (".yaml", ".json"))
    everywhere = [(path, place) for path in files for place in places(read(path)) if len(place) > 1]
    with tempfile.TemporaryDirectory() as folder:
        k8s = Path(shutil.copytree(ROOT / "k8s", Path(folder) / "k8s"))
        right = {one: build(k8s, *one) for one in BUILDS}
    missed, by_kind, made, harmless = [], Counter[str](), 0, 0
    while made < arguments.mistakes:
        path, place = dice.choice(everywhere)
        documents = read(path)
        what = mistake(documents, place, dice)
        if documents == read(path):  # a letter for the same one
            continue
        with tempfile.TemporaryDirectory() as folder:
            k8s = Path(shutil.copytree(ROOT / "k8s", Path(folder) / "k8s"))
            write(k8s / path.relative_to(ROOT / "k8s"), documents)
            try:
                found = found_wrong(k8s, right)
            except NoMistake:
                harmless += 1
                continue
        made += 1
        line = f"{path.relative_to(ROOT)} {'.'.join(map(str, place))}: {what}"
        by_kind[
            "kustomize" if found and found.startswith("kustomize") else "checks" if found else "missed"
        ] += 1
        if found is None:
            missed.append(line)
        if arguments.show or found is None:
            print(f"{line}\n    {found or 'MISSED'}", flush=True)
    share = 1 - len(missed) / made
    print(
        f"{made} mistakes, {made - len(missed)} caught = {share:.1%} ({dict(by_kind)}; {harmless} more changed no object)"
    )
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
