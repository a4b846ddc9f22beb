"""A tiny encoder, groups over its vocabulary, and a train config, for tests of training."""

from functools import partial
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from sentence_transformers import SentenceTransformer
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from dualview.config import TrainConfig, load
from dualview.encoder import new_encoder, tokenize
from dualview.records import Passage, Requirement
from dualview.training.groups import Group, Label, View
from dualview.training.prepared import Placed, Prepared, make_piece

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
        "loss.retention": 1.0,
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
    BertModel(
        BertConfig(
            vocab_size=6 + len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(folder)
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
                "exports of",
                ("only asia", "in asia and not in africa"),
                (Label(first, 1, 2.0), Label(second, -1, -1.0), Label(third, -1, -3.0), *hard),
                (Requirement(False, "region", "africa"),),
            ),
            View("exports of", ("not in asia",), (Label(first, -1), Label(second, 1)), ()),
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


def remember_figures(figures: dict[str, float]) -> None:
    """A hook for training to call."""
    assert "step" in figures
