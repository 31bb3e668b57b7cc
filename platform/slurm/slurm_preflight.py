"""What slurm needs: of this machine ssh, of the cluster everything else, asked with one connection per login host."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import slurm_connection
import slurm_ssh
from slurm_connection import Cluster
from slurm_options import CLUSTERS_DEFAULT

from inference_service.contracts import Check
from inference_service.errors import ToolError

_REGISTRY = "nvcr.io"
# One section for each question; what a section's command complains of is its answer.
_PROGRAM = r"""
section() { printf '\n@@%s\n' "$1"; }
section version; sbatch --version 2>&1
section controller; scontrol ping 2>&1
section partitions; sinfo --noheader --format='%R|%a|%l|%G|%D|%T' 2>&1
section accounts; sacctmgr --noheader --parsable2 show associations user="$(id -un)" format=account 2>&1
section pyxis; srun --help 2>&1 | grep -e --container-image
section apptainer; apptainer --version 2>&1
section home; touch "$HOME/.tao-preflight.$$" 2>&1 && rm -f "$HOME/.tao-preflight.$$" && echo ok
section login; grep -l nvcr.io ~/.config/enroot/.credentials ~/.apptainer/docker-config.json 2>/dev/null
return 0"""


def checks(environ: Mapping[str, str] = os.environ) -> list[Check]:
    """All checks that can be made: without ssh or a login host those that need them are left out."""
    found = [_ssh()]
    try:
        cluster = slurm_connection.from_environ(environ)
    except ToolError as error:
        return [*found, Check("login hosts", False, error.message, error.fix)]
    if not found[0].ok:
        return found
    found.append(_key(cluster))
    hosts, answers = _ask(cluster)
    found += hosts
    if not answers:
        return found
    return [*found, *on_cluster(answers, environ)]


def on_cluster(answers: Mapping[str, str], environ: Mapping[str, str]) -> list[Check]:
    """The checks of what a login host answered, by the section of its program."""
    return [
        _slurm(answers),
        _partition(answers.get("partitions", ""), environ.get("SLURM_PARTITION")),
        _account(answers.get("accounts", ""), environ.get("SLURM_ACCOUNT")),
        _gpus(answers.get("partitions", ""), environ.get("SLURM_PARTITION")),
        _runtime(answers),
        _home(answers.get("home", "")),
        _login(answers.get("login", "")),
    ]


def _ssh() -> Check:
    ssh = shutil.which("ssh")
    if ssh is None:
        return Check("ssh", False, "not on PATH", "sudo apt-get install -y openssh-client")
    done = subprocess.run([ssh, "-V"], capture_output=True, text=True, timeout=20)
    return Check("ssh", True, (done.stderr or done.stdout).strip())


def _key(cluster: Cluster) -> Check:
    name = "ssh key"
    if cluster.key is None:
        return Check(name, True, "SSH_KEY_PATH is not set: ssh uses its agent and its own defaults")
    mode = stat.S_IMODE(Path(cluster.key).stat().st_mode)
    if mode & 0o077:
        quoted = shlex.quote(cluster.key)
        return Check(name, False, f"{cluster.key} can be read by others: ssh refuses it", f"chmod 600 {quoted}")
    return Check(name, True, cluster.key)


def _ask(cluster: Cluster) -> tuple[list[Check], dict[str, str]]:
    """A check for each login host, and the answers of the first that has any."""
    found: list[Check] = []
    answers: dict[str, str] = {}
    for host in cluster.hosts:
        name, one = f"login host {host}", Cluster((host,), cluster.user, cluster.key)
        try:
            answer = slurm_ssh.run(one, ":" if answers else _PROGRAM)
        except ToolError as error:
            found.append(Check(name, False, error.message, error.fix))
            continue
        found.append(Check(name, True, f"{cluster.address(host)} lets us in"))
        answers = answers or sections(answer.output)
    if answers:
        # One login host is enough; the others are passed over.
        found = [
            replace(check, ok=True, found=f"passed over: {check.found}" if not check.ok else check.found)
            for check in found
        ]
    return found, answers


def sections(output: str) -> dict[str, str]:
    """The parts of the program's output, by their names."""
    parts = (part.partition("\n") for part in output.split("\n@@")[1:])
    return {name: text.strip() for name, _, text in parts}


def _slurm(answers: Mapping[str, str]) -> Check:
    version, controller = answers.get("version", ""), answers.get("controller", "")
    if not version.startswith("slurm"):
        return Check("slurm", False, version or "no sbatch there", "name a login host of the cluster in SLURM_HOSTNAME")
    if " UP" not in controller:
        return Check("slurm", False, f"{version}, controller: {controller}", "wait for the site, then try again")
    return Check("slurm", True, f"{version}, its controller is up")


def _partition(text: str, wanted: str | None) -> Check:
    name, partitions = "partition", _partitions(text)
    listed = ", ".join(sorted(partitions)) or "none"
    if not wanted:
        return Check(name, False, f"SLURM_PARTITION is not set; there are: {listed}", "export SLURM_PARTITION=NAME")
    missing = [one for one in wanted.split(",") if one not in partitions and one != CLUSTERS_DEFAULT]
    if missing:
        return Check(
            name, False, f"there is no partition {missing[0]}; there are: {listed}", "export SLURM_PARTITION=…"
        )
    down = [one for one in wanted.split(",") if one in partitions and "up" not in {row[1] for row in partitions[one]}]
    if down:
        return Check(name, False, f"the partition {down[0]} is not up", f"export SLURM_PARTITION=… (one of: {listed})")
    return Check(name, True, wanted)


def _account(text: str, wanted: str | None) -> Check:
    name, off = "account", "disabled" in text or "not found" in text or "error" in text.lower()
    accounts = [] if off else sorted(set(text.split()))
    listed = ", ".join(accounts) or "none, accounting is off"
    if not wanted:
        return Check(
            name,
            False,
            f"SLURM_ACCOUNT is not set; yours: {listed}",
            f"export SLURM_ACCOUNT=NAME (or {CLUSTERS_DEFAULT})",
        )
    if accounts and wanted not in (*accounts, CLUSTERS_DEFAULT):
        return Check(name, False, f"{wanted} is not one of yours: {listed}", "export SLURM_ACCOUNT=…")
    return Check(name, True, wanted)


def _gpus(text: str, wanted: str | None) -> Check:
    rows = [row for partition, rows in _partitions(text).items() for row in rows if _is_among(partition, wanted)]
    with_gpus = sorted({f"{row[3]} on {row[4]} node(s), {row[5]}" for row in rows if row[3].startswith("gpu")})
    # A partition without GPUs is not at fault: it runs the archs that need none.
    return Check("gpus", True, "; ".join(with_gpus) or "this partition declares no GPUs: only archs that need none run")


def _is_among(partition: str, wanted: str | None) -> bool:
    return not wanted or wanted == CLUSTERS_DEFAULT or partition in wanted.split(",")


def _runtime(answers: Mapping[str, str]) -> Check:
    has = ["pyxis"] if answers.get("pyxis") else []
    has += [answers["apptainer"]] if answers.get("apptainer", "").startswith("apptainer version") else []
    if has:
        return Check("container runtime", True, " and ".join(has))
    fix = "ask the site for Pyxis or Apptainer; a start tells whether the compute nodes have them"
    return Check("container runtime", False, "the login host has neither Pyxis nor Apptainer", fix)


def _home(text: str) -> Check:
    fix = "" if text == "ok" else "free some of the quota: a job keeps its script and its log in the home folder"
    return Check("home folder", text == "ok", "can be written" if text == "ok" else text, fix)


def _login(text: str) -> Check:
    if text:
        return Check("registry login", True, f"{_REGISTRY}: there are credentials on the cluster")
    how = f"apptainer registry login --username '$oauthtoken' docker://{_REGISTRY}, or ~/.config/enroot/.credentials"
    return Check(
        "registry login", True, f"{_REGISTRY}: no credentials there; if a pull is refused, log in there: {how}"
    )


def _partitions(text: str) -> dict[str, list[list[str]]]:
    rows = [row for line in text.splitlines() if len(row := line.split("|")) == 6]
    partitions: dict[str, list[list[str]]] = {}
    for row in rows:
        partitions.setdefault(row[0], []).append(row)
    return partitions
