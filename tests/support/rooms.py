"""Prints the rooms of the package (its folders and root files), the import levels they stand on, and what imports upward.

python tests/support/rooms.py
"""

from __future__ import annotations

import grimp

NAME = "tidemill"


def room_imports() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    graph = grimp.build_graph(NAME, exclude_type_checking_imports=True)
    rooms: dict[str, set[str]] = {child.partition(".")[2]: set() for child in graph.find_children(NAME)}
    for module in graph.modules - {NAME}:
        room = module.split(".")[1]
        imported = {other.split(".")[1] for other in graph.find_modules_directly_imported_by(module) if other != NAME}
        rooms[room] |= imported - {room}
    return rooms


def levels(rooms: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms by level, the lowest first. Raises ValueError where rooms import each other in a circle."""
    by_level: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(rooms):
        level = sorted(room for room, below in rooms.items() if room not in placed and below <= placed)
        if not level:
            raise ValueError(f"a circle of imports among {', '.join(sorted(rooms.keys() - placed))}")
        by_level.append(level)
        placed |= set(level)
    return by_level


if __name__ == "__main__":
    all_rooms = room_imports()
    by_level = levels(all_rooms)
    for number, level in reversed(list(enumerate(by_level, 1))):
        print(f"{number:2}  {' '.join(level)}")
    print(
        f"{len(all_rooms)} rooms, {len(by_level)} levels, {sum(map(len, all_rooms.values()))} edges between rooms, no circle"
    )
