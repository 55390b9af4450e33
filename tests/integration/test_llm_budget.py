"""Budgets through the real proxy, a real database and the scripted LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.budget import Scope
from bot.config import fixed_settings
from bot.database import create_engine
from bot.ledger import Entry, Ledger, today
from bot.model import FailureKind, Usage
from bot.terms import Terms
from runners.gateway.desk import Desk
from runners.gateway.llm_budget import NoMoney, Purse
from tests.llm import Script, ScriptedLlm
from tests.llm_gate import GEMINI_TOOLS, MODEL, TOOLS, Front, front, raw_upstream
from tests.made_once import migrated

PRICES = {"scripted-1": {"input": 10, "output": 100}}  # the scripted answer of 100 + 20 tokens: 0.3 cents
TERMS = Terms(job_id="j1", thread_id="10-1", repo_id=10, actor_id=3)
COST = 0.003
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "anthropic": ("anthropic/v1/messages", {"model": "scripted-1", "tools": TOOLS, "max_tokens": 100}),
    "responses": ("openai/responses", {"model": "scripted-1", "tools": TOOLS}),
    "chat": ("openai/chat/completions", {"model": "scripted-1", "tools": TOOLS}),
    "gemini": ("gemini/v1beta/models/scripted-1:generateContent", {"tools": GEMINI_TOOLS, "contents": []}),
}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """SQLite alone: tests/contract/test_ledger.py asks both."""
    made = create_engine(migrated(tmp_path / "conductor.db"))
    yield made
    await made.dispose()


@pytest.fixture
def ledger(engine: AsyncEngine) -> Ledger:
    return Ledger(engine)


async def ask(gate: Front, kind: str = "anthropic") -> tuple[int, str]:
    path, body = BODIES[kind]
    async with gate.post(path, body) as answer:
        found = await answer.json()
        return answer.status, found["error"]["message"] if answer.status >= 400 else ""


def spent(cost: float | None, **terms: object) -> Entry:
    return Entry(
        terms=TERMS.model_copy(update=terms),
        attempt_id="a",
        at=datetime.now(UTC),
        model="scripted-1",
        usage=Usage(requests=1, cost=cost),
    )


@pytest.mark.parametrize("kind", list(BODIES))
async def test_a_budget_of_a_cent_stops_the_first_request_after_it(kind: str, ledger: Ledger) -> None:
    async with (
        ScriptedLlm(Script.of([{"text": "hi", "times": "always"}])) as llm,
        front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_job=0.01) as gate,
    ):
        answers = [await ask(gate, kind) for _ in range(6)]
        assert [status for status, _ in answers] == [200, 200, 200, 200, 402, 402]
        assert len(llm.requests) == 4
    sentence = "The budget of $0.01 for this job is used up ($0.012 spent)."
    assert answers[-1][1].startswith(sentence)
    assert "--budget" in answers[-1][1]
    assert gate.tally.halts[0] == (FailureKind.budget, sentence)
    assert await ledger.spent(TERMS, [Scope.job]) == {Scope.job: pytest.approx(4 * COST)}


async def test_the_refusal_keeps_clients_from_trying_again(ledger: Ledger) -> None:
    async with (
        ScriptedLlm(Script.of([])) as llm,
        front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_day=0) as gate,
    ):
        path, body = BODIES["anthropic"]
        async with gate.post(path, body) as answer:
            assert (answer.status, answer.headers["x-should-retry"]) == (402, "false")
            assert (await answer.json())["error"]["type"] == "billing_error"
        assert llm.requests == []


@pytest.mark.parametrize(
    ("settings", "earlier", "whose"),
    [
        ({"budget_thread": 1}, {"job_id": "j0"}, "for this issue and its pull request"),
        ({"budget_user_day": 1}, {"job_id": "j0", "thread_id": "x", "repo_id": 11}, "that you have for"),
        ({"budget_repository_day": 1}, {"job_id": "j0", "actor_id": 9}, "that this repository has for"),
        ({"budget_day": 1}, {"job_id": "j0", "actor_id": 9, "repo_id": 11}, "that this server has for"),
    ],
)
async def test_what_others_spent_counts_where_it_is_shared(
    ledger: Ledger, settings: dict[str, Any], earlier: dict[str, Any], whose: str
) -> None:
    await ledger.add([spent(1.5, **earlier)])
    async with (
        ScriptedLlm(Script.of([])) as llm,
        front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, **settings) as gate,
    ):
        status, message = await ask(gate)
        assert llm.requests == []
    assert status == 402
    assert f"The budget of $1.00 {whose}" in message
    assert (today() in message) == (not whose.startswith("for this issue"))


@pytest.mark.parametrize(
    "terms", [{"budget_job": 0.001}, {"budget_thread": 0.001}, {"budget_repository_day": 0.001}]
)
async def test_repository_and_asker_lower_the_budget(ledger: Ledger, terms: dict[str, Any]) -> None:
    async with (
        ScriptedLlm(Script.of([{"text": "hi"}])) as llm,
        front(
            llm.url, ledger=ledger, terms=TERMS.model_copy(update=terms), prices=PRICES, budget_job=5
        ) as gate,
    ):
        assert [(await ask(gate))[0] for _ in range(2)] == [200, 402]


async def test_calls_side_by_side_do_not_overshoot_without_bound(ledger: Ledger) -> None:
    """Twenty at once, each of which may cost more than the whole budget: they go one after the other."""
    gates = [{"wait": f"gate{number}", "text": "hi"} for number in range(20)]
    async with (
        ScriptedLlm(Script.of(gates)) as llm,
        front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_job=0.005) as gate,
    ):
        asked = [asyncio.create_task(ask(gate)) for _ in range(20)]
        for number in range(20):
            llm.open(f"gate{number}")
        statuses = sorted([(await task)[0] for task in asked])
        # after the first 0.3 cents are left for a second, and then for none
        assert statuses == [200] * 2 + [402] * 18
        assert len(llm.requests) == 2


async def test_calls_side_by_side_go_together_where_the_budget_allows(ledger: Ledger) -> None:
    async with (
        ScriptedLlm(Script.of([{"wait": "go", "text": "hi", "times": 5}])) as llm,
        front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_job=5) as gate,
    ):
        asked = [asyncio.create_task(ask(gate)) for _ in range(5)]
        await llm.came(5)
        llm.open("go")
        assert [(await task)[0] for task in asked] == [200] * 5


async def test_a_call_that_waits_too_long_is_told_to_come_back(ledger: Ledger) -> None:
    purse = Purse(fixed_settings(prices=PRICES, budget_job=0.01), ledger, wait=0.05)
    call = {"model": "scripted-1", "free": False, "request_bytes": 10, "max_output": 1000}
    async with purse.hold(TERMS, **call):
        with pytest.raises(NoMoney) as caught:
            async with purse.hold(TERMS, **call):
                raise AssertionError("both at once")
        assert (caught.value.status, caught.value.halt) == (429, "")
        async with purse.hold(TERMS.model_copy(update={"job_id": "j2"}), **call):
            pass  # another job has its own budget
    async with purse.hold(TERMS, **call):
        pass


async def test_a_model_without_a_price_is_refused_where_there_is_a_budget(ledger: Ledger) -> None:
    body = {"model": "unheard-of", "tools": TOOLS}
    async with ScriptedLlm(Script.of([{"text": "hi", "times": "always"}])) as llm:
        async with (
            front(llm.url, ledger=ledger, terms=TERMS, budget_day=5) as gate,
            gate.post("anthropic/v1/messages", body) as answer,
        ):
            assert answer.status == 402
            message = (await answer.json())["error"]["message"]
        assert "'unheard-of' has no known price" in message
        assert "CONDUCTOR_PRICES" in message
        assert gate.tally.halts == [], "another model may do"
        assert llm.requests == []
        for settings in ({"budget_day": 5, "budget_unpriced": "allow"}, {}):
            async with (
                front(llm.url, ledger=ledger, terms=TERMS, **settings) as gate,
                gate.post("anthropic/v1/messages", body) as answer,
            ):
                assert answer.status == 200
    (line,) = await ledger.report(by="model")
    assert (line.name, line.calls, line.unpriced) == ("unheard-of", 2, 2)


async def test_another_name_of_the_model_in_the_answer_leads_around_no_budget(ledger: Ledger) -> None:
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        usage = {"input_tokens": 100, "output_tokens": 20}
        return web.json_response({"type": "message", "model": "eu.vendor.scripted-1-v2:0", "usage": usage})

    async with (
        raw_upstream(answer) as url,
        front(url, ledger=ledger, terms=TERMS, prices=PRICES, budget_job=0.01) as gate,
    ):
        path, body = BODIES["anthropic"]
        for status in (200, 200, 200, 200, 402):
            async with gate.post(path, body) as answered:
                assert answered.status == status
    assert len(asked) == 4
    assert await ledger.spent(TERMS, [Scope.job]) == {Scope.job: pytest.approx(4 * COST)}


async def test_a_subscription_has_no_budget_and_needs_no_price(ledger: Ledger) -> None:
    async with (
        ScriptedLlm(Script.of([{"text": "hi", "times": "always"}])) as llm,
        front(
            llm.url, ledger=ledger, terms=TERMS, budget_job=0.001, llm_anthropic_key="sk-ant-oat01-abcdef"
        ) as gate,
    ):
        assert [(await ask(gate))[0] for _ in range(3)] == [200] * 3
    assert await ledger.spent(TERMS, [Scope.job]) == {Scope.job: 0.0}


async def test_leaving_before_the_numbers_come_is_not_free(ledger: Ledger) -> None:
    """The attack: read the answer, hang up before its end, and the provider never tells what it cost."""
    left = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"response.output_text.delta","delta":"word"}\n\n' * 100)
        while not left.is_set():
            await response.write(b": ping\n\n" * 1000)
            await asyncio.sleep(0)
        return response

    async with raw_upstream(answer) as url:
        prices = {MODEL: {"input": 0, "output": 1000}}
        async with front(url, ledger=ledger, terms=TERMS, prices=prices, budget_job=0.05) as gate:
            async with gate.post("openai/responses", {"model": MODEL, "tools": TOOLS, "stream": True}) as r:
                await r.content.readexactly(1000)
                r.close()
            await gate.tally.counted.wait()
            left.set()
            status, _ = await ask(gate, "responses")
    assert status == 402
    [(_, usage)] = gate.tally.entries
    assert usage.output_tokens >= 10
    assert usage.cost is not None
    assert usage.cost >= 0.01


async def test_without_the_database_no_call_is_made_that_a_budget_limits(
    ledger: Ledger, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE spend RENAME TO away"))
    async with ScriptedLlm(Script.of([{"text": "hi", "times": "always"}])) as llm:
        async with front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_job=5) as gate:
            status, message = await ask(gate)
            assert (status, len(llm.requests)) == (503, 0)
            assert "cannot be checked" in message
            assert gate.tally.halts == []
        async with front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES) as gate:
            assert (await ask(gate))[0] == 200, "without a budget the answer must not be lost"
            async with engine.begin() as connection:
                await connection.execute(text("ALTER TABLE away RENAME TO spend"))
            assert (await ask(gate))[0] == 200
    # the one that could not be written down came with the next
    assert await ledger.spent(TERMS, [Scope.job]) == {Scope.job: pytest.approx(2 * COST)}


async def test_the_real_desk_is_halted_once_and_keeps_the_sentence(ledger: Ledger, tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "a", attempt_id="a-1", mirror=None, terms=TERMS)
    purse_settings = {"prices": PRICES, "budget_job": 0.001}
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm:
        async with front(llm.url, ledger=ledger, desk=desk, **purse_settings) as gate:
            assert [(await ask(gate))[0] for _ in range(3)] == [200, 402, 402]
        halt = await desk.wait_halted()
        desk.close()
    again = Desk.open(tmp_path / "a")
    assert again.halted == halt
    assert halt.kind is FailureKind.budget
    assert "is used up ($0.003 spent)" in halt.message
    assert again.usage().cost == pytest.approx(COST)
    again.close()


async def test_a_refusal_for_money_is_logged_without_content(ledger: Ledger) -> None:
    with structlog.testing.capture_logs() as lines:
        async with (
            ScriptedLlm(Script.of([])) as llm,
            front(llm.url, ledger=ledger, terms=TERMS, prices=PRICES, budget_day=0) as gate,
        ):
            await ask(gate)
    (line,) = lines
    assert (line["event"], line["provider"]) == ("llm call refused", "anthropic")
