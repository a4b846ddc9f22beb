"""How many mistakes do the tests catch? python tests/k8s/mutate.py --mistakes 200 --seed 1

Each mistake is made in a line under k8s/ as a hurried person would make it: the line lost or twice, a word misspelt, a
switch turned, a number that makes no sense. Prose is left out, as what it says breaks nothing, and so is what is no YAML
any more, as an editor shows it. Overlays and options are then built, and checked by every test that takes a build.
"""

from argparse import ArgumentParser
from collections import Counter
import inspect
from pathlib import Path
import random
import re
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

K8S = manifests.ROOT / "k8s"
PROSE = re.compile(r"\W*(#|$|(summary|action|description|title|label|tags|apiVersion)\b)")
# Options fit all overlays or none.
BUILDS = [(overlay, option) for overlay, option in manifests.BUILDS if overlay == "aws" or not option]
TESTS = [
    (name, test)
    for module in (test_manifests, test_pods, test_watching)
    for name, test in inspect.getmembers(module, inspect.isfunction)
    if name.startswith("test_")
]


def mistaken(line: str, dice: random.Random) -> str:
    code = re.sub(r"(^|\s)#.*", "", line)
    words = [match.span() for match in re.finditer(r"[A-Za-z]+|\d+", code)]
    match dice.choice(["lost", "twice", "word", "word", "word"]):
        case "lost":
            return ""
        case "twice":
            return line + line
    start, end = dice.choice(words or [(0, 0)])
    return line[:start] + wrong(line[start:end], dice) + line[end:]


def wrong(word: str, dice: random.Random) -> str:
    if word in ("true", "false"):
        return "false" if word == "true" else "true"
    if word.isdigit():
        return dice.choice([f"-{word}", f"{word}x", f"{word}000"])
    index = dice.randrange(len(word) or 1)
    return word[:index] + dice.choice(["", word[index : index + 1] * 2, "x", "7"]) + word[index + 1 :]


def parsed(text: str) -> list[Any] | None:
    try:
        return list(yaml.load_all(text, yaml.CSafeLoader))
    except yaml.YAMLError:
        return None


def noticed(k8s: Path, right: list[manifests.Build]) -> str:
    """By what, and how; `harmless` where no object is another one, `missed` where nothing notices."""
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
    places = [
        (path, number)
        for path in sorted(K8S.rglob("*"))
        if path.suffix in (".yaml", ".json")
        for number, line in enumerate(path.read_text().splitlines())
        if not PROSE.match(line)
    ]
    right = [manifests.build(overlay, option) for overlay, option in BUILDS]
    counts = Counter[str]()
    while counts.total() - counts["harmless"] < arguments.mistakes:
        path, number = dice.choice(places)
        lines = path.read_text().splitlines(keepends=True)
        before, lines[number] = lines[number], mistaken(lines[number], dice)
        if parsed("".join(lines)) in (None, parsed(path.read_text())):
            continue
        with tempfile.TemporaryDirectory() as folder:
            k8s = Path(shutil.copytree(K8S, Path(folder) / "k8s"))
            (k8s / path.relative_to(K8S)).write_text("".join(lines))
            found = noticed(k8s, right)
        counts[found.partition(":")[0]] += 1
        if arguments.show or found == "missed":
            place = f"{path.relative_to(K8S)}:{number + 1}"
            print(f"{place}: {before.strip()} -> {lines[number].strip()}\n    {found}", flush=True)
    share = 1 - counts["missed"] / arguments.mistakes
    print(f"{arguments.mistakes} mistakes, {share:.1%} caught: {dict(counts)}")
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
