"""Gradients and losses of a step do not depend on how many ranks share it."""

from dataclasses import replace
from pathlib import Path
import random

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
import torch
import torch.multiprocessing
from transformers import BertConfig, BertModel, BertTokenizerFast

from dualview.config import TrainConfig
from dualview.encoder import asymmetric, encode_texts, load_encoder
from dualview.records import Passage, Requirement
from dualview.training.batches import candidates_of, make_batch
from dualview.training.groups import Group, View
from dualview.training.losses import info_nce, retention
from dualview.training.step import learning_rate_scale, move_back, retain, step_loss

WORDS = [
    "chad",
    "fiji",
    "mali",
    "laos",
    "exports",
    "are",
    "oil",
    "gold",
    "fish",
    "of",
    "only",
    "in",
    "africa",
    "asia",
    "not",
    "what",
    "and",
    "tin",
]


def config(weight=1.0, precision="fp32"):
    return TrainConfig.model_validate(
        {
            "output": "unused",
            "seed": 0,
            "encoder": {
                "model": "unused",
                "pooling": "mean",
                "query_template": "{query}. {instruction}",
                "max_query_tokens": 16,
                "max_passage_tokens": 16,
                "train_word_embeddings": True,
                "dropout": False,
                "trust_remote_code": False,
            },
            "mixture": {"data": "unused", "views": "both", "num_hard_negatives": 0, "num_instances": 8},
            "documents": "trained",
            "batch": {"instances": 8, "queries": 2, "candidates": "groups"},
            "move_back": 0.0,
            "loss": {"temperature": 0.05, "retention": weight},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_share": 0.1,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
            },
            "precision": precision,
            "deepspeed": {"stage": 0},
            "checkpoint_every_steps": 1,
            "max_failures": 0,
            "workers": {"num": 1, "cpus": 1, "gpus": 0},
        }
    )


def tiny_encoder(folder: Path) -> SentenceTransformer:
    """A real BERT with random weights, saved and loaded as any other."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    torch.manual_seed(0)
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=6 + len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(folder)
    return SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(32, "mean"), Normalize()], device="cpu"
    ).eval()


def groups():
    rng = np.random.default_rng(0)
    made = []
    for n in range(5):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(3)]
        passages = tuple(
            Passage(f"{n}-{k}", text, attributes={"region": "africa" if k else "asia"})
            for k, text in enumerate(texts)
        )
        ids = [passage.id for passage in passages]
        requirement = (Requirement(False, "region", "africa"),)
        made.append(
            Group(
                f"g{n}",
                f"q{n % 2}",
                passages,
                (
                    View("exports of", "only asia", {ids[0]: 1, ids[1]: -1, ids[2]: -1}, requirement),
                    View("exports of", "not in asia", {ids[0]: -1, ids[1]: 1}, ()),
                ),
            )
        )
    return made


def gradients(encoder, rank, world_size, settings, frozen=None):
    loss_of = step_loss(
        encoder,
        settings,
        moved(retain(encoder, groups(), settings)),
        candidates_of(groups()),
        frozen,
        rank=rank,
        world_size=world_size,
    )
    loss = loss_of(encoder, groups(), 0)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def moved(retained):
    """Anchors away from where the encoder is, so that retention has a gradient."""
    return replace(retained, untouched_RH=torch.nn.functional.normalize(retained.untouched_RH + 0.1, dim=1))


def _rank(rank, world_size, folder, weight):
    torch.set_num_threads(1)
    own = folder / f"encoder-{rank}"
    own.mkdir()
    encoder = tiny_encoder(own)  # before the group: save_pretrained writes on rank 0 alone
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    loss, gradient = gradients(encoder, rank, world_size, config(weight))
    mean = torch.tensor([loss])
    torch.distributed.all_reduce(mean)
    torch.distributed.all_reduce(gradient)  # what DeepSpeed does: the mean over ranks
    if rank == 0:
        torch.save({"loss": mean / world_size, "gradient": gradient / world_size}, folder / "mean.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("world_size", "weight"), [(2, 0.0), (2, 1.0), (3, 1.0)])
def test_loss_and_gradients_over_ranks_equal_one_process(tmp_path, world_size, weight):
    torch.multiprocessing.spawn(_rank, args=(world_size, tmp_path, weight), nprocs=world_size)
    over_ranks = torch.load(tmp_path / "mean.pt", weights_only=True)
    (tmp_path / "alone").mkdir()
    loss, gradient = gradients(tiny_encoder(tmp_path / "alone"), 0, 1, config(weight))
    assert float(over_ranks["loss"]) == pytest.approx(loss, rel=1e-5)
    # float32 sums in another order: a wrong scale or a missing term is off by far more
    torch.testing.assert_close(over_ranks["gradient"], gradient, rtol=1e-3, atol=1e-5)


def test_loss_and_gradients_equal_a_plain_loop_that_encodes_every_text_alone(tmp_path):
    encoder = tiny_encoder(tmp_path)
    settings = config(weight=1.0)
    retained = moved(retain(encoder, groups(), settings))
    loss_of = step_loss(encoder, settings, retained, {}, None, rank=0, world_size=1)
    loss = loss_of(encoder, groups(), 0)
    loss.backward()
    ours = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    encoder.zero_grad()
    batch = make_batch(groups(), {})

    def encode(text):
        features = encoder.tokenizer(text, return_tensors="pt")
        return encoder(dict(features))["sentence_embedding"][0]

    queries = torch.stack([encode(f"{view.query}. {view.instruction}") for view in batch.views])
    passages = torch.stack([encode(passage.text) for passage in batch.passages])
    contrastive = info_nce(queries @ passages.T, torch.from_numpy(batch.relation_VD), 0.05).mean()
    chosen = _texts_of_step(retained, settings)
    texts = torch.stack([encode(encoder.tokenizer.decode(retained.tokens[r][1:-1])) for r in chosen])
    expected = contrastive + retention(texts, retained.untouched_RH[chosen])
    expected.backward()
    plain = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


def _texts_of_step(retained, settings):
    return random.Random(f"{settings.seed}:0").sample(range(len(retained.tokens)), 8)


def test_the_untouched_encoder_has_nothing_to_retain(tmp_path):
    encoder = tiny_encoder(tmp_path)
    with_term, without = (
        step_loss(
            encoder, config(weight), retain(encoder, groups(), config()), {}, None, rank=0, world_size=1
        )
        for weight in (5.0, 0.0)
    )
    assert with_term(encoder, groups(), 0).item() == pytest.approx(
        without(encoder, groups(), 0).item(), abs=1e-5
    )


def test_frozen_passages_are_looked_up_and_teach_the_same_queries(tmp_path):
    """The loss is that of encoding them, and no gradient passes through them."""
    encoder = tiny_encoder(tmp_path)
    settings = config(weight=0.0)
    passages = {passage.id: passage for group in groups() for passage in group.passages}
    vectors = encode_texts(
        encoder,
        [passage.text for passage in passages.values()],
        side="document",
        max_tokens=16,
        precision="fp32",
    )
    frozen = dict(zip(passages, vectors.clone(), strict=True))
    trained_loss, trained = gradients(encoder, 0, 1, settings)
    encoder.zero_grad()
    frozen_loss, of_queries = gradients(encoder, 0, 1, settings, frozen)
    assert frozen_loss == pytest.approx(trained_loss, rel=1e-5)
    assert not torch.allclose(trained, of_queries, rtol=1e-2)

    batch = make_batch(groups(), candidates_of(groups()))
    encoder.zero_grad()
    features = encoder.tokenizer(
        [f"{view.query}. {view.instruction}" for view in batch.views], padding=True, return_tensors="pt"
    )
    queries = encoder(dict(features))["sentence_embedding"]
    scores = queries @ torch.stack([frozen[passage.id] for passage in batch.passages]).T
    info_nce(scores, torch.from_numpy(batch.relation_VD), 0.05).mean().backward()
    plain = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(of_queries, plain, rtol=1e-3, atol=1e-5)


def test_moving_back_is_a_share_of_the_way(tmp_path):
    encoder = tiny_encoder(tmp_path)
    untouched = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(4.0)
    move_back(encoder, untouched, 0.25)
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(weight.detach(), untouched[name] + 3.0)


def test_an_asymmetric_encoder_reads_queries_and_documents_with_its_own_sides(tmp_path):
    (tmp_path / "a").mkdir()
    query, document = tiny_encoder(tmp_path / "a"), tiny_encoder(tmp_path / "a")
    with torch.no_grad():
        for weight in query.parameters():
            weight.mul_(1.5)
    asymmetric(query, document).save(str(tmp_path / "both"))
    both = load_encoder(str(tmp_path / "both"), trust_remote_code=False)
    texts = ["exports of chad", "only in asia"]
    settings = {"max_tokens": 16, "precision": "fp32"}
    for side, alone in (("query", query), ("document", document)):
        ours = encode_texts(both, texts, side=side, **settings)
        torch.testing.assert_close(ours, encode_texts(alone, texts, side=side, **settings))
        theirs = both.encode_query(texts) if side == "query" else both.encode_document(texts)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_zero():
    scales = [learning_rate_scale(step, 100, 0.1) for step in range(101)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == scales[10] == 1.0
    assert scales[55] == pytest.approx(0.5)
    assert scales[100] == 0.0
