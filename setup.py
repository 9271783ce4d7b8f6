"""Build of the C++ extension muomni_kernels._C; everything else is in pyproject.toml.

The extension links neither libtorch nor CUDA, so torch is not needed to build it. It is optional: without a
compiler the package installs and the PyTorch references run; `muomni doctor` says so. SANITIZE=1 builds it
with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

SANITIZE = os.environ.get("SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if SANITIZE else []
OPTIMISE = ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]
FLAGS = [*OPTIMISE, *SANITIZERS, "-Wall", "-Wextra", "-ffp-contract=fast", "-pthread"]

with ParallelCompile(default=0):
    setup(
        ext_modules=[
            Pybind11Extension(
                "muomni_kernels._C",
                sorted(glob("csrc/*.cpp")),
                depends=sorted(glob("csrc/*.h")),
                include_dirs=["csrc"],
                cxx_std=17,
                extra_compile_args=FLAGS,
                extra_link_args=[*SANITIZERS, "-pthread"],
                optional=True,
            )
        ],
        cmdclass={"build_ext": build_ext},
    )
