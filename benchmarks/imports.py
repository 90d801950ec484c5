"""What it costs to import us: CPU time and memory of a new process, beside the frameworks alone.

    python benchmarks/imports.py
    python benchmarks/imports.py --rounds 5

Each figure is of a process that imports and ends: its CPU time, system and user, and the most memory that it has had
resident. Contenders take turns; figures are medians, and the last two columns are the medians of the differences to the
framework alone in the same round. A first round that is not counted writes the bytecode of all modules: unset
PYTHONDONTWRITEBYTECODE, or every process compiles our modules. Nothing is asserted. For the memory of workers that
serve see workers.py; for where the time goes, `python -X importtime -c "from sticky_asgi import StickyWorkers"`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKERS = "StickyWorkers"
MIDDLEWARE = "Backend, Server, StickyMiddleware"

#: each framework, with what is imported besides
CONTENDERS = {
    "uvicorn, Starlette": ("import uvicorn, starlette.applications", "sticky_asgi", (WORKERS, MIDDLEWARE)),
    "uvicorn, FastAPI": ("import uvicorn, fastapi", "sticky_asgi", (WORKERS,)),
    "gunicorn, Flask": ("import gunicorn.app.wsgiapp, flask", "sticky_wsgi", (WORKERS, MIDDLEWARE)),
}


def measure(code: str) -> tuple[float, float]:
    """Run `code` in a new process. Return its CPU time in milliseconds, and its memory in MiB."""
    here = f"{Path(__file__).resolve().parents[1]}"
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{code!r} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return 1000 * (usage.ru_utime + usage.ru_stime), usage.ru_maxrss * unit / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="how many processes of each (default 15)")
    rounds: int = parser.parse_args().rounds
    if sys.dont_write_bytecode:
        print("PYTHONDONTWRITEBYTECODE is set: modules without bytecode are compiled by each process\n")
    codes: dict[tuple[str, str], str] = {}
    for framework, (code, face, names) in CONTENDERS.items():
        codes[framework, ""] = code
        codes.update({(framework, each): f"{code}\nfrom {face} import {each}" for each in names})
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {contender: [] for contender in codes}
    for number in range(rounds + 1):
        for contender, code in codes.items():
            figure = measure(code)
            if number:
                figures[contender].append(figure)
    print(f"{'':<56}{'CPU':>8}{'memory':>11}{'more CPU':>11}{'more memory':>14}")
    for (framework, imported), measured in figures.items():
        plain = figures[framework, ""]
        columns = [statistics.median(column) for column in zip(*measured, strict=True)]
        row = f"{framework if not imported else '  and ' + imported:<56}{columns[0]:>5.0f} ms{columns[1]:>7.1f} MiB"
        if imported:
            more = [
                statistics.median(mine - other for mine, other in zip(ours, others, strict=True))
                for ours, others in zip(zip(*measured, strict=True), zip(*plain, strict=True), strict=True)
            ]
            row += f"{more[0]:>8.0f} ms{more[1]:>10.1f} MiB"
        print(row)


if __name__ == "__main__":
    main()
