"""The dataset card of a finished run in Hugging Face's format, from its plan, its judge validation and its rows."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pyarrow as pa
import yaml

from dualview.arrow import DUAL_VIEW_SCHEMA
from dualview.errors import InputError
from dualview.runs.plan import Plan, numbered
from dualview.runs.run import GenerateRun
from dualview.synthesis import stats as figures
from dualview.synthesis.stats import Rows, Stats, run_stats

COLUMNS = {
    "id": "of the source example",
    "query_id": "of the information need; all its phrasings share it",
    "query": "the query, without an instruction",
    "instruction": "the original instruction",
    "positive": "relevant under the query with the original instruction",
    "instruction_negatives": "on topic, but break the original instruction",
    "hard_negatives": "mined passages, not known to be relevant",
    "requirements": "attribute requirements of the original instruction, if known",
    "target_id": "the instruction negative that is the positive under the new instruction",
    "new_instruction": "the complementary instruction; empty if none was written",
    "new_requirements": "attribute requirements of the new instruction, if known",
    "status": "accepted, or the reason for rejection",
    "trainable": "accepted, unless the run's accept.judge is an LLM judge that failed validation",
    "verdicts": "of each judge on each passage under each condition; margin is log p(yes) - log p(no), null if"
    " the judge could not decide; expected is null if the example has no label",
    "drafts": "the writer's answers and their statuses; surplus is the smallest deciding margin, negative if a verdict"
    " is wrong",
    "rewordings": "paraphrases of the row's instructions; use only accepted ones",
    "prompt_tokens": "prompt tokens of all language model requests for this row",
    "completion_tokens": "completion tokens of all language model requests for this row",
    "lineage": "writer, prompts, judges, code and attempt that made the row",
}


def put_card(run: GenerateRun) -> tuple[str, bool]:
    """Write the card of a finished run, create-only. Returns its key, and False if it already exists.

    An extended run gets another card, like another list of near-duplicates. Raises InputError if the run is not
    finished, because its figures would not match the data.
    """
    stats = run_stats(run)
    if not stats.finished:
        raise InputError(f"{run.store.url}: the run is {figures.state(stats)}; a card needs a finished run")
    key = numbered("README", len(run.plan.extensions), "md")
    return key, run.store.put_new(key, card(run, stats).encode(), uuid4().hex)


def card(run: GenerateRun, stats: Stats) -> str:
    """Render the card as Markdown. DATA stands for the data's location, because the data may be moved."""
    plan = run.plan
    repeated = run.near_duplicates_key if plan.settings.get("near_duplicates") is not None else None
    front_matter = yaml.safe_dump(_front_matter(stats, repeated), sort_keys=False)
    return "\n".join(
        [
            "---",
            front_matter.strip(),
            "---",
            "",
            *_what_it_is(stats),
            *_growth(plan),
            *_outcomes(stats),
            *_how_it_was_made(plan, stats),
            "## Columns",
            "",
            *_table([["column", "type", "content"], *_columns()]),
            "## Usage",
            "",
            "Replace DATA with the folder of this card. Each snippet gives the rows to train on.",
            "",
            *_snippets(repeated),
            "## Licence",
            "",
            "Queries and passages come from the source named above and keep its licence. Instructions may be subject",
            "to the terms of the model that wrote them.",
            "",
        ]
    )


def _what_it_is(stats: Stats) -> list[str]:
    return [
        "# Dual views for instruction-following retrieval",
        "",
        "Each row is a source example (a query with an original instruction, a passage that is relevant to them, and",
        "passages that are on topic but break the instruction) with a complementary instruction. Under the",
        "complementary instruction, one of these passages, the target, is relevant, and all others are not. Rejected",
        f"rows are kept with the reason. {stats.num_rows:,} rows, {stats.num_trainable:,} of them to train on.",
        "",
    ]


def _outcomes(stats: Stats) -> list[str]:
    margins = "Verdicts and their surplus: the margin towards the expected label (quantiles)"
    return [
        "## Outcomes",
        "",
        *_table(figures.funnel(stats)),
        *_section("Drafts and rewordings", figures.parts(stats)),
        *_section(margins, figures.margins(stats)),
        *_section("Judge validation on pairs with known labels", figures.validation(stats)),
        *_section("Lengths in words, of accepted rows (quantiles)", figures.lengths(stats)),
        f"Tokens: {stats.prompt_tokens:,} prompt, {stats.completion_tokens:,} completion.",
        "",
    ]


def _how_it_was_made(plan: Plan, stats: Stats) -> list[str]:
    settings = yaml.safe_dump(dict(plan.settings), sort_keys=False, allow_unicode=True)
    return [
        "## How it was made",
        "",
        "By [dual-view training by polarity reversal](https://arxiv.org/abs/2604.18845), with dualview.",
        "",
        *_origins(stats),
        *_section("Code versions", figures.codes(stats)),
        "Inputs and their checksums:",
        "",
        *_table([["input", "rows", "checksum"], *_inputs(plan)]),
        "All settings that determine the rows:",
        "",
        "```yaml",
        settings.strip(),
        "```",
        "",
    ]


def _front_matter(stats: Stats, repeated: str | None) -> dict[str, Any]:
    configs = [{"config_name": "rows", "default": True, "data_files": "data/*.parquet"}]
    if repeated:
        configs.append({"config_name": "near_duplicates", "data_files": repeated})
    return {
        "license": "unknown",  # a value that the hub defines
        "task_categories": ["text-retrieval"],
        "tags": ["dual-view", "instruction-following-retrieval"],
        "size_categories": [_size(stats.num_rows)],
        "configs": configs,
    }


def _size(num_rows: int) -> str:
    """The size category as the hub names it."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    if num_rows < 1000:
        return "n<1K"
    place = len(str(num_rows)) - 4
    return f"{steps[place]}<n<{steps[place + 1]}" if place + 1 < len(steps) else "n>1T"


def _growth(plan: Plan) -> list[str]:
    if not plan.extensions:
        return []
    times = len(plan.extensions)
    return [
        f"Inputs were added {'once' if times == 1 else f'{times} times'} since the run began. This card counts all"
        " rows;",
        "earlier cards (README.md) count only the rows of their time. To publish the data, rename this card to",
        "README.md.",
        "",
    ]


def _section(title: str, rows: Rows) -> list[str]:
    return [f"### {title}", "", *_table(rows)] if len(rows) > 1 else []


def _table(rows: Rows) -> list[str]:
    head, *body = rows
    lines = [[_cell(text) for text in row] for row in (head, ["---"] * len(head), *body)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _origins(stats: Stats) -> list[str]:
    names = [name for name, _ in next(iter(stats.origins), ())]
    return _table(
        [
            [*(name.replace("_", " ") for name in names), "rows"],
            *(
                [*(str(value) or "-" for _, value in origin), f"{count:,}"]
                for origin, count in stats.origins.most_common()
            ),
        ]
    )


def _inputs(plan: Plan) -> Rows:
    return [[source.name, f"{source.num_rows:,}", source.checksum] for source in plan.all_inputs]


def _columns() -> Rows:
    return [[column.name, _type(column.type), COLUMNS[column.name]] for column in DUAL_VIEW_SCHEMA]


def _type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return f"struct of {', '.join(field.name for field in kind)}"
    return f"list of {_type(kind.value_type)}" if pa.types.is_list(kind) else str(kind)


def _snippets(repeated: str | None) -> list[str]:
    """`repeated`: the file that lists near-duplicates, if the run searched for them."""
    lines = []
    for language, code in (SNIPPETS_COMPARED if repeated else SNIPPETS).items():
        if repeated:
            code = code.replace("near_duplicates.parquet", repeated)
        lines += [f"{language}:", "", "```python", code.strip(), "```", ""]
    if repeated:
        lines += [
            f"`{repeated}` lists the rows (seed_id, target_id) that repeat an earlier row (of_seed_id, of_target_id):",
            "the same query and nearly the same new instruction. The earlier row is kept.",
            "",
        ]
    return lines


SNIPPETS: Mapping[str, str] = {
    "pandas": """
import pandas as pd

rows = pd.read_parquet("DATA/data")
rows = rows[rows["trainable"]]
""",
    "DuckDB": """
import duckdb

rows = duckdb.sql("SELECT * FROM 'DATA/data/*.parquet' WHERE trainable")
""",
    "Hugging Face datasets": """
from datasets import load_dataset

rows = load_dataset("DATA", "rows", split="train").filter(lambda row: row["trainable"])
""",
    "Ray Data": """
import ray

rows = ray.data.read_parquet("DATA/data").filter(lambda row: row["trainable"])
""",
}

SNIPPETS_COMPARED: Mapping[str, str] = {
    "pandas": """
import pandas as pd

rows = pd.read_parquet("DATA/data")
repeated = pd.read_parquet("DATA/near_duplicates.parquet")
left_out = pd.MultiIndex.from_frame(repeated[["seed_id", "target_id"]])
rows = rows[rows["trainable"] & ~pd.MultiIndex.from_frame(rows[["id", "target_id"]]).isin(left_out)]
""",
    "DuckDB": """
import duckdb

rows = duckdb.sql(\"\"\"
    SELECT * FROM 'DATA/data/*.parquet' AS made
    ANTI JOIN 'DATA/near_duplicates.parquet' AS repeated
    ON made.id = repeated.seed_id AND made.target_id = repeated.target_id
    WHERE trainable
\"\"\")
""",
    "Hugging Face datasets": """
from datasets import load_dataset

repeated = load_dataset("DATA", "near_duplicates", split="train")
left_out = set(zip(repeated["seed_id"], repeated["target_id"]))
rows = load_dataset("DATA", "rows", split="train").filter(
    lambda row: row["trainable"] and (row["id"], row["target_id"]) not in left_out
)
""",
    "Ray Data": """
import ray

repeated = ray.data.read_parquet("DATA/near_duplicates.parquet").take_all()
left_out = {(row["seed_id"], row["target_id"]) for row in repeated}
rows = ray.data.read_parquet("DATA/data").filter(
    lambda row: row["trainable"] and (row["id"], row["target_id"]) not in left_out
)
""",
}
