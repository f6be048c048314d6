# SPDX-License-Identifier: MIT
"""The build backend: setuptools, plus what a static pyproject.toml cannot say.

The extension ``uswap._core`` is every ``csrc/*.c`` and one file that cffi generates from
``csrc/uswap.h``. That header is given to cffi as it stands; there is no second copy of the
declarations. The generated file goes to ``build/``.

Environment:
    USWAP_WERROR=1  C warnings are errors.
    USWAP_CFLAGS    appended to the compiler's and the linker's flags (``-fsanitize=...``).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403 - the hooks of PEP 517 and 660, unchanged
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import PlatformError

# A hook runs with the project's root as the current directory, and setuptools wants paths that
# are relative to it.
CSRC = Path("csrc")
BUILD = Path("build")
GENERATED = BUILD / "generated"

LIMITED_API = "0x030A0000"  # Python 3.10, as the wheel's tag cp310-abi3 says
CFLAGS = ["-std=gnu11", "-O2", "-g", "-pthread", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow"]
LDFLAGS = ["-pthread", "-ldl"]
INSTALL = "on Debian and Ubuntu: apt-get install gcc libc6-dev python3-dev"
SHIPPED = (
    "csrc",
    "tests",
    "demos",
    "Makefile",
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
)

BUILD.mkdir(exist_ok=True)  # [tool.distutils.egg_info] puts the metadata there


def flags() -> tuple[list[str], list[str]]:
    """The compiler's and the linker's flags."""
    extra = shlex.split(os.environ.get("USWAP_CFLAGS", ""))
    compile_flags = CFLAGS + WARNINGS
    if platform.machine() in ("x86_64", "AMD64"):
        compile_flags.append("-mcx16")  # an entry is 16 bytes and is swapped whole
    if os.environ.get("USWAP_WERROR") == "1":
        compile_flags.append("-Werror")
    return compile_flags + extra, LDFLAGS + extra


def generate() -> Path:
    """Write the cffi half of the extension and return the file to compile."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((CSRC / "uswap.h").read_text(encoding="utf-8"))
    ffi.set_source("uswap._core", '#include "types.h"')
    GENERATED.mkdir(parents=True, exist_ok=True)
    glue = GENERATED / "_core_glue.c"
    ffi.emit_c_code(str(glue))
    # Warnings in generated code are nobody's to mend. The pragma silences all of them, but only in
    # a file that is included.
    body = "#pragma GCC system_header\n" + glue.read_text(encoding="utf-8")
    write_if_changed(GENERATED / "_core_glue.h", body)
    glue.unlink()
    source = GENERATED / "_core.c"
    write_if_changed(source, '#include "_core_glue.h"\n')
    return source


def write_if_changed(path: Path, text: str) -> None:
    """Leave the file's time alone when nothing changed, so that nothing is compiled for it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class BuildExt(build_ext):
    """Fills in the extension that pyproject.toml only names."""

    def finalize_options(self) -> None:
        """Complete the extension."""
        super().finalize_options()
        (extension,) = self.extensions
        extension.sources = sorted(str(path) for path in CSRC.glob("*.c"))
        extension.depends = sorted(str(path) for path in CSRC.glob("*.h"))
        extension.include_dirs = [str(CSRC), str(GENERATED)]
        extension.define_macros = [("_GNU_SOURCE", None), ("Py_LIMITED_API", LIMITED_API)]
        extension.extra_compile_args, extension.extra_link_args = flags()

    def build_extension(self, ext: object) -> None:
        """Generate, then compile."""
        self._check_tools()
        (extension,) = self.extensions
        generated = generate()
        extension.sources = [*extension.sources, str(generated)]
        extension.depends = [*extension.depends, str(GENERATED / "_core_glue.h")]
        super().build_extension(extension)

    def _check_tools(self) -> None:
        """Say in one line what is missing, before a compiler's message does in a hundred.

        Raises:
            PlatformError: setuptools shows its message, and no traceback.
        """
        if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
            raise PlatformError(
                f"uswap is for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
            )
        command = self.compiler.compiler_so[0]
        if shutil.which(command) is None:
            raise PlatformError(
                f"uswap's core is written in C, and there is no C compiler here ({command!r} is not "
                f"found): {INSTALL}, or name yours by CC=..."
            )
        paths = [*self.include_dirs, *os.environ.get("CPATH", "").split(":")]
        if not any((Path(path) / "Python.h").exists() for path in paths if path):
            raise PlatformError(
                f"the headers of Python {platform.python_version()} are missing (Python.h, looked for in "
                f"{', '.join(path for path in paths if path)}): {INSTALL}"
            )


class Sdist(sdist):
    """Ships what builds and tests the package, since there is no MANIFEST.in to say so."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files, those of SHIPPED among them."""
        wanted = {name for name in files if not name.startswith(f"{BUILD}/")}
        for name in SHIPPED:
            top = Path(name)
            for path in top.rglob("*") if top.is_dir() else [top]:
                if path.is_file() and "__pycache__" not in path.parts:
                    wanted.add(str(path))
        super().make_release_tree(base_dir, sorted(wanted))
