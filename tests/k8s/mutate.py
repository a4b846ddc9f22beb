"""How many mistakes do the tests catch? python tests/k8s/mutate.py --mistakes 200 --seed 1

Each mistake is made in a file under k8s/ as a hurried person would make it: a key misspelt or lost, a word misspelt, a
switch turned, a number that makes no sense, an item lost or twice. Prose (titles, summaries) is left out: what it says
breaks nothing. All overlays, and those with an option on top, are then built and checked by every test that takes a build.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
import copy
import inspect
import json
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import manifests
import test_manifests
import test_pods
import test_watching
import yaml

PROSE = {"summary", "action", "description", "title", "label", "tags"}
# Options fit all overlays or none.
BUILDS = [(overlay, option) for overlay, option in manifests.BUILDS if overlay == "aws" or not option]
TESTS = [
    (name, test)
    for module in (test_manifests, test_pods, test_watching)
    for name, test in inspect.getmembers(module, inspect.isfunction)
    if name.startswith("test_")
]
Place = tuple[str | int, ...]


class Patch(list[Any]):
    """A patch, which stands as a text in a kustomization."""


yaml.SafeDumper.add_representer(
    Patch, lambda dumper, patch: dumper.represent_str(yaml.safe_dump(list(patch)))
)


def read(path: Path) -> list[Any]:
    documents = list(yaml.load_all(path.read_text(), yaml.CSafeLoader))
    if path.name == "kustomization.yaml":
        for patch in documents[0].get("patches", ()):
            if "patch" in patch:
                patch["patch"] = Patch(yaml.safe_load(patch["patch"]))
    return documents


def write(path: Path, documents: list[Any]) -> None:
    is_json = path.suffix == ".json"
    path.write_text(json.dumps(documents[0]) if is_json else yaml.safe_dump_all(documents, sort_keys=False))


def places(value: Any, path: Place, seen: set[int]) -> Iterator[Place]:
    """Every key and item below, once where an alias repeats it."""
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in PROSE:
                yield (*path, key)
                yield from places(part, (*path, key), seen)


def misspelt(word: str, dice: random.Random) -> str:
    letters = [index for index, letter in enumerate(word) if letter.isalnum()]
    index = dice.choice(letters) if letters else 0
    instead = ("", word[index : index + 1] * 2, None)[dice.randrange(3)]
    return word[:index] + (dice.choice("xq7") if instead is None else instead) + word[index + 1 :]


def mistake(documents: list[Any], place: Place, dice: random.Random) -> str:
    """Makes one, in place, and says which."""
    *above, last = place
    parent: Any = documents
    for key in above:
        parent = parent[key]
    value = parent[last]
    kinds = ["lost", "key" if isinstance(parent, dict) else "twice"]
    if not isinstance(value, dict | list):
        kinds += ["value"] * 2
    match dice.choice(kinds), value:
        case "lost", _:
            del parent[last]
            return f"without {last}"
        case "twice", _:
            parent.insert(last, copy.deepcopy(value))
            return f"item {last} twice"
        case "key", _:
            wrong = misspelt(str(last), dice)
            items = [(wrong if key == last else key, part) for key, part in parent.items()]
            parent.clear()
            parent.update(items)
            return f"{last} -> {wrong}"
        case _, bool():
            parent[last] = not value
        case _, int() | float():
            parent[last] = dice.choice([-value or -1, f"{value}x", value * 1000 or 1000])
        case _:
            parent[last] = misspelt(str(value), dice) if value else "x"
    return f"{value!r} -> {parent[last]!r}"


def found(k8s: Path, right: list[manifests.Build]) -> str:
    """What notices a mistake, and how; `harmless` where no object is another one, `missed` where nothing does."""
    result = "harmless"  # for example a kind that a patch's target need not name
    for (overlay, option), expected in zip(BUILDS, right, strict=True):
        try:
            build = manifests.build(overlay, option, k8s)
        except subprocess.CalledProcessError as error:
            return f"kustomize: {error.stderr.strip().splitlines()[-1][:200]}"
        if build != expected:
            result = "missed"
            for name, test in TESTS:
                try:
                    test(build)
                except Exception as error:  # a shape that a test did not think of is noticed too
                    return f"tests: {name}: {type(error).__name__} {str(error)[:100]}"
    return result


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--mistakes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="each mistake and what was found")
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    original = manifests.ROOT / "k8s"
    files = sorted(path for path in original.rglob("*") if path.suffix in (".yaml", ".json"))
    everywhere = [
        (path, place) for path in files for place in places(read(path), (), set()) if len(place) > 1
    ]
    right = [manifests.build(overlay, option) for overlay, option in BUILDS]
    counts = Counter[str]()
    while counts.total() - counts["harmless"] < arguments.mistakes:
        path, place = dice.choice(everywhere)
        documents = read(path)
        what = mistake(documents, place, dice)
        if documents == read(path):  # a letter for the same one
            continue
        with tempfile.TemporaryDirectory() as folder:
            k8s = Path(shutil.copytree(original, Path(folder) / "k8s"))
            write(k8s / path.relative_to(original), documents)
            noticed = found(k8s, right)
        counts[noticed.partition(":")[0]] += 1
        if arguments.show or noticed == "missed":
            where = ".".join(map(str, place))
            print(f"{path.relative_to(original)} {where}: {what}\n    {noticed}", flush=True)
    share = 1 - counts["missed"] / arguments.mistakes
    print(f"{arguments.mistakes} mistakes, {share:.1%} caught: {dict(counts)}")
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
