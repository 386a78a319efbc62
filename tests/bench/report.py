"""Tables of what was measured: medians over the rounds, and friday-proxy's ratios to the others."""

from statistics import median

# (key of a line, head of the column, how it is shown)
FULL = (
    ("cpu_us", "CPU µs", "{:.2f}"),
    ("user_us", "user", "{:.2f}"),
    ("sys_us", "system", "{:.2f}"),
    ("rps", "requests/s", "{:,.0f}"),
    ("core", "of its core", "{:.0%}"),
    ("p50", "p50 ms", "{:.3f}"),
    ("p99", "p99 ms", "{:.3f}"),
    ("p99_second", "p99 of a second", "{:.3f}"),
    ("p999", "p99.9 ms", "{:.3f}"),
    ("rss", "RSS MiB", "{:.1f}"),
)
IDLE = (
    ("rss", "RSS MiB", "{:.1f}"),
    ("rss_before", "before them", "{:.1f}"),
)
RATIOS = (
    ("cpu_us", "CPU per request"),
    ("rps", "requests/s"),
    ("p50", "p50"),
    ("p99", "p99"),
    ("p99_second", "p99 of a second"),
    ("rss", "RSS"),
)
MIB = 1 << 20

# Above this share of the proxy's core for others, the machine was not quiet: a ratio of 1.05 cannot be told from 1.
OTHERS_MAX = 0.03
# Below this share of use, a core was not full, and requests/s are those of the load's core.
FULL_MIN = 0.95


def shown(key, how, value):
    if value is None:
        return "–"
    return how.format(value / MIB if key.startswith("rss") else value)


def by_peer(lines, case):
    """{proxy: {(run, round): line}} of the rounds without an error."""
    found = {}
    for line in lines:
        if line["case"] == case and not line.get("error"):
            found.setdefault(line["proxy"], {})[line["run"], line["round"]] = line
    return found


def medians(rounds, key):
    values = [line[key] for line in rounds.values() if line.get(key) is not None]
    return median(values) if values else None


def ratio(ours, theirs, key):
    """The median of the rounds' ratios and their range. Two figures of one round were taken soon after each other, so
    what the machine does meanwhile hits both."""
    pairs = [(ours[at].get(key), theirs[at].get(key)) for at in ours.keys() & theirs.keys()]
    values = sorted(mine / other for mine, other in pairs if mine is not None and other)
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.3f} ({values[0]:.2f}–{values[-1]:.2f})"


def better(peers, names, key):
    """The one of `names` whose median is better."""
    there = {name: medians(peers[name], key) for name in names if name in peers}
    there = {name: value for name, value in there.items() if value is not None}
    if not there:
        return None
    return (max if key == "rps" else min)(there, key=there.get)


def markdown(heads, rows):
    """A table whose columns are also aligned as text."""
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    line = lambda row: "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |"
    return "\n".join([line(heads), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def of_case(lines, case, what, order, skips):
    """Everything about one case, as Markdown."""
    peers = by_peer(lines, case)
    columns = IDLE if case == "idle" else FULL
    columns = [column for column in columns if any(medians(rounds, column[0]) is not None for rounds in peers.values())]
    rows, notes, noisy, spare = [], [], [], []
    for name in order:
        reason = skips.get((name, case))
        if reason:
            rows.append([name, f"**SKIPPED: {reason}**", "", *[""] * len(columns)])
            continue
        failures = [line for line in lines if (line["case"], line["proxy"]) == (case, name) and line.get("error")]
        rounds = peers.get(name, {})
        if failures:
            notes.append(f"**{name} FAILED in {len(failures)} rounds**: {failures[0]['error'][:300]}")
        if not rounds:
            if failures:
                rows.append([name, "**FAILED**", "", *[""] * len(columns)])
            continue
        # Of several versions the last; their rounds are mixed in the medians, so say it.
        versions = list(dict.fromkeys(line["version"] for line in rounds.values()))
        if len(versions) > 1:
            notes.append(f"**{name}: rounds of {len(versions)} versions are mixed**: {', '.join(versions)}")
        rows.append([name, versions[-1], len(rounds), *(shown(key, how, medians(rounds, key)) for key, _, how in columns)])
        others = medians(rounds, "core_others") or 0
        if others > OTHERS_MAX:
            noisy.append(f"{name} {others:.0%}")
        if case != "idle" and (medians(rounds, "core") or 1) + others < FULL_MIN:
            spare.append(name)
        short = [line for line in rounds.values() if line.get("rate") and line["rate_reached"] < 0.97 * line["rate"]]
        if short:
            notes.append(f"{name}: the rate was not reached in {len(short)} rounds; its latencies are of an overload")
    if noisy:
        notes.append(f"**the machine was not quiet**: others used of the proxy's core at {', '.join(noisy)}")
    if spare:
        notes.append(f"not full was the core of {', '.join(spare)}: the other core was; compare CPU, not requests/s")
    rates = sorted({line["rate"] for rounds in peers.values() for line in rounds.values() if line.get("rate")})
    at = f"; latencies at {', '.join(f'{rate:,}' for rate in rates)} requests/s" if rates else ""
    text = [f"## {case}: {what}{at}", "", "Medians of the rounds.", ""]
    text += [markdown(["proxy", "version", "rounds", *(head for _, head, _ in columns)], rows), ""]
    ours = peers.get("friday")
    if ours:
        keys = [(key, head) for key, head in RATIOS if any(key == column for column, _, _ in columns)]
        rows = [[name, *(ratio(ours, peers[name], key) for key, _ in keys)] for name in order if name in peers and name != "friday"]
        for label, names in (
            ("**better of haproxy, nginx**", ("haproxy", "nginx")),
            ("**better of the two plain**", ("haproxy-plain", "nginx-plain")),
        ):
            if all(name in peers for name in names):
                best = {key: better(peers, names, key) for key, _ in keys}
                cells = [ratio(ours, peers[best[key]], key) if best[key] else "–" for key, _ in keys]
                rows.append([label, *cells])
        if rows:
            text += ["friday's figure divided by theirs, median of the rounds' ratios (lowest–highest):", ""]
            text += [markdown(["friday ÷", *(head for _, head in keys)], rows), ""]
    return "\n".join([*text, *(f"- {note}" for note in notes), *([""] if notes else [])])
