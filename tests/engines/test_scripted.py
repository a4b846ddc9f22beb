import asyncio
from dataclasses import replace

from dualview.config.engines import ScriptedEngine
from dualview.engines import Request, Turn, open_engine
from dualview.engines.scripted import seeded_answers
from dualview.synthesis.judging import yes_no_margin
from dualview.synthesis.parsing import parse


def turns(text):
    return (Turn("user", text),)


WRITE = Request(turns("Write one."), max_tokens=64, temperature=1.0, top_p=1.0, seed=3, num_logprobs=0)
JUDGE = replace(WRITE, prompt=turns("Relevant?"), num_logprobs=20)


def test_the_same_request_gets_the_same_answer_from_every_engine_with_the_seed():
    engines = [open_engine(ScriptedEngine(kind="scripted", seed=5)) for _ in range(2)]
    first, second = (asyncio.run(engine.complete(WRITE)) for engine in engines)
    assert first == second
    assert engines[0].name == "scripted@5"


def test_answers_vary_with_engine_seed_prompt_and_sampling_seed():
    def answers(engine_seed, request):
        return {
            seeded_answers(engine_seed)(replace(request, prompt=turns(f"Write {i}."))).text for i in range(50)
        }

    assert len(answers(1, WRITE)) > 5
    assert [seeded_answers(s)(JUDGE).first_token_logprobs["yes"] for s in (1, 2)] != [
        seeded_answers(1)(replace(JUDGE, seed=s)).first_token_logprobs["yes"] for s in (3, 4)
    ]


def test_its_writing_parses_and_its_judging_goes_both_ways():
    answer = seeded_answers(1)
    assert parse(answer(WRITE))[1] is None
    margins = [
        yes_no_margin(answer(replace(JUDGE, prompt=turns(str(i)))).first_token_logprobs) for i in range(50)
    ]
    assert {margin > 0 for margin in margins} == {True, False}
