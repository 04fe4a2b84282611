"""``python -m hpc_kjko``: the same program as the ``kjko`` command."""

import sys


def start() -> int:
    """Run the command line; an interrupt while torch is still being loaded is no traceback."""
    try:
        from hpc_kjko.cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
