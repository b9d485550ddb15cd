"""Commands on disks that are small, full or read-only: a program of its own, in a name space where it may mount.

    unshare --map-root-user --mount python -m tests.run.disks CASES.json

For each case a new disk (a tmpfs) is mounted at its ``disk``, and each of its ``commands`` run. Prints, as JSON, what
they said and their exit codes, and what is left on the disk.
"""

import io
import json
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


def fill(disk: Path, leave: int = 0) -> None:
    """Take all room of the disk but ``leave`` bytes."""
    with (disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))


def fill_once_there(disk: Path, pattern: str, ended: threading.Event) -> None:
    while not any(disk.glob(pattern)):
        if ended.wait(0.001):
            return
    fill(disk)


def run_command(command: list[str], disk: Path, when: str | None) -> dict[str, object]:
    """``when`` is the pattern of a file; as soon as it is there, the disk fills up."""
    from outgrow.run import cli

    cli._SHOWN.clear()
    sys.argv = ["outgrow", *command]
    said, ended = io.StringIO(), threading.Event()
    other = threading.Thread(target=fill_once_there, args=(disk, when, ended)) if when else None
    if other:
        other.start()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
    ended.set()
    if other:
        other.join()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("outgrow: ")]
    return {"code": code, "said": lines}


def main() -> None:
    results = {}
    for name, case in json.loads(Path(sys.argv[1]).read_text()).items():
        disk = Path(case["disk"])
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={case['size']}", "tmpfs", disk], check=True)
        found = []
        for step in case["steps"]:
            match step:
                case "read-only":
                    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
                case "free":
                    (disk / "fill").unlink()
                case "full":
                    fill(disk)
                case {"file": path}:
                    Path(path).write_text("")
                case {"XDG_CACHE_HOME": path}:
                    os.environ["XDG_CACHE_HOME"] = path
                case {"command": command, **rest}:
                    found.append(run_command(command, disk, rest.get("fills_once")))
        left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
        results[name] = {"found": found, "left": left}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
