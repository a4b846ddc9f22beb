"""A group: the passages of one source example, and the views that label them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import hashlib

from dualview.config.base import canonical_json
from dualview.config.train import Part
from dualview.errors import InputError
from dualview.records import ACCEPTED, Condition, DualView, Passage, Requirement, SourceExample

POSITIVE, NEGATIVE, LEFT_OUT = 1, -1, 0


@dataclass(frozen=True, slots=True)
class Label:
    """A view's label of a passage; `margin` is the judge's, None if it gave none."""

    passage_id: str
    label: int  # POSITIVE or NEGATIVE; passages without a label are left out
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A query under one instruction, and how it labels the group's passages."""

    query: str
    wordings: tuple[str, ...]  # of the instruction, the original first; "": the query alone
    labels: tuple[Label, ...]
    requirements: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Any number of views over shared passages. A dual view has at least two of each."""

    id: str
    query_id: str  # unique over data sets; groups of one query may word it differently
    passages: tuple[Passage, ...]
    num_hard_negatives: int  # at the end of `passages`; a batch shows a sample of these, and all the others
    views: tuple[View, ...]


def key_of(text: str) -> int:
    """64 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def passage_key(passage: Passage) -> int:
    """A key of the passage's content. Ids will not do: they are unique only within a data set or an example."""
    return key_of(canonical_json([passage.full_text, dict(passage.attributes)]))


def groups_of(rows: Sequence[DualView], part: Part) -> Iterator[Group]:
    """The group of one source example's finished rows, with the views that `part` selects.

    "apart" yields a group for each view. A hard negative with the content of another passage is dropped,
    because a passage can have only one label per view. Raises InputError if a passage has no text, two
    passages share an id, or a positive or instruction negative has the content of another passage.
    """
    example = rows[0].example
    always = (example.positive, *example.instruction_negatives)
    passages = (*always, *example.hard_negatives)
    if len({passage.id for passage in passages}) < len(passages):
        raise InputError(f"{part.data}: example {example.id}: two passages have the same id")
    if blank := [passage.id for passage in passages if not passage.full_text]:
        raise InputError(f"{part.data}: example {example.id}: passage {blank[0]} has no text")
    distinct: dict[int, Passage] = {}
    for passage in passages:
        distinct.setdefault(passage_key(passage), passage)
    if lost := [passage.id for passage in always if distinct[passage_key(passage)] is not passage]:
        raise InputError(
            f"{part.data}: example {example.id}: passage {lost[0]} has the text of another passage with a different"
            " label"
        )
    example = replace(example, hard_negatives=tuple(distinct.values())[len(always) :])
    query_id = f"{part.data} {example.query_id}"
    passages = tuple(distinct.values())
    group = Group(example.id, query_id, passages, len(example.hard_negatives), _views(example, rows, part))
    match part.views:
        case "both" | "original" | "plain":
            yield group
        case "one":
            drawn = int(hashlib.sha256(example.id.encode()).hexdigest(), 16) % len(group.views)
            yield replace(group, views=(group.views[drawn],))
        case "apart":
            for view in group.views:
                yield replace(group, views=(view,))


def _views(example: SourceExample, rows: Sequence[DualView], part: Part) -> tuple[View, ...]:
    """The original view, then the complementary view of each row, as `part` selects them.

    In the original view the example's negatives stay negative, unless a judge finds a hard negative clearly
    relevant. In a complementary view only the judge labels hard negatives. For the query alone, instruction
    negatives are left out because they are on topic.
    """
    negatives = {passage.id: NEGATIVE for passage in example.instruction_negatives}
    hard = {passage.id: NEGATIVE for passage in example.hard_negatives}
    if part.views == "plain":
        return (View(example.query, ("",), _labels({example.positive.id: POSITIVE, **hard}, {}), ()),)
    by_example = {example.positive.id: POSITIVE, **negatives}
    judged = _judged(rows[0], "original", part)
    wordings = _wordings(rows[0], "original", example.instruction, part)
    views = [
        View(
            example.query,
            wordings,
            _labels({**hard, **_clear(judged, part, hard), **by_example}, judged),
            example.requirements,
        )
    ]
    if part.views != "original":
        for row in rows:
            swapped = {example.positive.id: NEGATIVE, **negatives, row.target_id: POSITIVE}
            judged = _judged(row, "new", part)
            wordings = _wordings(row, "new", row.new_instruction, part)
            labels = _labels({**_clear(judged, part, hard), **swapped}, judged)
            views.append(View(example.query, wordings, labels, row.new_requirements))
    return tuple(views)


def _wordings(row: DualView, condition: Condition, instruction: str, part: Part) -> tuple[str, ...]:
    if not part.rewordings:
        return (instruction,)
    reworded = (
        rewording.instruction
        for rewording in row.rewordings
        if rewording.condition == condition and rewording.status == ACCEPTED
    )
    return tuple(dict.fromkeys([instruction, *reworded]))


def _judged(row: DualView, condition: Condition, part: Part) -> dict[str, float]:
    """Passage id -> margin of the first judge that gave one; {} if `part` does not use judges."""
    margins: dict[str, float] = {}
    if part.min_judged_margin is not None:
        for verdict in row.verdicts:
            if verdict.condition == condition and verdict.margin is not None:
                margins.setdefault(verdict.passage_id, verdict.margin)
    return margins


def _clear(margins: dict[str, float], part: Part, passages: dict[str, int]) -> dict[str, int]:
    """Labels of those of these passages whose margins are large enough."""
    least = part.min_judged_margin or 0.0
    return {
        id: POSITIVE if margin > 0 else NEGATIVE
        for id, margin in margins.items()
        if id in passages and margin != 0 and abs(margin) >= least
    }


def _labels(labels: dict[str, int], margins: dict[str, float]) -> tuple[Label, ...]:
    return tuple(Label(id, label, margins.get(id)) for id, label in labels.items())
