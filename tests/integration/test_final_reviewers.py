"""Who is asked for the final approval, where the repository says whom to ask and not whose review counts."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_approval_desk import REPO, world

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
