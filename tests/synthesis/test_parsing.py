import pytest

from dualview.engines import Completion
from dualview.synthesis.parsing import parse


def completion(text, finish_reason="stop"):
    return Completion(text, finish_reason, 10, 10, {})


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        pytest.param("Only recent reports.", "stop", "unparseable", id="no block"),
        pytest.param("", "stop", "unparseable", id="nothing"),
        pytest.param("<instruction>Only recent reports.", "stop", "unparseable", id="never closed"),
        pytest.param("Only recent reports.</instruction>", "stop", "unparseable", id="never opened"),
        pytest.param("</instruction>Only A.<instruction>", "stop", "unparseable", id="wrong way round"),
        pytest.param(
            "<instruction>A.</instruction> or <instruction>B.</instruction>", "stop", "unparseable", id="two"
        ),
        pytest.param(
            "<instruction><instruction>A.</instruction></instruction>", "stop", "unparseable", id="nested"
        ),
        pytest.param(
            "<instruction>Only <b>recent</b>.</instruction>", "stop", "unparseable", id="tag inside"
        ),
        pytest.param("<instruction> \n </instruction>", "stop", "unparseable", id="empty"),
        pytest.param("<instruction>...</instruction>", "stop", "unparseable", id="no words"),
        pytest.param("<answer>Only recent reports.</answer>", "stop", "unparseable", id="another tag"),
        pytest.param('<instruction lang="en">A.</instruction>', "stop", "unparseable", id="with attribute"),
        pytest.param("<INSTRUCTION>A.</INSTRUCTION>", "stop", "unparseable", id="upper case"),
        pytest.param(
            "<instruction>A.</instruction> <instruction>B", "stop", "unparseable", id="second begun"
        ),
        pytest.param("No way.\n<instruction>None</instruction>", "stop", "declined", id="declined"),
        pytest.param("<instruction> none. </instruction>", "stop", "declined", id="declined, other spelling"),
        pytest.param("Let me think about", "length", "truncated", id="cut off"),
        pytest.param(
            "<instruction>A.</instruction> Now", "length", "truncated", id="cut off after the block"
        ),
        pytest.param("prompt too long", "error", "engine_error", id="engine error"),
        pytest.param("<instruction>A.</instruction>", "error", "engine_error", id="error wins"),
    ],
)
def test_malformed_answers_have_a_reason_and_no_instruction(text, finish_reason, reason):
    assert parse(completion(text, finish_reason)) == (None, reason)


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("<instruction>Only recent reports.</instruction>", "Only recent reports."),
        (
            "1. Profile: a < b.\n<instruction>\n  Only recent\n  reports.\n</instruction>\n",
            "Only recent reports.",
        ),
        ("<instruction>None of the reports may be older.</instruction>", "None of the reports may be older."),
    ],
)
def test_one_block_is_taken_with_its_white_space_folded(text, instruction):
    assert parse(completion(text)) == (instruction, None)
