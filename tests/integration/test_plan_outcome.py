"""What became of a plan, where its job told of it: the comment, which may be in the issue, and the check run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import update

from bot.approval_desk import SETTLING
from bot.sandbox.faults import Fault
from bot.schema import approvals, jobs
from tests.integration.test_approval_desk import REPO, late, world


async def test_it_is_told_in_the_comment_and_the_check_run_of_the_plan_s_job(tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)  # so that nobody is just writing its first comment
    async with world(tmp_path) as place:

        def told() -> tuple[str, str]:
            (comment,) = [body for body in place.ours() if "<!-- agent-conductor:job:" in body]
            (run,) = [run for run in place.sandbox.check_runs(REPO, place.sha) if run["name"] == "agent/plan"]
            return comment, run["output"]["title"]

        async with place.engine.begin() as connection:
            await connection.execute(
                update(jobs).values(kind="plan", state="succeeded", marker_sha=place.sha, created_at=before)
            )
        asked = await place.ask()
        await late(place, asked)
        place.sandbox.faults.add(Fault(path="/check-runs", status=503, times=2))
        await place.desk.settle()
        assert (await place.now(asked)).settled_at is None  # and so it is told later
        async with place.engine.begin() as connection:
            await connection.execute(update(approvals).values(decided_at=datetime.now(UTC) - SETTLING))
        await place.desk.settle()
        comment, title = told()
        assert title == "Nobody decided about the plan in time"
        assert f"**{title}**" in comment
        await place.ask()
        await place.reviewed("rita", "REQUEST_CHANGES", "Another way.")
        comment, title = told()
        assert title == "The plan was sent back by rita"
        assert f"**{title}**" in comment
