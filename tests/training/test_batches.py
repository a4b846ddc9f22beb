from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dualview.errors import InputError
from dualview.records import Passage, Requirement
from dualview.training.batches import Sampler, candidates_of, make_batch, share_of
from dualview.training.groups import LEFT_OUT, NEGATIVE, POSITIVE, Group, View

IN_AFRICA = (Requirement(True, "region", "africa"),)


def passage(id, region=None):
    return Passage(id, f"text of {id}", attributes={"region": region} if region else {})


def group(id, query_id, passages, *views):
    return Group(
        id,
        query_id,
        tuple(passages),
        tuple(View("q", f"view {n}", v, IN_AFRICA) for n, v in enumerate(views)),
    )


CHAD, FIJI, MALI, LAOS, NIUE = (
    passage("chad", "africa"),
    passage("fiji", "oceania"),
    passage("mali", "africa"),
    passage("laos", "asia"),
    passage("niue"),
)


def test_both_views_of_a_group_label_its_passages_the_other_way_round():
    batch = make_batch([group("g", "q", [CHAD, FIJI], {"chad": 1, "fiji": -1}, {"chad": -1, "fiji": 1})], {})
    assert batch.relation_VD.tolist() == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]


def test_passages_of_the_same_query_are_labelled_by_what_is_known_of_them():
    own = group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1})
    others = group("g2", "exports", [MALI, LAOS, NIUE], {"mali": 1, "laos": -1, "niue": -1})
    batch = make_batch([own, others], {})
    assert [passage.id for passage in batch.passages] == ["chad", "fiji", "mali", "laos", "niue"]
    assert batch.relation_VD[0].tolist() == [POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, LEFT_OUT]


def test_candidates_of_the_queries_join_the_batch_and_those_of_other_queries_do_not():
    shown = [
        group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
        group("g2", "ports", [NIUE], {"niue": 1}),
    ]
    everything = [
        *shown,
        group("g3", "exports", [FIJI, LAOS], {"fiji": 1, "laos": -1}),
        group("g4", "flag", [MALI], {"mali": 1}),
    ]
    batch = make_batch(shown, candidates_of(everything))
    assert [passage.id for passage in batch.passages] == ["chad", "fiji", "laos", "niue"]
    assert batch.relation_VD.tolist() == [
        [POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE],
        [NEGATIVE, NEGATIVE, NEGATIVE, POSITIVE],
    ]


def test_passages_of_other_queries_are_negatives():
    batch = make_batch(
        [
            group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
            group("g2", "ports", [MALI], {"mali": 1}),
        ],
        {},
    )
    assert batch.relation_VD.tolist() == [[POSITIVE, NEGATIVE, NEGATIVE], [NEGATIVE, NEGATIVE, POSITIVE]]


def test_a_passage_of_two_groups_stands_once_and_keeps_each_views_own_label():
    batch = make_batch(
        [
            group("g1", "exports", [CHAD, FIJI], {"chad": 1, "fiji": -1}),
            group("g2", "exports", [FIJI, CHAD], {"fiji": 1, "chad": -1}),
        ],
        {},
    )
    assert [p.id for p in batch.passages] == ["chad", "fiji"]
    assert batch.relation_VD.tolist() == [[POSITIVE, NEGATIVE], [NEGATIVE, POSITIVE]]


def groups_of(sizes, num_views=2):
    views = [{"chad": 1, "fiji": -1}] * num_views
    return [
        group(f"{query}-{n}", f"query {query}", [CHAD, FIJI], *views)
        for query, size in enumerate(sizes)
        for n in range(size)
    ]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 5), st.sampled_from([4, 8, 12]))
def test_an_epoch_deals_every_group_once_at_the_most(sizes, seed, instances):
    groups = groups_of(sizes)
    try:
        sampler = Sampler(groups, instances=instances, queries=2, seed=seed)
    except InputError:
        per_block = instances // 4
        assert sum(size // per_block for size in sizes) < 2
        return
    epoch = [g.id for step in range(sampler.steps_per_epoch) for g in sampler.step(step)]
    assert max(Counter(epoch).values()) == 1
    assert len(epoch) == sampler.steps_per_epoch * instances // 2


def test_a_step_is_a_function_of_its_number_in_whatever_order_it_is_asked_for():
    groups = groups_of([8, 8, 8])
    sampler = Sampler(groups, instances=8, queries=2, seed=1)
    steps = [[g.id for g in sampler.step(step)] for step in range(40)]
    again = Sampler(groups, instances=8, queries=2, seed=1)
    for step in (39, 0, 17, 5, 38):
        assert [g.id for g in again.step(step)] == steps[step]
    assert steps != [
        [g.id for g in Sampler(groups, instances=8, queries=2, seed=2).step(s)] for s in range(40)
    ]


def test_a_block_holds_one_query():
    sampler = Sampler(groups_of([8, 8, 8]), instances=8, queries=2, seed=1)
    for step in range(sampler.steps_per_epoch):
        queries = [g.query_id for g in sampler.step(step)]
        assert len(set(queries[:2])) == len(set(queries[2:])) == 1


@pytest.mark.parametrize(("instances", "sizes"), [(6, [8, 8]), (16, [2, 2])])
def test_a_batch_that_cannot_be_dealt_is_one_sentence(instances, sizes):
    with pytest.raises(InputError, match="batch"):
        Sampler(groups_of(sizes), instances=instances, queries=2, seed=0)


def test_a_budget_that_is_no_multiple_of_a_step_is_one_sentence():
    sampler = Sampler(groups_of([8, 8]), instances=8, queries=2, seed=0)
    assert sampler.steps_for(80) == 10
    with pytest.raises(InputError, match="num_instances"):
        sampler.steps_for(81)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_shares_make_up_the_whole_and_differ_by_one_at_the_most(lengths, world_size):
    shares = [share_of(lengths, rank, world_size) for rank in range(world_size)]
    assert sorted(n for share in shares for n in share) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
