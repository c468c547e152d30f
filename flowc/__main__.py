"""``python -m flowc`` and the console command ``flowc``.

Here: the way in.  Not here: the commands (cli.py).
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 a difference or failed check, 2 usage or bad input."""
    from flowc.cli import main as run
    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
