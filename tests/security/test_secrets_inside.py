"""Attack class 10 of the design: no secret of the server is to be found inside a container, by whatever means."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from tests.scenarios.world import CANARIES, REPO, world

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

# Looks everywhere that the agent can look. A needle is given in two halves, so that the script itself does not hold it.
SEARCH = """
search() {
  needle="$1$2"
  { tr '\\0' '\\n' < /proc/1/environ; for p in /proc/[0-9]*; do cat $p/environ $p/cmdline $p/mountinfo; done; env; } \
    2>/dev/null | grep -aqF -- "$needle" && echo "found in /proc or the environment: $3"
  grep -raqF --exclude-dir=proc --exclude-dir=sys -- "$needle" / 2>/dev/null && echo "found in a file: $3"
}
"""


async def test_a_search_inside_finds_no_canary_and_inspect_shows_the_lock(tmp_path: Path) -> None:
    client = docker.from_env()
    try:
        async with world(tmp_path, runner="docker", job_timeout=200) as box:
            pem = box.settings.private_key_pem.splitlines()[3]
            needles = {
                **CANARIES,
                "app key": pem,
                "redis": box.settings.redis_url.removeprefix("unix://"),
                "database": "conductor.db",
                "installation token": f"ghs_{box.github.app_id}_",
                "control": "a-needle-that-is-there",
            }
            calls = "\n".join(
                f"search '{value[: len(value) // 2]}' '{value[len(value) // 2 :]}' '{name}'"
                for name, value in needles.items()
            )
            # the control shows that the search finds what is there
            hidden = "printf '%s%s' a-needle-that -is-there > /tmp/x\n"
            body = f"```sh\n{hidden}{SEARCH}\n({calls}) > /workspace/repo/found.txt || true\nsleep 2\n```"
            maria = box.github.as_user("maria")
            number = (await maria.open_issue(REPO, "Search", body))["number"]
            await maria.add_label(REPO, number, "agent")
            job = await box.job(number)
            name = f"conductor-{job.id}-1"
            inspected = None
            while inspected is None:
                try:
                    found = client.containers.get(name)
                    inspected = found.attrs if found.status == "running" else None
                except docker.errors.NotFound:
                    assert not (await box.job(number)).state.final
            ended = await box.ended(number)
            assert ended.head_sha, ended.message
            text = await box.github.file(REPO, ended.branch or "", "found.txt")
            assert text == "found in a file: control"

            host = inspected["HostConfig"]
            assert host["NetworkMode"] == "none"
            assert host["CapDrop"] == ["ALL"]
            assert not host["CapAdd"]
            assert host["ReadonlyRootfs"] is True
            assert not host["Privileged"]
            assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
            assert host["Memory"] > 0
            assert host["NanoCpus"] > 0
            assert host["PidsLimit"] > 0
            assert inspected["Config"]["User"] == "1000:1000"
            assert "docker.sock" not in str(inspected)
            for value in (*CANARIES.values(), pem, needles["redis"]):
                assert value not in str(inspected)
            assert {mount["Destination"]: mount["RW"] for mount in inspected["Mounts"]} == {
                "/workspace": True,
                "/home/agent": True,
                "/run/conductor": False,
                "/mirror": False,
            }
            # after the end nothing is left of it
            assert client.containers.list(all=True, filters={"name": name}) == []
            assert client.volumes.list(filters={"name": name}) == []
            assert not (box.settings.data_dir / "attempts" / f"{job.id}-1").exists()
    finally:
        client.close()
