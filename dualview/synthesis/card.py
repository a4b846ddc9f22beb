"""The data set card of a finished run, in Hugging Face's form: what its plan, its exam and its rows say of it."""

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
    "id": "of the example",
    "query_id": "of the information need; its phrasings share it",
    "query": "the query, without an instruction",
    "instruction": "the original instruction",
    "positive": "relevant under query and original instruction",
    "instruction_negatives": "on topic, but break the original instruction",
    "hard_negatives": "mined passages that nobody calls relevant",
    "requirements": "what the original instruction demands of attributes, where it is known",
    "target_id": "the instruction negative that is the positive under query and new instruction",
    "new_instruction": "the complementary instruction; empty where none was written",
    "new_requirements": "what it demands of attributes, where it is known",
    "status": "accepted, or why not",
    "trainable": "accepted, and by a judge whose verdicts count or by none (accept.judge of the run)",
    "verdicts": "of each judge on each passage under each condition; margin is log p(yes) - log p(no), null where"
    " the judge could not tell; expected is null where the example does not say",
    "drafts": "what the writer answered, and what became of each; surplus is the smallest deciding margin on the"
    " expected side",
    "rewordings": "other wordings of the row's instructions; only accepted ones are to be used",
    "prompt_tokens": "read by language models for this row",
    "completion_tokens": "written by language models for this row",
    "lineage": "writer, prompts, judges, code and attempt that made the row",
}


def put_card(run: GenerateRun) -> tuple[str, bool]:
    """Puts the card of a finished run, create-only. Returns its key, and False if it exists already.

    A run that has grown gets a further card, as it gets a further list of near-duplicates.
    Raises InputError where the run is not finished: its figures would not be those of the data.
    """
    stats = run_stats(run)
    if not stats.finished:
        raise InputError(f"{run.store.url}: the run is {figures.state(stats)}; a card needs a finished run")
    key = numbered("README", len(run.plan.extensions), "md")
    return key, run.store.put_new(key, card(run, stats).encode(), uuid4().hex)


def card(run: GenerateRun, stats: Stats) -> str:
    """Markdown. Places are written DATA: the card is read wherever the data goes."""
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
            *_what_became_of_the_rows(stats),
            *_how_it_was_made(plan, stats),
            "## Columns",
            "",
            *_table([["column", "type", "what it holds"], *_columns()]),
            "## Reading it",
            "",
            "With DATA the place of this card. MapFunction of these gives the rows to train on.",
            "",
            *_snippets(repeated),
            "## Licence",
            "",
            "Queries and passages come from the source named above, and its licence holds for them. Instructions",
            "may fall under the terms of the model that wrote them.",
            "",
        ]
    )


def _what_it_is(stats: Stats) -> list[str]:
    return [
        "# Dual views for instruction-following retrieval",
        "",
        "MapFunction row is an example (a query with an original instruction, a passage that is relevant to them, and",
        "passages that are on topic but break the instruction) with a complementary instruction, under which",
        "one of the latter, the target, is the relevant passage and the others are not. Rows that were not",
        f"accepted are kept with the reason. {stats.num_rows:,} rows, {stats.num_trainable:,} of them to train on.",
        "",
    ]


def _what_became_of_the_rows(stats: Stats) -> list[str]:
    margins = "Verdicts, and by how much they are right (quantiles of the surplus)"
    return [
        "## What became of the rows",
        "",
        *_table(figures.funnel(stats)),
        *_section("Drafts and rewordings", figures.parts(stats)),
        *_section(margins, figures.margins(stats)),
        *_section("The judges' exam on pairs with known labels", figures.validation(stats)),
        *_section("Lengths in words, of accepted rows (quantiles)", figures.lengths(stats)),
        f"Tokens: {stats.prompt_tokens:,} read, {stats.completion_tokens:,} written.",
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
        *_section("Code that worked on it", figures.codes(stats)),
        "Inputs, with the checksum of what was read:",
        "",
        *_table([["input", "rows", "checksum"], *_inputs(plan)]),
        "All settings that decide the rows:",
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
        "license": "unknown",  # one of the hub's own values
        "task_categories": ["text-retrieval"],
        "tags": ["dual-view", "instruction-following-retrieval"],
        "size_categories": [_size(stats.num_rows)],
        "configs": configs,
    }


def _size(num_rows: int) -> str:
    """The hub's word for it."""
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
        " rows; a card of before",
        "(README.md) does not count what came later. To publish the data, give this one the name README.md.",
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
    """`repeated`: the file that lists near-duplicates, where they were looked for."""
    lines = []
    for language, code in (SNIPPETS_COMPARED if repeated else SNIPPETS).items():
        if repeated:
            code = code.replace("near_duplicates.parquet", repeated)
        lines += [f"{language}:", "", "```python", code.strip(), "```", ""]
    if repeated:
        lines += [
            f"`{repeated}` lists the rows (seed_id, target_id) that repeat an earlier one, which stays",
            "(of_seed_id, of_target_id): the same query, and nearly the same new instruction.",
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
