"""From a writer's answer to an instruction, or to the reason why there is none."""

import re

from dualview.engines import Completion

_TAG = re.compile(r"</?instruction\b", re.IGNORECASE)
_BLOCK = re.compile(r"<instruction>([^<>]*)</instruction>")


def parse(completion: Completion) -> tuple[str, None] | tuple[None, str]:
    """(instruction, None), or (None, one of records.REASONS).

    An answer is taken only if it holds exactly one block <instruction>...</instruction> with words
    and no further tags inside; nothing is repaired. An answer that ends at the token limit is
    truncated even if it holds a block: another might have followed.
    """
    if completion.finish_reason == "error":
        return None, "engine_error"
    if completion.finish_reason == "length":
        return None, "truncated"
    block = _BLOCK.search(completion.text)
    if block is None or len(_TAG.findall(completion.text)) != 2:
        return None, "unparseable"
    instruction = " ".join(block[1].split())
    if not re.search(r"\w", instruction):
        return None, "unparseable"
    if instruction.rstrip(".").casefold() == "none":
        return None, "declined"
    return instruction, None
