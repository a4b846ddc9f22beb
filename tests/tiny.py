"""A tiny encoder, groups over its vocabulary, and a train config, for tests of training."""

from contextlib import nullcontext
from functools import partial
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from sentence_transformers import SentenceTransformer
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from dualview.config.loading import load
from dualview.config.train import TrainConfig
from dualview.models import local_model
from dualview.records import Passage, Requirement
from dualview.retrieval.encoder import encode_tokens, inputs_of, new_encoder, tokenize
from dualview.training.groups import Group, Label, View
from dualview.training.losses import (
    base_distillation,
    distillation,
    info_nce,
    leave_out_false_negatives,
    truncated,
)
from dualview.training.model import Learner
from dualview.training.plan import plan_work, retained_of_step
from dualview.training.prepared import Placed, Prepared, make_piece
from dualview.training.step import Retained, Step

DEMO = Path("configs/demo/train-dual.yaml").absolute()
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


QUERIES = ("exports of", "what are exports")

# Of the tiny models of every architecture, beside the tokenizer of save_tiny_encoder.
SIZES = {
    "vocab_size": 6 + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}


def train_config(**changes) -> TrainConfig:
    """configs/demo/train-dual.yaml, small; changes as --set, with __ for the dots."""
    small = {
        "encoder.max_query_tokens": 16,
        "encoder.max_passage_tokens": 16,
        "encoder.train_word_embeddings": True,
        "mixture.parts.0.num_instances": 8,
        "budget.instances": 8,
        "batch.instances": 8,
        "batch.queries": 2,
        "batch.chunk_tokens": 64,
        "loss.temperature.value": 0.05,
        "loss.base_distillation": 1.0,
        "deepspeed.stage": 0,
        "workers.num": 1,
    }
    settings = {**small, **{key.replace("__", "."): value for key, value in changes.items()}}
    assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load(TrainConfig, str(DEMO), assignments)


def save_tiny_encoder(folder: Path) -> Path:
    """A real BERT with random weights, saved as any other."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    torch.manual_seed(0)
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return _save_bert(folder, vocab_size=6 + len(WORDS), hidden_size=32, intermediate_size=64)


def save_small_encoder(folder: Path) -> Path:
    """The demo's encoder with random weights and few of them: its own tokens, a fraction of its time."""
    tokenizer = AutoTokenizer.from_pretrained(local_model(train_config().encoder.model))
    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    return _save_bert(folder, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)


def _save_bert(folder: Path, **sizes: int) -> Path:
    BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path) -> SentenceTransformer:
    saved = save_tiny_encoder(folder)
    return new_encoder(str(saved), pooling="mean", trust_remote_code=False).eval()


def labels(**of_passages: int) -> tuple[Label, ...]:
    return tuple(Label(id, label) for id, label in of_passages.items())


def random_groups(num: int = 5, num_hard_negatives: int = 0) -> list[Group]:
    """Dual views over random texts; queries alternate."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(num):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(3 + num_hard_negatives)]
        passages = tuple(
            Passage(f"{n}-{k}", text, attributes={"region": "africa" if k else "asia"})
            for k, text in enumerate(texts)
        )
        first, second, third = (passage.id for passage in passages[:3])
        hard = tuple(Label(passage.id, -1) for passage in passages[3:])
        views = (
            View(
                QUERIES[n % 2],
                ("only asia", "in asia and not in africa"),
                (Label(first, 1, 2.0), Label(second, -1, -1.0), Label(third, -1, -3.0), *hard),
                (Requirement(False, "region", "africa"),),
            ),
            View(QUERIES[n % 2], ("not in asia",), (Label(first, -1), Label(second, 1)), ()),
        )
        made.append(Group(f"g{n}", f"q{n % 2}", passages, num_hard_negatives, views))
    return made


def prepared_of(groups, config: TrainConfig, encoder, folder: Path, pieces: int = 1) -> Prepared:
    """The groups as a run would prepare them, in so many files."""
    files = []
    for number in range(pieces):
        placed = [Placed(group, 0, 0, 1) for group in groups[number::pieces]]
        table = make_piece(placed, config.encoder, partial(tokenize, encoder), config.seed)
        files.append(folder / f"piece-{number}.arrow")
        with pa.OSFile(str(files[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    return Prepared(files)


def retained_by(encoder, prepared):
    """Base-distillation anchors away from the encoder's vectors, so that the loss has a gradient."""
    tokens = prepared.retained()
    vectors_RH = encode_tokens(encoder, tokens, side="query", precision="fp32")
    return Retained(tokens, torch.nn.functional.normalize(vectors_RH + 0.1, dim=1))


def work_for(config, prepared, retained, rank=0, world_size=1, frozen=None):
    return plan_work(
        config,
        prepared,
        range(prepared.num_groups),
        frozen,
        retained.tokens,
        step=0,
        epoch=0,
        rank=rank,
        world_size=world_size,
    )


def learned(learner, config, prepared, retained, rank=0, world_size=1, frozen=None):
    """This rank's loss, and its gradients by name."""
    learner.zero_grad()
    step = Step(
        learner,
        config,
        retained,
        world_size,
        forward=learner,
        backward=torch.Tensor.backward,
        accumulation=nullcontext,
    )
    loss = step.forward_backward(work_for(config, prepared, retained, rank, world_size, frozen))
    return loss.item(), {
        name: weight.grad.clone() for name, weight in learner.named_parameters() if weight.grad is not None
    }


def learner_in(folder: Path, config, dtype=torch.float32):
    encoder = tiny_encoder(folder)
    return (
        Learner(
            encoder,
            config.loss.temperature.value,
            learned=config.loss.temperature.learned,
            precision=config.precision,
        )
        .to(dtype)
        .eval()
    )


# Every part of the loss at once.
EVERYTHING = {
    "loss__temperature__learned": True,
    "loss__false_negative_margin": 0.05,
    "loss__dimensions": [16, 32],
    "loss__distillation": 0.5,
    "mixture__parts__0__num_hard_negatives": 2,
}


def plainly(learner, config, prepared, retained):
    """The same loss from every text encoded alone, without ranks, chunks or caches; float64."""
    work = work_for(config, prepared, retained)

    def encode(tokens):
        return learner(inputs_of(learner.encoder, [tokens]), "query")[0]

    views_VH = torch.stack([encode(tokens) for tokens in work.batch.view_tokens])
    passages_DH = torch.stack([encode(prepared.tokens(number)) for number in work.batch.passages])
    everyone = range(len(work.batch.views))
    losses = []
    for size in config.loss.dimensions or [32]:
        scores_VD = truncated(views_VH, size) @ truncated(passages_DH, size).T
        relation_VD = torch.from_numpy(work.batch.relation(everyone))
        if config.loss.false_negative_margin is not None:
            known_VD = torch.from_numpy(work.batch.of_same_query(everyone))
            relation_VD = leave_out_false_negatives(
                scores_VD, relation_VD, known_VD, config.loss.false_negative_margin
            )
        of_views = info_nce(scores_VD, relation_VD, learner.temperature())
        margins_VD = torch.from_numpy(work.batch.margins(everyone))
        of_views = of_views + config.loss.distillation * distillation(
            scores_VD, margins_VD, learner.temperature()
        )
        losses.append(of_views.mean())
    chosen = retained_of_step(len(retained.tokens), config, 0)
    texts_RH = torch.stack([encode(retained.tokens[r]) for r in chosen])
    kept = (
        config.loss.base_distillation
        * base_distillation(texts_RH, retained.untouched_RH[chosen])
        / len(chosen)
    )
    loss = sum(losses) / len(losses) + kept
    learner.zero_grad()
    loss.backward()
    return loss.item(), {
        name: weight.grad.clone() for name, weight in learner.named_parameters() if weight.grad is not None
    }
