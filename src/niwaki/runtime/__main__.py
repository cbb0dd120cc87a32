"""Run a worker: `python -m niwaki.runtime`, started by `niwaki.runtime.open_worker` and by nobody else."""

from __future__ import annotations

from niwaki.runtime.worker import main

if __name__ == "__main__":
    main()
