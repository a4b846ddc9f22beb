"""Data sets in the layouts of the hub, small: for tests of readers, and of whole evaluations beside mteb's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import random
from typing import Any

from mteb.tasks.instruction_reranking.eng.core17_instruction_retrieval import Core17InstructionRetrieval
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Tables = Mapping[str, Sequence[Mapping[str, Any]]]  # config -> rows

WORDS = [
    "harbour",
    "river",
    "tax",
    "orchid",
    "engine",
    "copper",
    "winter",
    "choir",
    "bridge",
    "fever",
    "lantern",
    "salt",
    "glacier",
    "violin",
    "court",
    "wheat",
]


def write_parquet_dataset(folder: Path, tables: Tables) -> None:
    """As `push_to_hub` leaves it: CONFIG/SPLIT-00000-of-00001.parquet, but `default` in data/, and a README.md."""
    configs = []
    for config, rows in tables.items():
        split = "test" if config.startswith(("default", "qrels")) else config.split("-")[0]
        place = "data" if config == "default" else config
        (folder / place).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / place / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{place}/{split}-*"}]
        configs.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# A data set\n")


def followir(
    num_topics: int, num_passages: int, num_candidates: int, num_words: int, suffix: str = ""
) -> Tables:
    """A collection in FollowIR's shape: each topic has an instruction that takes some relevant passages away."""
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(num_words // 2, num_words * 3 // 2)))

    corpus = [
        {"_id": f"d{n}", "title": f"report {n}" if n % 2 else "", "text": text()} for n in range(num_passages)
    ]
    tables: dict[str, list[Mapping[str, Any]]] = {
        name: [] for name in ("corpus", "queries", "instruction", "default", "top_ranked", "qrel_diff")
    }
    tables["corpus"] = corpus
    for n in range(num_topics):
        topic, instructions = f"q{n}", [text(), text()]
        query = " ".join(rng.choices(WORDS, k=6))
        candidates = rng.sample([row["_id"] for row in corpus], num_candidates)
        grades = {id: rng.choice([0, 1, 2]) for id in candidates[: num_candidates // 2]}
        grades[candidates[0]] = grades[candidates[1]] = 1  # one that is taken away, and one that stays
        relevant = [id for id in candidates[2:] if grades.get(id)]
        dropped = [candidates[0], *rng.sample(relevant, len(relevant) // 3)]
        for name, instruction in zip(("og", "changed"), instructions, strict=True):
            id = f"{topic}-{name}"
            tables["queries"].append({"_id": id, "text": query})
            tables["instruction"].append({"query-id": id, "instruction": instruction})
            tables["default"] += [
                {
                    "query-id": id,
                    "corpus-id": passage,
                    "score": float(0 if name == "changed" and passage in dropped else grade),
                }
                for passage, grade in grades.items()
            ]
            tables["top_ranked"].append({"query-id": id, "corpus-ids": candidates})
        tables["qrel_diff"].append({"query-id": topic, "corpus-ids": dropped})
    return {f"{name}{suffix}": rows for name, rows in tables.items()}


def mteb_task(folder: Path) -> Core17InstructionRetrieval:
    """mteb's own FollowIR task over a mirror on this machine."""
    metadata = Core17InstructionRetrieval.metadata.model_copy(
        update={"dataset": {"path": str(folder), "revision": "main"}}
    )
    return type("Local", (Core17InstructionRetrieval,), {"metadata": metadata})()
