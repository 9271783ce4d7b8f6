"""Build of the C++ extension muomni_kernels._C; everything else is in pyproject.toml.

The extension links neither libtorch nor CUDA, so torch is not needed to build it. It is optional: without a
compiler the package installs and the PyTorch references run; `muomni doctor` says so. SANITIZE=1 builds it
with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SANITIZE = os.environ.get("SANITIZE") == "1"
FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-DMUOMNI_SANITIZE"] if SANITIZE else ["-O3"]

setup(
    ext_modules=[
        Pybind11Extension(
            "muomni_kernels._C",
            sorted(f"csrc/{name}.cpp" for name in ("bindings", "downsample", "log_mel")),
            depends=[f"csrc/{name}.h" for name in ("downsample", "fft", "lanes", "log_mel")],
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=[*FLAGS, "-Wall", "-Wextra", "-fno-math-errno", "-pthread"],
            extra_link_args=["-fsanitize=address,undefined", "-pthread"] if SANITIZE else ["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
