from itertools import islice
import random

from finished_run import extend_run, finish_run, put_shard, row
import pytest

from dualview.config.generate import NearDuplicates
from dualview.errors import InputError
from dualview.storage import open_store
from dualview.synthesis.duplicates import mark_near_duplicates

SETTINGS = NearDuplicates(threshold=0.8, num_perm=128, ngram=2)
ASKED = {"near_duplicates": SETTINGS.model_dump(mode="json")}


def found(tmp_path, shards, settings=SETTINGS, each=map):
    """Map (example, target) to ((example, target) that it repeats, similarity)."""
    asked = {"near_duplicates": settings.model_dump(mode="json")}
    run = finish_run(open_store(str(tmp_path)), shards, asked)
    mark_near_duplicates(run, settings, each)
    return {
        (pair["seed_id"], pair["target_id"]): ((pair["of_seed_id"], pair["of_target_id"]), pair["similarity"])
        for pair in run.near_duplicates().to_pylist()
    }


def shingles(text, ngram):
    words = text.lower().split()
    return {tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)} or {tuple(words)}


def by_comparing_all(rows, settings):
    """The same from exact Jaccard indices of every row with every earlier kept row."""
    kept, repeated = [], {}
    for later in rows:
        first = shingles(later.new_instruction, settings.ngram)
        indices = [
            (len(first & second) / len(first | second), earlier)
            for earlier in kept
            for second in [shingles(earlier.new_instruction, settings.ngram)]
            if earlier.example.query == later.example.query
        ]
        best, of = max(indices, key=lambda pair: pair[0], default=(0.0, None))
        if best >= settings.threshold:
            repeated[later.example.id, later.target_id] = ((of.example.id, of.target_id), best)
        else:
            kept.append(later)
    return repeated


def written_rows(num_families: int) -> list:
    """Make families of instructions: a long one and copies with one word changed (Jaccard index above 0.9)."""
    rng = random.Random(4)
    vocabulary = [f"word{number}" for number in range(400)]
    rows = []
    for family in range(num_families):
        words = rng.sample(vocabulary, 60)
        for copy in range(rng.randint(1, 4)):
            changed = [*words[: 10 * copy], "other", *words[10 * copy + 1 :]] if copy else words
            query = rng.choice(["main ports", "main exports"])
            rows.append(row(f"{family}-{copy}", query, " ".join(changed), target_id=f"t{copy}"))
    rng.shuffle(rows)
    return rows


def test_it_finds_what_comparing_all_rows_finds(tmp_path):
    rows = written_rows(50)
    expected = by_comparing_all(rows, SETTINGS)
    assert 20 < len(expected) < len(rows) / 2
    marked = found(tmp_path, [rows])
    assert {key: of for key, (of, _) in marked.items()} == {key: of for key, (of, _) in expected.items()}
    # The standard deviation of an estimate is 0.035 at most here.
    assert all(abs(marked[key][1] - index) < 0.15 for key, (_, index) in expected.items())


def test_the_cut_into_shards_changes_nothing(tmp_path):
    rows = written_rows(30)
    whole = found(tmp_path / "whole", [rows])
    pieces = iter(rows)
    cut = found(tmp_path / "cut", [list(islice(pieces, size)) for size in (1, 7, 3, 20, len(rows) - 31)])
    assert cut == whole


def test_the_indices_of_few_queries_find_what_one_of_all_does(tmp_path, monkeypatch):
    rows = written_rows(30)
    whole = found(tmp_path / "whole", [rows])
    monkeypatch.setattr("dualview.synthesis.duplicates._ROWS_AT_ONCE", 7)
    assert found(tmp_path / "parts", [rows]) == whole


def test_the_first_in_order_of_the_plan_stays(tmp_path):
    rows = [row("a"), row("b", new_instruction="leave out africa"), row("c", new_instruction="Only islands.")]
    assert found(tmp_path / "forth", [[rows[0]], rows[1:]]) == {("b", "peru"): (("a", "peru"), 1.0)}
    assert found(tmp_path / "back", [rows[1:], [rows[0]]]) == {("a", "peru"): (("b", "peru"), 1.0)}


def test_the_same_instruction_under_another_query_is_no_duplicate(tmp_path):
    long = "Leave out " + " and ".join(f"place{number}" for number in range(100))
    rows = [row("a", "main ports", long), row("b", "main port", long), row("c", "Main ports?", long)]
    assert found(tmp_path, [rows]) == {("c", "peru"): (("a", "peru"), 1.0)}


def test_rows_that_do_not_train_are_not_compared(tmp_path):
    rows = [
        row("a", status="not_flipped", trainable=False),
        row("b"),
        row("c", trainable=False),
        row("d"),
    ]
    assert found(tmp_path, [rows]) == {("d", "peru"): (("b", "peru"), 1.0)}


def test_a_run_without_trainable_rows_has_none(tmp_path):
    assert found(tmp_path, [[row("a", trainable=False)]]) == {}


def test_one_seed_may_have_several_targets(tmp_path):
    rows = [row("a", target_id="t1"), row("a", target_id="t2")]
    assert found(tmp_path, [[rows[0]], [rows[1]]]) == {("a", "t2"): (("a", "t1"), 1.0)}


@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [16, 128])
def test_equal_ones_are_found_by_any_settings(tmp_path, threshold, num_perm):
    settings = NearDuplicates(threshold=threshold, num_perm=num_perm, ngram=3)
    rows = [row("a"), row("b"), row("c", new_instruction="Nothing like the others is said here.")]
    assert found(tmp_path, [rows], settings) == {("b", "peru"): (("a", "peru"), 1.0)}


def test_training_reads_what_is_left(tmp_path):
    shards = [[row("a"), row("b")], [row("c", new_instruction="Only islands."), row("d", trainable=False)]]
    run = finish_run(open_store(str(tmp_path)), shards, ASKED)
    assert run.lacks_near_duplicates
    assert not run.is_complete
    with pytest.raises(InputError, match="is not finished"):
        run.trainable()
    mark_near_duplicates(run, SETTINGS)
    assert run.is_complete
    left = list(run.trainable_tables())
    assert [table["id"].to_pylist() for table in left] == [["a"], ["c"]]
    assert left[0].schema == next(run.tables()).schema


def test_a_list_that_exists_stays(tmp_path):
    run = finish_run(open_store(str(tmp_path)), [[row("a"), row("b")]], ASKED)
    mark_near_duplicates(run, SETTINGS)
    mark_near_duplicates(run, SETTINGS.model_copy(update={"ngram": 3}))
    assert run.near_duplicates().num_rows == 1


def test_an_older_driver_compares_what_it_planned_while_a_newer_one_goes_on(tmp_path):
    """In either order, each list covers its own plan's rows, and the newer one applies in the end."""
    store = open_store(str(tmp_path))
    older = finish_run(store, [[row("a"), row("b")]], ASKED)
    newer = extend_run(store, [row("c")])
    mark_near_duplicates(older, SETTINGS)  # the shard of "c" is still to do
    assert older.near_duplicates()["seed_id"].to_pylist() == ["b"]
    assert older.is_complete
    assert not newer.is_complete
    put_shard(store, newer.plan.shards[1], [row("c")])
    mark_near_duplicates(newer, SETTINGS)
    assert newer.near_duplicates()["seed_id"].to_pylist() == ["b", "c"]
    assert [table["id"].to_pylist() for table in newer.trainable_tables()] == [["a"], []]
