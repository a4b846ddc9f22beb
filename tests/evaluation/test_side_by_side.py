import io

from rich.console import Console

from dualview.evaluation.side_by_side import Found, Hit, print_found
from dualview.records import Passage


def shown(found):
    console = Console(file=io.StringIO(), width=78)
    print_found(found, console)
    return console.file.getvalue()


def hit(title, obeys):
    return Hit(Passage(title, "exports [bold]oil[/bold] " * 20, title=title), obeys)


def test_places_stand_side_by_side_with_a_mark_for_what_obeys():
    found = Found(
        "main exports", "Only [1] islands.", {"before": [hit("Chad", False)], "after": [hit("Fiji", True)]}
    )
    lines = shown([found]).splitlines()
    assert "main exports. Only [1] islands." in lines[0]
    [heads] = [line for line in lines if "before" in line]
    assert "before (0 of 1 obey)" in heads
    assert "after (1 of 1 obey)" in heads
    [row] = [line for line in lines if "Chad" in line]
    assert "✗ Chad exports [bold]oil" in row
    assert "✓ Fiji" in row
    assert max(map(len, lines)) <= 78


def test_what_nobody_has_judged_has_no_mark():
    text = shown([Found("mine", "", {"one": [hit("Chad", None)]})])
    assert "✗" not in text
    assert "obey" not in text
    assert "relevant under" not in text
