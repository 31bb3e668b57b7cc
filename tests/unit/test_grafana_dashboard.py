"""The Grafana dashboard and the alerts ask for figures that the gateway has, under labels that they have."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import SKILL

from inference_service.gateway.metrics import Metrics
from inference_service.gateway.metrics_snapshot import Gauges
from inference_service.request_log.rows import RequestRow

DASHBOARD = json.loads((SKILL / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((SKILL / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
EXPRESSIONS = [
    *((panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(
        (rule["alert"], rule["expr"])
        for group in ALERTS["groups"]
        for rule in group["rules"]
        if "up{" not in rule["expr"]
    ),
]


def exposed() -> dict[str, set[str]]:
    """Every metric's labels, of a gateway that had everything happen to it."""
    metrics = Metrics()
    everything: dict[str, Any] = {
        "http_status": 429,
        "error_type": "budget_day",
        **dict.fromkeys(("queue_seconds", "connect_seconds", "first_byte_seconds", "first_token_seconds"), 0.1),
        **dict.fromkeys(("total_seconds", "overhead_seconds"), 0.1),
        **dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens"), 5),
    }
    for cost in (None, Decimal(1)):
        metrics.observe(
            RequestRow("r", 1.0, "/v1/messages", "a", network_arch="claude", model="m", cost_usd=cost, **everything)
        )
    text = metrics.exposition(Gauges({"/v1/messages": 1}, {"claude": 1}, {"claude": "open"}))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            # Prometheus itself adds where it scraped.
            found.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    return found


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_a_panel_or_an_alert_asks_for_what_there_is(title: str, expression: str) -> None:
    known = exposed()
    asked = re.findall(r"(tao_gateway_\w+)(?:\{([^}]*)\})?", expression)
    assert asked
    for name, matchers in asked:
        assert name in known
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers)) <= known[name]
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= set().union(*(known[name] for name, _ in asked))
    assert expression.count("(") == expression.count(")")


def test_its_filters_are_labels_and_its_panels_do_not_overlap() -> None:
    known = exposed()["tao_gateway_requests_total"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} - {"datasource"} <= known
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_reads_the_alerts_from_where_they_are_mounted() -> None:
    rules = yaml.safe_load((SKILL / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))["rule_files"]
    compose = yaml.safe_load((SKILL / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    mounts = {volume["target"]: volume["source"] for volume in compose["services"]["prometheus"]["volumes"]}
    assert [mounts[rule] for rule in rules] == ["./alerts.yml"]
