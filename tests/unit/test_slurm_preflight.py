"""What preflight makes of a login host's answers."""

from __future__ import annotations

import pytest
import slurm_preflight

from inference_service.contracts import Check

GOOD = """
@@version
slurm 24.05.4

@@controller
Slurmctld(primary) at ctl1 is UP

@@partitions
batch|up|4:00:00|gpu:a100:8(S:0-1)|12|mixed
batch|up|4:00:00|gpu:a100:8(S:0-1)|2|drained
cpu|up|infinite|(null)|40|idle
old|down|1-00:00:00|gpu:v100:4|3|down

@@accounts
team
other

@@pyxis
      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH

@@apptainer
bash: apptainer: command not found

@@home
ok

@@login
/home/u/.config/enroot/.credentials
"""
CHOSEN = {"SLURM_PARTITION": "batch", "SLURM_ACCOUNT": "team"}


def checks(output: str = GOOD, **environ: str) -> dict[str, Check]:
    answers = slurm_preflight.sections(output)
    return {check.name: check for check in slurm_preflight.on_cluster(answers, {**CHOSEN, **environ})}


def test_a_cluster_that_has_everything_passes_and_says_what_it_has() -> None:
    found = checks()
    assert [name for name, check in found.items() if not check.ok] == []
    assert found["slurm"].found.startswith("slurm 24.05.4")
    assert "gpu:a100:8(S:0-1) on 12 node(s), mixed" in found["gpus"].found
    assert "v100" not in found["gpus"].found
    assert found["container runtime"].found == "pyxis"
    assert "there are credentials" in found["registry login"].found


@pytest.mark.parametrize(
    ("name", "before", "after", "environ", "told"),
    [
        ("slurm", "slurm 24.05.4", "bash: sbatch: command not found", {}, "command not found"),
        ("slurm", "is UP", "is DOWN", {}, "DOWN"),
        ("partition", "", "", {"SLURM_PARTITION": ""}, "batch, cpu, old"),
        ("partition", "", "", {"SLURM_PARTITION": "nowhere"}, "no partition nowhere"),
        ("partition", "", "", {"SLURM_PARTITION": "old"}, "not up"),
        ("account", "", "", {"SLURM_ACCOUNT": ""}, "other, team"),
        ("account", "", "", {"SLURM_ACCOUNT": "foreign"}, "not one of yours"),
        ("container runtime", "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH", "", {}, "neither"),
        ("home folder", "@@home\nok", "@@home\ntouch: Disk quota exceeded", {}, "quota"),
    ],
)
def test_what_fails_says_what_was_found_and_what_mends_it(
    name: str, before: str, after: str, environ: dict[str, str], told: str
) -> None:
    check = checks(GOOD.replace(before, after) if before else GOOD, **environ)[name]
    assert not check.ok
    assert told in check.found
    assert check.fix


def test_an_account_cannot_be_held_against_accounting_that_is_off() -> None:
    off = GOOD.replace("team\nother", "Slurm accounting storage is disabled")
    assert checks(off, SLURM_ACCOUNT="anything")["account"].ok


def test_a_partition_without_gpus_is_said_and_no_failure() -> None:
    check = checks(SLURM_PARTITION="cpu")["gpus"]
    assert check.ok
    assert "no GPUs" in check.found
