"""The C library in the hands of others: how it is configured and linked, and where it looks for what it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cpp_build
import pytest
import tiny_bundles as tiny
from cpp_build import ROOT, opened, require_packages

pytestmark = pytest.mark.usefixtures("cache")

LIBRARY = ROOT / "edgemed" / "cpp"


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("required", [False, True])
def test_what_a_build_lacks_skips_its_tests_unless_they_are_required(
    required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_build, "missing", lambda compiler: f"no {compiler} here")
    monkeypatch.setenv("EDGEMED_CPP_TESTS", "required" if required else "")
    outcomes = (pytest.fail.Exception, pytest.skip.Exception)  # either: a skip that is not awaited would skip this test
    with pytest.raises(outcomes, match=r"no c\+\+ here") as caught:
        require_packages()
    assert caught.type is outcomes[not required]
    with pytest.raises(outcomes) as caught:
        require_packages("clang++")
    assert caught.type is pytest.skip.Exception


def configured(folder: Path, *settings: str, **environment: str) -> tuple[int, str]:
    """What CMake ends with, and says, its lines joined."""
    require_packages()
    command = ["cmake", "-S", LIBRARY, "-B", folder, *settings]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


NO_PIE = """
#include <stdio.h>
#include "edgemed.h"
typedef edgemed_status (*opener)(const char*, const edgemed_options*, edgemed_model**);
static int run(opener open_it, const char* bundle) {
    edgemed_options options = edgemed_options_default();
    edgemed_model* model = NULL;
    options.runtime = "tensorrt-rtx";
    if (open_it(bundle, &options, &model) != EDGEMED_OK) puts(edgemed_last_error());
    edgemed_close(model);
    return 0;
}
int main(int count, char** arguments) {
    int (*volatile run_it)(opener, const char*) = run; /* not inlined, so that the address of edgemed_open is taken */
    return count > 1 ? run_it(edgemed_open, arguments[1]) : 2;
}
"""


def test_modules_are_looked_for_beside_the_library_whatever_the_program_is(build: Path, tmp_path: Path) -> None:
    """In a program at a fixed address, a function's address is one of the program's own."""
    (tmp_path / "program.c").write_text(NO_PIE)
    folder = build / "edgemed"
    flags = ["-fno-pie", "-no-pie", f"-I{LIBRARY / 'include'}", f"-L{folder}", f"-Wl,-rpath,{folder}"]
    run("cc", tmp_path / "program.c", "-o", tmp_path / "program", *flags, "-ledgemed")
    said = run(tmp_path / "program", tiny.bundle(tmp_path / "bundle").path)
    assert f" {folder.resolve()}/edgemed_tensorrt_rtx.so is not there" in said


@pytest.mark.parametrize("named", [False, True])
def test_the_advice_of_a_configuration_without_openvino_helps(named: bool, tmp_path: Path) -> None:
    """The command again, in the environment that has edgemed, after one whose Python was found, or named."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "other")
    other, here = tmp_path / "other" / "bin", Path(sys.executable).parent
    for folder, settings in ((other, [f"-DPython3_EXECUTABLE={other / 'python'}"] * named), (here, [])):
        path = f"{folder}:{os.environ['PATH']}"
        code, said = configured(tmp_path / "build", *settings, VIRTUAL_ENV=str(folder.parent), PATH=path)
        assert (code == 0) is (folder == here), said
        assert code == 0 or f"OpenVINO was not found by {folder}/python" in said


def test_a_folder_without_openvino_is_named(tmp_path: Path) -> None:
    code, said = configured(tmp_path / "build", f"-DOpenVINO_DIR={tmp_path}")
    assert (code, f"OpenVINO was not found in {tmp_path}" in said) == (1, True), said


def test_an_old_tensorrt_that_nobody_named_stops_nothing(tmp_path: Path) -> None:
    include = tmp_path / "prefix" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").touch()
    (include / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n")
    cuda = (f"-DEDGEMED_CUDA_INCLUDE_DIR={include}", "-DEDGEMED_CUDART=cudart", "-DEDGEMED_OPENVINO=OFF")
    for _ in range(2):  # what was found once is in CMake's cache, as if it had been named
        code, said = configured(tmp_path / "build", *cuda, f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
        assert (code, f"TensorRT in {include} is version '8'" in said) == (0, True), said
    code, said = configured(tmp_path / "other", *cuda, f"-DEDGEMED_TENSORRT_INCLUDE_DIRS={include}")
    assert (code, "edgemed needs 10.3 or newer" in said) == (1, True), said


def test_a_library_folder_elsewhere_is_the_one_that_pkg_config_names(tmp_path: Path) -> None:
    code, said = configured(tmp_path / "build", "-DEDGEMED_OPENVINO=OFF", "-DCMAKE_INSTALL_LIBDIR=/opt/here/lib")
    assert code == 0, said
    lines = (tmp_path / "build" / "edgemed.pc").read_text().splitlines()
    assert "libdir=/opt/here/lib" in lines and "includedir=${prefix}/include" in lines


def test_the_camera_loop_is_plain_c(tmp_path: Path) -> None:
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{LIBRARY / 'include'}"]
    run("cc", *flags, LIBRARY / "examples" / "camera_loop.c")


def test_without_home_the_cache_is_in_the_users_own(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Python: a service often runs without HOME. The user's entry is a stand-in's."""
    (tmp_path / "user.c").write_text(
        "#include <pwd.h>\n#include <stddef.h>\n"
        "int getpwuid_r(uid_t user, struct passwd* entry, char* text, size_t size, struct passwd** found) {\n"
        f'    (void)user, (void)text, (void)size, entry->pw_dir = "{tmp_path}";\n'
        "    *found = entry;\n    return 0;\n}\n"
    )
    run("cc", "-shared", "-fPIC", tmp_path / "user.c", "-o", tmp_path / "user.so")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "user.so"))
    found = opened(build, tiny.bundle(tmp_path / "bundle").path, "openvino")
    assert (found["status"], found["warnings"]) == (0, [])
    assert len(list((tmp_path / ".cache" / "edgemed" / "openvino").rglob("*.blob"))) == 1
