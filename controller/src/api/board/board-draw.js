// How the board words and draws what it knows. Pure: nothing here asks the controller, and only the functions at the end
// make elements.

export const POINTS_KEPT = 800;

/** A number with its unit, or a dash where there is none. */
const or = (x, show) => (x === null || x === undefined ? "–" : show(x));
export const ms = x => or(x, x => `${(x * 1000).toFixed(1)} ms`);
export const percent = x => or(x, x => `${+(x * 100).toFixed(2)} %`);
export const perSecond = x => or(x, x => `${x.toFixed(1)} /s`);
export const mib = x => or(x, x => `${(x / 1048576).toFixed(0)} MiB`);
export const cores = x => or(x, x => `${x.toFixed(2)} cores`);
export const value = x => or(x, x => String(+x.toPrecision(4)));
export const share = (part, all) => (all ? `${percent(part / all)} (${part} of ${all})` : "–");

/** Evidence as odds: its natural logarithm 4.6 is 100 to 1. */
export function odds(log) {
  if (log === null || log === undefined || log < 0) return "none";
  const evidence = Math.exp(log);
  if (evidence >= 1e6) return `10^${(log / Math.LN10).toFixed(0)} to 1`;
  return `${evidence >= 10 ? evidence.toFixed(0) : evidence.toFixed(1)} to 1`;
}

const ENDINGS = { promoted: "promoted", rolled_back: "rolled back", aborted: "aborted", superseded: "superseded", insufficient_evidence: "not enough evidence", not_ready: "not ready" };
export const ending = name => (name ? ENDINGS[name] ?? name : "running");
export const phaseName = phase => phase.name.replaceAll("_", " ");

/** How many people have yet to approve a rollout's first request. */
const approvalsMissing = ({ admission }) => Math.max(0, (admission?.approvals_min ?? 0) - (admission?.approved_by?.length ?? 0));

/** A step of the plan on a few characters. */
export function step(s) {
  if (s.kind === "gate") return `gate: ${s.approvers}`;
  return s.kind === "weight" ? `${s.weight_percent} %` : `${s.kind} ${s.weight_percent} %`;
}

/** A moment as people in this place read it. */
export const time = at => new Date(at).toLocaleTimeString();
export const moment = at => new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** What is said aloud of a rollout; it changes only with what matters. */
export function announcement(view) {
  const decision = view.verdict ? Object.keys(view.verdict.decision)[0] : null;
  const judged = { pass: "the gate is open", fail: "the canary is worse", hold: "the judge holds", inconclusive: "not yet known" }[decision];
  const end = view.ending ? view.message : phaseName(view.phase);
  return `${view.id}: ${end}, canary at ${view.weight.set_percent} percent${view.ending || !judged ? "" : `; ${judged}`}`;
}

/**
 * What a person may order of a rollout now, with what each would do. `me` is what `/api/v1/me` says; a viewer gets nothing.
 * `newest` is whether it is its service's newest: going back from an older one would undo another.
 */
export function actions(view, me, newest) {
  if (!me || !me.may_operate) return [];
  const { name } = view.phase, { service } = view, canary = view.canary.release.image, stable = view.stable.release.image;
  const order = (order, label, will, more = {}) => ({ id: order, label, will, path: `rollouts/${view.id}/orders`, body: { order }, ...more });
  if (view.ending === "promoted") {
    const back = Boolean(view.admission?.goes_back), went = back ? `Requests went back to ${canary} by this already. ` : "";
    return newest ? [{ id: "undo", label: back ? "Back one more" : "Roll back", danger: true, path: `services/${service}/undo`, body: { of: view.id }, will: `${went}Every request goes back from ${canary} to the release before it, at once and without analysis.` }] : [];
  }
  if (view.ending) {
    return newest ? [{ id: "retry", label: "Try again", path: `services/${service}/retry`, body: {}, will: `A new rollout of ${canary} starts, from the first step. It was not promoted before: ${view.message}` }] : [];
  }
  if (name === "rolling_back") return [];
  const list = [], at = name === "paused" ? view.phase.at.name : name, missing = at === "deploying" ? approvalsMissing(view) : 0;
  if ((name === "gated" || (name === "deploying" && missing)) && me.may_approve) {
    const will = missing ? `One of ${missing} approvals that are missing before the canary's first request; its author's does not count.` : "The gate opens, and the rollout goes on with its next step.";
    list.push(order("approve", "Approve", will, { main: true }));
    list.push(order("reject", "Reject", missing ? `The canary gets no request, and is removed; all go on to ${stable}.` : `The gate stays shut: every request goes back to ${stable}, and the canary is removed.`, { danger: true, needs: true }));
  }
  if (name === "paused") list.push(order("resume", "Resume", "The rollout goes on where it was paused.", { main: true }));
  else if (name !== "promoting") list.push(order("pause", "Pause", `The canary keeps its ${view.weight.set_percent} % and is still judged: it is rolled back if it is worse.`));
  if (["analyzing", "baking", "warm"].includes(name)) list.push(order("promote", "Next step", "The rollout goes on to its next step without further proof."));
  if (name !== "promoting" && !missing) list.push(order("promote_full", "Promote fully", `All requests go to ${canary} without further steps and without analysis.`));
  list.push(order("abort", "Abort", `Every request goes back to ${stable} at once; then the canary's requests finish, and it is removed.`, { danger: true, needs: true }));
  return list;
}

/** What is new of a series, added to what there was. */
export function merged(before, more) {
  const list = before ?? { points: [], weights: [], story: [], next: 0, verdicts: 0 };
  const points = [...list.points, ...more.points];
  return {
    points: points.length > POINTS_KEPT ? thinned(points, POINTS_KEPT / 2) : points,
    weights: [...list.weights, ...more.weights].slice(-POINTS_KEPT),
    story: [...list.story, ...more.story].slice(-POINTS_KEPT),
    verdicts: list.verdicts + more.verdicts,
    next: Math.max(list.next, more.next),
  };
}

/** At most about so many points: of neighbours the one with the most evidence, and always the last. */
export function thinned(points, most) {
  const size = Math.ceil(points.length / most), kept = [];
  for (let at = 0; at < points.length; at += size) {
    const chunk = points.slice(at, at + size);
    kept.push(chunk.reduce((a, b) => (b.evidence >= a.evidence ? b : a)));
  }
  if (points.length && kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
}

/** The rows of a verdict: signal, canary, stable, evidence. */
export function verdictRows(v) {
  const { canary, stable } = v.in_step, e = v.watched ?? v.evidence, alone = Boolean(v.watched);
  const rows = [["errors", share(canary.bad, canary.requests), alone ? `at most ${percent(v.watched.errors_allowed)}` : share(stable.bad, stable.requests), odds(e.errors)]];
  ["p50", "p90", "p99"].forEach((name, i) => {
    const us = v.thresholds_us[i], than = us === null ? "not known yet" : ms((alone ? 2 : 1) * us / 1e6);
    rows.push([`slower than ${alone ? "twice " : ""}${name}, ${than}`, share(canary.slow[i], canary.timed), share(stable.slow[i], stable.timed), odds(e.latency[i])]);
  });
  if (!alone) rows.push(["saturation", "–", "–", odds(e.saturation)], ["warm-up", `${v.canary_cold} left out`, "–", odds(e.warm_up)]);
  rows.push(["tasks that came later", "–", "–", odds(alone ? e.cold : e.late_nodes)], ["together", "–", "–", odds(e.total)], ["rolled back at", "", "", odds(alone ? e.rollback_at : v.rollback_at)]);
  return rows;
}

/** Lines through points [time, value], broken where a value is missing, as the data of a path. */
export function path(points, x, y, stepped = false) {
  let d = "", open = false, last = null;
  for (const [t, v] of points) {
    if (v === null || v === undefined || !Number.isFinite(v)) { open = false; continue; }
    const at = `${x(t).toFixed(1)} ${y(v).toFixed(1)}`;
    d += !open ? `M${at}` : stepped ? `H${x(t).toFixed(1)}V${y(v).toFixed(1)}` : `L${at}`;
    open = true; last = at;
  }
  // A lone point is drawn as a dot.
  return d && !/[LHV]/.test(d) ? `${d}L${last}` : d;
}

/** The shares of a canary over time, as steps: [time, percent] from its start to `end`. */
export function weightSteps(view, weights, end) {
  const start = Date.parse(view.created);
  const changes = weights.map(w => [Date.parse(w.at), w.percent]);
  const last = changes.length ? changes.at(-1)[1] : 0;
  return [[start, changes.length && changes[0][0] <= start ? changes[0][1] : 0], ...changes, [Math.max(end, start), last]];
}

/** An element with attributes and children; `null` children are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, text] of Object.entries(attributes)) node.setAttribute(name, text);
  node.append(...children.filter(child => child !== null));
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** A chart: lines over time. `lines` are { kind: "s" | "c" | "bad", points, stepped, area }, `show` words a value. */
export function chart({ label, lines, top, show, bound = null, height = 90, width = 420 }) {
  const all = lines.flatMap(line => line.points), times = all.map(p => p[0]);
  const from = times.length ? Math.min(...times) : 0, to = Math.max(...times, from + 1000);
  const most = top ?? Math.max(...all.map(p => p[1] ?? 0), bound ?? 0, 1e-9) * 1.1;
  const x = t => (t - from) / (to - from) * width, y = v => height - Math.min(v / most, 1) * (height - 4);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height + 16}`, role: "img", "aria-label": label });
  for (const at of [0, most / 2, most]) root.append(svg("line", { class: "rule", x1: 0, x2: width, y1: y(at), y2: y(at) }));
  for (const line of lines) {
    const d = path(line.points, x, y, line.stepped);
    if (!d) continue;
    if (line.area) root.append(svg("path", { class: "area", d: `${d}V${height}H${x(line.points[0][0])}Z` }));
    root.append(svg("path", { class: `line ${line.kind}`, d }));
  }
  if (bound !== null) root.append(svg("line", { class: "bound", x1: 0, x2: width, y1: y(bound), y2: y(bound) }));
  root.append(svg("text", { x: 2, y: 13 }, show(most)));
  if (times.length) {
    root.append(svg("text", { x: 0, y: height + 13 }, time(from)));
    root.append(svg("text", { x: width, y: height + 13, "text-anchor": "end" }, time(to)));
  }
  return root;
}
