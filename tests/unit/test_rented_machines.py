"""Whether a machine that was created for services goes with them is the user's word, asked once for each machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from inference_service import rented_machines
from inference_service.contracts import ServiceEntry
from inference_service.errors import DecisionNeeded


def entry(job_id: str, instance: str, created: bool = True) -> ServiceEntry:
    extras = {"instance": instance, "created_instance": created, "gpu": "L40S", "instance_created_at": "2026-01-01"}
    return ServiceEntry(job_id, "smollm2", "brev", "http://localhost:1", extras=extras)


def test_services_on_machines_of_the_user_are_stopped_without_a_question() -> None:
    entries = (entry("a", "mine", created=False), ServiceEntry("b", "smollm2", "local-docker", "http://localhost:2"))
    assert rented_machines.decided(entries, None) == entries
    assert rented_machines.decided(entries, "yes") == entries, "an answer is no word on what was not created"


def test_each_machine_is_asked_for_once_with_what_it_is_and_since_when_it_bills() -> None:
    with pytest.raises(DecisionNeeded) as asked:
        rented_machines.decided([entry("a", "one"), entry("b", "one"), entry("c", "two")], None)
    assert [need.name for need in asked.value.needs] == ["one", "two"]
    question = asked.value.needs[0].question
    assert "L40S" in question and "2026-01-01" in question and "bills" in question


def test_the_question_says_what_the_machine_has_cost_where_a_price_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_hours_ago = (datetime.now(timezone.utc) - timedelta(hours=2)).isoformat()
    machine = entry("a", "one")
    machine = replace(machine, num_gpus=1, extras={**machine.extras, "instance_created_at": two_hours_ago})
    prices = tmp_path / "prices.yaml"
    monkeypatch.setenv("TAO_INF_PRICING", str(prices))
    row = "{platform: brev, gpu: L40S, usd_per_gpu_hour: 1.5, effective_from: 2020-01-01, source: ours}"
    prices.write_text(f"gpu_hour_prices: [{row}]\n")
    with pytest.raises(DecisionNeeded, match=r"3\.00\d\d USD so far"):
        rented_machines.decided([machine], None)
    prices.write_text("gpu_hour_prices: broken\n")
    with pytest.raises(DecisionNeeded, match="bills") as asked:
        rented_machines.decided([machine], None)
    assert "USD" not in str(asked.value)


@pytest.mark.parametrize(("answer", "word"), [("yes", True), ("no", False)])
def test_the_answer_goes_with_the_services_it_is_about(answer: str, word: bool) -> None:
    told = rented_machines.decided([entry("a", "one"), entry("b", "mine", created=False)], answer)
    assert [each.extras.get("delete_instance") for each in told] == [word, None]
