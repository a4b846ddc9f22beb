"""What is wrong with a dashboard or an alert's expression: nothing may be asked that nobody puts out."""

from functools import cache
import importlib.util
import json
from pathlib import Path
import re

from manifests import ROOT, Object, Problems
import promql_parser


@cache
def _metrics() -> frozenset[str]:
    """What our code and Ray's put out, under the names that Prometheus sees."""
    ours: set[str] = set()
    for path in (ROOT / "dualview").rglob("*.py"):
        for kind, name in re.findall(r'(Counter|Gauge)\(\s*"(dualview_\w+)"', path.read_text()):
            ours.add(f"ray_{name}" + ("_total" if kind == "Counter" else ""))
    # Ray's own, by its source and not by importing it, which takes seconds.
    [ray] = importlib.util.find_spec("ray").submodule_search_locations or ()  # type: ignore[union-attr]
    dashboards = Path(ray, "dashboard/modules/metrics/dashboards").glob("*_panels.py")
    theirs = {name for path in dashboards for name in re.findall(r"\bray_\w+", path.read_text())}
    return frozenset(ours | theirs)


FIGURES_OF = ROOT / "dualview/pipelines/train/monitor.py"
SCORES_OF = ROOT / "dualview/evaluation/scores.py"
STATUSES_OF = ROOT / "dualview/records.py"
SCRAPED = {"ray_io_cluster", "ray_io_node_type", "ray_io_group"}  # what podTargetLabels become
VALUES = {"Name": {"GPU", "CPU"}, "State": {"USED", "AVAILABLE"}}


def expression_problems(expression: str) -> Problems:
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        yield f"{expression}: {error}"
        return
    del parsed
    for name in re.findall(r"\bray_\w+(?=[{\[ )]|$)", re.sub(r"\bby \([^)]*\)", "", expression)):
        if name not in _metrics():
            yield f"{expression}: nothing puts out {name}"
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        if labels not in SCRAPED | {"status", "kind", "State"}:
            yield f"{expression}: there is no label {labels}"
    for label, _, value in re.findall(r'(\w+)(=~|=|!=)"([^"]*)"', expression):
        yield from (f"{expression}: {problem}" for problem in _matcher_problems(label, value))


def _matcher_problems(label: str, value: str) -> Problems:
    if label in VALUES:
        if value not in VALUES[label]:
            yield f"{label} is never {value}"
    elif label == "status":
        if f'"{value}"' not in STATUSES_OF.read_text():
            yield f"no row has the status {value}"
    elif label == "figure":
        for figure in value.split("|"):
            known = FIGURES_OF.read_text() + SCORES_OF.read_text()
            if f'"{figure.removeprefix("evaluation/")}"' not in known:
                yield f"training has no figure {figure}"
    elif label != "ray_io_cluster" or value != "$cluster":
        yield f"unknown label {label}"


def dashboard_problems(text: str) -> Problems:
    try:
        dashboard = json.loads(text)
    except ValueError as error:
        yield f"is no JSON: {error}"
        return
    if (dashboard.get("title"), dashboard.get("uid"), dashboard.get("schemaVersion")) != (
        "dualview",
        "dualview",
        39,
    ):
        yield "a dashboard has title, uid and schemaVersion"
    variables = {
        variable.get("name"): variable for variable in dashboard.get("templating", {}).get("list", ())
    }
    source = {"type": "prometheus", "uid": "${datasource}"}
    expected = {
        "datasource": {"type": "datasource", "query": "prometheus"},
        "cluster": {
            "type": "query",
            "query": "label_values(ray_resources, ray_io_cluster)",
            "datasource": source,
        },
        "price": {"type": "textbox", "query": "2.5"},
    }
    for name, settings in expected.items():
        if not settings.items() <= variables.get(name, {}).items():
            yield f"variable {name}: expected {settings}"
    if not {"includeAll": True, "multi": True, "refresh": 2}.items() <= variables.get("cluster", {}).items():
        yield "variable cluster: several may be chosen, and all"
    if unknown := dashboard.keys() - {
        *("title", "uid", "schemaVersion", "editable", "refresh", "time", "tags", "templating", "panels")
    }:
        yield f"unexpected {sorted(unknown)}"
    if dashboard.get("time") != {"from": "now-6h", "to": "now"} or dashboard.get("refresh") != "30s":
        yield "time and refresh"
    if dashboard.get("editable") is not False or dashboard.get("tags") != ["dualview", "ray"]:
        yield "is kept here, not edited there; its tags"
    places, ids = set(), set()
    for panel in dashboard.get("panels", ()):
        yield from _panel_problems(panel, source)
        place = panel.get("gridPos", {})
        places.add((place.get("x"), place.get("y")))
        ids.add(panel.get("id"))
        if (
            (place.get("w"), place.get("h")) != (12, 8)
            or place.get("x") not in (0, 12)
            or place.get("y", 1) % 8
        ):
            yield f"panel {panel.get('title')} lies across others"
    if not len(places) == len(ids) == len(dashboard.get("panels", ())) == 10:
        yield "ten panels, each in its place, were expected"


UNITS = {"percentunit", "reqps", "short", "currencyUSD"}


def _panel_problems(panel: Object, source: Object) -> Problems:
    title = panel.get("title", "")
    keys = {"id", "type", "title", "datasource", "gridPos", "fieldConfig", "targets"}
    if (
        panel.keys() - {"description"} != keys
        or panel.get("type") != "timeseries"
        or panel.get("datasource") != source
    ):
        yield f"panel {title}: expected {sorted(keys)}, a time series of ${{datasource}}"
        return
    config = panel["fieldConfig"]
    defaults = config.get("defaults", {})
    if (
        config.keys() != {"defaults", "overrides"}
        or defaults.get("unit") not in UNITS
        or config["overrides"] != []
    ):
        yield f"panel {title}: unit and overrides"
    if defaults.keys() - {"unit", "min"} or defaults.get("min", 0) != 0:
        yield f"panel {title}: begins at zero, or says nothing of it"
    if (defaults.get("unit") == "currencyUSD") != (title == "Cost per hour"):
        yield f"panel {title}: dollars are of the cost"
    if not panel["targets"]:
        yield f"panel {title}: shows nothing"
    for letter, target in zip("ABC", panel["targets"], strict=False):
        if target.keys() != {"refId", "expr", "legendFormat"} or target["refId"] != letter:
            yield f"panel {title}: a target has refId {letter}, expr and legendFormat"
            continue
        yield from expression_problems(target["expr"].replace("$price", "2.5"))
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            if label not in SCRAPED | {"status", "kind", "State", "figure", "instance"}:
                yield f"panel {title}: there is no label {label}"
        if target["legendFormat"].count("{{") != len(re.findall(r"{{\w+}}", target["legendFormat"])):
            yield f"panel {title}: a broken legend"
