"""SourceExamples and settings for measuring our own cost: as many as wanted, and an engine that answers at once.

The text is made of the LICENSE's words, drawn with their frequencies there: English that compresses like
text, the same on every machine.
"""

from pathlib import Path
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualview.arrow import EXAMPLE_SCHEMA
from dualview.config.engines import ScriptedEngine
from dualview.config.generate import GenerateConfig, LlmJudge
from dualview.config.loading import load
from dualview.config.sources import TuplesSource

ROOT = Path(__file__).parents[2]
ROWS_PER_FILE = 10_000
NUM_PASSAGES = 20_000  # seeds share them, as the seeds of a real corpus do
NUM_INSTRUCTION_NEGATIVES = 2
NUM_HARD_NEGATIVES = 4
_WORDS_OF_A_PASSAGE = 60
_WORDS = re.findall(r"[a-z]+", (ROOT / "LICENSE").read_text().lower())


def write_examples(folder: Path, num_seeds: int) -> None:
    """`num_seeds` seeds in Parquet files of ROWS_PER_FILE rows, in the layout of the tuples source."""
    folder.mkdir(parents=True)
    rng = random.Random(1)
    texts = [
        " ".join(rng.choices(_WORDS, k=_WORDS_OF_A_PASSAGE)).capitalize() + "." for _ in range(NUM_PASSAGES)
    ]
    passages = pa.table(
        {"id": [f"p{number}" for number in range(NUM_PASSAGES)], "text": texts}
        | {"title": [text.partition(" ")[0] for text in texts]}
    ).append_column("attributes", pa.nulls(NUM_PASSAGES, pa.map_(pa.string(), pa.string())))
    structs = passages.to_struct_array().combine_chunks()
    draw = np.random.default_rng(1)
    for file, start in enumerate(range(0, num_seeds, ROWS_PER_FILE)):
        num_rows = min(ROWS_PER_FILE, num_seeds - start)
        table = pa.table(
            {
                "id": [f"s{row}" for row in range(start, start + num_rows)],
                "query_id": [f"q{row}" for row in range(start, start + num_rows)],
                "query": [" ".join(rng.choices(_WORDS, k=6)) for _ in range(num_rows)],
                "instruction": [
                    f"Only texts about {' '.join(rng.choices(_WORDS, k=8))}." for _ in range(num_rows)
                ],
                **_drawn(structs, num_rows, draw),
                "requirements": pa.nulls(num_rows, EXAMPLE_SCHEMA.field("requirements").type),
            },
            schema=EXAMPLE_SCHEMA,
        )
        pq.write_table(table, folder / f"seeds-{file:05d}.parquet", compression="zstd")


def _drawn(passages: pa.StructArray, num_rows: int, draw: np.random.Generator) -> dict[str, pa.Array]:
    """The passage columns of `num_rows` seeds; no seed has a passage twice."""
    num_each = 1 + NUM_INSTRUCTION_NEGATIVES + NUM_HARD_NEGATIVES
    first = draw.integers(NUM_PASSAGES, size=(num_rows, 1))
    steps = draw.integers(1, NUM_PASSAGES // num_each, size=(num_rows, num_each - 1)).cumsum(axis=1)
    drawn = np.hstack([first, first + steps]) % NUM_PASSAGES
    roles = np.split(drawn, [1, 1 + NUM_INSTRUCTION_NEGATIVES], axis=1)
    positives, instruction_negatives, hard_negatives = (
        pa.FixedSizeListArray.from_arrays(passages.take(pa.array(role.ravel())), role.shape[1])
        for role in roles
    )
    return {
        "positive": positives.flatten(),
        "instruction_negatives": instruction_negatives.cast(
            EXAMPLE_SCHEMA.field("instruction_negatives").type
        ),
        "hard_negatives": hard_negatives.cast(EXAMPLE_SCHEMA.field("hard_negatives").type),
    }


def scripted_config(seeds: Path, output: Path, rows_per_shard: int) -> GenerateConfig:
    """The demo's LLM run over `seeds`, with the prompt for capable models and the scripted engine."""
    config = load(
        GenerateConfig,
        str(ROOT / "configs/demo/llm.yaml"),
        [
            "writer.prompt=write-v1",
            "accept.judge=llm",
            f"rows_per_shard={rows_per_shard}",
            "actors.cpus=1",
            f"output={output}",
        ],
    )
    return config.model_copy(
        update={
            "source": TuplesSource(kind="tuples", paths=(str(seeds),), max_bad_share=0.0, vocabulary=None),
            "judges": tuple(judge for judge in config.judges if isinstance(judge, LlmJudge)),
            "engine": ScriptedEngine(kind="scripted", seed=1),
        }
    )
