"""A preview of a generate run, which writes nothing and starts no engine."""

from collections.abc import Callable

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from dualview.config.engines import VllmEngine
from dualview.config.generate import GenerateConfig
from dualview.costs import Spent
from dualview.engines.chat import chat_of
from dualview.pipelines.generate.run import check
from dualview.runs.plan import Plan
from dualview.sources import open_source
from dualview.synthesis.preview import Conversation, estimate, fill_prompts

SAMPLE = 20  # examples
TOKENS_PER_WORD = 1.4  # if there is no tokenizer; for English, chat template included


def dry_run(config: GenerateConfig) -> None:
    """Prints the plan, one filled prompt of each kind, and estimates of tokens and cost."""
    check(config)
    source = open_source(config.source)
    inputs = source.inputs()
    plan = Plan({}, tuple(inputs), config.rows_per_shard)
    first = next(source_input for source_input in inputs if source_input.num_rows)
    sample = source.read(first, 0, min(SAMPLE, first.num_rows))
    console = Console()

    for use, prompt in fill_prompts(config, sample[0]).items():
        for turn in prompt:
            console.print(Panel(turn.text, title=f"{use}: {turn.role}", title_align="left"), markup=False)

    num_examples = sum(source_input.num_rows for source_input in inputs)
    count_tokens, how = _counter(config)
    figures = estimate(config, sample, num_examples, count_tokens)
    table = Table("", "", title=f"dry run of {config.output}", show_header=False)
    for source_input in inputs[:10]:
        table.add_row("input", f"{source_input.name}: {source_input.num_rows:,} examples")
    if len(inputs) > 10:
        table.add_row("input", f"{len(inputs) - 10} more")
    table.add_row("plan", f"{num_examples:,} examples in {len(plan.shards):,} shards")
    table.add_row("requests", f"{figures.requests:,} at most")
    table.add_row("tokens read", f"{figures.prompt_tokens:,} at most ({how})")
    table.add_row("tokens written", f"{figures.completion_tokens:,} at most")
    if config.price:
        tokens = Spent(figures.prompt_tokens, figures.completion_tokens)
        table.add_row("cost of the tokens", f"{tokens.dollars(config.price):,.2f} dollars at most")
    console.print(table)


def _counter(config: GenerateConfig) -> tuple[Callable[[Conversation], int], str]:
    """A function that counts a prompt's tokens, and how it counts, in words."""
    if isinstance(config.engine, VllmEngine):
        chat = chat_of(config.engine)

        def count(prompt: Conversation) -> int:
            return len(chat.token_ids(prompt))

        return count, "by the model's tokenizer"
    return (
        lambda prompt: round(TOKENS_PER_WORD * sum(len(turn.text.split()) for turn in prompt)),
        f"{TOKENS_PER_WORD} a word",
    )
