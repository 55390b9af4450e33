"""REST: the App's log of webhook deliveries.

https://docs.github.com/en/rest/apps/webhooks and
https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/viewing-webhook-deliveries
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.state import Delivery

KEPT_FOR = timedelta(days=3)
"""How long a delivery can be looked at and sent again."""

_CURSOR = re.compile(r"v1_(\d{1,18})")


async def list_deliveries(call: Call) -> Answer:
    """GET /app/hook/deliveries: newest first; the next page starts below the cursor's id."""
    size = min(100, max(1, int(call.query.get("per_page", "30"))))
    below = _below(call.query.get("cursor", ""))
    older = [
        one
        for one in _kept(call)
        if (below is None or one.id < below) and _has_status(one, call.query.get("status"))
    ]
    headers = {}
    if len(older) > size:
        query = urlencode({**call.query, "per_page": size, "cursor": f"v1_{older[size - 1].id}"})
        headers["Link"] = f'<{call.github.base_url}{call.request.path}?{query}>; rel="next"'
    return Answer(data=[delivery_summary(one) for one in older[:size]], headers=headers)


async def get_delivery(call: Call) -> Answer:
    """GET /app/hook/deliveries/{delivery_id}."""
    delivery = _delivery(call)
    data = delivery_summary(delivery) | {
        "url": delivery.url,
        "request": {"headers": dict(delivery.request_headers), "payload": dict(delivery.payload)},
        "response": {"headers": dict(delivery.response_headers), "payload": delivery.response_body},
    }
    return Answer(data=data)


async def redeliver(call: Call) -> Answer:
    """POST /app/hook/deliveries/{delivery_id}/attempts."""
    call.github.redeliver(_delivery(call))
    return Answer(202, {})


OPERATIONS: dict[str, Handler] = {
    "apps/list-webhook-deliveries": list_deliveries,
    "apps/get-webhook-delivery": get_delivery,
    "apps/redeliver-webhook-delivery": redeliver,
}


def delivery_summary(delivery: Delivery) -> dict[str, Any]:
    """A delivery as the log lists it."""
    return {
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": delivery.delivered_at.isoformat().replace("+00:00", "Z"),
        "redelivery": delivery.redelivery,
        "duration": delivery.duration,
        "status": delivery.status,
        "status_code": delivery.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation_id,
        "repository_id": delivery.repository_id,
        "throttled_at": None,
    }


def _kept(call: Call) -> list[Delivery]:
    oldest = call.github.now() - KEPT_FOR
    return [one for one in call.github.world.deliveries if one.delivered_at > oldest]


def _below(cursor: str) -> int | None:
    if not cursor:
        return None
    known = _CURSOR.fullmatch(cursor)
    if known is None:
        raise Refusal(422, "Invalid cursor")
    return int(known[1])


def _has_status(delivery: Delivery, wanted: str | None) -> bool:
    match wanted:
        case "success":
            return 200 <= delivery.status_code < 400
        case "failure":
            return 400 <= delivery.status_code < 600
    return True


def _delivery(call: Call) -> Delivery:
    number = int(call.args["delivery_id"])
    delivery = next((one for one in _kept(call) if one.id == number), None)
    if delivery is None:
        raise not_found()
    return delivery
