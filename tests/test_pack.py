"""Where a bundle is written, nothing else is lost: it is there whole, or what was there stays."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_bundles as tiny
from test_bundle import record

from edgemed import files, pack
from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import InputError
from edgemed.signature import public_of


def test_an_out_that_holds_something_else_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds something else than a bundle"):
            tiny.bundle(tmp_path / "thesis", overwrite=overwrite)
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        tiny.bundle(tmp_path / "note.txt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.txt", "note.txt", "thesis"]


def test_a_bundle_is_replaced_only_when_asked_and_only_if_nothing_of_the_users_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    tiny.bundle(out)
    with pytest.raises(InputError, match="--overwrite"):
        tiny.bundle(out, backbone="other")
    with pytest.raises(InputError, match="--overwrite"):
        pack.check_target(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt is not listed"):
        tiny.bundle(out, backbone="other", overwrite=True)
    assert open_bundle_backbone(out / "manifest.json") == "tiny"
    (out / "notes.txt").unlink()
    assert tiny.bundle(out, backbone="other", overwrite=True).manifest.backbone == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def open_bundle_backbone(path: Path) -> str:
    return str(json.loads(path.read_bytes())["backbone"])


def test_of_two_that_add_the_same_plan_at_once_one_is_left_whole(tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    plans = [bytes([k]) * 5_000_000 for k in range(6)]
    with ThreadPoolExecutor(len(plans)) as pool:
        list(pool.map(lambda plan: pack.add_plan(bundle, record(plan), plan), plans))
    bundle.verify()
    assert bundle.read_plan(bundle.plans()[0]) in plans


def test_a_file_that_vanishes_while_a_bundle_is_opened_is_no_fault_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the temporary file of a plan does that another process adds meanwhile."""
    path, listed = tiny.bundle(tmp_path / "bundle").path, Path.rglob
    gone = path / "plans" / ".made-by-hand.json.tmp"
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: [*listed(folder, pattern), gone])
    open_bundle(path).verify()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    tiny.bundle(tmp_path / "bundle").verify()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.bundle(tmp_path / "bundle")
    written = []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        real(path, data)

    real = files.write_through
    monkeypatch.setattr(pack, "write_through", full)
    with pytest.raises(InputError, match="No space left on device"):
        tiny.bundle(tmp_path / "bundle", backbone="other", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(tmp_path / "bundle").manifest.backbone == "tiny"


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_one_that_it_would_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tiny.bundle(tmp_path / "bundle")
    pack.add_plan(old, record(b"machine code"), b"machine code")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.startswith(".bundle.new"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(InputError, match="Input/output error"):
        tiny.bundle(tmp_path / "bundle", backbone="other", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    kept = open_bundle(tmp_path / "bundle")
    kept.verify()
    assert (kept.manifest.backbone, kept.read_plan(kept.plans()[0])) == ("tiny", b"machine code")


def test_what_appears_at_out_while_plans_are_built_is_kept(tmp_path: Path) -> None:
    def another_program(_: Bundle) -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match="holds something else than a bundle"):
        tiny.bundle(tmp_path / "bundle", complete=another_program)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "thesis.tex"]


def test_a_bundle_is_on_the_disk_before_the_one_that_it_replaces_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {path.name for path in tiny.bundle(tmp_path / "bundle").path.rglob("*")} | {tmp_path.name}
    flushed, deleted = set[str](), list[str]()

    def flush(handle: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{handle}").readlink().name)

    def delete(folder: Path, **_: object) -> None:
        if folder.exists():
            deleted.append(folder.name)
            assert (folder / "manifest.json").exists() and names <= flushed
            assert any(name.startswith(".bundle.new") for name in flushed)

    monkeypatch.setattr(files.os, "fsync", flush)
    monkeypatch.setattr(pack.shutil, "rmtree", delete)
    tiny.bundle(tmp_path / "bundle", overwrite=True)
    assert len(deleted) == 1


def test_a_record_that_cannot_be_written_leaves_the_old_one_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason="extra sign")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private = Ed25519PrivateKey.generate().private_bytes(*pem)
    plan = b"machine code"
    path = tiny.bundle(tmp_path / "bundle", signing_key=private).path
    opened = open_bundle(path, public_key=public_of(private))
    pack.add_plan(opened, record(plan), plan, private)
    monkeypatch.setattr(files, "write_through", full)
    for key in (private, None):
        with pytest.raises(InputError, match="No space left on device"):
            pack.put_record(opened, record(plan), key)
        assert opened.trusts(opened.plans()[0])
