"""Packs what the benchmark needs on an offline machine with torch and g++: sources and wheels.

    python benchmarks/gpu/pack.py --out build/gpu-pack [--python 3.11] [--platform manylinux2014_x86_64]

The folder contains `run.py`, which builds the native part with g++ and starts measure.py; at most 48 MiB.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 48 * 2**20
SOURCES = ("workers", "operator", "native", "benchmarks/gpu", "pyproject.toml", "README.md", "LICENSE")
"""Paths whose tracked files are packed."""
WHEELS = (
    *("pybind11", "pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *(
        "safetensors",
        "transformers",
        "tokenizers",
        "huggingface-hub",
        "regex",
        "PyYAML",
        "packaging",
        "filelock",
    ),
    *(
        "rich",
        "markdown-it-py",
        "mdurl",
        "pygments",
        "typer",
        "click",
        "shellingham",
        "tqdm",
        "requests",
        "httpx",
    ),
    *("httpcore", "h11", "anyio", "sniffio", "idna", "certifi", "urllib3", "charset-normalizer", "hf-xet"),
    *(
        "prometheus-client",
        "psutil",
        "xxhash",
        "orjson",
        "fsspec",
        "jinja2",
        "markupsafe",
        "zstandard",
        "lz4",
    ),
)
"""Packages that the target may lack; it provides torch and numpy. Those not installed here are left out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    parser.add_argument("--platform", default="manylinux2014_x86_64")
    parser.add_argument("--no-wheels", action="store_true", help="only the sources")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    copy_sources(options.out)
    if not options.no_wheels:
        fetch_wheels(options.out / "wheels", options.python, options.platform)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB, to be run by `python {options.out.name}/run.py`")
    if size > LIMIT:
        print(f"that is more than {LIMIT / 2**20:.0f} MiB", file=sys.stderr)
        return 1
    return 0


def copy_sources(out: Path) -> None:
    """Copy the tracked sources, and the script that starts them."""
    listed = subprocess.run(["git", "ls-files", "-z", *SOURCES], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and "/tests/" not in name and "/models/" not in name and (ROOT / name).is_file():
            to = out / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to)
    shutil.copy(ROOT / "benchmarks/gpu/run.py", out / "run.py")


def fetch_wheels(to: Path, python: str, platform: str) -> None:
    """Download the wheels in the versions installed here."""
    from importlib.metadata import PackageNotFoundError, version

    to.mkdir(parents=True)
    wanted = []
    for name in WHEELS:
        try:
            wanted.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
         "--python-version", python, "--platform", platform, "--platform", "manylinux_2_28_x86_64",
         "--platform", "manylinux_2_17_x86_64", "--platform", "any", "--dest", to, *wanted],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
