"""What the registry refuses, and that nothing is lost when it does."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_support import launch_spec, run_program, service
from support import run_script

from inference_service import registry_file
from inference_service.errors import ToolError
from inference_service.registry import Registry

WRITE_AND_TELL = """
import json
from pathlib import Path
from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError
from inference_service.registry import Registry
if len(sys.argv) > 2:
    import os
    os.setuid(int(sys.argv[2]))
try:
    Registry(Path(sys.argv[1])).write(ServiceEntry("new", "cosmos-rl", "local-docker", "http://localhost:8080"))
    print(json.dumps(None))
except ToolError as error:
    print(json.dumps(error.document()["error"]))
"""
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away or mount a small disk")


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.write(service("old"))
    return registry


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder of an ordinary user's, outside pytest's own, which only its owner may enter."""
    folder = Path(tempfile.mkdtemp())
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def refusal(registry: Registry, also_read: bool = True) -> ToolError:
    """The error of a change; reading has to fail in the same way."""
    with pytest.raises(ToolError) as raised:
        registry.write(service("new"))
    if also_read:
        with pytest.raises(ToolError) as read:
            registry.read()
        assert read.value.type == raised.value.type
    assert str(registry.path) in raised.value.message
    assert raised.value.fix
    return raised.value


def test_a_symlink_is_refused_and_its_target_untouched(registry: Registry, tmp_path: Path) -> None:
    target = tmp_path / "precious.json"
    registry.path.rename(target)
    before = target.read_bytes()
    registry.path.symlink_to(target)
    assert refusal(registry).type == "registry_is_symlink"
    assert target.read_bytes() == before
    assert registry.path.is_symlink()


@needs_root
def test_what_is_mounted_read_only_is_read_as_kubernetes_lays_it_out_and_never_written(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    data = mounted / "..2026_11_24"
    data.mkdir(parents=True)
    content = {"a": {"network_arch": "smollm2", "platform": "kubernetes", "host_url": "http://10.96.0.9:8080"}}
    (data / "services.json").write_text(json.dumps(content))
    os.chown(data / "services.json", pwd.getpwnam("nobody").pw_uid, -1)
    (data / "services.json").chmod(0o666)
    (mounted / "..data").symlink_to(data.name)
    (mounted / "services.json").symlink_to("..data/services.json")
    registry = Registry(mounted / "services.json")
    assert refusal(registry).type == "registry_is_symlink"
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        assert registry.read().services["a"].host_url == "http://10.96.0.9:8080"
        with pytest.raises(ToolError) as raised:
            registry.remove("a")
        assert raised.value.type == "registry_not_writable"
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_symlink_in_the_locks_place_is_refused_and_nothing_is_made_there(registry: Registry, tmp_path: Path) -> None:
    lock = registry.path.with_name("registry.json.lock")
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ToolError) as raised:
        registry.write(service("new"))
    assert raised.value.type == "registry_is_symlink"
    assert str(lock) in raised.value.message
    assert not (tmp_path / "elsewhere").exists()


def test_a_symlink_in_the_next_versions_place_is_not_followed(registry: Registry, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    registry.path.with_name("registry.json.tmp").symlink_to(victim)
    registry.write(service("new"))
    assert victim.read_text() == "precious"
    assert sorted(registry.read().services) == ["new", "old"]


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_regular_file_is_refused_without_waiting(registry: Registry, kind: str) -> None:
    registry.path.unlink()
    registry.path.mkdir() if kind == "folder" else os.mkfifo(registry.path)
    assert refusal(registry).type == "registry_not_a_file"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(registry: Registry, mode: int) -> None:
    registry.path.chmod(mode)
    before = registry.path.read_bytes()
    error = refusal(registry)
    assert error.type == "registry_writable_by_others"
    assert f"chmod 600 {registry.path}" in error.fix
    assert registry.path.read_bytes() == before


@needs_root
def test_a_file_of_another_owner_is_refused(registry: Registry) -> None:
    os.chown(registry.path, 12345, -1)
    error = refusal(registry)
    assert error.type == "registry_foreign_owner"
    assert "12345" in error.message


@needs_root
def test_a_lock_of_another_owner_is_refused(registry: Registry) -> None:
    os.chown(registry.path.with_name("registry.json.lock"), 12345, -1)
    with pytest.raises(ToolError) as raised:
        registry.write(service("new"))
    assert raised.value.type == "registry_foreign_owner"


@needs_root
def test_a_private_file_of_another_owner_is_refused_as_that(nobodys_folder: Path) -> None:
    file = nobodys_folder / "registry.json"
    file.write_text("{}")
    file.chmod(0o600)
    error = json.loads(run_program(WRITE_AND_TELL, str(file), str(pwd.getpwnam("nobody").pw_uid)))
    assert error["type"] == "registry_foreign_owner"


@needs_root
def test_a_read_only_folder_is_an_error_that_changes_nothing(nobodys_folder: Path) -> None:
    nobody, file = pwd.getpwnam("nobody").pw_uid, nobodys_folder / "registry.json"
    assert json.loads(run_program(WRITE_AND_TELL, str(file), str(nobody))) is None
    before = file.read_bytes()
    nobodys_folder.chmod(0o500)
    file.with_name("registry.json.lock").unlink()
    error = json.loads(run_program(WRITE_AND_TELL, str(file), str(nobody)))
    assert error["type"] == "registry_not_writable"
    assert f"make {nobodys_folder} writable" in error["fix"]
    assert file.read_bytes() == before


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere; the test above asks as another user")
def test_a_read_only_folder_is_an_error_for_this_user(registry: Registry) -> None:
    before = registry.path.read_bytes()
    registry.path.parent.chmod(0o500)
    try:
        assert refusal(registry, also_read=False).type == "registry_not_writable"
        assert registry.path.read_bytes() == before
    finally:
        registry.path.parent.chmod(0o700)


def test_the_largest_file_a_process_may_write_is_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    registry = Registry(file)
    for number in range(20):
        registry.write(service(f"job-{number}"))
    before = file.read_bytes()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, {resource.RLIM_INFINITY}))\n"
    error = json.loads(run_program(limit + WRITE_AND_TELL, str(file)))
    assert error["type"] == "registry_disk_full"
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["registry.json", "registry.json.lock"]


@needs_root
def test_a_full_disk_loses_nothing_and_is_usable_again_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine's root may not mount")
    try:
        registry = Registry(disk / "registry.json")
        registry.write(service("old"))
        ballast = disk / "ballast"
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            ballast.write_bytes(b"x" * 100_000)
        before = registry.path.read_bytes()
        assert refusal(registry, also_read=False).type == "registry_disk_full"
        with pytest.raises(ToolError) as raised:
            registry.reserve(launch_spec("new"), needs_host_port=True)
        assert raised.value.type == "registry_disk_full"
        assert registry.path.read_bytes() == before
        assert not registry.path.with_name("registry.json.tmp").exists()
        ballast.unlink()
        registry.write(service("new"))
        assert sorted(registry.read().services) == ["new", "old"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_missing_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "new" / "registry.json")
    assert registry.read().services == {}
    assert not registry.path.parent.exists(), "reading makes nothing"
    registry.write(service("a"))
    assert stat.S_IMODE(registry.path.parent.stat().st_mode) == 0o700


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(Registry(tmp_path / "file" / "registry.json")).type == "registry_folder_unusable"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        b"{",
        b'{"a": {"network_arch"',
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00garbage",
        b"[" * 100_000,
        b"9" * 5_000,
    ],
    ids=["empty", "blank", "half", "cut short", "list", "null", "text", "bytes", "too deep", "number"],
)
def test_garbage_is_moved_aside_and_told_and_the_next_call_works(registry: Registry, garbage: bytes) -> None:
    registry.path.write_bytes(garbage)
    with pytest.raises(ToolError) as raised:
        registry.read()
    error = raised.value
    assert error.type == "registry_corrupt"
    moved = Path(error.details["moved_to"])
    assert moved.name.startswith("registry.json.corrupt-2")
    assert moved.read_bytes() == garbage
    assert str(moved) in error.message
    assert "registry.py reconcile" in error.fix
    registry.write(service("new"))
    assert list(registry.read().services) == ["new"]


def test_garbage_is_never_overwritten_by_a_change_nor_by_more_garbage(registry: Registry) -> None:
    kept = set()
    for text in ("one", "two", "three"):
        registry.path.write_text(text)
        with pytest.raises(ToolError) as raised:
            registry.reserve(launch_spec("a"), needs_host_port=True)
        assert raised.value.type == "registry_corrupt"
        kept.add(Path(raised.value.details["moved_to"]))
    assert {path.read_text() for path in kept} == {"one", "two", "three"}


def test_a_file_that_another_tool_is_writing_in_place_is_waited_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_file, "_HALF_WRITTEN_SECONDS", 30)
    whole = registry.path.read_text()
    registry.path.write_text(whole[:20])
    finishing = threading.Timer(0.1, registry.path.write_text, [whole])
    finishing.start()
    assert list(registry.read().services) == ["old"]
    finishing.join()
    assert not list(registry.path.parent.glob("*.corrupt-*"))


def test_an_error_of_the_file_is_a_scripts_document(registry: Registry) -> None:
    registry.path.write_text("garbage")
    error = run_script("registry", "list", expect=1).document["error"]
    assert error["type"] == "registry_corrupt"
    assert Path(error["moved_to"]).read_text() == "garbage"
    assert run_script("registry", "list").document == {"services": [], "latest": None}
