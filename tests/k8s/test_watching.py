"""The dashboard and the alerts: nothing may be asked that nobody puts out."""

from functools import cache
import importlib.util
import json
from pathlib import Path
import re
from typing import Any

from manifests import ROOT, Build
import promql_parser
from test_manifests import PEERS
from test_pods import METRICS

POD_LABELS = ["ray.io/cluster", "ray.io/node-type", "ray.io/group"]
# Those of pods as Prometheus writes them, and those of metrics themselves.
LABELS = {"instance", "status", "kind", "State", "figure", *(re.sub(r"\W", "_", name) for name in POD_LABELS)}
VALUES = {"Name": '"GPU"', "State": '"USED"', "ray_io_cluster": '"$cluster"'}
# Where the others stand in our code.
VALUES_IN = {"status": ["records.py"], "figure": ["pipelines/train/monitor.py", "evaluation/scores.py"]}


@cache
def metrics() -> frozenset[str]:
    """What our code and Ray's put out, under the names that Prometheus sees."""
    ours = {
        f"ray_{name}" + ("_total" if kind == "Counter" else "")
        for path in (ROOT / "dualview").rglob("*.py")
        for kind, name in re.findall(r'(Counter|Gauge)\(\s*"(dualview_\w+)"', path.read_text())
    }
    # Ray's own, by its source and not by importing it, which takes seconds.
    [ray] = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    panels = Path(ray, "dashboard/modules/metrics/dashboards").glob("*_panels.py")
    return frozenset(ours.union(*(re.findall(r"\bray_\w+", path.read_text()) for path in panels)))


def check(expression: str) -> None:
    """It parses, and asks for metrics, labels and values that there are."""

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name in metrics()
            for label in node.matchers.matchers:
                code = [(ROOT / "dualview" / file).read_text() for file in VALUES_IN.get(label.name, ())]
                known = VALUES.get(label.name, "".join(code))
                assert all(
                    f'"{value.removeprefix("evaluation/")}"' in known for value in label.value.split("|")
                )
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= LABELS

    promql_parser.walk(promql_parser.parse(expression), visit)


def test_prometheus_scrapes_all_ports_that_put_out_metrics(build: Build) -> None:
    for monitor in [] if build.overlay == "kind" else [build.of("PodMonitor")["dualview"]]:
        assert monitor["spec"] == {
            "selector": PEERS["ray nodes"]["podSelector"],
            "podTargetLabels": POD_LABELS,
            "podMetricsEndpoints": [{"port": port.split()[0], "interval": "30s"} for port in METRICS],
        }


def test_alerts_ask_for_what_there_is_and_say_what_to_do(build: Build) -> None:
    for alerts in [] if build.overlay == "kind" else [build.of("PrometheusRule")["dualview"]]:
        [group] = alerts["spec"]["groups"]
        assert group.keys() == {"name", "rules"}
        assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) == 6
        for rule in group["rules"]:
            check(rule["expr"])
            # Only what counts over an hour by itself may fire at the first bad moment.
            assert re.fullmatch(r"[1-9]\d*[mh]", rule.get("for", "1h" if "[1h]" in rule["expr"] else ""))
            assert rule.keys() | {"for"} == {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
            assert rule["annotations"].keys() == {"summary", "action"}
            assert "{{ $labels.ray_io_cluster }}" in rule["annotations"]["summary"]


def test_panels_are_alike_and_ask_for_what_there_is(build: Build) -> None:
    for one in [] if build.overlay == "kind" else [build.of("ConfigMap")["dualview-dashboard"]]:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"  # Grafana's sidecar looks for it
        dashboard = json.loads(one["data"]["dualview.json"])
        assert dashboard.keys() >= {"title", "uid", "schemaVersion", "editable", "refresh", "time"}
        datasource, cluster, price = dashboard["templating"]["list"]
        names = {datasource["name"], cluster["name"], price["name"]}
        assert names == set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
        assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
        assert cluster["query"] == "label_values(ray_resources, ray_io_cluster)"
        assert (cluster["includeAll"], cluster["multi"], cluster["refresh"]) == (True, True, 2)
        assert (price["type"], price["query"]) == ("textbox", "2.5")
        for number, panel in enumerate(dashboard["panels"]):
            assert (panel["id"], panel["type"]) == (number + 1, "timeseries")
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["gridPos"] == {"x": number % 2 * 12, "y": number // 2 * 8, "w": 12, "h": 8}
            look, others = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["overrides"]
            assert look.pop("unit") in ("percentunit", "reqps", "short", "currencyUSD")
            assert (look, others) in (({}, []), ({"min": 0}, []))
            assert [target["refId"] for target in panel["targets"]] in (["A"], ["A", "B"])
            for target in panel["targets"]:
                check(target["expr"].replace("$price", "2.5"))
                assert set(re.findall(r"{{(.*?)}}", target["legendFormat"])) <= LABELS
