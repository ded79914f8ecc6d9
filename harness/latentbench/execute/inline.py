"""The `inline` executor: in this process, for debuggers and tests. It cannot outlive a crash or enforce a limit."""

from __future__ import annotations

from latentbench.execute.events import Report
from latentbench.execute.job import Job


class InlineExecutor:
    """Runs jobs one after the other in this process."""

    def run(self, jobs: list[Job], report: Report) -> None:
        """Runs all jobs; every cell has a record afterwards unless the process itself ends."""
        from latentbench.execute.group import run_job

        for job in jobs:
            run_job(job, report)
