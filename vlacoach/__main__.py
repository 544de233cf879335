"""``python -m vlacoach`` is the ``vlacoach`` command."""

from __future__ import annotations

from vlacoach.cli.main import main

if __name__ == "__main__":
    main()
