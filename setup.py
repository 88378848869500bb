"""Builds the Cython extensions of kmscore; everything declarative lives in pyproject.toml."""

import shlex
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

# Native libraries, the oldest version whose behaviour the tests were run against, and the Debian package that has it.
NATIVE_LIBRARIES = {
    "libsecp256k1": ("0.2.0", "libsecp256k1-dev"),
    "libcrypto": ("3.0.0", "libssl-dev"),
}

# What each extension links against; one entry per kmscore/_*.pyx.
EXTENSIONS = {
    "_aead": ["libcrypto"],
    "_blake3": [],
    "_clock": [],
    "_envelope": ["libcrypto"],
    "_json": [],
    "_keccak": [],
    "_limits": [],
    "_mac": ["libcrypto"],
    "_message": [],
    "_nonce": ["libcrypto"],
    "_pop": ["libsecp256k1", "libcrypto"],
    "_proof": [],
    "_record": [],
    "_replay": [],
    "_secret": ["libcrypto"],
    "_store": [],
}

ROOT = Path(__file__).resolve().parent

CYTHON_DIRECTIVES = {
    "language_level": "3",
    "boundscheck": True,
    "wraparound": False,
    "overflowcheck": True,
    "nonecheck": True,
    "initializedcheck": True,
    "embedsignature": True,
    "binding": True,
    "warn.unused": True,
}


def pkg_config(library: str, *flags: str) -> list[str]:
    """Flags of `library` from pkg-config, or an exit that names what to install."""
    minimum, package = NATIVE_LIBRARIES[library]
    hint = f"nova-kms needs {library} {minimum} or newer: install it with `apt-get install {package}`"
    try:
        subprocess.run(["pkg-config", f"--atleast-version={minimum}", library], check=True)
        found = subprocess.run(["pkg-config", *flags, library], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{hint}, and pkg-config itself with `apt-get install pkg-config`")
    except subprocess.CalledProcessError:
        sys.exit(hint)
    return shlex.split(found.stdout)


def extension(name: str, libraries: list[str]) -> Extension:
    compile_args = [
        "-O3",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
        "-Wno-cast-function-type",
        f"-ffile-prefix-map={ROOT}=.",
        "-fstack-protector-strong",
        "-D_FORTIFY_SOURCE=2",
    ]
    link_args = ["-Wl,-z,relro,-z,now"]
    for library in libraries:
        compile_args += pkg_config(library, "--cflags")
        link_args += pkg_config(library, "--libs")
    return Extension(
        f"kmscore.{name}",
        [f"kmscore/{name}.pyx"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


Options.warning_errors = True

setup(
    ext_modules=cythonize(
        [extension(name, libraries) for name, libraries in EXTENSIONS.items()],
        compiler_directives=CYTHON_DIRECTIVES,
        build_dir="build/cython",
    ),
)
