"""python -m tests.attack operations|files: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description="Hostile calls and hostile files.")
    commands = parser.add_subparsers(dest="what", required=True)
    for what, count, words in (("operations", "--calls", "hostile calls"), ("files", "--files", "hostile files")):
        command = commands.add_parser(what, help=words)
        command.add_argument(count, dest="count", type=int, default=5000, help=f"how many {words}")
        command.add_argument("--seed", type=int, default=0, help="which ones")
        command.add_argument("--first", type=int, default=0, help="number of the first")
        command.add_argument("--only", type=int, help="run this number alone, and show it")
        command.add_argument(
            "--failures", type=Path, default=Path("runs/attack-failures"), help="folder for what failed"
        )
        command.add_argument("--json", type=Path, help="file for the counts")
    commands.add_parser("planted", help="faults planted on purpose, which have to be found")
    commands.choices["operations"].add_argument(
        "--no-memory-limit", action="store_true", help="as under AddressSanitizer"
    )
    commands.choices["files"].add_argument("--kinds", nargs="+", help="kinds of file; none: all")
    chosen = parser.parse_args(arguments)
    start = time.monotonic()
    if chosen.what == "planted":
        from tests.attack.planted import missed

        found = missed()
        print("\n".join(found) or f"all planted faults were found, {time.monotonic() - start:.0f} s")
        return int(bool(found))
    if chosen.what == "operations":
        from tests.attack.operations.run import attack_operations, show_call

        if chosen.only is not None:
            return show_call(chosen.seed, chosen.only)
        limit = {"memory_mb": None} if chosen.no_memory_limit else {}
        table = attack_operations(chosen.first, chosen.count, chosen.seed, chosen.failures, **limit)
    else:
        from tests.attack.files.run import attack_files, show_file

        if chosen.only is not None:
            return show_file(chosen.seed, chosen.only, chosen.failures, chosen.kinds)
        table = attack_files(chosen.first, chosen.count, chosen.seed, chosen.failures, kinds=chosen.kinds)
    seconds = time.monotonic() - start
    print(table.text())
    each = 1000 * seconds / max(1, table.tried)
    print(f"\n{table.tried} tried, {table.failed} failed, {seconds:.0f} s, {each:.2f} ms each")
    if table.failed:
        print(f"what failed is in {chosen.failures}")
    if chosen.json:
        table.write_json(chosen.json, what=chosen.what, seed=chosen.seed, seconds=round(seconds, 1))
    return int(table.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
