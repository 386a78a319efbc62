"""Load on a proxy, and what it does to it: full load, a fixed rate, and idle connections."""

import http.client
import math
import re
import select
import socket
import ssl
import struct
import subprocess
import time
from dataclasses import dataclass
from statistics import median

import machine
from machine import Failed, Program

# Version of the generator for the fixed rate.
OHA = "1.16.0"

# Connections of the idle case: what a proxy in front of a chat or of long polls holds.
IDLE = 10_000
# How many of them are opened at a time, well below every queue of new connections (nginx: 511).
OPENING = 100

# Time for a proxy to start; Envoy and Traefik take one second on a quiet machine.
START_SECONDS_MAX = 20
# What a generator may take beyond the time it was given.
GRACE_SECONDS = 20


@dataclass(frozen=True)
class Case:
    """What is asked of the proxies."""

    name: str
    what: str
    path: str
    tls: bool = False
    h2: bool = False
    # Connections, and requests that are under way at the same time on each.
    connections: int = 64
    streams: int = 1


CASES = {
    case.name: case
    for case in (
        Case("small", "bodies of 100 bytes, HTTP/1.1, 64 connections", "/small"),
        Case("64k", "bodies of 64 KiB, HTTP/1.1, 64 connections", "/64k"),
        Case("tls", "bodies of 100 bytes, HTTP/1.1 over TLS 1.3, 64 connections", "/small", tls=True),
        Case(
            "h2",
            "bodies of 100 bytes, HTTP/2 in plain text, 8 connections of 8 streams",
            "/small",
            h2=True,
            connections=8,
            streams=8,
        ),
    )
}


@dataclass
class Target:
    """A proxy that runs, and where it listens."""

    program: Program
    port: int
    case: Case
    backends: machine.Backends
    # The cores of the proxy and of the load.
    cores: tuple
    work: object

    def url(self, path=None):
        return f"{'https' if self.case.tls else 'http'}://127.0.0.1:{self.port}{path or self.case.path}"

    def get(self, path):
        """One request in HTTP/1.1: (status, head as text, body)."""
        if self.case.tls:
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=trusting)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            if self.case.tls and connection.sock.version() != "TLSv1.3":
                raise Failed(f"{self.program.name} speaks {connection.sock.version()} where the others speak TLS 1.3")
            answer = connection.getresponse()
            return answer.status, str(answer.headers).lower(), answer.read().decode(errors="replace")
        finally:
            connection.close()


# --- Before -----------------------------------------------------------------------------------------------------------


def wait_until_ready(target):
    """Waits until the proxy answers from a backend."""

    def answers():
        if target.case.h2:
            command = ["h2load", "-n", "1", "-c", "1", target.url()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=GRACE_SECONDS)
            return " 1 2xx" in done.stdout or "no answer in HTTP/2"
        try:
            status, _, _ = target.get(target.case.path)
            return status == 200 or f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__

    machine.wait_until(answers, START_SECONDS_MAX, target.program)


def check_job(target, peer):
    """Checks by one request that the proxy does all of the job, so that nobody is fast by leaving something out."""
    if target.case.h2:
        # The settings are those of the other cases, and Python speaks no HTTP/2.
        return
    status, head, body = target.get("/echo")
    fields = {line.partition(":")[0].lower() for line in body.splitlines()}
    has = {
        "an answer": status == 200,
        "x-forwarded-for": "x-forwarded-for" in fields,
    }
    if peer.same_job:
        has |= {
            "x-forwarded-host": "x-forwarded-host" in fields,
            "x-forwarded-proto": "x-forwarded-proto" in fields,
            "request id": "x-request-id" in fields,
            "sticky cookie": "set-cookie:" in head,
        }
    missing = [what for what, there in has.items() if not there and what not in peer.lacks]
    if missing:
        missing = ", ".join(missing)
        raise Failed(f"{peer.name} does not do its job, there is no {missing}: {body!r} answered with {head!r}")


# --- Full load --------------------------------------------------------------------------------------------------------


def full_command(target, seconds):
    """The generator that costs least per request, so that the core it shares with the backends is not full first: wrk,
    and h2load where wrk does not know the protocol. oha costs half as much again as wrk."""
    case = target.case
    if case.h2:
        per_connection = ["-c", str(case.connections), "-m", str(case.streams)]
        return ["h2load", "-t", "1", *per_connection, "-D", str(seconds), target.url()]
    return ["wrk", "-t", "1", "-c", str(case.connections), "-d", f"{seconds}s", target.url()]


def full_errors(case, output):
    """What the generator says went wrong; empty if nothing."""
    if case.h2:
        found = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
        codes = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
        if not found or not codes:
            return f"h2load printed no result: {output[-500:]}"
        bad = any(map(int, found.groups())) or any(map(int, codes.groups()[1:]))
        return f"{found.group(0)}; {codes.group(0)}" if bad else ""
    if "Requests/sec" not in output:
        return f"wrk printed no result: {output[-500:]}"
    return "; ".join(line.strip() for line in output.splitlines() if "Socket errors" in line or "Non-2xx" in line)


@dataclass
class Sample:
    """The state of proxy and backends at one moment."""

    time: float
    user: int
    system: int
    core_busy: int
    core_idle: int
    counts: tuple

    @staticmethod
    def of(target):
        user, system = target.program.ticks()
        return Sample(time.monotonic(), user, system, *machine.core_ticks(target.cores[0]), target.backends.counts())


def full_load(target, warm, seconds):
    """Full load for `warm` and then `seconds`, of which the latter are measured, between two moments in the middle of
    it: neither the opening of connections nor TLS handshakes nor the first allocations are in the figures."""
    whole = math.ceil(warm + seconds + 0.5)
    generator = Program("generator", full_command(target, whole), target.cores[1], target.work)
    time.sleep(warm)
    before = Sample.of(target)
    time.sleep(seconds)
    after = Sample.of(target)
    rss = target.program.rss()
    code = generator.wait(whole + GRACE_SECONDS)
    generator.end()
    output = generator.log.read_text(errors="replace")
    errors = full_errors(target.case, output) or (f"generator ended with code {code}" if code else "")
    a, b = (after.counts[i] - before.counts[i] for i in (0, 1))
    requests = a + b
    if errors or not requests:
        raise Failed(f"not all requests were answered: {errors or 'none reached a backend'}")
    # 1,000 requests that are chosen one by one lie within 4.2 standard deviations.
    if requests > 1_000 and not 0.06 < b / requests < 0.14:
        raise Failed(f"weights are not 90/10: backend b got {b} of {requests} requests")
    elapsed = after.time - before.time
    per_tick = 1e6 / machine.TICKS_PER_SECOND / requests
    user, system = after.user - before.user, after.system - before.system
    core = after.core_busy - before.core_busy
    whole_core = core + after.core_idle - before.core_idle
    return {
        "requests": requests,
        "rps": round(requests / elapsed, 1),
        "cpu_us": round((user + system) * per_tick, 3),
        "user_us": round(user * per_tick, 3),
        "sys_us": round(system * per_tick, 3),
        # How much of its core the proxy has used, and others: below 0.95 the load was not full, above 0.03 the machine
        # was not quiet.
        "core": round((user + system) / machine.TICKS_PER_SECOND / elapsed, 3),
        "core_others": round(max(0, core - user - system) / max(1, whole_core), 3),
        "share_b": round(b / requests, 4),
        "rss": rss,
    }


# --- A fixed rate -----------------------------------------------------------------------------------------------------


def fixed_rate(target, oha, rate, warm, seconds):
    """(due, duration) in seconds of each request at `rate` requests/s, counted from the moment at which it should have been
    sent: a proxy that stops for a while does not stop the clock. What was sent while the connections were opened, in the first
    `warm` seconds, is not among them; what was due later is."""
    case = target.case
    count = round(rate * (warm + seconds))
    command = [oha, "--no-tui", "--output-format", "csv", "--latency-correction", "--insecure", "--disable-compression"]
    command += ["-q", rate, "-n", count, "-c", case.connections]
    if case.h2:
        command += ["--http2", "-p", case.streams]
    generator = Program("oha", [*command, target.url()], target.cores[1], target.work)
    code = generator.wait(3 * (warm + seconds) + GRACE_SECONDS)
    generator.end()
    output = generator.log.read_text(errors="replace")
    # request-start, DNS, DNS+dialup, Response-delay, request-duration, bytes, status; only of those that were answered.
    fields = [line.split(",") for line in output.splitlines() if line[:1].isdigit()]
    good = [(float(line[0]), float(line[4])) for line in fields if len(line) == 7 and line[6] == "200"]
    if code or len(good) != count:
        said = "" if good else output[-500:]
        raise Failed(f"at {rate} requests/s {len(good)} of {count} were answered with 200 (code {code}) {said}")
    measured = [(start, duration) for start, duration in good if start >= warm]
    if len(measured) < 2:
        raise Failed(f"{rate} requests/s are too few for {seconds} s")
    return measured


def latencies(rate, warm, turns):
    """What several turns of `fixed_rate` say, in milliseconds.

    `p99_second` is the median over the turns, a second each, of the p99 of each: a host that takes the machine away for 50 ms,
    once in some seconds, decides the p99 of a whole round whatever the proxy does, and here only that of one turn."""
    every = [duration for turn in turns for _, duration in turn]
    reached = [len(turn) / (max(turn)[0] - warm) for turn in turns]
    return {
        "rate": rate,
        "rate_reached": round(median(reached), 1),
        "p50": percentile(every, 0.50),
        "p99": percentile(every, 0.99),
        "p99_second": round(median(percentile([duration for _, duration in turn], 0.99) for turn in turns), 4),
        "p999": percentile(every, 0.999),
    }


def percentile(seconds, share):
    """The nearest-rank percentile of times in seconds, in milliseconds."""
    ordered = sorted(seconds)
    return round(ordered[math.ceil(share * len(ordered)) - 1] * 1e3, 4)


# --- Idle connections -------------------------------------------------------------------------------------------------


def idle_connections(target):
    """Memory of the proxy when `IDLE` connections, each of which has made one request, do nothing."""
    before = target.program.rss()
    request = f"GET {target.case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    waiting, held = {}, []
    poll = select.epoll()
    end = time.monotonic() + 60
    try:
        while len(held) < IDLE:
            if time.monotonic() > end:
                raise Failed(f"{len(held)} of {IDLE} connections had an answer after 60 s")
            while len(waiting) < OPENING and len(waiting) + len(held) < IDLE:
                one = socket.create_connection(("127.0.0.1", target.port), 5)
                # Closed at once at the end, without a port that waits for a minute.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.sendall(request)
                one.setblocking(False)
                waiting[one.fileno()] = (one, b"")
                poll.register(one.fileno(), select.EPOLLIN)
            for fd, _ in poll.poll(1):
                one, got = waiting.pop(fd)
                more = one.recv(4096)
                if not more:
                    one.close()
                    raise Failed(f"connection {len(held)} was closed without an answer: {got!r}")
                got += more
                head, ended, body = got.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                if ended and length and len(body) >= int(length.group(1)):
                    if not got.startswith(b"HTTP/1.1 200"):
                        one.close()
                        raise Failed(f"connection {len(held)} was answered {head!r}")
                    poll.unregister(fd)
                    held.append(one)
                else:
                    waiting[fd] = (one, got)
        time.sleep(1)
        closed = 0
        for one in held:
            try:
                closed += one.recv(1) == b""
            except BlockingIOError:
                pass
        if closed:
            raise Failed(f"{closed} of {IDLE} connections were closed while idle")
        return {"connections": IDLE, "rss": target.program.rss(), "rss_before": before}
    finally:
        poll.close()
        for one in [*held, *(one for one, _ in waiting.values())]:
            one.close()
