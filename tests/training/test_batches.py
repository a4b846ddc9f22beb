from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from tiny import labels, prepared_of, random_groups, tiny_encoder, train_config

from dualview.errors import InputError
from dualview.records import Passage, Requirement
from dualview.training.batches import Sampler, deal, make_batch, pack
from dualview.training.groups import LEFT_OUT, NEGATIVE, POSITIVE, Group, View

IN_AFRICA = (Requirement(True, "region", "africa"),)


def passage(id, region=None):
    return Passage(id, f"exports of {id}", attributes={"region": region} if region else {})


CHAD, FIJI, MALI, LAOS, TIN = (
    passage("chad", "africa"),
    passage("fiji", "oceania"),
    passage("mali", "africa"),
    passage("laos", "asia"),
    passage("tin"),
)


def group(id, query, passages, *views, hard=0):
    made = tuple(View(query, (f"only {n}",), labels(**view), IN_AFRICA) for n, view in enumerate(views))
    return Group(id, query, tuple(passages), hard, made)


@pytest.fixture
def batch_of(tmp_path):
    encoder = tiny_encoder(tmp_path / "encoder")

    def make(groups, shown=None, seed="0", hard=1, **changes):
        config = train_config(**changes)
        prepared = prepared_of(groups, config, encoder, tmp_path)
        members = [prepared.group(index) for index in shown or range(len(groups))]
        return make_batch(prepared, members, config.batch, [hard], seed)

    return make


def texts(batch):
    """The names of a batch's passages: the word after [CLS] exports of."""
    from tiny import WORDS

    return [WORDS[int(batch.prepared.tokens(number)[3]) - 6] for number in batch.passages]


def relation(batch):
    return batch.relation(range(len(batch.views))).tolist()


def test_both_views_of_a_group_label_its_passages_the_other_way_round(batch_of):
    batch = batch_of([group("g", "q", [CHAD, FIJI], {"chad": 1, "fiji": -1}, {"chad": -1, "fiji": 1})])
    assert texts(batch) == ["chad", "fiji"]
    assert relation(batch) == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]


def test_passages_of_the_same_query_are_labelled_by_what_is_known_of_them(batch_of):
    own = group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1})
    others = group("g2", "exports", [MALI, LAOS, TIN], {"mali": 1, "laos": -1, "tin": -1})
    batch = batch_of([own, others])
    assert texts(batch) == ["chad", "fiji", "mali", "laos", "tin"]
    assert relation(batch)[0] == [POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, LEFT_OUT]


def test_candidates_of_the_queries_join_the_batch_and_those_of_other_queries_do_not(batch_of):
    everything = [
        group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
        group("g2", "ports", [TIN], {"tin": 1}),
        group("g3", "exports", [FIJI, LAOS], {"fiji": 1, "laos": -1}),
        group("g4", "flag", [MALI], {"mali": 1}),
    ]
    batch = batch_of(everything, shown=[0, 1], batch__candidates="queries")
    assert sorted(texts(batch)) == ["chad", "fiji", "laos", "tin"]
    by_name = dict(zip(texts(batch), zip(*relation(batch), strict=True), strict=True))
    assert by_name == {"chad": (1, -1), "fiji": (-1, -1), "laos": (-1, -1), "tin": (-1, 1)}


def test_passages_of_other_queries_are_negatives_or_left_out(batch_of):
    pair = [
        group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
        group("g2", "ports", [MALI], {"mali": 1}),
    ]
    assert relation(batch_of(pair)) == [[1, -1, -1], [-1, -1, 1]]
    assert relation(batch_of(pair, batch__negatives="own")) == [[1, -1, 0], [0, 0, 1]]


def test_a_passage_of_two_groups_stands_once_and_keeps_each_views_own_label(batch_of):
    batch = batch_of(
        [
            group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
            group("g2", "exports", [FIJI, CHAD], {"fiji": 1, "chad": -1}),
        ]
    )
    assert texts(batch) == ["chad", "fiji"]
    assert relation(batch) == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]


def test_hard_negatives_are_drawn_anew_with_the_seed_and_only_so_many(batch_of):
    one = group("g", "q", [CHAD, FIJI, MALI, LAOS, TIN], {"chad": 1, "fiji": -1}, hard=3)
    drawn = {tuple(texts(batch_of([one], seed=str(epoch), hard=1))[2:]) for epoch in range(20)}
    assert drawn == {("mali",), ("laos",), ("tin",)}
    assert texts(batch_of([one], seed="4", hard=1)) == texts(batch_of([one], seed="4", hard=1))
    assert len(texts(batch_of([one], hard=9))) == 5


def test_a_view_is_shown_in_each_of_its_wordings(batch_of):
    groups = random_groups(1)
    shown = {tuple(batch_of(groups, seed=str(epoch)).view_tokens[0]) for epoch in range(20)}
    assert len(shown) == 2


# --- what a step sees -----------------------------------------------------------------------------


class Sizes:
    """The part of Prepared that a sampler uses."""

    def __init__(self, query, num_views, section=None, part=None, times=None):
        self.num_groups = len(query)
        self.query = np.array(query)
        self.num_views = np.array(num_views)
        self.section = np.array(section if section is not None else [0] * len(query))
        self.part = np.array(part if part is not None else [0] * len(query))
        self.times = np.array(times if times is not None else [1] * len(query))

    def num_tokens(self):
        return 10 * self.num_views

    def group(self, index):
        return group(f"g{index}", "q", [])


def sampler(sizes, instances=8, queries=2, seed=1, homogeneous=False):
    batch = train_config(
        batch__instances=instances, batch__queries=queries, budget__instances=instances * 2
    ).batch
    return Sampler(sizes, batch, homogeneous=homogeneous, seed=seed)


def dual(sizes):
    query = [query for query, size in enumerate(sizes) for _ in range(size)]
    return Sizes(query, [2] * len(query))


def epoch_of(own):
    steps, step = [], 0
    while own.step(step)[0] == 0:
        steps.append(own.step(step)[1])
        step += 1
    return steps


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any),
    st.integers(0, 5),
    st.sampled_from([4, 8, 12]),
)
def test_an_epoch_deals_every_group_once_and_the_next_begins_with_what_is_left(sizes, seed, instances):
    per_block = instances // 4
    num_steps = sum(size // per_block for size in sizes) // 2
    if not num_steps:
        with pytest.raises(InputError, match="one step"):
            sampler(dual(sizes), instances, 2, seed)
        return
    own = sampler(dual(sizes), instances, 2, seed)
    steps = epoch_of(own)
    assert len(steps) == num_steps
    assert max(Counter(group for step in steps for group in step).values()) == 1
    assert {2 * len(step) for step in steps} == {instances}
    # A query with fewer groups than a block needs several epochs to fill one, and a block may wait for a second.
    num_epochs = 2 * per_block + 1
    first_of_next = next(step for step in range(10**6) if own.step(step)[0] == num_epochs)
    uses = own.uses(first_of_next)
    assert uses.min() > 0
    assert uses.max() <= num_epochs


@given(st.lists(st.integers(1, 3), min_size=30, max_size=60), st.integers(0, 5))
def test_groups_of_any_number_of_views_fill_a_step_exactly(num_views, seed):
    sizes = Sizes(range(len(num_views)), num_views)
    steps = epoch_of(sampler(sizes, 8, None, seed))
    assert {int(sizes.num_views[step].sum()) for step in steps} == {8}
    assert max(Counter(group for step in steps for group in step).values()) == 1


def test_a_step_is_a_function_of_its_number_in_whatever_order_it_is_asked_for():
    own = sampler(dual([8, 8, 8]))
    steps = [own.step(step) for step in range(40)]
    again = sampler(dual([8, 8, 8]))
    for step in (39, 0, 17, 5, 38):
        assert again.step(step) == steps[step]
    assert steps != [sampler(dual([8, 8, 8]), seed=2).step(step) for step in range(40)]


def test_a_block_holds_one_query():
    sizes = dual([8, 8, 8])
    for step in epoch_of(sampler(sizes)):
        queries = sizes.query[step].tolist()
        assert len(set(queries[:2])) == len(set(queries[2:])) == 1


def test_sections_never_share_a_step_and_their_steps_are_mixed():
    sizes = Sizes(range(320), [1] * 320, section=[0, 1] * 160)
    sections = [set(sizes.section[step].tolist()) for step in epoch_of(sampler(sizes, 8, None))]
    assert all(len(section) == 1 for section in sections)
    order = [section.pop() for section in sections]
    assert sum(order) == 20
    assert 5 <= sum(order[:20]) <= 15  # 0 or 20 if one section came first


@pytest.mark.parametrize("queries", [None, 2])
def test_groups_that_wait_are_the_first_steps_of_the_next_epoch(queries):
    sizes = dual([9, 9, 9])
    own = sampler(sizes, 16, queries)
    first = epoch_of(own)
    left = set(range(27)) - {group for step in first for group in step}
    assert left
    step = len(first)
    assert own.step(step)[0] == 1
    while left:
        assert left & set(own.step(step)[1])
        left -= set(own.step(step)[1])
        step += 1


@pytest.mark.parametrize(
    ("num_views", "instances", "queries", "where"),
    [
        ([3, 2] * 12, 24, 12, "12 of 24 groups .* block of 2 instances"),
        ([2] * 30 + [5], 8, None, "1 of 31 groups .* step of 8 instances"),
        ([9] + [1] * 30, 8, None, "1 of 31 groups .* step of 8 instances"),
    ],
)
def test_what_can_never_be_in_a_step_is_refused(num_views, instances, queries, where):
    sizes = Sizes([n // 2 for n in range(len(num_views))], num_views)
    with pytest.raises(InputError, match=where):
        sampler(sizes, instances, queries)


def test_a_part_that_fills_no_step_of_its_own_is_refused():
    sizes = Sizes(range(40), [1] * 40, part=[0] * 36 + [1] * 4)
    with pytest.raises(InputError, match=r"the 4 groups of mixture\.parts\.1 \(4 queries\) .* step of 8"):
        sampler(sizes, 8, None, homogeneous=True)
    sampler(sizes, 8, None)


def test_homogeneous_batches_are_of_one_part():
    sizes = Sizes(range(64), [1] * 64, part=[0, 1] * 32)
    mixed, pure = (epoch_of(sampler(sizes, 8, None, homogeneous=choice)) for choice in (False, True))
    assert any(len(set(sizes.part[step].tolist())) == 2 for step in mixed)
    assert all(len(set(sizes.part[step].tolist())) == 1 for step in pure)
    assert len({int(sizes.part[step][0]) for step in pure[:4]}) == 2  # not one part after the other


def test_a_group_is_dealt_as_often_as_it_was_drawn():
    sizes = Sizes(range(16), [1] * 16, times=[1, 3] * 8)
    counts = Counter(group for step in epoch_of(sampler(sizes, 8, None)) for group in step)
    assert all(counts[group] == sizes.times[group] for group in range(16))


def test_budgets_are_steps_instances_or_tokens():
    own = sampler(dual([8, 8, 8]))
    assert own.num_steps(instances=80, tokens=None, steps=None) == 10
    assert own.num_steps(instances=None, tokens=None, steps=7) == 7
    assert own.num_steps(instances=None, tokens=801, steps=None) == 11  # 80 tokens a step


@given(st.lists(st.integers(1, 7), max_size=14), st.integers(1, 9))
def test_packing_fills_lists_exactly_and_leaves_only_what_fills_none(sizes, capacity):
    full, left = pack(sizes, capacity)
    assert sorted([item for items in full for item in items] + left) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in items) == capacity for items in full)
    sums = {0}
    for item in left:
        sums |= {total + sizes[item] for total in sums}
    assert capacity not in sums


def test_packing_takes_the_first_first():
    assert pack([3, 9, 1, 2, 2], 4) == ([[0, 2], [3, 4]], [1])
    assert pack([2, 3, 2, 3], 5) == ([[0, 1], [2, 3]], [])


# --- identity -------------------------------------------------------------------------------------


def test_what_has_the_same_id_and_another_text_stays_apart(tmp_path):
    """Two data sets that number their queries and passages, and one with passage ids per example."""
    encoder = tiny_encoder(tmp_path / "encoder")

    def numbered(seed, query, *words):
        passages = [Passage(str(n), f"exports of {word}") for n, word in enumerate(words)]
        return Group(
            seed, f"{query} 1", tuple(passages), 0, (View(query, ("only",), labels(**{"0": 1, "1": -1}), ()),)
        )

    groups = [
        numbered("1", "what", "chad", "fiji"),
        numbered("1", "exports", "mali", "laos"),
        numbered("2", "exports", "tin", "chad"),  # of this text there is one already
    ]
    for pieces in (1, 3):
        prepared = prepared_of(groups, train_config(), encoder, tmp_path, pieces)
        members = [prepared.group(index) for index in range(3)]
        members.sort(key=lambda own: (own.id, prepared.tokens(own.passages[0]).tolist()))
        batches = [
            make_batch(prepared, [own], train_config(batch__queries=None).batch, [0], "0") for own in members
        ]
        assert [texts(batch) for batch in batches] == [["chad", "fiji"], ["mali", "laos"], ["tin", "chad"]]
        assert all(relation(batch) == [[POSITIVE, NEGATIVE]] for batch in batches)
        assert prepared.num_passages == 5
        assert len({own.query for own in members}) == 2


@pytest.mark.parametrize(
    ("queries", "numbers"),
    [
        ([("a 1", "what"), ("b 1", "which")], 2),  # two data sets that number their queries
        ([("a 1", "what"), ("a 1", "what then")], 1),  # one query in two wordings
        ([("a 1", "what"), ("b 7", "what")], 1),  # one query in two data sets
        ([("a 1", "what"), ("a 1", "what then"), ("b 7", "what then"), ("b 8", "which")], 2),
    ],
)
def test_groups_are_of_one_query_where_its_id_or_its_text_says_so(tmp_path, queries, numbers):
    encoder = tiny_encoder(tmp_path / "encoder")
    groups = [
        Group(f"g{n}", id, (CHAD, FIJI), 0, (View(text, ("only",), labels(chad=1, fiji=-1), ()),))
        for n, (id, text) in enumerate(queries)
    ]
    prepared = prepared_of(groups, train_config(), encoder, tmp_path)
    assert len(set(prepared.query.tolist())) == numbers
    assert prepared.query[0] != prepared.query[-1] or numbers == 1
    assert set(prepared.query.tolist()) == set(range(numbers))


# --- who encodes what -----------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from([1, 64, 100, 4096]),
    st.booleans(),
)
def test_ranks_share_all_texts_in_equally_many_chunks(lengths, world_size, chunk_tokens, padded):
    if len(lengths) < world_size:
        with pytest.raises(InputError, match=r"workers\.num"):
            deal(lengths, world_size, chunk_tokens, padded=padded)
        return
    ranks = deal(lengths, world_size, chunk_tokens, padded=padded)
    assert sorted(place for chunks in ranks for chunk in chunks for place in chunk) == list(
        range(len(lengths))
    )
    assert len({len(chunks) for chunks in ranks}) == 1
    assert all(chunk for chunks in ranks for chunk in chunks)
    for chunks in ranks:
        for number, chunk in enumerate(chunks):
            of_chunk = [lengths[place] for place in chunk]
            tokens = len(chunk) * max(of_chunk) if padded else sum(of_chunk)
            # one text may be longer than that; and the last chunk may take in a rest that not all ranks share
            assert len(chunk) == 1 or tokens <= chunk_tokens or number == len(chunks) - 1
