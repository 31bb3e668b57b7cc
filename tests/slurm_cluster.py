"""A real Slurm cluster of two nodes for end-to-end tests: containers of the image that .ci/build-slurm-image makes.

Each node is login and compute node at once, with two GPUs declared as gres; /home is shared. Tests reach it as an
ordinary user over ssh, by a key and a known_hosts file of their own: an `ssh` before the real one on PATH names them,
which is also where a test cuts a connection.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from support import eventually

IMAGE = "tao-e2e/slurm:sid"
USER = "tao"
SIF, ARCHIVE = "/images/smollm2.sif", "docker-archive:/images/smollm2.tar"
START_NODE = Path(__file__).parent / "e2e" / "slurm" / "start-node"
PYXIS = Path(__file__).parent / "doubles" / "pyxis_srun"
# What Slurm's daemons and Apptainer's containers need beyond Docker's defaults.
CAPABILITIES = ("SYS_ADMIN", "SYS_CHROOT", "MKNOD", "SETPCAP", "NET_ADMIN")
UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined")


def docker(*arguments: str, check: bool = True, stdin: str | None = None) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, input=stdin)
    assert not check or done.returncode == 0, f"docker {shlex.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout


def why_not() -> str:
    """Why no cluster can be had here; empty when one can."""
    done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True)
    return (
        ""
        if done.returncode == 0
        else f"{IMAGE} is not on a Docker engine (.ci/build-slurm-image): {done.stderr.strip()}"
    )


@dataclass
class Node:
    """One node: its name in the cluster, its container, its address."""

    name: str
    container: str
    address: str

    def run(self, command: str, user: str = "root") -> str:
        """What a shell command prints there."""
        return docker("exec", "--user", user, self.container, "bash", "-lc", command).strip()


@dataclass
class SlurmCluster:
    """The cluster, and what a program on this machine needs to reach it."""

    nodes: list[Node] = field(default_factory=list)
    folder: Path = Path()

    @property
    def environ(self) -> dict[str, str]:
        """The variables that name it to the skill. `ssh` is found in this cluster's folder first."""
        return {
            "SLURM_HOSTNAME": ",".join(node.address for node in self.nodes),
            "SLURM_USER": USER,
            "SSH_KEY_PATH": str(self.folder / "key"),
            "SLURM_PARTITION": "main",
            "SLURM_ACCOUNT": "cluster-default",
            "IMAGE_SMOLLM2": SIF,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }

    @property
    def first(self) -> Node:
        return self.nodes[0]

    def slurm(self, command: str) -> str:
        """What a command of Slurm prints on the first node, as root."""
        return self.first.run(command)

    def jobs(self) -> dict[str, str]:
        """The states of the jobs that the scheduler still holds, by name."""
        lines = self.slurm("squeue --noheader --format='%j %T'").splitlines()
        return dict(line.split() for line in lines)

    def left(self) -> list[str]:
        """What services have left on the nodes: folders and processes of the user."""
        found = self.first.run(f"ls /home/{USER}/.tao-run-inference-service 2>/dev/null || true").split()
        for node in self.nodes:
            listed = node.run(f"pgrep --uid {USER} --list-full || true").splitlines()
            found += [f"{node.name}: {line}" for line in listed if "sshd" not in line and "ssh-" not in line]
        return found

    def tunnels(self) -> list[int]:
        """The pids of this machine's tunnels into the cluster."""
        return [
            process.pid
            for process in psutil.process_iter()
            if (line := _command_line(process)) and "-L" in line and str(self.folder / "config") in line
        ]

    def state(self, number: str) -> str:
        """What the controller says of a job, over or not."""
        found = re.search(r"JobState=(\w+)", self.slurm(f"scontrol --oneliner show job {number}"))
        return found[1] if found else ""

    def mend(self) -> None:
        """Every node takes jobs again, and no connection will be cut."""
        (self.folder / "cut").unlink(missing_ok=True)
        for node in self.nodes:
            self.let_in(node)
        for node in self.nodes:
            self.slurm(f"scontrol update nodename={node.name} state=resume 2>/dev/null || true")

    def keep_out(self, node: Node) -> None:
        """Its sshd refuses the user from now on; connections that are open stay."""
        node.run("echo 'DenyUsers *' >>/etc/ssh/sshd_config && pkill -HUP --oldest sshd")

    def let_in(self, node: Node) -> None:
        node.run("sed -i /DenyUsers/d /etc/ssh/sshd_config && pkill -HUP --oldest sshd")

    @contextlib.contextmanager
    def pyxis(self, image: str) -> Iterator[None]:
        """On every node `srun` is the stand-in for one with the Pyxis plugin, which finds smollm2 as `image`."""
        for node in self.nodes:
            docker("cp", str(PYXIS), f"{node.container}:/usr/local/bin/srun")
            node.run(f"chmod 755 /usr/local/bin/srun; echo {image} {SIF} >/etc/pyxis-images")
        try:
            yield
        finally:
            for node in self.nodes:
                node.run("rm -f /usr/local/bin/srun")

    def cut_next_ssh_when(self, output_has: str) -> None:
        """The next ssh connection is cut as soon as its standard output has this text, which is swallowed."""
        (self.folder / "cut").write_text(output_has)

    def was_cut(self) -> bool:
        return not (self.folder / "cut").exists()


@contextlib.contextmanager
def running(number_of_nodes: int = 2) -> Iterator[SlurmCluster]:
    """A cluster that is up. Nothing of it is left afterwards."""
    prefix = f"slurm-e2e-{os.getpid()}"
    volumes = (f"{prefix}-home", f"{prefix}-munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-e2e-"))
    cluster = SlurmCluster(folder=folder)
    try:
        docker("network", "create", prefix)
        for number in range(1, number_of_nodes + 1):
            cluster.nodes.append(_node(prefix, number, number_of_nodes, volumes))
        for node in cluster.nodes:
            eventually(lambda node=node: _exists(node, "/run/node-started"), timeout=60)  # type: ignore[misc]
        _let_in(cluster)
        eventually(
            lambda: cluster.slurm("sinfo --noheader --Node --format=%T").split().count("idle") >= number_of_nodes,
            timeout=60,
            every=0.3,
        )
        yield cluster
    finally:
        for number in range(1, number_of_nodes + 1):
            docker("rm", "--force", "--volumes", f"{prefix}-n{number}", check=False)
        docker("network", "rm", prefix, check=False)
        docker("volume", "rm", "--force", *volumes, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _node(prefix: str, number: int, number_of_nodes: int, volumes: tuple[str, str]) -> Node:
    name, container = f"n{number}", f"{prefix}-n{number}"
    extra = [word for capability in CAPABILITIES for word in ("--cap-add", capability)]
    extra += [word for option in UNCONFINED for word in ("--security-opt", option)]
    docker(
        "create", "--init", "--name", container, "--hostname", name, "--network", prefix, "--network-alias", name,
        "--env", f"NODES={number_of_nodes}",
        "--volume", f"{volumes[0]}:/home", "--volume", f"{volumes[1]}:/etc/munge-shared",
        *extra, IMAGE, "/start-node",
    )  # fmt: skip
    docker("cp", str(START_NODE), f"{container}:/start-node")
    docker("start", container)
    address = docker(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container
    ).strip()
    return Node(name, container, address)


def _exists(node: Node, file: str) -> bool:
    done = subprocess.run(["docker", "exec", node.container, "test", "-e", file], capture_output=True)
    return done.returncode == 0


def _let_in(cluster: SlurmCluster) -> None:
    """A key of our own that the user there accepts, and the hosts' own keys, so that nothing is taken on trust."""
    key = cluster.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = (key.with_suffix(".pub")).read_text().strip()
    cluster.first.run(
        f"umask 077 && mkdir -p ~/.ssh && echo {shlex.quote(public)} >~/.ssh/authorized_keys",
        user=USER,
    )
    known = [
        f"{node.address} {node.run('cat /etc/ssh/ssh_host_ed25519_key.pub').rsplit(' ', 1)[0]}"
        for node in cluster.nodes
    ]
    (cluster.folder / "known_hosts").write_text("".join(f"{line}\n" for line in known))
    config = f"Host *\n  UserKnownHostsFile {cluster.folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
    (cluster.folder / "config").write_text(config)
    real = shutil.which("ssh")
    assert real is not None
    program = cluster.folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(_SSH.format(real=real, folder=cluster.folder))
    program.chmod(0o755)


# The real ssh. Where a test has left a text in the file `cut`, the connection ends when that text comes.
_SSH = """\
#!/bin/bash
if [[ " $* " == *" -L "* ]] || ! mv {folder}/cut {folder}/cutting 2>/dev/null; then
    exec {real} -F {folder}/config "$@"
fi
text=$(<{folder}/cutting)
exec 3<&0
coproc real {{ exec {real} -F {folder}/config "$@" <&3; }}
while IFS= read -r line; do
    if [[ $line == *"$text"* ]]; then
        kill -9 "$real_PID"
        exit 255
    fi
    printf '%s\\n' "$line"
done <&"${{real[0]}}"
wait "$real_PID"
"""
