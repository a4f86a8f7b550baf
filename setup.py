"""Builds the kernels in streamkit/_core; everything else about the project is in pyproject.toml.

STREAMKIT_DEBUG=1   bounds checks, no wraparound shortcuts, live-object counters (see CONTRIBUTING.md)
STREAMKIT_SANITIZE=1  checked by the address and undefined-behaviour sanitizers (`make test-sanitize`)
STREAMKIT_ONLY=a,b  build just these kernels, for a quick edit-compile loop
STREAMKIT_ANNOTATE=1  write the annotated HTML beside each kernel
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

debug = os.environ.get("STREAMKIT_DEBUG") == "1"
sanitize = os.environ.get("STREAMKIT_SANITIZE") == "1"
only = set(filter(None, os.environ.get("STREAMKIT_ONLY", "").split(",")))

if sanitize:
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
elif debug:
    compile_args = ["-O1", "-g"]
else:
    compile_args = ["-O3", "-g0", "-fno-math-errno"]

core = Path("streamkit/_core")
extensions = [
    Extension(
        f"streamkit._core.{source.stem}",
        [str(source)],
        depends=[str(header) for header in core.glob("*.h")],
        extra_compile_args=compile_args,
        define_macros=[("STREAMKIT_DEBUG", "1")] if debug else [],
        extra_link_args=["-pthread", *(["-fsanitize=address,undefined"] if sanitize else [])],
    )
    for source in sorted(core.glob("*.pyx"))
    if not only or source.stem in only
]


class BuildKernels(build_ext):
    """As setuptools does it, with a compiler a core unless `-j` says otherwise."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=cythonize(
        extensions,
        nthreads=0 if only else os.cpu_count() or 0,
        annotate=os.environ.get("STREAMKIT_ANNOTATE") == "1",
        compiler_directives={
            "language_level": "3",
            "boundscheck": debug,
            "wraparound": False,
            "initializedcheck": debug,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)
