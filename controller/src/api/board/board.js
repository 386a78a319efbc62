// The board: asks the controller, follows one rollout by its stream, and puts what is known where it belongs. What is
// shown is written as text, never as markup.
import { actions, announcement, chart, cores, el, ending, merged, mib, moment, ms, odds, percent, perSecond, phaseName, step, time, value, verdictRows, weightSteps } from "/board-draw.js";

/** How much of the present is kept for the signals' charts, in milliseconds. */
const LIVE_KEPT = 120_000;
/** Pauses, in milliseconds: between two looks at all services, at the agents, between two questions for a series. */
const SERVICES_EVERY = 2_000, IDLE_EVERY = 500, AGENTS_EVERY = 5_000, SERIES_EVERY = 1_000;
/** The pause before a lost controller is asked again, growing up to the greatest. */
const RETRY = 250, RETRY_MAX = 5_000;
/** A stream that is silent for so long is lost: the controller's heartbeats come every 10 s. */
const SILENCE_MAX = 30_000;
/** Rollouts on a page of the history; verdicts in their list. */
const HISTORY = 20, VERDICTS = 60;

const $ = id => document.getElementById(id);
const pause = wait => new Promise(resolve => setTimeout(resolve, wait));
const set = (id, text) => { const node = $(id); if (node.textContent !== text) node.textContent = text; };
const show = (id, is) => { $(id).hidden = !is; };

let me = null;
let services = [];
/** What is looked at: a service, and one of its rollouts if it is not the newest. */
let chosen = { service: null, rollout: null };
/** The rollout that is shown, and what is known of its past. */
let shown = fresh();
let following = null;

function fresh() { return { view: null, series: null, live: [], cpu: new Map(), asked: 0, asking: false, state: "", drawn: "" }; }

// ---- asking -------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, problem) { super(problem.detail ?? `the controller answers ${status}`); this.status = status; this.problem = problem; }
}

function head(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function ask(path, options = {}) {
  const answer = await fetch(`/api/v1/${path}`, { ...options, headers: head(options.headers) });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const refused = new Refused(answer.status, body);
  if (answer.status === 401) signIn(refused);
  throw refused;
}

// Another site may send a form with our cookie, but no field of its own: it is how an order is known to be the page's.
const post = (path, body) => ask(path, { method: "POST", headers: { "content-type": "application/json", "x-friday-order": "board" }, body: JSON.stringify(body) });
const name = text => encodeURIComponent(text);
/** A part of the address, which anybody may have typed. */
const plainly = text => { try { return decodeURIComponent(text); } catch { return ""; } };

/** Says how the link to the controller is. */
function link(error) {
  const lost = error instanceof Refused ? error.message : "the controller does not answer; requests are served on. Trying again.";
  set("link", error ? lost : "live");
  $("link").classList.toggle("lost", Boolean(error));
}

/** Asks for a token, and shows the way to sign in by GitLab where there is one. */
function signIn(refused) {
  const was = !$("sign-in").hidden;
  show("sign-in", true); show("board", false); show("services", false);
  set("sign-in-error", sessionStorage.getItem("token") ? refused.message : "");
  sessionStorage.removeItem("token");
  set("link", "waits for you to sign in");
  if (was) return;
  $("token").focus();
  fetch("/auth/session").then(answer => answer.json()).then(session => {
    const way = session.sign_in;
    // It begins where the controller is known by its name, which is where the session will hold.
    const is = typeof way === "string" && /^https?:\/\//.test(way);
    show("sign-in-link", is);
    if (is) $("sign-in-link").firstElementChild.href = way;
  }).catch(() => show("sign-in-link", false));
}

$("token-form").addEventListener("submit", event => {
  event.preventDefault();
  // Kept for this tab alone.
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  begin();
});

async function begin() {
  try {
    me = await ask("me");
    show("sign-in", false);
    set("who", me.name ? `${me.name}, ${me.role}` : "");
    await lookAtServices();
  } catch (error) {
    if (!(error instanceof Refused && error.status === 401)) { link(error); setTimeout(begin, RETRY_MAX); }
  }
}

// ---- services -----------------------------------------------------------------------------------------------------

async function lookAtServices() {
  services = await ask("services");
  show("services", services.length > 0);
  show("empty", services.length === 0);
  const key = JSON.stringify(services.map(s => [s.service, s.rollout?.id, s.rollout && phaseName(s.rollout.phase), s.rollout?.weight_percent, s.service === chosen.service]));
  if ($("service-list").dataset.key !== key) {
    const focused = document.activeElement?.dataset?.service;
    $("service-list").dataset.key = key;
    $("service-list").replaceChildren(...services.map(serviceLink));
    if (focused) [...$("service-list").querySelectorAll("a")].find(a => a.dataset.service === focused)?.focus();
  }
  choose();
}

function serviceLink(view) {
  const r = view.rollout, says = !r ? "no rollout yet" : r.ending ? ending(r.ending) : `${phaseName(r.phase)}, ${r.weight_percent} %`;
  const a = el("a", { href: `#${name(view.service)}`, "data-service": view.service }, view.service, el("small", {}, says));
  if (view.service === chosen.service) a.setAttribute("aria-current", "page");
  return el("li", {}, a);
}

/** Follows what the address names, or the first service with something going on. */
function choose() {
  const [wanted, rollout] = location.hash.slice(1).split("/").map(plainly);
  const busy = services.find(s => s.rollout && !s.rollout.ending) ?? services[0];
  // Once something is looked at, another service's rollout does not take its place.
  const service = services.some(s => s.service === wanted) ? wanted : chosen.service ?? busy?.service;
  const known = services.find(s => s.service === service);
  // Whoever looks at the newest is shown the next one when it begins.
  const older = service === wanted && rollout && rollout !== known?.rollout?.id;
  const next = { service: service ?? null, rollout: older ? rollout : null };
  if (next.service === chosen.service && next.rollout === chosen.rollout) {
    if (known && !known.rollout) idle(known);
    else if (known && !following) follow();
    return;
  }
  chosen = next;
  following?.abort(); following = null;
  shown = fresh();
  $("verdict-list").replaceChildren(); $("story").replaceChildren(); $("announce").textContent = "";
  if (!known) return;
  loadHistory(null);
  if (known.rollout) follow(); else idle(known);
}

addEventListener("hashchange", () => { choose(); $("service-list").dataset.key = ""; lookAtServices().catch(() => {}); });

/** A service that has no rollout yet. */
function idle(view) {
  show("board", true);
  set("title", view.service); set("phase", "idle"); $("phase").className = "badge idle";
  set("facts", ""); set("message", "Every request goes to the stable release. `friday deploy` starts the first rollout.");
  set("canary-image", "no canary"); set("stable-image", `${view.stable.release.image} · stable 100 %`); set("seen", "");
  $("weight").setAttribute("aria-label", "The canary gets 0 percent"); $("weight-bar").style.width = "0";
  $("steps").replaceChildren(); $("actions").replaceChildren(); $("actions").dataset.key = "";
  for (const id of ["course", "checks", "answers", "verdicts", "log"]) show(id, false);
  remember({ stable: view.stable, canary: null });
  drawSignals(null, view.stable.signals, null);
  drawTasks(view.stable, null);
  link(null);
}

// ---- following one rollout ----------------------------------------------------------------------------------------

async function follow() {
  const controller = new AbortController();
  following = controller;
  const wanted = chosen.rollout ?? chosen.service;
  let failures = 0;
  while (!controller.signal.aborted) {
    try {
      await stream(wanted, controller, view => { failures = 0; link(null); receive(view); });
    } catch (error) {
      if (controller.signal.aborted) return;
      if (error instanceof Refused && (error.status === 401 || error.status === 404)) { if (error.status === 404) link(error); break; }
      link(error);
    }
    await pause(Math.min(RETRY * 2 ** failures++, RETRY_MAX));
  }
  if (following === controller) following = null;
}

/** Reads server-sent events until they end. By fetch, since EventSource cannot show a token. */
async function stream(wanted, controller, each) {
  const answer = await fetch(`/api/v1/stream?rollout=${name(wanted)}`, { headers: head(), signal: controller.signal });
  if (!answer.ok) {
    const refused = new Refused(answer.status, await answer.json().catch(() => ({})));
    if (answer.status === 401) signIn(refused);
    throw refused;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let timer;
    const silence = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("silence")), SILENCE_MAX); });
    let piece;
    try { piece = await Promise.race([reader.read(), silence]); } catch (error) { reader.cancel().catch(() => {}); throw error; } finally { clearTimeout(timer); }
    if (piece.done) throw new Error("the stream ended");
    text += piece.value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n");
      const data = lines.filter(line => line.startsWith("data:")).map(line => line.slice(5).trimStart()).join("\n");
      if (data && lines.some(line => /^event: ?rollout$/.test(line))) each(JSON.parse(data));
    }
  }
}

function receive(view) {
  if (shown.view && shown.view.id !== view.id) {
    shown = fresh();
    $("verdict-list").replaceChildren(); $("story").replaceChildren();
    loadHistory(null);
  } else if (shown.view && shown.view.ending !== view.ending) loadHistory(null);
  shown.view = view;
  remember(view);
  draw(view);
  series();
}

/** Keeps the signals of the last minutes, and how much CPU time each task had used. */
function remember(view) {
  const now = Date.now();
  shown.live.push({ t: now, stable: view.stable.signals, canary: view.canary?.signals ?? null });
  while (shown.live.length && shown.live[0].t < now - LIVE_KEPT) shown.live.shift();
  const tasks = [...view.stable.tasks, ...(view.canary?.tasks ?? [])];
  for (const task of tasks) {
    if (task.cpu_seconds === undefined) continue;
    const seen = shown.cpu.get(task.id) ?? [];
    if (!seen.length || now - seen.at(-1)[0] >= 1_000) seen.push([now, task.cpu_seconds]);
    if (seen.length > 6) seen.shift();
    shown.cpu.set(task.id, seen);
  }
  for (const id of shown.cpu.keys()) if (!tasks.some(task => task.id === id)) shown.cpu.delete(id);
}

/** CPU seconds in a second that a task used lately; none before it was seen twice. */
function cpuOf(task) {
  const seen = shown.cpu.get(task.id) ?? [];
  if (seen.length < 2) return null;
  return Math.max(0, (seen.at(-1)[1] - seen[0][1]) / ((seen.at(-1)[0] - seen[0][0]) / 1000));
}

/** Asks for what is new of the series, at most once in a while, and only if something may be. */
async function series() {
  const mine = shown, view = mine.view;
  const state = `${view.id} ${phaseName(view.phase)} ${view.weight.set_percent} ${view.verdict?.step_elapsed_ms} ${view.verdict?.evidence.total} ${view.ending}`;
  if (mine.asking || state === mine.state) return;
  mine.asking = true;
  try {
    await pause(Math.max(0, mine.asked + SERIES_EVERY - Date.now()));
    mine.asked = Date.now();
    for (let whole = false; !whole && mine === shown;) {
      const more = await ask(`rollouts/${name(view.id)}/series?after=${mine.series?.next ?? 0}`);
      mine.series = merged(mine.series, more);
      if (mine === shown) { addVerdicts(more.points); addStory(more.story); }
      whole = more.is_whole;
    }
    mine.state = state;
    if (mine === shown) drawCourse(mine.view);
  } catch { /* The stream says that the controller is away; the next change asks again. */ } finally { mine.asking = false; }
}

// ---- drawing ------------------------------------------------------------------------------------------------------

function draw(view) {
  const weight = view.weight.set_percent, canary = view.canary, stable = view.stable;
  show("board", true); show("empty", false);
  set("title", view.id);
  set("phase", view.ending ? ending(view.ending) : phaseName(view.phase));
  $("phase").className = `badge ${view.phase.name}`;
  set("facts", `${view.service} in ${view.environment}, started ${moment(view.created)} by ${view.author}${canary.release.commit ? `, commit ${canary.release.commit.slice(0, 12)}` : ""}`);
  set("message", view.message);
  set("announce", announcement(view));
  $("weight-bar").style.width = `${weight}%`;
  $("weight").setAttribute("aria-label", `The canary gets ${weight} percent`);
  set("canary-image", `canary ${weight} % · ${canary.release.image}`);
  set("stable-image", `${stable.release.image} · stable ${+(100 - weight).toFixed(2)} %`);
  const seen = view.weight.seen_percent;
  set("seen", view.ending || seen === weight ? "" : seen === null ? "The proxies differ in their weights, or none reports." : `The proxies apply ${seen} % so far.`);
  const steps = JSON.stringify(view.steps.map(s => [step(s), s.state]));
  if ($("steps").dataset.key !== steps) {
    $("steps").dataset.key = steps;
    $("steps").replaceChildren(...view.steps.map(s => {
      const item = el("li", { class: s.state }, step(s), el("span", { class: "heard" }, `, ${s.state}`));
      if (s.state === "current") item.setAttribute("aria-current", "step");
      return item;
    }));
  }
  drawActions(view);
  drawSignals(view, stable.signals, canary.signals);
  drawChecks(view);
  drawTasks(stable, canary);
  show("course", true); show("verdicts", $("verdict-list").children.length > 0); show("log", $("story").children.length > 0);
  $("card").href = `/api/v1/rollouts/${name(view.id)}/card.svg`;
  // A picture of its own page cannot show a token.
  show("card", !sessionStorage.getItem("token"));
}

function drawActions(view) {
  const newest = services.find(s => s.service === view.service)?.rollout?.id;
  const list = actions(view, me, newest === undefined || newest === view.id);
  const key = JSON.stringify(list.map(a => [view.id, a.id]));
  if ($("actions").dataset.key === key) return;
  const focused = document.activeElement?.dataset?.action;
  $("actions").dataset.key = key;
  $("actions").replaceChildren(...list.map(action => {
    const button = el("button", { type: "button", "data-action": action.id, class: action.danger ? "danger" : action.main ? "primary" : "" }, action.label);
    button.addEventListener("click", () => confirm(action.id));
    return button;
  }));
  if (focused) ($("actions").querySelector(`[data-action="${focused}"]`) ?? $("content")).focus();
}

const SIGNALS = [
  ["Latency", "90th percentile", "latency_p90_seconds", ms],
  ["Traffic", "requests in a second", "requests_per_second", perSecond],
  ["Errors", "share of requests", "error_ratio", percent],
  ["Saturation", "memory of all tasks", "memory_bytes", mib],
];

function drawSignals(view, stable, canary) {
  const past = view?.ending && shown.series?.points.length ? shown.series.points : null;
  set("signals-span", past ? "while it ran, by verdict" : "over the last two minutes");
  $("signals").replaceChildren(...SIGNALS.map(([title, detail, key, words]) => {
    const of = side => (past
      ? past.map(p => [Date.parse(p.at), p[side][key] ?? null])
      : shown.live.map(m => [m.t, m[side]?.[key] ?? null]));
    const latest = past ? { stable: past.at(-1).stable[key], canary: past.at(-1).canary[key] } : { stable: stable[key], canary: canary?.[key] };
    const cpu = key === "memory_bytes" && !past ? [stable.cpu_cores, canary?.cpu_cores] : null;
    const more = cpu && cpu.some(x => x !== null && x !== undefined) ? `; CPU ${cores(cpu[0])} and ${cores(cpu[1])}` : "";
    return el("div", { class: "signal" }, el("h4", {}, title), el("p", {}, detail + more),
      el("dl", {}, el("dt", { class: "s" }, "stable"), el("dd", {}, words(latest.stable)), el("dt", { class: "c" }, "canary"), el("dd", {}, words(latest.canary))),
      chart({ label: `${title}: stable ${words(latest.stable)}, canary ${words(latest.canary)}`, lines: [{ kind: "s", points: of("stable") }, { kind: "c", points: of("canary") }], show: words }));
  }));
}

function drawCourse(view) {
  const known = shown.series;
  if (!known) return;
  const key = `${known.next} ${view.ending}`;
  if (key === shown.drawn) return;
  shown.drawn = key;
  const end = view.ending ? Date.parse(view.moved) : Date.now();
  const weights = weightSteps(view, known.weights, Math.max(end, ...known.points.slice(-1).map(p => Date.parse(p.at))));
  const last = known.points.at(-1), bound = last?.rollback_at ?? null;
  const evidence = known.points.map(p => [Date.parse(p.at), p.evidence]);
  $("course-charts").replaceChildren(
    el("div", { class: "signal" }, el("h4", {}, "Weight of the canary"), chart({ label: `The canary's weight over time, now ${view.weight.set_percent} percent`, lines: [{ kind: "c", points: weights, stepped: true, area: true }], top: 100, show: x => `${x} %`, height: 150 })),
    el("div", { class: "signal" }, el("h4", {}, "Evidence of harm, and the bound to roll back (dashed)"),
      chart({ label: last ? `Evidence of harm is ${odds(last.evidence)}; rolled back at ${odds(bound)}` : "Nothing judged yet", lines: [{ kind: "bad", points: evidence }], bound, top: bound === null ? 5 : Math.max(bound * 1.25, ...evidence.slice(-1).map(p => Math.min(p[1], bound * 3))), show: odds, height: 150 })));
  set("verdicts-title", `Verdicts (${known.verdicts})`);
  if (view.ending) drawSignals(view, view.stable.signals, view.canary.signals);
}

const cell = (text, kind) => el("td", kind ? { class: kind } : {}, text);

function drawChecks(view) {
  const checks = view.checks ?? [], kinds = view.verdict?.kinds ?? [];
  show("checks", checks.length > 0); show("answers", kinds.length > 0);
  const states = { kept: "kept", beyond: "beyond its limit", no_data: "no data: no gate opens" };
  $("check-rows").replaceChildren(...checks.map(c => el("tr", { title: c.message }, el("th", { scope: "row" }, c.name), cell(value(c.canary)), cell(value(c.stable)), cell(c.bound), cell(value(c.limit)), cell(states[c.state], c.state))));
  $("answer-rows").replaceChildren(...kinds.map(k => el("tr", {}, el("th", { scope: "row" }, k.name), cell(percent(k.canary)), cell(percent(k.stable)))));
}

function drawTasks(stable, canary) {
  const row = (side, task) => el("tr", {}, cell(side, side[0]), el("th", { scope: "row", title: task.endpoint }, task.id), cell(task.node), cell(task.ready ? "ready" : "not ready", task.ready ? "good" : "no_data"),
    cell(String(task.done ?? 0), "n"), cell(String(task.failed ?? 0), task.failed ? "n bad" : "n"), cell(String(task.in_flight ?? 0), "n"), cell(cores(cpuOf(task)), "n"),
    cell(task.memory_bytes_max ? `${mib(task.memory_bytes)} of ${mib(task.memory_bytes_max)}` : mib(task.memory_bytes), "n"));
  const rows = [...(canary?.tasks ?? []).map(task => row("canary", task)), ...stable.tasks.map(task => row("stable", task))];
  $("task-rows").replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: "9" }, "No tasks are known."))]));
  const troubles = [["canary", canary], ["stable", stable]].filter(([, arm]) => arm && (arm.trouble || arm.restarts));
  set("trouble", troubles.map(([side, arm]) => `${side}: ${arm.restarts} restarts in five minutes${arm.trouble ? `; ${arm.trouble}` : ""}`).join(" · "));
}

function drawNodes(agents) {
  show("nodes", agents.length > 0);
  $("node-rows").replaceChildren(...agents.map(({ report, silent_seconds }) => {
    const h = report.host ?? {};
    return el("tr", {}, el("th", { scope: "row" }, report.node), cell(String(report.tasks?.length ?? 0), "n"), cell(h.cpu_ratio === undefined ? "–" : `${percent(h.cpu_ratio)} of ${h.cpus ?? "?"} CPUs`, "n"),
      cell(h.memory_bytes === undefined ? "–" : `${mib(h.memory_bytes)} of ${mib(h.memory_bytes_max)}`, "n"), cell(report.trouble ?? (silent_seconds > 10 ? `silent for ${silent_seconds.toFixed(0)} s` : "reports"), report.trouble || silent_seconds > 10 ? "beyond" : "good"));
  }));
}

function addVerdicts(points) {
  const list = $("verdict-list");
  for (const point of points.slice(-VERDICTS)) {
    const button = el("button", { type: "button", "aria-label": `Explain the verdict of ${time(point.at)}` }, "Explain");
    button.addEventListener("click", () => explain(point));
    list.prepend(el("li", {}, el("time", { datetime: point.at }, time(point.at)), el("span", { class: point.decision === "fail" ? "bad" : point.decision === "pass" ? "good" : "" }, `${+point.weight_percent.toFixed(2)} %: ${point.message}`), button));
  }
  while (list.children.length > VERDICTS) list.lastChild.remove();
  show("verdicts", list.children.length > 0);
}

function addStory(lines) {
  const list = $("story");
  for (const line of lines) list.prepend(el("li", {}, el("time", { datetime: line.at }, time(line.at)), el("span", {}, line.message), line.message.includes(line.author) ? null : el("small", { class: "soft" }, `by ${line.author}`)));
  while (list.children.length > 300) list.lastChild.remove();
  show("log", list.children.length > 0);
}

// ---- history ------------------------------------------------------------------------------------------------------

/** A page of the history: the newest, or what is older than `before`. */
async function loadHistory(before) {
  const service = chosen.service;
  if (!service) return;
  try {
    const list = await ask(`rollouts?service=${name(service)}&limit=${HISTORY}${before ? `&before=${name(before)}` : ""}`);
    if (service !== chosen.service) return;
    const rows = list.map(r => el("tr", {}, el("th", { scope: "row" }, el("a", { href: `#${name(service)}/${name(r.id)}` }, r.id)), cell(ending(r.ending), r.ending === "promoted" ? "good" : r.ending ? "bad" : ""), cell(r.canary.image), cell(r.author), cell(moment(r.created)), cell(r.message)));
    if (before) $("history-rows").append(...rows);
    else $("history-rows").replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: "6" }, "No rollout yet."))]));
    show("older", list.length === HISTORY);
    $("older").dataset.before = list.at(-1)?.id ?? "";
  } catch (error) { if (!(error instanceof Refused && error.status === 401)) link(error); }
}

$("older").addEventListener("click", () => loadHistory($("older").dataset.before));

// ---- orders and explanations --------------------------------------------------------------------------------------

let pending = null;

/** Shows what an order would do, and asks once. */
function confirm(id) {
  const view = shown.view, action = actions(view, me, true).find(a => a.id === id);
  if (!action) return;
  pending = { action, view };
  set("confirm-title", `${action.label}: ${view.id}?`);
  set("confirm-text", action.will);
  set("confirm-now", view.ending ? "" : `Now: ${view.weight.set_percent} % on the canary, ${phaseName(view.phase)}.`);
  set("reason-label", action.needs ? "Why (for the event log)" : "Why (for the event log, if you like)");
  $("reason").value = ""; $("reason").required = Boolean(action.needs);
  set("confirm-error", ""); set("confirm-yes", action.label);
  $("confirm-yes").className = action.danger ? "primary danger" : "primary";
  $("confirm").showModal();
  (action.needs ? $("reason") : $("confirm-no")).focus();
}

$("confirm-no").addEventListener("click", () => $("confirm").close());
$("explain-close").addEventListener("click", () => $("explain").close());

$("confirm-yes").addEventListener("click", async () => {
  const { action } = pending, reason = $("reason").value.trim();
  if (action.needs && !reason) { set("confirm-error", "Say why: it stands in the event log."); $("reason").focus(); return; }
  $("confirm-yes").disabled = true;
  try {
    await post(action.path, { ...action.body, by: me.name ?? "board", ...(reason ? { reason } : {}) });
    $("confirm").close();
    await lookAtServices();
  } catch (error) { set("confirm-error", error instanceof Refused ? error.message : "The controller does not answer. It is not known whether the order arrived; look before you repeat it."); } finally { $("confirm-yes").disabled = false; }
});

/** A verdict with its numbers. */
async function explain(point) {
  set("explain-title", `Verdict of ${time(point.at)}`);
  set("explain-text", point.message); set("explain-proofs", "");
  $("explain-rows").replaceChildren();
  $("explain").showModal();
  try {
    const [event] = await ask(`rollouts/${name(shown.view.id)}/events?after=${point.seq - 1}&limit=1`);
    const verdict = event.data.verdict;
    $("explain-rows").replaceChildren(...verdictRows(verdict).map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map(text => cell(text)))));
    const done = verdict.proofs.filter(p => p.log_e >= p.needed).length;
    set("explain-proofs", verdict.proofs.length ? `To advance: ${done} of ${verdict.proofs.length} margins are proven.` : "");
  } catch (error) { set("explain-proofs", error.message); }
}

// ---- the page -----------------------------------------------------------------------------------------------------

// Not by the address: that names what is looked at.
document.querySelector(".skip").addEventListener("click", event => { event.preventDefault(); $("content").focus(); });

const dark = matchMedia("(prefers-color-scheme: dark)");

function theme(wanted) {
  if (wanted) document.documentElement.dataset.theme = wanted;
  const is = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : dark.matches;
  $("theme").setAttribute("aria-pressed", String(is));
}

$("theme").addEventListener("click", () => {
  const next = $("theme").getAttribute("aria-pressed") === "true" ? "light" : "dark";
  localStorage.setItem("theme", next); theme(next);
});
dark.addEventListener("change", () => theme());
theme(["light", "dark"].find(kind => kind === localStorage.getItem("theme")));

/** Does something again and again while there is somebody signed in. */
async function every(wait, what) {
  for (;;) {
    await pause(wait());
    if (!me || !$("sign-in").hidden || document.hidden) continue;
    try { await what(); } catch (error) { if (!following) link(error); }
  }
}

begin();
// A rollout that begins is found here; once it is followed, its changes come by themselves.
every(() => (following ? SERVICES_EVERY : IDLE_EVERY), lookAtServices);
// Who may read of some services alone is told nothing of nodes.
every(() => AGENTS_EVERY, async () => drawNodes(me.may_read_all ? await ask("agents") : []));
