"""The pipeline as people run it, on this machine: a broker, PostgreSQL and our programs, and what they do to it."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import machine
from machine import Failed, Missing, Program

# Where the tests say which version of the broker they were written with.
BROKER_VERSION = re.compile(r'^pub const TANSU_VERSION: &str = "(.*)";$', re.M)

# Longest wait for a program to listen; making a new database takes most of it.
START_SECONDS_MAX = 30
# Longest wait for a program to end by itself: what is in flight, a last commit, leaving the group.
STOP_SECONDS_MAX = 20

# Tasks on their way to the workers at once. A task of theirs takes 20 ms in the middle and 22.7 ms on average, so 256 carry
# 11,000 a second: not what limits it.
IN_FLIGHT = 256

# Of 10,000 tasks, those that the release on trial gets.
CANARY_BP = 1_000


# --- What is needed ---------------------------------------------------------------------------------------------------


def need_broker():
    """The path of tansu; built once for each version and kept, where `tests/run` keeps it as well."""
    if named := os.environ.get("FRIDAY_TANSU"):
        return named
    version = BROKER_VERSION.search((machine.ROOT / "tests/src/broker.rs").read_text()).group(1)
    root = machine.CACHE.parent / f"tansu-{version}"
    program = root / "bin" / "tansu"
    if not program.exists():
        machine.say("tansu, a Kafka broker, is built from source; that takes 10 minutes")
        command = ["cargo", "install", "tansu", "--version", version, "--features", "dynostore,libsql", "--locked"]
        environment = {**os.environ, "CARGO_TARGET_DIR": str(root / "build")}
        machine.install("tansu", *command, "--root", root, env=environment, cwd="/")
        shutil.rmtree(root / "build", ignore_errors=True)
    return str(program)


def need_postgres():
    """The folder of PostgreSQL's programs."""
    # Debian keeps those of each version in a folder of their own; elsewhere they are in PATH.
    versions = lambda: sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not versions() and not shutil.which("postgres"):
        # Debian's package would make and start a server for all.
        forbid = Path("/etc/postgresql-common/createcluster.d")
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        line = f"mkdir -p {forbid} && echo 'create_main_cluster = false' >{forbid}/friday-bench.conf"
        machine.install("a setting for PostgreSQL", *as_root, "sh", "-c", line)
        try:
            machine.need_debian({"postgres": "postgresql"})
        except Missing:
            # It is not in PATH on Debian.
            if not versions():
                raise
    found = versions()
    return found[-1].parent if found else Path(shutil.which("postgres")).parent


# --- Processes --------------------------------------------------------------------------------------------------------


def status_bytes(pid, key):
    """A figure of /proc/PID/status, in bytes; 0 of a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.M)
    return int(found.group(1)) * 1024 if found else 0


class Part(Program):
    """One program of the pipeline, on the cores of the whole."""

    def __init__(self, name, command, stack, *, ending=signal.SIGTERM):
        self.stack = stack
        number = stack.number = stack.number + 1
        # One that is started again has a log of its own.
        super().__init__(f"{name}-{number}", command, stack.cores, stack.work, ending=ending)
        self.kind = name
        stack.parts.append(self)

    def cpu(self):
        """Seconds of CPU it has used, with its children, also those that have ended."""
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # utime and stime, and the same of the children that were waited for.
            ticks += sum(map(int, fields[11:15]))
        return ticks / machine.TICKS_PER_SECOND

    def memory(self):
        """Resident bytes. PostgreSQL's shared buffers are left out: they fill up to the size they were given."""
        key = "RssAnon" if self.kind == "postgres" else "VmRSS"
        return sum(status_bytes(pid, key) for pid in self.pids())

    def stop(self):
        """Ends it as an operator does, and returns the record that it printed."""
        self.end(STOP_SECONDS_MAX)
        if self in self.stack.parts:
            self.stack.parts.remove(self)
        if self.process.returncode != 0 and self.kind != "broker":
            raise Failed(f"{self.kind} ended with code {self.process.returncode}: {self.said()}")
        return self.record()

    def record(self):
        """The JSON object that it printed as its last line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else {}


class Served(Part):
    """One of our programs, which says where it listens."""

    def __init__(self, name, command, stack):
        self.file = stack.work / f"{name}-{stack.number + 1}.addresses"
        super().__init__(name, [*command, "--addresses-file", self.file], stack)
        machine.wait_until(lambda: self.file.exists() or "it does not listen", START_SECONDS_MAX, self)
        self.addresses = json.loads(self.file.read_text())

    def get(self, path, key="listen"):
        connection = http.client.HTTPConnection(self.addresses[key], timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise Failed(f"{self.kind} answered {answer.status} to {path}: {text[:200]}")
        return text

    def counts(self):
        return json.loads(self.get("/counts"))

    def metric(self, name):
        """The sum of a metric's series."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


class Stack:
    """One pipeline, in a folder and on ports of its own."""

    def __init__(self, work, cores, programs, durable=False):
        self.work, self.programs, self.durable = work, programs, durable
        self.cores = ",".join(map(str, sorted(set(cores))))
        self.number = 0
        self.parts = []
        self.broker_port, self.postgres_port = machine.free_ports(2)
        self.bus = ["--kafka", f"127.0.0.1:{self.broker_port}"]
        self.database = f"postgresql://postgres@127.0.0.1:{self.postgres_port}/postgres"
        # The user that PostgreSQL runs as has to get to its folder in here.
        os.chmod(work, 0o711)

    def end(self):
        """Ends all, what was started last first."""
        for part in reversed(self.parts):
            part.end(STOP_SECONDS_MAX)
        self.parts.clear()

    # --- The parts of others

    def start_broker(self):
        """tansu with its records in memory. It begins anew with each start."""
        url = f"tcp://127.0.0.1:{self.broker_port}"
        command = [self.programs["tansu"], "broker", "--listener-url", url, "--advertised-listener-url", url]
        part = Part("broker", [*command, "--storage-engine", "memory://tansu/"], self)
        machine.wait_until(lambda: machine.connects(self.broker_port) or "it does not listen", START_SECONDS_MAX, part)
        return part

    def start_postgres(self):
        """A database of our own. It leaves it to the system when what is committed gets to the disk, unless `durable`."""
        folder = self.work / f"postgres-{self.number + 1}"
        folder.mkdir()
        as_user = []
        if os.geteuid() == 0:
            # It refuses to run as root.
            shutil.chown(folder, "postgres", "postgres")
            as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        bin, data = self.programs["postgres"], folder / "data"
        command = [*as_user, bin / "initdb", "--pgdata", data, "--auth", "trust", "--username", "postgres"]
        command += ["--encoding", "UTF8", "--locale", "C"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=folder)
        if done.returncode != 0:
            raise Failed(f"initdb failed: {done.stderr[-500:]}")
        command = [*as_user, bin / "postgres", "-D", data, "-k", folder, "-p", self.postgres_port]
        # SIGINT: it ends at once, and its clients with it; SIGTERM would wait for them.
        command += ["-c", "listen_addresses=127.0.0.1", *([] if self.durable else ["-F"])]
        part = Part("postgres", command, self, ending=signal.SIGINT)

        def answers():
            try:
                return self.sql("SELECT 1") == [["1"]]
            except Failed as error:
                return str(error)

        machine.wait_until(answers, START_SECONDS_MAX, part)
        return part

    def sql(self, statement):
        """The rows of a question, as text."""
        command = [self.programs["postgres"] / "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        command += ["--field-separator", "\t", "--command", statement, self.database]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise Failed(f"PostgreSQL: {done.stderr.strip()[-500:]}")
        return [line.split("\t") for line in done.stdout.splitlines() if line]

    # --- Ours

    def start(self, name, *args):
        """A subcommand of `pipeline-demo`."""
        return Served(name, [self.programs["pipeline-demo"], name, *self.bus, *args], self)

    def start_proxy(self):
        """Two workers, a release each, and a proxy that gives the second one in ten tasks."""
        side = lambda release, worker: {"release": release, "endpoints": [worker.addresses["listen"]]}
        work = [self.programs["pipeline-demo"], "work"]
        stable, canary = (
            Served(f"worker {arm}", [*work, "--release", release, "--arm", arm], self)
            for arm, release in (("stable", "v1"), ("canary", "v2"))
        )
        route = {
            "name": "tweets-worker",
            "canary_bp": CANARY_BP,
            "shield": "idempotent",
            "stable": side("v1", stable),
            "canary": side("v2", canary),
        }
        routes = self.work / "routes.json"
        routes.write_text(json.dumps({"routes": [route]}))
        command = [self.programs["friday-proxy"], "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        proxy = Served("proxy", [*command, "--routes", routes, "--drain-seconds", "1"], self)
        return [stable, canary, proxy]

    def start_feeder(self, proxy):
        address = f"http://{proxy.addresses['listen']}"
        return self.start("feed", "--proxy", address, "--in-flight", str(IN_FLIGHT))

    def start_sink(self):
        return self.start("sink", "--database", self.database)


# --- Looking ----------------------------------------------------------------------------------------------------------


def until(look, seconds, every=0.05, what="it"):
    """Looks again and again until `look` returns something other than None, which is returned."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen is not None:
            return seen
        if time.monotonic() > end:
            raise Failed(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(every)


class Clock:
    """Seconds of CPU of each part, and of the machine, since it was made."""

    def __init__(self, stack):
        self.stack = stack
        self.time, self.cpu, self.cores = self._look()

    def _look(self):
        cores = [machine.core_ticks(int(core)) for core in self.stack.cores.split(",")]
        return time.monotonic(), {part: part.cpu() for part in self.stack.parts}, cores

    def read(self):
        """(seconds, {kind: seconds of CPU}, share of the cores that others have used)."""
        now, cpu, cores = self._look()
        used = {}
        for part, seconds in cpu.items():
            used[part.kind] = used.get(part.kind, 0) + seconds - self.cpu.get(part, 0)
        busy = sum(after[0] - before[0] for before, after in zip(self.cores, cores)) / machine.TICKS_PER_SECOND
        whole = (now - self.time) * len(cores)
        return now - self.time, used, max(0, busy - sum(used.values())) / whole
