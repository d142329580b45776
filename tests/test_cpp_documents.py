"""The C++ library believes exactly the documents that Python believes."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles as tiny
from cpp_build import ROOT, certificate_record, probe

from edgemed import allowance, preflight
from edgemed.errors import InputError
from edgemed.manifest import Manifest, canonical_bytes, parse, sha256_of
from edgemed.pack import write_bundle
from edgemed.records import PlanRecord


def resealed(document: dict[str, Any]) -> bytes:
    """The manifest with the id and checksum that fit it: only its fields can be wrong."""
    loose = {"bundle_id", "checksum", "created", "edgemed_version"}
    document["bundle_id"] = sha256_of(canonical_bytes({k: v for k, v in document.items() if k not in loose}))[:16]
    document["checksum"] = sha256_of(canonical_bytes({k: v for k, v in document.items() if k != "checksum"}))
    return canonical_bytes(document)


VALUES: tuple[Any, ...] = (
    None, True, False,
    0, 1, -1, 2, 1.0, 0.5, 1e-7, 1e22, 2**62, 2**62 + 1, 2**70, "", " x", "x ", "x\u200b", "é", "a\nb", [], {},
    [1], ["a", "a"], ["a", "b"], [1, 2], [3, 2, 1], [1.5, 2], "fp32", "certified", "0" * 64, "A" * 64, "0" * 16,
    "2026-01-01T00:00:00Z", "2026-01-01T00:00:0xZ", "\u0662026-01-01T00:00:00Z",
)  # fmt: skip


ENDLESS = {f"{path} {2**70}" for path in (("batch", 2), ("image_side", 2), ("certificate", "images"))}
"""Python's integers have no end; C++ refuses these."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


def variants(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The document with each value in turn replaced by each of VALUES, taken out, or given a neighbour; by its name."""
    made = {}
    for path in places(document)[1:]:
        for change in (*VALUES, "remove", "add"):
            copy = json.loads(json.dumps(document))
            inner = copy
            for key in path[:-1]:
                inner = inner[key]
            if change == "remove":
                del inner[path[-1]]
            elif change == "add" and isinstance(inner, dict):
                inner[f"x{path[-1]}"] = inner[path[-1]]
            else:
                inner[path[-1]] = change
            made[f"{path} {change!r}"] = copy
    return made


@pytest.mark.parametrize("kind", ["manifest", "record"])
def test_documents_are_refused_exactly_where_python_refuses_them(
    kind: str, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "cpp")  # for this test alone: a folder in it is named like tensorrt
    from golden_files import POINT

    bundle = write_bundle(tmp_path / "bundle", **tiny.entropy_fields() | {"operating_point": POINT})
    files, refusals = [], []
    if kind == "manifest":
        made = variants(bundle.manifest.model_dump(mode="json"))
    else:
        made = variants(certificate_record(bundle.path).model_dump(mode="json"))
    names = list(made)
    for number, document in enumerate(made.values()):
        content = resealed(document) if kind == "manifest" else canonical_bytes(document)
        files.append(tmp_path / f"{number}.json")
        files[-1].write_bytes(content)
        try:
            parse(Manifest if kind == "manifest" else PlanRecord, content, files[-1])
            refusals.append(names[number] in ENDLESS)
        except InputError:
            refusals.append(True)
    found = [result is not None for file in chunks(files) for result in probe(build, kind, *file)]
    differing = [names[k] for k in range(len(files)) if found[k] != refusals[k]]
    assert not differing
    assert refusals.count(False) > 20 and refusals.count(True) > 500


def manifest_refusals(build: Path, folder: Path, documents: dict[str, bytes]) -> tuple[set[str], set[str]]:
    """The names of the manifests that Python refuses, and of those that C++ does."""
    files = {name: folder / f"{number}.json" for number, name in enumerate(documents)}
    python = set()
    for name, content in documents.items():
        files[name].write_bytes(content)
        try:
            parse(Manifest, content, files[name])
        except InputError:
            python.add(name)
    answers = zip(files, probe(build, "manifest", *files.values()), strict=True)
    return python, {name for name, answer in answers if answer is not None}


def test_bytes_that_are_no_utf8_are_reported_in_utf8(build: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"backbone": "back\xffbone"}')
    (answer,) = probe(build, "manifest", tmp_path / "manifest.json")  # as JSON, so that a raw byte would end it
    assert "manifest.json is not JSON" in answer["message"] and "back" in answer["message"]


def test_a_file_of_the_bundle_is_named_inside_of_it(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    good = {"x", "a/b/c/d", "plan", "golden/plans", "golden/manifest.json", "A_-.9", "9/x", "x" * 100}
    bad = {"", "/", "/x", "x/", "a//b", ".", "..", ".x", "a/.b", "a/..", "../x", "-x", "_x", "a b", "é", "a\\b", "a\nb"}
    bad |= {"a/b/c/d/e", "x" * 101, "plans", "plans/x.plan", "manifest.json", "manifest.sig", "manifest.json/x"}
    made = {}
    for name in good | bad:
        document = bundle.manifest.model_dump(mode="json")
        document["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        made[name] = resealed(document)
    assert manifest_refusals(build, tmp_path, made) == (bad, bad)


def test_a_manifest_has_its_own_id_and_checksum(build: Path, tmp_path: Path) -> None:
    document = tiny.bundle(tmp_path / "bundle").manifest.model_dump(mode="json")
    made = {"good": canonical_bytes(document)}
    for name, value in {"created": "2026-01-01T00:00:00Z", "bundle_id": "0" * 16, "checksum": "0" * 64}.items():
        made[name] = canonical_bytes(document | {name: value})
    other = document | {"bundle_id": "0" * 16}  # with the checksum that fits it
    other["checksum"] = sha256_of(canonical_bytes({key: value for key, value in other.items() if key != "checksum"}))
    made["another id"] = canonical_bytes(other)
    assert manifest_refusals(build, tmp_path, made) == (made.keys() - {"good"},) * 2


def chunks(files: list[Path]) -> list[list[Path]]:
    return [files[k : k + 500] for k in range(0, len(files), 500)]


def test_this_machine_is_described_as_in_python(build: Path) -> None:
    found = probe(build, "place")
    assert tuple(found["cpu"]) == preflight.cpu()
    assert found["cores"] == allowance.usable_cores()


def test_every_cpu_is_described_by_the_features_that_python_looks_for() -> None:
    """This machine has a few of them: of the others, the source tells."""
    source = (ROOT / "edgemed" / "cpp" / "src" / "preflight.cpp").read_text()
    listed = re.findall(r'"(\w+)"', source.split("cpu_features[] = {")[1].split("}")[0])
    assert listed == sorted(preflight._CPU_FEATURES)


def test_texts_print_where_python_says_so(build: Path, tmp_path: Path) -> None:
    assigned = [chr(k) for k in range(0x110000) if unicodedata.category(chr(k)) not in ("Cn", "Cs")]
    (tmp_path / "texts.json").write_text(json.dumps([f"a{one}b" for one in assigned]))
    found = probe(build, "visible", tmp_path / "texts.json")
    wrong = [hex(ord(one)) for one, shown in zip(assigned, found, strict=True) if shown != one.isprintable()]
    assert not wrong
