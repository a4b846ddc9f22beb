from html.parser import HTMLParser
import re
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from dualview.evaluation.page import page
from dualview.evaluation.report import summary
from dualview.evaluation.scores import QueryScore, scores_to_table
from dualview.evaluation.side_by_side import Found, Hit
from dualview.records import ACCEPTED, DualView, Lineage, Passage, SourceExample, Verdict

NASTY = "<script>alert('x & y')</script> $\\frac{1}$ {0}"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that closes another one than the last opened."""

    OPTIONAL_END = ("th", "td")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag in self.OPTIONAL_END and self.open[-1] == tag:
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1] in self.OPTIONAL_END and tag == "tr":
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _row(status):
    positive = Passage("p1", text=f"{NASTY} positive", title="Gambia")
    target = Passage("n1", text="far from the sea", title="Mongolia")
    return DualView(
        example=SourceExample("s", "q", f"dry season {NASTY}", f"Only Africa {NASTY}", positive, (target,)),
        target_id="n1",
        new_instruction=f"Landlocked only {NASTY}",
        new_requirements=(),
        status=status,
        trainable=False,
        verdicts=(
            Verdict("judge", "new", "n1", expected=True, margin=1.5),
            Verdict("judge", "new", "p1", expected=False, margin=0.7),
            Verdict("judge", "new", "other", expected=False, margin=None),
        ),
        drafts=(),
        rewordings=(),
        prompt_tokens=1,
        completion_tokens=1,
        lineage=Lineage("facets", "p", "{}", ("judge",), "m", "1", "", "r", 0, "a"),
    )


@pytest.fixture(scope="module")
def results():
    tables = [
        scores_to_table(
            arm,
            [
                QueryScore(
                    benchmark,
                    f"q{number}",
                    f"q{number}",
                    metric,
                    number / 10 + shift,
                    {"polarity": "exclusion"},
                )
                for number in range(5)
                for benchmark, metric in (("facts", "p-MRR"), ("facts", "nDCG@10"), (NASTY, "nDCG@10"))
            ],
        )
        for arm, shift in ((f"dual {NASTY}", 0.1), ("single", 0.0))
    ]
    return summary(pa.concat_tables(tables), [(f"dual {NASTY}", "single")], samples=50, seed=0)


FOUND = [
    Found(
        f"main exports {NASTY}",
        "Only islands.",
        {
            f"before {NASTY}": [Hit(Passage("1", "landlocked", title="Chad"), False)],
            "after": [Hit(Passage("2", f"an island {NASTY}", title="Fiji"), True)],
        },
    )
]


def _whole_page(results):
    return page(
        title=f"report {NASTY}",
        summary=results,
        found=FOUND,
        notes=["The judge <failed> its exam."],
        funnels={"facets": {ACCEPTED: 80, "not_flipped": 15, "poison": 5, "declined": 0}},
        losses={"single": [(1, 3.0), (2, 2.0)], f"dual {NASTY}": [(1, 2.5), (2, 1.5)]},
        accepted=[_row(ACCEPTED)],
        rejected=[_row("not_flipped")],
    )


def test_the_page_parses_and_nothing_in_it_is_fetched_or_run(results):
    html = _whole_page(results)
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "link", "img", "iframe"}
    fetched = [
        value
        for _, attrs in parser.seen
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert all(value.startswith("#") for value in fetched)
    assert re.findall(r"url\((?!#)", html) == []


def test_texts_stand_there_as_written(results):
    parser = Balanced()
    parser.feed(_whole_page(results))
    text = "".join(parser.text)
    for shown in ("report", "dry season", "Only Africa", "Landlocked only", "main exports", "an island"):
        assert f"{shown} {NASTY}" in text
    assert "Mongolia far from the sea" in text
    assert "judge on N*: right (+1.5); judge on positive: wrong (+0.7); judge on other: undecided" in text


def test_the_search_stands_before_the_figures(results):
    html = _whole_page(results)
    assert html.index("✓ Fiji") < html.index("<svg")
    assert "after (1 of 1 obey)" in html


def test_pictures_are_sound_and_say_what_was_measured(results):
    figures = re.findall(r'aria-label="([^"]*)">(<svg.*?</svg>)', _whole_page(results), re.DOTALL)
    texts = {label: " ".join(ElementTree.fromstring(svg).itertext()) for label, svg in figures}
    assert len(texts) == len(figures) == 5  # two benchmarks, differences, funnel, losses
    scores = texts["Scores on facts"]
    assert all(metric in scores for metric in ("p-MRR exclusion", "nDCG@10", "30.0", "20.0", f"dual {NASTY}"))
    assert "+10.0" in next(text for label, text in texts.items() if label.startswith("Paired"))
    assert "80  (80.0%)" in texts["Requests of facets by status"]
    assert "not flipped" in texts["Requests of facets by status"]
    assert "declined" not in texts["Requests of facets by status"]


def test_one_topic_has_a_mean_and_no_bounds():
    tables = [
        scores_to_table(arm, [QueryScore("facts", "t", id, "p-MRR", value, {}) for id in "ab"])
        for arm, value in (("dual", 0.3), ("single", 0.1))
    ]
    html = _whole_page(summary(pa.concat_tables(tables), [("dual", "single")], samples=50, seed=0))
    assert "30.0 [-inf, inf]" in html
    figures = dict(re.findall(r'aria-label="([^"]*)">(<svg.*?</svg>)', html, re.DOTALL))
    assert "30.0" in " ".join(ElementTree.fromstring(figures["Scores on facts"]).itertext())
    assert "+20.0" in " ".join(
        ElementTree.fromstring(figures["Paired differences, dual minus single"]).itertext()
    )
    assert "nan" not in html
    assert "inf" not in re.sub(r"\[-inf, inf\]|\[-inf, \+inf\]", "", "".join(figures.values()))


def test_the_same_material_gives_the_same_page(results):
    assert _whole_page(results) == _whole_page(results)


def test_parts_without_material_are_left_out(results):
    html = page(
        "report",
        {**results, "differences": []},
        found=[],
        funnels={},
        notes=[],
        losses={},
        accepted=[],
        rejected=[],
    )
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == ["Scores"]
