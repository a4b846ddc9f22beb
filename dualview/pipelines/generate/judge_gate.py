"""Validates the LLM judges of a generate run on gold pairs; judges that fail do not count.

The driver draws the pairs, the first actor asks the judges, and all actors read the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
import random

from dualview.config.generate import GenerateConfig, LlmJudge
from dualview.engines import Engine, EngineDied
from dualview.errors import Interruption
from dualview.records import SourceExample
from dualview.runs.plan import Input
from dualview.sources import Source, open_source
from dualview.synthesis.judge_validation import GoldPair, draw_gold_pairs, validate_judge
from dualview.synthesis.judging import judge_name

GoldPairs = dict[str, list[GoldPair]]  # judge -> its gold pairs
Results = Mapping[str, Mapping[str, float]]  # judge -> ValidationResult as JSON


def _llm_judges(config: GenerateConfig) -> list[LlmJudge]:
    return [judge for judge in config.judges if isinstance(judge, LlmJudge)]


def first_examples(source: Source, inputs: Sequence[Input], num: int) -> list[SourceExample]:
    """The first `num` examples of the source, or all if it has fewer."""
    examples: list[SourceExample] = []
    for source_input in inputs:
        if len(examples) < num:
            examples += source.read(source_input, 0, min(source_input.num_rows, num - len(examples)))
    return examples


def gold_pairs_of(config: GenerateConfig, inputs: Sequence[Input] | None = None) -> GoldPairs:
    """Gold pairs for each LLM judge, from the labels of the first examples of its gold source.

    `inputs`: those of the config's own source, if they are known already; otherwise they are listed.
    """
    pairs: GoldPairs = {}
    for judge in _llm_judges(config):
        source = open_source(judge.validation.gold or config.source)
        known = None if judge.validation.gold else inputs
        examples = first_examples(
            source, source.inputs() if known is None else known, 10 * judge.validation.num_pairs
        )
        pairs[judge_name(judge)] = draw_gold_pairs(
            examples, judge.validation.num_pairs, random.Random(judge.validation.seed)
        )
    return pairs


async def validate_judges(engine: Engine, config: GenerateConfig, pairs: GoldPairs) -> Results:
    """Each LLM judge's result. Raises Interruption if the engine dies.

    There is no row to blame and leave out, so new actors would keep dying forever.
    """
    try:
        return {
            judge_name(judge): asdict(await validate_judge(engine, judge, pairs[judge_name(judge)]))
            for judge in _llm_judges(config)
        }
    except EngineDied as error:
        raise Interruption(
            f"{config.output}: the engine died during the validation of the judge; read its log and fix it"
        ) from error


def judges_passed(config: GenerateConfig, results: Results) -> bool:
    """Whether every LLM judge reached its min_auc; a judge without a result fails."""
    return all(
        judge_name(judge) in results and results[judge_name(judge)]["auc"] >= judge.validation.min_auc
        for judge in _llm_judges(config)
    )


def validation_sentences(config: GenerateConfig, results: Results) -> list[str]:
    """One sentence per judge: its result, and what that means for the rows."""
    sentences = []
    for judge in _llm_judges(config):
        if judge_name(judge) in results:
            result = results[judge_name(judge)]
            if result["auc"] >= judge.validation.min_auc:
                effect = "its verdicts count"
            elif config.accept is not None and config.accept.judge == "llm":
                effect = "its rows are kept, but none is marked for training"
            else:
                effect = "its verdicts are kept, but do not count"
            sentences.append(
                f"judge {judge_name(judge)}: AUC {result['auc']:.2f} on {result['num_pairs']:.0f} gold pairs,"
                f" the config requires {judge.validation.min_auc}; {effect}"
            )
    return sentences
