"""Extracts the instruction from a writer's answer, or the reason why there is none."""

import re

from dualview.engines import Completion

_TAG = re.compile(r"</?instruction\b", re.IGNORECASE)
_BLOCK = re.compile(r"<instruction>([^<>]*)</instruction>")


def parse(completion: Completion) -> tuple[str, None] | tuple[None, str]:
    """Return (instruction, None), or (None, one of records.REASONS).

    A valid answer contains exactly one <instruction>...</instruction> block, with words and without tags inside.
    Nothing is repaired. An answer that ends at the token limit is truncated even if it contains a block, because
    another block might have followed.
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
