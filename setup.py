"""Builds the codecs' kernels where a C++ compiler is; everything else stands in pyproject.toml.

They are one shared library without Python in it, loaded with ctypes, so it gets a name that no interpreter's version
and no module is part of.
"""

from __future__ import annotations

from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, LinkError

FOLDER = "src/fedhybrid/codecs/kernels"
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fno-tree-vectorize",
    "-g0",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
]
OPENMP = "-fopenmp"


class BuildKernels(build_ext):
    """Names the library, and does without OpenMP where the compiler has none: kernels then use one thread."""

    def get_ext_filename(self, fullname: str) -> str:
        """Path of the built library below the packages' root."""
        return str(Path(*fullname.split(".")[:-1], "kernels.native.so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: there is no module to initialise."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Tries with threads first."""
        try:
            super().build_extension(ext)
        except (CCompilerError, CompileError, LinkError):
            ext.extra_compile_args = [flag for flag in ext.extra_compile_args if flag != OPENMP]
            ext.extra_link_args = []
            super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "fedhybrid.codecs.kernels.native",
            sources=sorted(glob(f"{FOLDER}/native/*.cpp")),
            depends=sorted(glob(f"{FOLDER}/native/*.hpp")),
            extra_compile_args=[*FLAGS, OPENMP],
            extra_link_args=[OPENMP],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
