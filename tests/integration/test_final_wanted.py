"""Where the repository begins to want the final approval, and who is asked for it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_approval_desk import REPO, others, world

FINAL = "approvals: {final: {required: 1}}\n"


async def test_whoever_is_asked_otherwise_is_asked_for_the_final_approval_too(tmp_path: Path) -> None:
    asked = FINAL.replace("approvals: {", "approvals: {request: {users: [rita, maria]}, ")
    async with world(tmp_path, yaml=asked, owners="* @carl\n") as place:
        maria = place.person("maria")

        async def reviewers() -> list[str]:
            await place.final.update(place.repo, place.number, request=True)
            pull = await maria.request("GET", f"/repos/{REPO}/pulls/{place.number}")
            return sorted(user["login"] for user in pull["requested_reviewers"])

        await maria.ready(REPO, place.number)
        assert await reviewers() == ["rita"], "not maria, who asked for the work"
        may = f"{FINAL}who: {{may_approve: {{users: [tom]}}}}\n"
        await maria.push_commit(REPO, "main", {".github/conductor.yml": may})
        assert await reviewers() == ["rita", "tom"]
        owners = FINAL.replace("required: 1", "required: 1, codeowners: true")
        await maria.push_commit(REPO, "main", {".github/conductor.yml": owners})
        assert await reviewers() == ["carl", "rita", "tom"]
        await maria.push_commit(REPO, "main", {".github/conductor.yml": FINAL})
        assert await reviewers() == ["carl", "rita", "tom"], "nobody is named"


async def test_pull_requests_that_are_open_already_get_it_when_it_is_switched_on(tmp_path: Path) -> None:
    async with world(tmp_path) as place:
        maria, carl = place.person("maria"), await others(place)
        assert not await place.final.update(place.repo, place.number, others=True)
        await maria.push_commit(REPO, "conf", {".github/conductor.yml": FINAL})
        brings = int((await maria.open_pull(REPO, "conf", "Approvals"))["number"])
        await maria.merge(REPO, brings)
        another = int((await others(place, "another"))["number"])
        await maria.merge(REPO, another)
        await place.final.configured(place.repo, another)
        assert await place.check() is None, "that one brought no configuration"
        await place.final.configured(place.repo, brings)
        bots, theirs = await place.check(), await place.check(carl["head"]["sha"])
        assert bots is not None
        assert theirs is not None
        assert (bots["status"], theirs["conclusion"]) == ("in_progress", "neutral")
        gone = await place.check((await place.sandbox.branches(REPO))["another"])
        assert gone is None, "closed"
