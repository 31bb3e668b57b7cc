"""What a container sees of its host."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_service import mounts
from inference_service.contracts import Mount
from inference_service.errors import BadInput


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/data", Mount("/data", "/data", read_only=True)),
        ("/data:/in", Mount("/data", "/in", read_only=True)),
        ("/data:ro", Mount("/data", "/data", read_only=True)),
        ("/data:/in:rw", Mount("/data", "/in", read_only=False)),
        ("/data:rw", Mount("/data", "/data", read_only=False)),
    ],
)
def test_a_mount_is_read_only_and_at_the_same_path_unless_told(text: str, mount: Mount) -> None:
    assert mounts.parse([text]) == (mount,)


@pytest.mark.parametrize("text", ["", ":", "/a:", ":/b", "/a:/b:/c", "/a:/b:ro:rw", "/a:/b:x", ":rw"])
def test_what_is_not_of_that_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="SOURCE"):
        mounts.parse([text])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["data"], "not an absolute path"),
        (["/tmp:in"], "not an absolute path"),
        (["/tmp:/"], "root"),
        (["/tmp:/a/.."], "root"),
        (["/nothing-here-6d1f"], "does not exist on this machine"),
        (["/tmp:/in", "/usr:/in/"], "two sources for /in"),
        (["/<dir>"], "placeholder"),
    ],
)
def test_what_cannot_be_mounted_is_refused(texts: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        mounts.check(mounts.parse(texts), containers=True, on_this_machine=True)


def test_a_source_on_another_machine_is_not_looked_for_here() -> None:
    mounts.check(mounts.parse(["/nothing-here-6d1f"]), containers=True, on_this_machine=False)


def test_a_platform_without_containers_has_nothing_to_mount_into() -> None:
    with pytest.raises(BadInput, match="without a container"):
        mounts.check(mounts.parse(["/tmp"]), containers=False, on_this_machine=True)


def test_a_local_model_is_mounted_read_only_at_its_own_path(tmp_path: Path) -> None:
    assert mounts.for_model(str(tmp_path), ()) == (Mount(str(tmp_path), str(tmp_path), read_only=True),)


def test_a_model_that_is_shown_already_or_is_not_here_is_not_mounted(tmp_path: Path) -> None:
    assert mounts.for_model(str(tmp_path / "a"), ()) == ()
    (tmp_path / "a").mkdir()
    assert mounts.for_model(str(tmp_path / "a"), (Mount("/other", str(tmp_path)),)) == ()
    assert mounts.for_model(str(tmp_path / "a"), (Mount("/other", f"{tmp_path}/a/"),)) == ()
    assert len(mounts.for_model(str(tmp_path / "a"), (Mount("/other", f"{tmp_path}/ab"),))) == 1


def test_the_folders_that_a_model_of_links_points_into_are_mounted_too(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "v1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "3f2a").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/3f2a")
    (snapshot / "same.safetensors").symlink_to("model.safetensors")
    (snapshot / "dangling").symlink_to("../nowhere/x")
    assert [mount.source for mount in mounts.for_model(str(snapshot), ())] == [str(snapshot), str(blobs)]


@pytest.mark.parametrize(
    ("path", "seen_at"),
    [("/in/a/b", "/data/a/b"), ("/in", "/data"), ("/in/deep/x", "/other/x"), ("/in/../etc", None), ("/inner", None)],
)
def test_the_host_path_follows_the_innermost_mount(path: str, seen_at: str | None) -> None:
    shown = (Mount("/data", "/in"), Mount("/other", "/in/deep"))
    assert mounts.host_path(path, shown) == seen_at
