"""Gradients and losses of a step do not depend on how many ranks share it, nor on a gradient cache."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import (
    EVERYTHING,
    learned,
    learner_in,
    plainly,
    prepared_of,
    random_groups,
    retained_by,
    tiny_encoder,
    train_config,
    work_for,
)
import torch
import torch.multiprocessing

from dualview.retrieval.encoder import asymmetric, encode_texts, encode_tokens, inputs_of, load_encoder
from dualview.training.losses import info_nce
from dualview.training.step import Retained

GROUPS = random_groups(5, num_hard_negatives=2)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("cache", [False, True])
def test_loss_and_gradients_equal_a_plain_loop_in_float64(tmp_path, changes, cache):
    config = train_config(batch__gradient_cache=cache, **changes)
    learner = learner_in(tmp_path, config, torch.float64)
    prepared = prepared_of(GROUPS, config, learner.encoder, tmp_path, pieces=2)
    retained = retained_by(learner.encoder, prepared)
    retained = replace(retained, untouched_RH=retained.untouched_RH.double())
    loss, gradients = learned(learner, config, prepared, retained)
    expected_loss, expected = plainly(learner, config, prepared, retained)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert gradients.keys() == expected.keys()
    assert ("temperature.log" in gradients) == config.loss.temperature.learned
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-9)


def test_with_dropout_the_second_pass_of_a_gradient_cache_drops_the_same(tmp_path):
    once, twice = (train_config(batch__gradient_cache=cache) for cache in (False, True))
    learner = learner_in(tmp_path, once, torch.float64).train()
    prepared = prepared_of(GROUPS, once, learner.encoder, tmp_path)
    retained = retained_by(learner.encoder, prepared)
    learner.train()
    loss, gradients = learned(learner, once, prepared, retained)
    cached_loss, cached = learned(learner, twice, prepared, retained)
    assert loss == pytest.approx(cached_loss, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, cached[name], rtol=1e-7, atol=1e-9)
    learner.eval()
    assert learned(learner, once, prepared, retained)[0] != pytest.approx(loss, rel=1e-4)


def test_documents_encoded_once_give_the_loss_of_encoding_them_for_each_view(tmp_path):
    """Twice the texts, half of them copies: the same scores, so the same loss and gradients."""
    config = train_config(loss__base_distillation=0.0, batch__negatives="own")
    learner = learner_in(tmp_path, config, torch.float64)
    prepared = prepared_of(GROUPS, config, learner.encoder, tmp_path)
    loss, gradients = learned(learner, config, prepared, Retained([], torch.empty(0)))
    work = work_for(config, prepared, Retained([], torch.empty(0)))
    relation_VD = torch.from_numpy(work.batch.relation(range(len(work.batch.views))))
    losses = []
    for tokens, row in zip(work.batch.view_tokens, relation_VD, strict=True):
        query = learner(inputs_of(learner.encoder, [tokens]), "query")
        own = [place for place, label in enumerate(row.tolist()) if label]
        texts = [prepared.tokens(work.batch.passages[place]) for place in own]
        passages = learner(inputs_of(learner.encoder, texts), "document")
        losses.append(info_nce(query @ passages.T, row[own][None], learner.temperature()))
    learner.zero_grad()
    expected = torch.cat(losses).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for name, weight in learner.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("negatives", ["batch", "worker"])
def test_loss_and_gradients_over_ranks_equal_one_process(tmp_path, negatives):
    torch.multiprocessing.spawn(_rank, args=(2, tmp_path, negatives), nprocs=2)
    over_ranks = torch.load(tmp_path / "mean.pt", weights_only=True)
    config = train_config(batch__negatives=negatives, **EVERYTHING)
    learner = learner_in(tmp_path / "alone", config, torch.float64)
    prepared = prepared_of(GROUPS, config, learner.encoder, tmp_path)
    retained = retained_by(learner.encoder, prepared)
    if negatives == "batch":
        loss, gradients = plainly(learner, config, prepared, retained)
    else:  # by definition the mean over the views of two batches, which know nothing of each other
        shares = [learned(learner, config, prepared, retained, rank, 2) for rank in range(2)]
        loss = sum(share[0] for share in shares) / 2
        gradients = {name: (shares[0][1][name] + shares[1][1][name]) / 2 for name in shares[0][1]}
    assert float(over_ranks["loss"]) == pytest.approx(loss, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(over_ranks[name], gradient, rtol=1e-7, atol=1e-9)


def _rank(rank, world_size, folder, negatives):
    torch.set_num_threads(1)
    config = train_config(batch__negatives=negatives, batch__gradient_cache=True, **EVERYTHING)
    own = folder / f"rank-{rank}"
    own.mkdir()
    learner = learner_in(
        own, config, torch.float64
    )  # before the group: save_pretrained writes on rank 0 alone
    prepared = prepared_of(GROUPS, config, learner.encoder, own)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    retained = retained_by(learner.encoder, prepared)
    loss, gradients = learned(learner, config, prepared, retained, rank, world_size)
    mean = {"loss": torch.tensor(loss, dtype=torch.float64), **gradients}
    for value in mean.values():  # what DeepSpeed does: the mean over ranks
        torch.distributed.all_reduce(value)
        value /= world_size
    if rank == 0:
        torch.save(mean, folder / "mean.pt")
    torch.distributed.destroy_process_group()


def test_frozen_passages_are_looked_up_and_teach_the_same_queries(tmp_path):
    """The loss is that of encoding them, and no gradient passes through them."""
    config = train_config(loss__base_distillation=0.0, batch__candidates="queries")
    learner = learner_in(tmp_path, config)
    prepared = prepared_of(GROUPS, config, learner.encoder, tmp_path)
    everything = [prepared.tokens(number) for number in range(prepared.num_passages)]
    vectors = encode_tokens(learner.encoder, everything, side="document", precision="fp32").numpy()
    nothing = Retained([], torch.empty(0))
    trained_loss, trained = learned(learner, config, prepared, nothing)
    frozen_loss, of_queries = learned(
        learner, config, prepared, nothing, frozen=lambda numbers: vectors[list(numbers)]
    )
    assert frozen_loss == pytest.approx(trained_loss, rel=1e-5)
    assert any(not torch.allclose(trained[name], of_queries[name], rtol=1e-2) for name in trained)

    work = work_for(config, prepared, nothing)
    learner.zero_grad()
    features = inputs_of(learner.encoder, work.batch.view_tokens)
    scores_VD = learner(features, "query") @ torch.from_numpy(vectors[list(work.batch.passages)]).T
    relation_VD = torch.from_numpy(work.batch.relation(range(len(work.batch.views))))
    info_nce(scores_VD, relation_VD, 0.05).mean().backward()
    for name, weight in learner.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(of_queries[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_an_asymmetric_encoder_reads_queries_and_documents_with_its_own_sides(tmp_path):
    instructed, untouched = tiny_encoder(tmp_path / "a"), tiny_encoder(tmp_path / "a")
    with torch.no_grad():
        for weight in instructed.parameters():
            weight.mul_(1.5)
    asymmetric(instructed, untouched).save(str(tmp_path / "both"))
    both = load_encoder(str(tmp_path / "both"), trust_remote_code=False)
    texts = ["exports of chad", "only in asia"]
    settings = {"max_tokens": 16, "precision": "fp32"}
    for side in ("query", "document", "instructed_query"):
        ours = encode_texts(both, texts, side=side, **settings)
        alone = instructed if side == "instructed_query" else untouched
        torch.testing.assert_close(ours, encode_texts(alone, texts, side=side, **settings))
        np.testing.assert_allclose(ours, both.encode(texts, task=side), atol=1e-5)
