"""``python -m rookery``: the command line."""

from __future__ import annotations

from rookery.cli.main import main

if __name__ == "__main__":
    main()
