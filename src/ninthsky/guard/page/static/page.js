"use strict";
// The live page: one snapshot, then small differences. Nothing is fetched from elsewhere, every text goes in as text.
const at = (id) => document.getElementById(id);
const COLOURS = ["#0000", "#8a8f98", "#7fb2e5", "#b9a6e8", "#3f8f78", "#f2b84b", "#a55e9c", "#ff3b2f", "#555b63"];
const STEPS = 300, HISTORY = 100, EDGE = 14; // pixels around the map, for the ring around a card at its rim
let state = null, cards = null, first = null, geometry = null, chosen = null;

if (at("token")) {
  const take = () => {
    if (location.hash.length < 2) return;
    at("token").value = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname); // a used token is of no use, but need not stay in sight
  };
  take();
  addEventListener("hashchange", take);
} else {
  listen();
}

function listen() {
  const source = new EventSource("/events");
  source.addEventListener("snapshot", (event) => { begin(JSON.parse(event.data)); trouble(""); });
  source.addEventListener("delta", (event) => { follow(JSON.parse(event.data)); });
  source.onerror = () => {
    trouble("no line to the page's server: what is shown is old; trying again");
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(listen, 3000);
    // Where the session is over, the page itself leads to the login.
    fetch("/", { redirect: "manual" }).then((answer) => { if (answer.type === "opaqueredirect") location.assign("/login"); }, () => {});
  };
}

function begin(snapshot) {
  state = snapshot;
  state.faults = new Map(snapshot.faults.map((fault) => [fault.id, fault]));
  const total = count(state.hosts.length);
  cards = new Uint8Array(total);
  first = new Uint32Array(state.hosts.length + 1);
  for (let host = 0; host < state.hosts.length; host++) first[host + 1] = first[host] + slots(host);
  for (let i = 0, place = 0; i < snapshot.cards.length; i += 2) {
    cards.fill(snapshot.cards[i + 1], place, place + snapshot.cards[i]);
    place += snapshot.cards[i];
  }
  at("job").textContent = state.job;
  const made = [];
  if (state.simulated) made.push("simulated ranks");
  if (state.injected) made.push(`${state.injected} ${state.injected === 1 ? "fault" : "faults"} injected on purpose`);
  at("made").hidden = !made.length;
  at("made").textContent = made.join(", ");
  const person = at("person");
  person.textContent = "";
  if (state.who) {
    person.append(`${state.who} `, button("log out", () => fetch("/logout", { method: "POST" }).then(() => location.assign("/login"))));
  } else {
    const link = document.createElement("a");
    link.href = "/login";
    link.textContent = "log in";
    person.append(link);
  }
  legend();
  layout();
  all();
  document.documentElement.dataset.ready = "yes";
}

function follow(delta) {
  if (!state) return;
  Object.assign(state.figures, delta.figures);
  if (delta.steps) state.steps = state.steps.concat(delta.steps).slice(-STEPS);
  for (const fault of delta.faults || []) state.faults.set(fault.id, fault);
  while (state.faults.size > HISTORY) state.faults.delete(state.faults.keys().next().value);
  for (let i = 0, place = 0; i < (delta.cards || []).length; i += 3) {
    const begin = place + delta.cards[i], end = begin + delta.cards[i + 1];
    cards.fill(delta.cards[i + 2], begin, end);
    if (end - begin > 4096) geometry.whole = true; else for (let card = begin; card < end; card++) paint(card);
    place = end;
  }
  if (geometry.whole || delta.faults) map();
  if (delta.cards) legend();
  if (delta.figures) figures();
  if (delta.steps) strip();
  if (delta.faults) { fault(); past(); }
}

function all() { figures(); fault(); strip(); map(); past(); }

// -- figures and the fault -------------------------------------------------------------------------------------------

function figures() {
  const f = state.figures, list = at("figures");
  list.textContent = "";
  const rows = [["stage", f.end || f.stage || "?"], ["step", f.step], ["committed", f.committed], ["generation", f.generation],
    ["goodput so far", f.goodput == null ? "?" : `${(100 * f.goodput).toFixed(1)} %`], ["faults", f.faults], ["not mended", f.open],
    ["false alarms", f.faults ? `${f.false_alarms} of ${f.faults} (95 %: at most ${(100 * f.false_alarms_high).toFixed(0)} %)` : 0],
    ["evicted", f.evictions], ["turned away", f.refused]];
  if (f.calls_lost) rows.push(["calls lost", f.calls_lost]);
  for (const [name, value] of rows) {
    const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value ?? "?";
    row.append(term, text);
    list.append(row);
  }
  at("steptime").textContent = f.step_seconds ? `${f.step_seconds} s, median of the newest 64` : "";
  trouble(f.stale ? "the controller has written nothing for five seconds: what is shown is old" : "");
}

function worst() {
  const every = [...state.faults.values()];
  if (chosen && state.faults.has(chosen)) return state.faults.get(chosen);
  return every.findLast((f) => f.state === "open") || every.findLast((f) => f.state === "advised" || f.state === "stopped") || every.at(-1);
}

function fault() {
  const f = worst(), section = at("fault");
  section.dataset.state = f ? f.state : "none";
  for (const part of section.querySelectorAll(".columns")) part.hidden = !f;
  if (!f) {
    at("name").textContent = "no fault";
    at("verdict").textContent = at("state").textContent = "";
    document.title = `${state.job}: no fault`;
    return;
  }
  const name = f.name || "nobody blamed";
  at("name").textContent = name;
  at("name").dataset.fault = f.id;
  const rank = f.rank == null ? "" : `, rank ${f.rank}`;
  at("state").textContent = `${f.id}, ${f.state}${rank}, step ${f.step}${f.injected ? ", INJECTED on purpose" : ""}${f.now ? `, now on ${f.now}` : ""}`;
  at("verdict").textContent = f.verdict + (f.confidence == null ? "" : ` (confidence ${f.confidence.toFixed(2)})`);
  document.title = `${f.state === "repaired" ? "" : "\u25CF "}${name}: ${f.state}`;
  fill("facts", f.facts);
  fill("ruled", f.ruled_out);
  at("playbook").textContent = f.playbook === "unknown" ? "unknown" : `${f.title} (${f.playbook})`;
  const steps = at("steps");
  steps.textContent = "";
  for (const [text, kind, seconds] of f.steps) {
    const line = document.createElement("li");
    line.className = kind;
    line.textContent = text + (seconds == null ? "" : `, ${seconds.toFixed(2)} s`) + (kind === "person" ? " (a person)" : "");
    steps.append(line);
  }
  cost(f);
  const judged = f.judged && f.judged[0] === "not a fault";
  at("none").textContent = judged ? "It was a fault after all" : "Not a fault";
  at("none").onclick = () => act(judged ? "a fault" : "not a fault", f.id);
  at("approve").hidden = !f.approvable;
  at("approve").textContent = "Approve what is advised";
  at("approve").onclick = () => {
    // A card is replaced by this: twice, so that no stray click does it.
    at("approve").textContent = `Sure? Again: ${name} is replaced`;
    at("approve").onclick = () => act("approve", f.id);
  };
  const said = [];
  if (f.judged) said.push(`${f.judged[1]} said: ${f.judged[0]}, ${clock(f.judged[2])}`);
  if (f.approved) said.push(`approved by ${f.approved[0]}, ${clock(f.approved[1])}: ${
    { true: "done", false: "too late, nothing waited for it any more" }[f.approved[2]] || "the controller has not answered yet"}`);
  if (!state.who) said.push("to judge or approve, log in");
  at("said").textContent = said.join("; ");
  at("none").disabled = at("approve").disabled = !state.who;
}

function cost(f) {
  let [steps, seconds, hours] = f.cost;
  if (waits(f)) {
    seconds = Math.max(seconds, Date.now() / 1000 - f.began);
    hours = seconds * state.world / 3600;
  }
  fill("cost", [`${steps} steps redone or lost`, `${seconds.toFixed(1)} s that all ${state.world} cards waited`, `${hours.toFixed(3)} card-hours`]);
}

// As page/cost.py reckons it: while a fault is open, or only told of and all wait for its rank, its cost grows.
function waits(f) {
  const stands = f.state === "open" || (f.state === "advised" && f.cost[1] > 0 && state.figures.step <= f.step + 1);
  return stands && f.began && !state.figures.end;
}

setInterval(() => { const f = state && worst(); if (f && waits(f)) cost(f); }, 1000);

function act(what, id) {
  for (const name of ["none", "approve"]) at(name).disabled = true;
  fetch("/act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ act: what, fault: id }) })
    .then(async (answer) => { if (!answer.ok) at("said").textContent = (await answer.json()).error; })
    .catch(() => { at("said").textContent = "the page's server did not answer"; })
    .finally(() => { for (const name of ["none", "approve"]) at(name).disabled = !state.who; });
}

function past() {
  const body = at("history"), shown = worst();
  body.textContent = "";
  for (const f of [...state.faults.values()].reverse()) {
    const row = body.insertRow();
    row.className = shown && shown.id === f.id ? "shown" : "";
    row.onclick = () => { chosen = chosen === f.id ? null : f.id; fault(); past(); map(); };
    const seconds = (value) => (value == null ? "" : `${value.toFixed(2)} s`);
    const judged = f.judged && f.judged[0] === "not a fault" ? ", not a fault" : "";
    for (const text of [f.id, clock(f.began), f.name || "nobody", f.verdict, f.playbook, f.state + judged,
      seconds(f.named_seconds), seconds(f.trained_seconds), f.cost[2].toFixed(3)]) row.insertCell().textContent = text;
  }
}

// -- canvases --------------------------------------------------------------------------------------------------------

function slots(host) { return Array.isArray(state.slots) ? state.slots[host] : state.slots; }
function count(hosts) { let n = 0; for (let host = 0; host < hosts; host++) n += slots(host); return n; }

function sized(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const brush = canvas.getContext("2d");
  brush.scale(ratio, ratio);
  return [brush, width];
}

// Each server is a group of two rows; cells are as large as lets the whole fleet stand in about half a screen.
function layout() {
  const across = Math.max(1, Math.ceil(Math.max(...state.hosts.map((_, host) => slots(host))) / 2));
  const width = (at("map").clientWidth || 1000) - 2 * EDGE;
  let cell = 14, columns, rows;
  for (; cell >= 2; cell--) {
    columns = Math.max(1, Math.floor(width / (across * cell + Math.max(2, cell / 2))));
    rows = Math.ceil(state.hosts.length / columns);
    if (rows * (2.5 * cell + 1) <= 460) break;
  }
  cell = Math.max(cell, 2);
  const gap = Math.max(2, cell / 2);
  geometry = { across, cell, columns, group: across * cell + gap, line: 2 * cell + gap, whole: false };
  const [brush] = sized(at("map"), rows * geometry.line + 2 * EDGE);
  geometry.brush = brush;
}

function place(card) {
  let low = 0, high = state.hosts.length - 1;
  while (low < high) { const middle = (low + high + 1) >> 1; if (first[middle] <= card) low = middle; else high = middle - 1; }
  const slot = card - first[low], g = geometry;
  const x = (low % g.columns) * g.group + (slot % g.across) * g.cell, y = Math.floor(low / g.columns) * g.line + Math.floor(slot / g.across) * g.cell;
  return [EDGE + x, EDGE + y];
}

function paint(card) {
  const [x, y] = place(card), g = geometry, size = g.cell > 4 ? g.cell - 1 : g.cell;
  g.brush.clearRect(x, y, size, size);
  g.brush.fillStyle = COLOURS[cards[card]] || "#fff";
  g.brush.fillRect(x, y, size, size);
}

function map() {
  const canvas = at("map"), g = geometry;
  g.whole = false;
  g.brush.clearRect(0, 0, canvas.width, canvas.height);
  for (let card = 0; card < cards.length; card++) paint(card);
  const f = worst();
  if (!f || !f.name) return;
  const [host, slot] = f.name.split("/"), number = state.hosts.indexOf(host);
  if (number < 0) return;
  const [x, y] = place(first[number] + (slot ? Number(slot) : 0));
  g.brush.strokeStyle = "#ff3b2f";
  g.brush.lineWidth = 2;
  g.brush.beginPath();
  g.brush.arc(x + g.cell / 2, y + g.cell / 2, Math.max(9, g.cell), 0, 7);
  g.brush.stroke();
}

function legend() {
  const list = at("legend"), seen = new Array(COLOURS.length).fill(0);
  for (const card of cards) seen[card]++;
  list.textContent = "";
  for (const [number, word] of Object.entries(state.words)) {
    if (!seen[number]) continue;
    const line = document.createElement("li"), patch = document.createElement("i");
    patch.style.background = COLOURS[number];
    line.append(patch, `${word}: ${seen[number].toLocaleString("en")}`);
    list.append(line);
  }
  at("under").textContent = `${state.hosts.length.toLocaleString("en")} servers, ${cards.length.toLocaleString("en")} card slots`;
}

function strip() {
  const canvas = at("strip"), [brush, width] = sized(canvas, 70);
  const times = state.steps.map((step) => step[1]);
  if (!times.length) return;
  const middle = [...times].sort((a, b) => a - b)[times.length >> 1], top = Math.max(2 * middle, 1e-6), wide = width / STEPS;
  times.forEach((seconds, i) => {
    const tall = Math.min(1, seconds / top) * 66;
    brush.fillStyle = seconds > 1.5 * middle ? "#f2b84b" : "#3f8f78";
    brush.fillRect(i * wide, 68 - tall, Math.max(1, wide - 1), tall);
  });
}

if (at("map")) {
  addEventListener("resize", () => { if (state) { layout(); map(); strip(); } });
  at("map").addEventListener("mousemove", (event) => {
    if (!state) return;
    const box = at("map").getBoundingClientRect(), g = geometry;
    const column = Math.floor((event.clientX - box.left - EDGE) / g.group), row = Math.floor((event.clientY - box.top - EDGE) / g.line);
    const host = row * g.columns + column;
    if (column < 0 || row < 0 || column >= g.columns || host >= state.hosts.length) return;
    const words = [];
    for (let card = first[host]; card < first[host + 1]; card++) words.push(`${card - first[host]} ${state.words[cards[card]]}`);
    at("map").title = `${state.hosts[host]}: ${words.join(", ")}`;
  });
}

// -- small -----------------------------------------------------------------------------------------------------------

function fill(id, texts) {
  at(id).textContent = "";
  for (const text of texts.length ? texts : ["nothing"]) { const line = document.createElement("li"); line.textContent = text; at(id).append(line); }
}
function button(text, then) { const made = document.createElement("button"); made.textContent = text; made.onclick = then; return made; }
function clock(seconds) { return seconds ? new Date(1000 * seconds).toLocaleTimeString() : ""; }
function trouble(text) { at("trouble").hidden = !text; at("trouble").textContent = text; }
