"""One tiny run and its bundle, made once by the real commands, for the tests of the whole path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemed.cli import main

DATA = Path(os.environ.get("EDGEMED_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_configure() -> None:
    """Give each worker of pytest-xdist cores of its own: trainings that share them slow each other thirtyfold."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[int(worker[2:]) % len(cores) :: count])


@pytest.fixture
def real_images() -> Path:
    """The folder with busi/, ham10000/, ... that EDGEMED_TEST_DATA names; without it the test is skipped, visibly."""
    if not DATA.exists():
        pytest.skip("no real images: EDGEMED_TEST_DATA names no folder with busi/, ham10000/, hyperkvasir5/")
    return DATA


def run_main(*arguments: str | Path) -> int:
    """The exit code of `edgemed ARGUMENTS`, run in this process through the real entry point."""
    before = sys.argv
    sys.argv = ["edgemed", *(str(argument) for argument in arguments)]
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def edgemed() -> Callable[..., int]:
    return run_main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def key_files(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public one, in PEM, as openssl writes them."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason="extra sign")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edgemed.signature import public_of

    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    private.write_bytes(Ed25519PrivateKey.generate().private_bytes(*form))
    public.write_bytes(public_of(private.read_bytes()))
    return private, public


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder with the C++ library and its tests."""
    from cpp_build import built

    return built("cpp")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights that stand for ImageNet's: the tests need no download."""
    torch = pytest.importorskip("torch", reason="extra train is not installed")
    from safetensors.torch import save_file

    from edgemed.models import create_backbone

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(create_backbone("tf_efficientnet_lite0", 1000).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    assert run_main("sample", folder, "--per-class", "14", "--size", "96") == 0
    return folder


def tiny_flags(weights: Path) -> list[str]:
    """Flags of a training that takes seconds."""
    flags = "--backbone tf_efficientnet_lite0 --size 32 --pretrain-size 64 --epochs 3 --pretrain-epochs 2 --batch 8"
    return [*flags.split(), "--split", "0.6,0.2,0.2", "--threads", "1", "--weights", str(weights)]


@pytest.fixture(scope="session")
def tiny_run(phantoms: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tiny") / "run"
    assert run_main("train", phantoms, "--out", run, *tiny_flags(weights)) == 0
    return run


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path) -> Path:
    bundle = tiny_run.parent / "bundle"
    assert run_main("build-engine", tiny_run, "--out", bundle, "--runtime", "none") == 0
    return bundle
