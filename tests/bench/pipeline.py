"""Measures the pipeline: producer and sink alone, end to end, after a stop, and its memory over time."""

import hashlib
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import machine
import report
import stack
from machine import Failed, Missing, Program, say
from stack import Clock, Stack, until

# friday-proxy's and pipeline-demo's release builds take 10 minutes on two cores, from empty.
BUILD_SECONDS_MAX = 3600

# Of so many tweets of a file, one is malformed: it has no text.
MALFORMED_EVERY = 100
AUTHORS = 5_000
FIRST_ID = 1_900_000_000_000_000_000

# A steady input leaves the records of the last tenth of a second uncommitted, because offsets are committed every 100 ms.
# What has less than this many seconds of input left is done with the rest.
BEHIND_SECONDS_MAX = 0.5

# Growth from a third of the time to its end, up to which memory counts as flat: a share, and what an allocator keeps.
FLAT_SHARE, FLAT_BYTES = 0.05, 4 << 20

GOALS = {
    "producer": ("records/s", 50_000),
    "sink": ("rows/s", 20_000),
    "end-to-end": ("tasks/s", 5_000),
    "catch-up": ("s to lag 0", 30),
}
WHAT = {
    "producer": "tweets of a file, over and over, into topic `tweets`, as fast as the broker takes them; nothing else runs",
    "sink": "a filled topic `results` into PostgreSQL; the rest is stopped",
    "end-to-end": "a file of tweets through producer, broker, feeder, proxy, worker, broker and sink into PostgreSQL, all at once",
    "catch-up": "feeder and sink are stopped for a while under a steady input, and then started again",
    "soak": "memory under a steady input",
}
ORDER = ("broker", "postgres", "produce", "feed", "proxy", "worker stable", "worker canary", "sink")


def arguments(commands):
    parser = commands.add_parser("pipeline", help="the pipeline of pipeline-demo with a broker and PostgreSQL")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each case [%(default)s]")
    parser.add_argument("--only", metavar="CASE,…", help=f"of {','.join(WHAT)} [all]")
    parser.add_argument("--tasks", type=int, default=120_000, metavar="N", help="of `sink` and `end-to-end` [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of `producer` [%(default)s]")
    parser.add_argument("--rate", type=int, default=2_500, metavar="N", help="tasks/s of `catch-up` and `soak` [%(default)s]")
    parser.add_argument("--away", type=float, default=30, metavar="S", help="how long `catch-up` stops them [%(default)s]")
    parser.add_argument("--soak", type=float, default=60, metavar="S", help="how long `soak` takes; 600 to be sure [%(default)s]")
    parser.add_argument("--durable", action="store_true", help="PostgreSQL forces each commit to the disk, as Debian sets it")
    parser.add_argument("--programs", metavar="DIR", help="with friday-proxy and pipeline-demo [cargo build --release]")
    parser.add_argument("--out", metavar="FILE", help="where a JSON line for each measurement is appended")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that nothing is lost; asserts no time")
    parser.add_argument("--table", metavar="FILE", help="measure nothing, show the tables of this file of JSON lines")
    parser.set_defaults(run=run, parser=parser, done="all that went in is stored once")


def checked(options):
    """The options, with what follows from them; ends with a word if they are wrong."""
    if options.quick:
        options.rounds, options.tasks, options.seconds = 1, 5_000, 1
        options.rate, options.away, options.soak = 500, 2, 3
    unknown = set((options.only or "").split(",")) - set(WHAT) - {""}
    if unknown:
        options.parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(WHAT)}")
    options.cases = [case for case in WHAT if not options.only or case in options.only.split(",")]
    if min(options.rounds, options.tasks, options.seconds, options.rate, options.away, options.soak) <= 0:
        options.parser.error("numbers are above 0")
    return options


def prepare(options):
    """The paths of the programs; builds and installs what is missing."""
    machine.need_debian({"taskset": "util-linux", "setpriv": "util-linux"})
    names = ("friday-proxy", "pipeline-demo")
    if options.programs:
        folder = Path(options.programs).resolve()
    else:
        say("builds: cargo build --release -p friday-proxy -p pipeline-demo")
        command = ["cargo", "build", "--release", "--locked", "-p", "friday-proxy", "-p", "pipeline-demo"]
        command += ["--message-format", "json"]
        done = subprocess.run(command, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS_MAX)
        messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        paths = [Path(message["executable"]) for message in messages if message.get("executable")]
        if done.returncode != 0 or not paths:
            raise Missing("the programs do not build; see above, or name a folder that has them with --programs DIR")
        folder = paths[-1].parent
    programs = {name: folder / name for name in names}
    for name, path in programs.items():
        if not path.is_file():
            raise Missing(f"there is no {name} in {folder}")
    return programs | {"tansu": stack.need_broker(), "postgres": stack.need_postgres()}


# --- Input ------------------------------------------------------------------------------------------------------------

WORDS = (
    "today never love hate the new release of our train garden coffee match is a great terrible morning and nobody cares "
    "thanks for help with this phone really happy sad about two hours left until tomorrow see you there reading long article"
).split()


def tweets(path, count):
    """Writes `count` tweets as the stream sends them, the same each time. Returns how many are malformed."""
    chosen = random.Random(7)
    malformed = 0
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    with open(path, "w") as file:
        for number in range(count):
            data = {"id": str(FIRST_ID + number), "author_id": str(20_000_000 + chosen.randrange(AUTHORS))}
            data |= {"created_at": at, "edit_history_tweet_ids": [data["id"]], "lang": "en"}
            if number % MALFORMED_EVERY == MALFORMED_EVERY - 1:
                malformed += 1
            else:
                text = " ".join(chosen.choices(WORDS, k=14))
                data["text"] = f"{text} #{chosen.choice(WORDS)} @user{chosen.randrange(1000)}"
            tweet = {"data": data, "matching_rules": [{"id": "1", "tag": "all"}]}
            file.write(json.dumps(tweet, separators=(",", ":")) + "\n")
    return malformed


# --- Measurements -----------------------------------------------------------------------------------------------------


class Lost(Failed):
    """What went in is not what is stored."""


def check_stored(pipeline, results, malformed, ids=None):
    """Compares the rows in PostgreSQL with the input: how many, and of whom."""
    found = "SELECT count(*), count(DISTINCT tweet_id), min(tweet_id::bigint), max(tweet_id::bigint) FROM results"
    rows, tweets_found, first, last = (int(text or 0) for text in pipeline.sql(found)[0])
    ((letters,),) = pipeline.sql("SELECT count(*) FROM malformed")
    if (rows, tweets_found, int(letters)) != (results, results, malformed):
        raise Lost(f"{rows} rows of {tweets_found} tweets and {letters} malformed are stored, of {results} and {malformed}")
    # The last of a file's tweets is malformed where their number is a multiple of 100.
    if ids and not (first == ids[0] and ids[1] - 2 <= last < ids[1]):
        raise Lost(f"tweets {first} to {last} are stored, where those from {ids[0]} to before {ids[1]} went in")


def per_thousand(cpu, tasks):
    return {kind: round(seconds * 1_000 / tasks, 4) for kind, seconds in cpu.items()}


def producer(pipeline, options):
    pipeline.start_broker()
    file = pipeline.work / "tweets.jsonl"
    tweets(file, 20_000)
    part = pipeline.start("produce", "--input", str(file), "--rate", "max", "--seconds", str(options.seconds + 30))
    time.sleep(min(1, options.seconds))
    clock, before = Clock(pipeline), part.counts()["tasks_produced"]
    time.sleep(options.seconds)
    produced = part.counts()["tasks_produced"] - before
    seconds, cpu, others = clock.read()
    part.stop()
    if produced <= 0:
        raise Failed("nothing was produced")
    return {"records": produced, "value": round(produced / seconds), "cpu": per_thousand(cpu, produced), "others": others}


def filled(pipeline, options):
    """Topic `results` as a whole pipeline without a sink fills it. Returns how many results and dead letters."""
    file = pipeline.work / "tweets.jsonl"
    malformed = tweets(file, options.tasks)
    pipeline.start_broker()
    *workers, proxy = pipeline.start_proxy()
    feeder = pipeline.start_feeder(proxy)
    clock = Clock(pipeline)
    started = pipeline.start("produce", "--input", str(file), "--once", "--rate", "max")

    def done():
        counts = feeder.counts()
        return counts["tasks_completed"] + counts["tasks_malformed"] >= options.tasks or None

    until(done, 60 + options.tasks / 200, 0.2, "that all tasks are done")
    seconds = clock.read()[0]
    for part in (started, feeder, proxy, *workers):
        part.stop()
    return options.tasks - malformed, malformed, seconds


def sink(pipeline, options):
    results, malformed, seconds = filled(pipeline, options)
    pipeline.start_postgres()
    part = pipeline.start_sink()
    clock, seen = Clock(pipeline), []

    def all_stored():
        stored = part.metric("pipeline_sink_records_total")
        if stored and (not seen or seen[-1][1] != stored):
            seen.append((time.monotonic(), stored))
        return stored >= options.tasks or None

    until(all_stored, 60 + options.tasks / 500, 0.1, "that all results are stored")
    _, cpu, others = clock.read()
    check_stored(pipeline, results, malformed, (FIRST_ID, FIRST_ID + options.tasks))
    part.stop()
    # From the first batch on: how long it takes to join the group is the broker's.
    first, last = seen[0], seen[-1]
    rate = (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else 0
    line = {"records": options.tasks, "value": round(rate), "cpu": per_thousand(cpu, options.tasks), "others": others}
    return line | {"tasks_s_without_sink": round(options.tasks / seconds)}


def whole(pipeline):
    """All parts but the producer: (feeder, sink, the others)."""
    pipeline.start_broker()
    pipeline.start_postgres()
    *workers, proxy = pipeline.start_proxy()
    return pipeline.start_feeder(proxy), pipeline.start_sink(), [*workers, proxy]


def end_to_end(pipeline, options):
    file = pipeline.work / "tweets.jsonl"
    malformed = tweets(file, options.tasks)
    feeder, storing, _ = whole(pipeline)
    clock = Clock(pipeline)
    pipeline.start("produce", "--input", str(file), "--once", "--rate", "max")
    stored = lambda: storing.metric("pipeline_sink_records_total") >= options.tasks or None
    until(stored, 60 + options.tasks / 200, 0.1, "that all tasks are stored")
    seconds, cpu, others = clock.read()
    check_stored(pipeline, options.tasks - malformed, malformed, (FIRST_ID, FIRST_ID + options.tasks))
    failed = feeder.counts()["attempts_failed"]
    if failed:
        # They were made again, or the rows would not be there; but nothing that runs here gives a reason to fail.
        words = [text for text in feeder.log.read_text(errors="replace").splitlines() if "a task failed" in text]
        say(f"end-to-end: {failed} attempts failed and were made again: {''.join(words[:1])}")
    shares = pipeline.sql("SELECT release, count(*) FROM results GROUP BY 1")
    canary = sum(int(count) for release, count in shares if release == "v2") / (options.tasks - malformed)
    # 5,000 tasks that are chosen one by one lie within 9 standard deviations.
    if not 0.06 < canary < 0.14:
        raise Failed(f"weights are not 90/10: the canary did {canary:.1%} of the tasks")
    line = {"records": options.tasks, "value": round(options.tasks / seconds), "cpu": per_thousand(cpu, options.tasks)}
    return line | {"others": others, "share_canary": round(canary, 4), "attempts_failed": failed}


def steady(pipeline, options):
    """Synthetic tweets at an even rate, until it is stopped."""
    share = str(1 / MALFORMED_EVERY)
    return pipeline.start("produce", "--rate", str(options.rate), "--malformed-share", share)


def ended(pipeline, source):
    """Stops the input, waits until as many rows are there, and compares. Returns how many tasks there were."""
    produced = source.stop()
    total, malformed = produced["tasks_produced"], produced["malformed_produced"]
    rows = "SELECT (SELECT count(*) FROM results) + (SELECT count(*) FROM malformed)"
    try:
        until(lambda: int(pipeline.sql(rows)[0][0]) >= total or None, 120, 1)
    except Failed:
        # What is missing is said below.
        pass
    check_stored(pipeline, total - malformed, malformed)
    return total


def catch_up(pipeline, options):
    feeder, storing, (*_, proxy) = whole(pipeline)
    source = steady(pipeline, options)
    small = options.rate * BEHIND_SECONDS_MAX

    def lag():
        # The sink looks once a second.
        return max(feeder.counts()["lag"], storing.metric("pipeline_consumer_lag"))

    flows = lambda: (storing.metric("pipeline_sink_records_total") > 0 and lag() <= small) or None
    until(flows, 60, 0.25, "that the pipeline keeps up with its input")
    back = time.monotonic() + options.away
    feeder.stop()
    storing.stop()
    # To let what is in flight end is a part of being away.
    time.sleep(max(0, back - time.monotonic()))
    began = time.monotonic()
    feeder, storing = pipeline.start_feeder(proxy), pipeline.start_sink()
    worst = 0

    def caught_up():
        nonlocal worst
        now = lag()
        worst = max(worst, now)
        # Before the first look of the sink there is no lag at all.
        return now <= small and storing.metric("pipeline_sink_records_total") > 0 and worst > small or None

    until(caught_up, 30 + 20 * options.away, 0.25, "that the lag is gone")
    seconds = time.monotonic() - began
    total = ended(pipeline, source)
    return {"records": total, "value": round(seconds, 1), "lag_max": round(worst), "away": options.away, "rate": options.rate}


def soak(pipeline, options):
    _, storing, _ = whole(pipeline)
    source = steady(pipeline, options)
    # What is allocated once: connections, buffers, the lexicon.
    until(lambda: storing.metric("pipeline_sink_records_total") > options.rate or None, 60, 0.25, "that the pipeline flows")
    began, clock, looks = time.monotonic(), Clock(pipeline), []
    while (passed := time.monotonic() - began) < options.soak:
        looks.append((passed, {part.kind: part.memory() for part in pipeline.parts}))
        time.sleep(min(1, options.soak / 20))
    seconds, cpu, others = clock.read()
    total = ended(pipeline, source)
    # Each a median of several looks: an allocation that lasts a moment is none that stays.
    around = lambda share: [seen for at, seen in looks if abs(at - share * options.soak) <= options.soak / 10]
    memory = {
        kind: [round(median(seen[kind] for seen in around(share))) for share in (0, 1 / 3, 1)] for kind in looks[0][1]
    }
    line = {"records": total, "seconds": round(seconds), "rate": options.rate, "memory": memory, "others": others}
    return line | {"cpu": per_thousand(cpu, options.rate * seconds)}


CASES = {"producer": producer, "sink": sink, "end-to-end": end_to_end, "catch-up": catch_up, "soak": soak}


# --- Tables -----------------------------------------------------------------------------------------------------------


def is_flat(sizes):
    _, third, end = sizes
    return end - third <= max(FLAT_SHARE * third, FLAT_BYTES)


def show(lines):
    good = [line for line in lines if not line.get("error")]
    rows = []
    for case, (unit, goal) in GOALS.items():
        values = sorted(line["value"] for line in good if line["case"] == case)
        if not values:
            continue
        met = median(values) <= goal if case == "catch-up" else median(values) >= goal
        span = f"{values[0]:,}–{values[-1]:,}"
        bound = "at most" if case == "catch-up" else "at least"
        rows.append([case, len(values), f"{median(values):,}", span, unit, f"{bound} {goal:,}", "met" if met else "**missed**"])
    if rows:
        print("\n" + report.markdown(["case", "rounds", "median", "range", "", "goal", ""], rows))
    kinds = [kind for kind in ORDER if any(kind in line.get("cpu", {}) for line in good)]
    cases = [case for case in WHAT if any(line["case"] == case and "cpu" in line for line in good)]
    if cases:
        print("\nSeconds of CPU for 1,000 tasks, medians of the rounds:\n")
        rows = []
        for case in cases:
            of = lambda kind: [line["cpu"][kind] for line in good if line["case"] == case and kind in line.get("cpu", {})]
            cells = [f"{median(of(kind)):.4f}" if of(kind) else "" for kind in kinds]
            sums = [sum(line["cpu"].values()) for line in good if line["case"] == case and "cpu" in line]
            rows.append([case, *cells, f"{median(sums):.4f}"])
        print(report.markdown(["case", *kinds, "all"], rows))
    for line in good:
        if "memory" not in line:
            continue
        print(f"\nResident MiB over {line['seconds']} s at {line['rate']:,} tasks/s:\n")
        rows = []
        for kind in sorted(line["memory"], key=ORDER.index):
            sizes = line["memory"][kind]
            growth = (sizes[2] - sizes[1]) / sizes[1] if sizes[1] else 0
            verdict = "keeps all records" if kind == "broker" else "flat" if is_flat(sizes) else "**grows**"
            rows.append([kind, *(f"{size / report.MIB:.1f}" for size in sizes), f"{growth:+.1%}", verdict])
        print(report.markdown(["process", "start", "a third", "end", "third to end", ""], rows))
    noisy = [f"{line['case']} {line['others']:.0%}" for line in good if line.get("others", 0) > report.OTHERS_MAX]
    if noisy:
        print(f"\n- **the machine was not quiet**: others used of the cores at {', '.join(noisy)}")
    for line in lines:
        if line.get("error"):
            print(f"\n- **{line['case']} FAILED in round {line['round']}**: {line['error'][:500]}")


def run(options):
    checked(options)
    if options.table:
        lines = [json.loads(line) for line in Path(options.table).read_text().splitlines()]
        show(lines)
        return any(line.get("error") for line in lines)
    if options.out:
        # Before the minutes that it takes to have something for it.
        open(options.out, "a").close()
    programs = prepare(options)
    machine.allow_files(10_000)
    digest = hashlib.sha256(programs["pipeline-demo"].read_bytes()).hexdigest()[:8]
    head = {"run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "version": digest}
    lines = []
    say(f"all on cores {' and '.join(map(str, sorted(set(machine.cores()))))}")
    with tempfile.TemporaryDirectory(prefix="friday-bench.") as folder:
        try:
            for number in range(1, options.rounds + 1):
                for case in options.cases:
                    if case == "soak" and number > 1:
                        continue
                    lines.append(one(case, number, head, options, programs, Path(folder)))
        finally:
            Program.end_all()
            show(lines)
    return any(line.get("error") for line in lines)


def one(case, number, head, options, programs, folder):
    """One measurement of a case, with a pipeline of its own."""
    line = head | {"case": case, "round": number, "durable": options.durable}
    work = Path(tempfile.mkdtemp(prefix=f"{case}-", dir=folder))
    # PostgreSQL's user has to pass.
    folder.chmod(0o711)
    pipeline, began = Stack(work, machine.cores(), programs, options.durable), time.monotonic()
    try:
        line |= CASES[case](pipeline, options)
    except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
        line["error"] = f"{type(error).__name__}: {error}"
        say(f"{case}: FAILED: {error}")
    finally:
        pipeline.end()
    said = f"{line['value']:,} {GOALS[case][0]}" if "value" in line else ""
    say(f"round {number} of {options.rounds}, {case}, {time.monotonic() - began:.0f} s: {said}")
    if options.out:
        with open(options.out, "a") as file:
            file.write(json.dumps(line) + "\n")
    return line
