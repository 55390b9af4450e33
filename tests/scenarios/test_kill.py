"""kill -9 of each process at each step of a running story: exactly one of everything, and the job succeeds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import docker
import pytest

from bot.model import JobState, Phase
from bot.sandbox.faults import Fault
from tests.scenarios.processes import Processes, processes
from tests.scenarios.world import REPO, World

STEPS = ["queued", "workspace", "agent", "publish", "pushed", "succeeded"]
BODY = "```sh\necho hello > hello.txt\nsleep 1.5\n```"


async def reached(box: World, step: str, number: int) -> None:
    """Return at the step, or as soon as it is over."""
    order = list(Phase)
    async with asyncio.timeout(60):
        while True:
            jobs = await box.store.recent_jobs()
            if jobs and jobs[0].number == number:
                job = jobs[0]
                if step == "queued" or job.state.final:
                    return
                if step == "pushed" and job.head_sha:
                    return
                if step in list(Phase) and job.phase and order.index(job.phase) >= order.index(Phase(step)):
                    return
            await asyncio.sleep(0.002)


async def exactly_one_of_everything(box: World, product: Processes, number: int) -> None:
    try:
        job = await box.ended(number, within=100)
    except AssertionError as error:
        raise AssertionError(
            f"{error}\n{product.log('worker')[-4000:]}\n{product.log('serve')[-3000:]}"
        ) from None
    assert job.state is JobState.succeeded, (job.phase, job.failure, job.message)
    assert len(await box.store.recent_jobs()) == 1
    assert len(await box.new_branches()) == 1
    (pull,) = box.github.pulls(REPO)
    assert pull["head"]["sha"] == job.head_sha
    assert await box.github.file(REPO, job.branch or "", "hello.txt") == "hello"
    (sticky,) = box.stickies(number)
    assert "✅" in sticky
    async with asyncio.timeout(40):
        while [run["conclusion"] for run in box.github.check_runs(REPO)] != ["success"]:
            await asyncio.sleep(0.1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["serve", "worker", "redis"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_process_is_killed(victim: str, step: str, tmp_path: Path) -> None:
    async with processes(tmp_path) as (box, product):
        maria = box.github.as_user("maria")
        number = (await maria.open_issue(REPO, "Hello", BODY))["number"]
        await maria.add_label(REPO, number, "agent")
        await reached(box, step, number)
        await product.kill(victim)
        await product.start(victim)
        await exactly_one_of_everything(box, product, number)


@pytest.mark.docker
@pytest.mark.timeout(240)
async def test_a_killed_worker_adopts_its_container(tmp_path: Path) -> None:
    client = docker.from_env()
    try:
        async with processes(tmp_path, runner="docker") as (box, product):
            maria = box.github.as_user("maria")
            body = "```sh\necho hello > hello.txt\nsleep 6\n```"
            number = (await maria.open_issue(REPO, "Hello", body))["number"]
            await maria.add_label(REPO, number, "agent")
            await reached(box, "agent", number)
            name = f"conductor-{(await box.store.recent_jobs())[0].id}-1"
            before = client.containers.get(name).id
            await product.kill("worker")
            assert client.containers.get(name).status == "running"
            await product.start("worker")
            assert client.containers.get(name).id == before
            await exactly_one_of_everything(box, product, number)
            assert client.containers.list(all=True, filters={"name": name}) == []
    finally:
        client.close()


@pytest.mark.timeout(240)
async def test_another_host_takes_over_from_one_that_went_silent(tmp_path: Path) -> None:
    async with processes(tmp_path) as (box, product):
        maria = box.github.as_user("maria")
        number = (await maria.open_issue(REPO, "Hello", BODY))["number"]
        await maria.add_label(REPO, number, "agent")
        await reached(box, "agent", number)
        await product.kill("worker")
        product.settings = box.settings.model_copy(update={"host_name": "another"})
        await product.start("worker")
        await exactly_one_of_everything(box, product, number)
        assert (await box.store.recent_jobs())[0].fence == 2


@pytest.mark.timeout(240)
async def test_redis_loses_everything_while_a_job_waits(tmp_path: Path) -> None:
    async with processes(tmp_path, slots=1) as (box, product):
        maria = box.github.as_user("maria")
        await product.kill("worker")
        number = (await maria.open_issue(REPO, "Hello", BODY))["number"]
        await maria.add_label(REPO, number, "agent")
        await box.job(number)
        await product.kill("redis")
        for file in tmp_path.glob("appendonlydir/*"):
            file.unlink()
        await product.start("redis")
        await product.start("worker")
        await exactly_one_of_everything(box, product, number)


@pytest.mark.timeout(240)
async def test_a_delivery_that_was_stored_is_replayed(tmp_path: Path) -> None:
    """GitHub is away while the server deals with a delivery, and the server dies: nothing is lost."""
    async with processes(tmp_path) as (box, product):
        maria = box.github.as_user("maria")
        number = (await maria.open_issue(REPO, "Hello", BODY))["number"]
        box.github.faults.add(Fault(path=r"/collaborators/", status=502, times=None))
        await maria.add_label(REPO, number, "agent")
        await box.github.deliveries_settled()
        await product.kill("serve")
        box.github.faults.clear()
        await product.start("serve")
        await exactly_one_of_everything(box, product, number)


@pytest.mark.timeout(240)
async def test_github_is_away_while_the_work_is_published(tmp_path: Path) -> None:
    async with processes(tmp_path) as (box, product):
        maria = box.github.as_user("maria")
        number = (await maria.open_issue(REPO, "Hello", BODY))["number"]
        await maria.add_label(REPO, number, "agent")
        await reached(box, "agent", number)
        box.github.faults.add(Fault(status=503, times=None))
        async with asyncio.timeout(60):
            while (await box.store.recent_jobs())[0].phase != Phase.publish:
                await asyncio.sleep(0.05)
        await asyncio.sleep(3)  # some tries fail
        box.github.faults.clear()
        await exactly_one_of_everything(box, product, number)
