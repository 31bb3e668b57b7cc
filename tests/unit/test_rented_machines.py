"""Whether a machine that was created for services goes with them is the user's word, asked once for each machine."""

from __future__ import annotations

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


@pytest.mark.parametrize(("answer", "word"), [("yes", True), ("no", False)])
def test_the_answer_goes_with_the_services_it_is_about(answer: str, word: bool) -> None:
    told = rented_machines.decided([entry("a", "one"), entry("b", "mine", created=False)], answer)
    assert [each.extras.get("delete_instance") for each in told] == [word, None]
