"""The data of a project that is made without any: orders, and how long their delivery took."""

from __future__ import annotations

import random
from typing import Any

from tidemill.durations import moment
from tidemill.offline.scaffold.columns import iso_text
from tidemill.offline.scaffold.plan import Data

ORDERS = 2_000


def example() -> list[Data]:
    """Return orders as events, and as labels whether each came late, known when it was delivered. Always the same."""
    draw = random.Random(7)  # noqa: S311  made up, not secret
    slowness = {f"c{number}": draw.gauss(0, 9) for number in range(12)}
    now, orders, deliveries = moment("2026-01-01"), [], []
    for number in range(ORDERS):
        now += int(draw.expovariate(1 / 90_000))
        courier, distance = draw.choice(list(slowness)), round(draw.uniform(1, 15), 1)
        minutes = 20 + 2 * distance + slowness[courier] + draw.gauss(0, 6)
        order = {"order_id": f"o{number}", "ordered_at": iso_text(now), "depot": draw.choice("NS"), "courier": courier}
        orders.append(order | {"distance_km": str(distance)})
        done = iso_text(now + int(minutes * 60_000))
        late = "true" if minutes > 45 else "false"
        deliveries.append({"order_id": f"o{number}", "delivered_at": done, "is_late": late})
    return [_data("orders", orders), _data("deliveries", deliveries)]


def _data(name: str, rows: list[dict[str, Any]]) -> Data:
    return Data(name, {column: [row[column] for row in rows] for column in rows[0]}, is_csv=True)
