"""The faults: each case does one kind of harm to a whole pipeline under load and says what came of it.

Each takes a Bench and sizes; the long sizes are the promises of docs/faults.md, the tests of `make test` use short ones.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis as redis_client
from harness import DATA_PLANE, EVERYBODY, OTHERS, POINTS, River, Row, exit_code, resume, service_of
from proxy import Proxy
from real_kafka import RealKafka
from running import until

from tidemill.local.processes import free_port
from tidemill.local.servers import Redis
from tidemill.local.stack import roles
from tidemill.stream.kafka.producer import TRANSACTION_TIMEOUT_SECONDS
from tidemill.wire import topics

ZOMBIE_SECONDS = TRANSACTION_TIMEOUT_SECONDS + 3.0


@dataclass
class Bench:
    """What the cases work with."""

    kafka: RealKafka
    redis: Redis
    folder: Path
    seed: int

    def river(self, *, rate: float, **more: object) -> River:
        """Make a pipeline that gets so many events a second."""
        return River(self.kafka, self.redis, self.folder, rate=rate, seed=self.seed, **more)  # type: ignore[arg-type]


def kills(bench: Bench, *, each: int = 20, between: float = 7.0, rate: float = 150.0, events: int = 100_000) -> Row:
    """Kill -9 each service, half the times at random moments, half exactly at a point of its code."""
    # A joiner reads again what the label's timeout spans: five days of it, where the flights' own declaration has two.
    with bench.river(rate=rate, label_timeout="120h", watched=True) as river:
        plan: list[tuple[str, str | None]] = []
        for role in EVERYBODY:
            points = list(POINTS[service_of(role)])
            river.rng.shuffle(points)
            times = -(-each // 4) if role in OTHERS else each
            # Where nothing can be struck, as in monitor and status, all moments are random.
            plan += [
                (role, None if n % 2 else point) for n, point in zip(range(times), itertools.cycle(points or [None]))
            ]
        river.rng.shuffle(plan)
        due = time.monotonic() + 3
        for role, point in plan:
            time.sleep(max(0.0, due - time.monotonic() + river.rng.uniform(-0.5, 0.5)))
            due += between
            if point is None:
                river.kill(role)
            else:
                river.strike(role, point)
        return river.judge(
            "kill -9 of any service under load", "L0D0, stall <= 5 s", stall_allowed=5.0, window=between - 1,
            least_events=events,
        )  # fmt: skip


def kills_whole(bench: Bench, *, each: int = 4, between: float = 8.0, rate: float = 150.0) -> Row:
    """Kill -9 a service together with the process that would start it again: a pod that is gone, Python's start included."""
    with bench.river(rate=rate, label_timeout="120h", watched=True) as river:
        victims = [*DATA_PLANE * each, *OTHERS]
        for role in river.rng.sample(victims, len(victims)):
            river.pause(between - 0.5, between + 0.5)
            river.kill(role, whole=True)
        return river.judge(
            "kill -9 of all of a service's processes", "L0D0, stall <= 10 s", stall_allowed=10.0, window=between - 1
        )


def graceful(bench: Bench, *, each: int = 5, between: float = 7.0, rate: float = 200.0) -> Row:
    """Stop each service and start it again, at least once: without transactions whatever is done again shows as doubled."""
    with bench.river(rate=rate, delivery="at_least_once", watched=True) as river:
        longest = 0.0
        stopped = [*DATA_PLANE * each, *OTHERS * -(-each // 3)]
        for role in river.rng.sample(stopped, len(stopped)):
            river.pause(between - 0.5, between + 0.5)
            until(lambda role=role: river.ready(role), f"{role} is not ready", 60)
            fault = river.plan("stop", role)
            seconds, code = river.stop(role)
            fault.fired = code == 0
            longest = max(longest, seconds)
            river.supervisor.begin(role)
        row = river.judge("a graceful stop of any service", "each stop <= 5 s, nothing done again", window=between - 1)
        row.notes.append(f"at least once, so that a repeat would show; longest stop {longest:.2f} s")
        row.verdict.must(longest <= 5.0, f"a stop took {longest:.1f} s")
        return row


def zombies(bench: Bench, *, rounds: int = 2, rate: float = 150.0) -> Row:
    """SIGSTOP longer than the transaction timeout while another takes the place, then resume: nothing it does may count."""
    views = ("featurizer", "materializer")
    with bench.river(rate=rate) as river:
        store = redis_client.Redis.from_url(bench.redis.url)
        late, ended = Counter[str](), 0
        for number in range(rounds):
            river.pause(2, 3)
            frozen = []
            for role in DATA_PLANE:
                if role in views and number % 2 == 0:
                    fault = river.strike(role, "redis:before", "stop")  # committed, and about to write the view
                elif number % 2 == 0:
                    fault = river.strike(role, "commit:before", "stop")  # all is sent, and about to be committed
                else:
                    fault = river.freeze(role)
                frozen.append((role, fault, river.replace(role)))
                # One after the other: with several away at once it would be seen of none how long it is away.
                until(lambda role=role: river.ready(role), f"the one in the place of {role} is not ready", 60)
                time.sleep(1.0)
            time.sleep(ZOMBIE_SECONDS)
            for role in views if number % 2 == 0 else ():
                held = river.struck(role)[-1]  # what it was about to write

                def overtaken(held: dict[str, Any] = held) -> bool:
                    return int(store.hget(held["key"], "offset") or 0) > held["offset"]

                until(overtaken, f"nobody has written in the place of {role}", 60)
            for _, fault, zombie in frozen:
                fault.until = time.monotonic()
                resume(zombie)
            for role, _, zombie in frozen:
                code = exit_code(zombie)
                ended += code is not None
                river.must(code == 1, f"the zombie of {role} ended with {code}")
            for role in views if number % 2 == 0 else ():
                late[river.struck(role)[-1].get("redis", "not tried")] += 1
        row = river.judge("zombies are fenced", "0 zombie effects, stall <= 10 s", stall_allowed=10.0, window=10)
        fenced = sum(river.log_of(role).count("another process has taken this instance's place") for role in DATA_PLANE)
        row.notes.append(
            f"{ended} zombies ended by themselves, and said {fenced} times that they were fenced; late writes to Redis: "
            + ", ".join(f"{n} {outcome}" for outcome, n in late.items())
        )
        row.verdict.must(late == {"refused": (rounds + 1) // 2 * len(views)}, f"late writes to Redis: {dict(late)}")
        row.verdict.must(fenced >= rounds * len(DATA_PLANE), f"{fenced} zombies say that they were fenced")
        return row


def lost_partitions(bench: Bench, *, rounds: int = 1, rate: float = 150.0) -> Row:
    """Pause one of two instances of each service, at any moment and within a transaction: the other takes its partitions.

    The paused one comes back to nothing.
    """
    with bench.river(rate=rate) as river:
        for role in DATA_PLANE:
            river.supervisor.begin(f"{role}#1")
        until(lambda: all(river.ready(f"{role}#1") for role in DATA_PLANE), "the second instances are not ready", 90)
        for role, within in itertools.product(DATA_PLANE * rounds, (False, True)):
            river.pause(2, 4)
            victim = river.rng.choice([role, f"{role}#1"])
            if within and service_of(role) == "learner":
                victim = role  # of its two instances only the first has the one partition there is
            fault = river.strike(victim, "commit:before", "stop") if within else river.freeze(victim)
            process = river.process(fault.role)
            time.sleep(ZOMBIE_SECONDS)
            fault.until = time.monotonic()
            resume(process)
            river.pause(
                3, 4
            )  # one that was within a transaction finds out that it was fenced, ends, and is started again
            until(lambda fault=fault: river.ready(fault.role), f"{fault.role} is not back", 60)
        return river.judge(
            "an instance that loses its partitions and comes back", "L0D0, stall <= 30 s", stall_allowed=30.0
        )


def broker(bench: Bench, *, hard: int = 5, clean: int = 5, rate: float = 150.0) -> Row:
    """Kill the broker, or stop it, and start it again."""
    with bench.river(rate=rate) as river:
        for how in river.rng.sample(["kill"] * hard + ["stop"] * clean, hard + clean):
            river.pause(6, 8)
            fault = river.plan(f"broker {how}", tolerated=False)
            if how == "kill":
                bench.kafka.kill()
            else:
                bench.kafka.stop()
            fault.fired = bench.kafka.process.poll() is not None
            river.pause(0.5, 2)
            bench.kafka.start()
            fault.until = time.monotonic() + 8
        row = river.judge("broker kill and restart", "L0D0, nothing acknowledged lost", window=12)
        row.notes.append(f"{hard} hard, {clean} clean; the stall includes the broker's own stop and start")
        return row


def storm(bench: Bench, *, changes: int = 30, between: float = 1.8, rate: float = 100.0) -> Row:
    """Instances of each service join and leave, 2 to 4 at a time; they leave by SIGTERM and by kill -9."""
    with bench.river(rate=rate) as river:
        present: dict[str, list[str]] = {role: [role] for role in DATA_PLANE}
        names = itertools.count(1)
        for role in DATA_PLANE:
            present[role].append(f"{role}#{next(names)}")
            river.supervisor.begin(present[role][-1])
        for _ in range(changes):
            for role in river.rng.sample(DATA_PLANE, len(DATA_PLANE)):
                members, begin = present[role], time.monotonic()
                joins = len(members) == 2 or (len(members) == 3 and river.rng.random() < 0.5)
                if joins:
                    fault = river.plan("join", role)
                    members.append(f"{role}#{next(names)}")
                    river.supervisor.begin(members[-1])
                    fault.fired = True
                else:
                    fault = river.plan("leave", role)
                    leaver = members.pop(river.rng.randrange(len(members)))
                    process = river.supervisor.let_go(leaver)
                    how = river.rng.choice([15, 15, 9])
                    if how == 9:
                        # Nobody takes the place of its transaction: what it holds back is let go when that times out, and
                        # the broker looks for such every 10 s.
                        fault.until = time.monotonic() + 2 * TRANSACTION_TIMEOUT_SECONDS
                    process.send_signal(how)
                    fault.fired = process.wait(30) in (0, -9, -15)
                    del river.run.stack.processes[leaver]
                time.sleep(max(0.0, between - (time.monotonic() - begin)))
        return river.judge(
            "rebalance storm", "30 joins and leaves of each: L0D0, stall <= 30 s", stall_allowed=30.0, window=20
        )


def rolls(bench: Bench, *, between: float = 3.0, rate: float = 150.0) -> Row:
    """Roll two instances of each service one by one, as an update does; then scale each to one, two, four and one."""
    with bench.river(rate=rate) as river:
        for role in DATA_PLANE:
            river.supervisor.begin(f"{role}#1")
        until(lambda: all(river.ready(f"{role}#1") for role in DATA_PLANE), "the second instances are not ready", 90)

        def change(what: str, role: str, leaves: Sequence[str] = (), joins: Sequence[str] = ()) -> None:
            river.pause(between, between + 1)
            fault = river.plan(what, role)
            codes = [river.stop(name)[1] for name in leaves]
            for name in joins:
                river.supervisor.begin(name)
            until(lambda: all(map(river.ready, joins)), f"{' '.join(joins)} are not ready", 60)
            fault.fired, fault.until = not any(codes), time.monotonic()

        for role in DATA_PLANE:
            for name in (f"{role}#1", role):
                change("roll", role, [name], [name])
        for role in DATA_PLANE:
            two, *more = (f"{role}#{number}" for number in (1, 2, 3))
            change("scale to 1", role, leaves=[two])
            change("scale to 2", role, joins=[two])
            change("scale to 4", role, joins=more)
            change("scale to 1", role, leaves=[two, *more])
        row = river.judge(
            "two instances of each, rolled one by one; scaled 1-2-4-1", "L0D0, stall <= 5 s", stall_allowed=5.0,
            window=between,
        )  # fmt: skip
        delays = river.delays()
        at = {share: delays[int(share * (len(delays) - 1))] for share in (0.5, 0.99)}
        row.notes.append(f"from an event's sending to its prediction p50 {at[0.5]:.2f} s, p99 {at[0.99]:.2f} s")
        return row


def redis_away(bench: Bench, *, rounds: int = 3, rate: float = 200.0) -> Row:
    """Redis killed, flushed, full; featurizer and materializer killed meanwhile."""
    with bench.river(rate=rate) as river:
        client = redis_client.Redis.from_url(bench.redis.url)
        evicted = 0
        for _ in range(rounds):
            river.pause(2, 3)
            fault = river.plan("redis killed", "featurizer")
            bench.redis.process.kill()
            bench.redis.process.wait()
            until(lambda: behind(river), "a lost Redis is not noticed", 20)
            for role in ("featurizer", "materializer"):  # who starts now has the log alone
                river.kill(
                    role
                ).role = "scorer"  # of the views nothing can be seen before Redis is back: predictions go on
                river.pause(3, 4)
                until(lambda role=role: behind(river, role), f"{role} does not start without Redis", 30)
            bench.redis.start()
            until(lambda: not behind(river) and not behind(river, "materializer"), "the views are not caught up", 30)
            fault.fired, fault.until = True, time.monotonic()
            river.pause(2, 3)
            fault = river.plan("redis flushed", "featurizer")
            client.flushall()
            fault.fired = True
            river.pause(2, 3)
            fault = river.plan("redis full", "featurizer")
            for n in range(50):
                client.set(f"junk:{n}", b"x" * 100_000)
            client.config_set("maxmemory", "4mb")
            until(lambda: behind(river), "a full Redis is not noticed", 20)
            river.kill("featurizer")
            river.pause(3, 4)
            evicted += client.info("stats")["evicted_keys"]
            fault.fired, fault.until = True, time.monotonic()
            for key in client.scan_iter("junk:*"):
                client.delete(key)
            until(lambda: not behind(river), "the view is not caught up", 30)
            client.config_set("maxmemory", "0")
        row = river.judge(
            "Redis killed; flushed; full (`maxmemory 4mb`)",
            "features afterwards equal a replay; 0 evicted; L0D0",
            stall_allowed=5.0,
            window=8,
        )
        row.notes.append(
            f"{evicted} keys evicted; `tidemill_view_behind` was 1 while it was away or full, vectors went on"
        )
        row.verdict.must(evicted == 0, f"{evicted} keys were evicted")
        return row


def behind(river: River, role: str = "featurizer") -> bool:
    """Whether a service says that its store can't be written."""
    status, text = river.run.stack.fetch(role, "/metrics")
    return status == 200 and any(
        line.startswith("tidemill_view_behind{") and line.endswith(" 1.0") for line in text.splitlines()
    )


def slow(bench: Bench, *, seconds: float = 90.0, rate: float = 100.0) -> Row:
    """Kafka and Redis through proxies: a hundred times slower for minutes, then cut again and again."""
    with ExitStack() as cleanup:
        to_kafka = Proxy(bench.kafka.proxy_port, bench.kafka.behind_proxy)
        to_redis = Proxy(free_port(), bench.redis.port)
        cleanup.callback(to_kafka.close)
        cleanup.callback(to_redis.close)
        river = cleanup.enter_context(
            bench.river(
                rate=rate,
                servers=f"127.0.0.1:{to_kafka.port}",
                redis_url=f"redis://127.0.0.1:{to_redis.port}/0",
            )
        )
        processes = {role: psutil.Process(river.worker(role)) for role in roles(river.run.pipeline)}
        time.sleep(15)
        before = {role: process.memory_info().rss for role, process in processes.items()}
        given = {role: river.log_of(role).count("partitions assigned") for role in processes}
        fault = river.plan("kafka and redis slow")
        to_kafka.delay, to_redis.delay = 0.05, 0.1
        time.sleep(seconds)
        fault.fired, fault.until = True, time.monotonic()
        growth = {role: process.memory_info().rss / before[role] - 1 for role, process in processes.items()}
        evictions = sum(river.log_of(role).count("partitions assigned") - n for role, n in given.items())
        to_kafka.delay = to_redis.delay = 0.0
        time.sleep(3)
        cuts = int(seconds / 12)
        for _ in range(cuts):
            fault = river.plan("connections cut")
            to_kafka.cut()
            to_redis.cut()
            fault.fired = True
            river.pause(4, 6)
        row = river.judge(
            "a slow sink, and one whose connections are cut",
            "memory <= +10%, nobody put out of the group, L0D0",
            stall_allowed=30.0,
            window=5,
        )
        worst = max(growth, key=lambda role: growth[role])
        row.notes.append(
            f"50 ms for each piece of Kafka's and 100 ms for each of Redis' for {seconds:.0f} s: the memory that changed most is "
            f"{worst}'s, {growth[worst]:+.1%}, and {evictions} members were put out of their group; then {to_kafka.cuts} "
            f"and {to_redis.cuts} connections were cut"
        )
        row.verdict.must(evictions == 0, f"{evictions} assignments while slow")
        row.verdict.must(growth[worst] <= 0.10, f"memory of {worst} grew by {growth[worst]:.1%}")
        return row


def disk_full(bench: Bench, *, rounds: int = 2, rate: float = 150.0) -> Row | None:
    """The artifact store's disk is full, the learner is killed meanwhile; None where no small disk can be mounted."""
    place = bench.folder / "small-disk"
    place.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode:
        return None
    with ExitStack() as cleanup:
        cleanup.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
        river = cleanup.enter_context(bench.river(rate=rate, store_url=str(place / "artifacts")))
        junk = place / "junk"
        for _ in range(rounds):
            river.pause(3, 4)
            fault = river.plan("disk full", "scorer")
            with junk.open("wb") as out:
                try:
                    while True:
                        out.write(b"\0" * 65536)
                        out.flush()
                except OSError:
                    fault.fired = True
            versions = river.ledger.count(topics.MODELS)
            river.pause(3, 4)
            river.kill("learner:logreg").role = "scorer"
            river.pause(5, 6)
            fault.fired = fault.fired and river.ledger.count(topics.MODELS) <= versions + 6
            junk.unlink()
            fault.until = time.monotonic()
            published = river.ledger.count(topics.MODELS)
            until(
                lambda published=published: river.ledger.count(topics.MODELS) > published + 3,
                "no version after the disk was full",
                30,
            )
        return river.judge("disk full", "the last snapshot loads; resumes; L0D0", stall_allowed=5.0, window=6)


def short(bench: Bench, *, rate: float = 150.0) -> Row:
    """A little of everything at once, of every service, in about a minute: what `make test` does."""
    with bench.river(rate=rate, watched=True) as river:
        zombies = []
        for role, point in (("materializer", "redis:before"), ("scorer", "commit:before")):
            zombies.append((role, river.strike(role, point, "stop"), river.replace(role)))
        frozen_at = time.monotonic()

        def kill_each(chosen: tuple[str, ...]) -> None:
            for role in chosen:
                river.strike(role, river.rng.choice(POINTS[service_of(role)]))
                river.pause(0.5, 1.0)
            river.kill(river.rng.choice(chosen))
            river.pause(0.5, 1.0)

        kill_each(("validator", "joiner", "learner:logreg", "gate"))
        time.sleep(max(0.0, frozen_at + ZOMBIE_SECONDS - time.monotonic()))
        for role, fault, zombie in zombies:
            fault.until = time.monotonic()
            resume(zombie)
            code = exit_code(zombie)
            river.must(code == 1, f"the zombie of {role} ended with {code}")
        late = river.struck("materializer")[-1].get("redis", "not tried")
        river.must(late == "refused", f"the zombie's late write to Redis: {late}")
        kill_each(("featurizer", "scorer", "materializer"))
        for fault in [river.kill(role, wait=False) for role in topics.WATCHING]:
            river.wait_back(fault)
        fault = river.plan("stop", "gate")
        fault.fired = river.stop("gate")[1] == 0
        river.supervisor.begin("gate")

        fault = river.plan("redis flushed", "featurizer")
        redis_client.Redis.from_url(bench.redis.url).flushall()
        fault.fired = True
        fault = river.plan("redis killed", "featurizer")
        bench.redis.process.kill()
        bench.redis.process.wait()
        until(lambda: behind(river), "a lost Redis is not noticed", 30)
        river.kill("featurizer")
        until(lambda: behind(river) and river.ready("featurizer"), "no start without Redis", 30)
        bench.redis.start()
        fault.fired = True
        fault = river.plan("join", "joiner")
        river.supervisor.begin("joiner#1")
        until(lambda: river.ready("joiner#1"), "joiner#1 is not ready", 60)
        fault.fired = True
        fault = river.plan("leave", "joiner")
        fault.fired = river.stop("joiner")[1] == 0
        time.sleep(2)
        fault = river.plan("broker killed", tolerated=False)
        bench.kafka.kill()
        fault.fired = True
        bench.kafka.start()
        return river.judge("a little of everything", "L0D0", window=4)


def chains(bench: Bench, *, each: int = 8, moves: int = 3, between: float = 5.0, rate: float = 150.0) -> Row:
    """Kill -9 chains of services, and move between chains and services apart, by stops and by kills."""
    with bench.river(rate=rate, chains=True) as river:
        apart = [role for role in roles(river.run.pipeline) if role not in river.roles]
        running = [role for role in river.roles if "+" in role]
        for move in range(moves + 1):
            points = [(role, point) for role in running for point in (None, *POINTS[service_of(role)])]
            river.rng.shuffle(points)
            for role, point in points[:each]:
                if point is None:
                    river.kill(role)
                else:
                    river.strike(role, point)
                river.pause(between - 1, between)
            if move == moves:
                break
            fault = river.plan(f"move from {' '.join(running)}", tolerated=False)
            for role in running:
                if move % 2:
                    process = river.supervisor.let_go(role)
                    process.kill()
                    process.wait()
                else:
                    river.stop(role)
            running, apart = apart, running
            for role in running:
                river.supervisor.begin(role)
            until(lambda names=running: all(map(river.ready, names)), f"{' '.join(running)} are not ready", 60)
            fault.fired, fault.until = True, time.monotonic()
            river.pause(between, between)
        return river.judge(
            "chains of services, killed, and moved to services apart and back", "L0D0, stall <= 30 s",
            stall_allowed=30.0, window=between,
        )  # fmt: skip


CASES = (
    kills, kills_whole, graceful, zombies, lost_partitions, broker, storm, rolls, redis_away, slow, disk_full, chains,
)  # fmt: skip
