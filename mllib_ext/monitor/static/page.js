"use strict";
// One page for all runs of a server. Only relative addresses, so that it works behind a proxy.

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
if (query.has("key")) {
  // The cookie has the key from here on; the address bar and the history need not.
  query.delete("key");
  history.replaceState(null, "", location.pathname + (query.size ? "?" + query : ""));
}

// --- a run, as far as it is known ----------------------------------------------------------------

class Run {
  constructor(name) {
    this.name = name;
    this.last = 0; // id of the newest event
    this.rounds = [];
    this.actions = [];
    this.tunables = {};
    this.state = "starting";
    this.end = null;
    this.source = null;
  }

  follow(changed) {
    this.source = new EventSource(`api/stream?run=${encodeURIComponent(this.name)}&after=${this.last}`);
    this.source.onmessage = (message) => {
      for (const event of JSON.parse(message.data)) this.take(event);
      $("trouble").hidden = true;
      changed();
    };
    this.source.onerror = () => {
      if (!this.end) trouble("The run does not answer. Its process may have ended; trying again.");
    };
  }

  leave() {
    if (this.source) this.source.close();
  }

  take(event) {
    if (event.id <= this.last) return; // a connection that came again
    this.last = event.id;
    switch (event.event) {
      case "round": this.rounds.push(event); break;
      case "tunables": this.tunables = event.tunables; break;
      case "state": this.state = event.state; break;
      case "end": this.state = event.state; this.end = event; this.actions.push(event); break;
      default:
        event.place = Math.max(0, this.rounds.length - 1); // the round it followed, over all starts
        this.actions.push(event);
    }
  }

  get latest() { return this.rounds[this.rounds.length - 1]; }
}

let run = null, other = null, waiting = false;

function changed() {
  // Once a frame, however many events come.
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

// --- curves --------------------------------------------------------------------------------------

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plots = {};
let grown = 0;

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(+value.toPrecision(6));
}

/** One value a round: they count on over the starts of an algorithm, so that curves never go back. */
function column(rounds, of) {
  return rounds.map((r) => { const v = of(r); return typeof v === "number" ? v : null; });
}

function marks(plot) {
  const context = plot.ctx;
  context.save();
  context.strokeStyle = color("--mark");
  context.setLineDash([4, 4]);
  context.beginPath();
  for (const x of run.marks) {
    const at = plot.valToPos(x, "x", true);
    if (at < plot.bbox.left || at > plot.bbox.left + plot.bbox.width) continue;
    context.moveTo(at, plot.bbox.top);
    context.lineTo(at, plot.bbox.top + plot.bbox.height);
  }
  context.stroke();
  context.restore();
}

function chart(id, series, log) {
  const box = $(id), key = series.map((s) => s.label).join() + log + grown;
  const data = [Float64Array.from(run.rounds, (_, i) => i), ...series.map((s) => s.values)];
  // A logarithm has no place for 0 and below.
  if (log) for (let i = 1; i < data.length; i++) data[i] = data[i].map((v) => (v > 0 ? v : null));
  if (other) {
    const length = Math.max(run.rounds.length, other.rounds.length);
    data[0] = Float64Array.from({ length }, (_, i) => i);
    for (let i = 1; i < data.length; i++) {
      data[i] = Array.from({ length }, (_, at) => (at < data[i].length ? data[i][at] : null));
    }
  }
  const known = plots[id];
  if (known && known.key === key) {
    known.plot.setData(data);
    return;
  }
  if (known) known.plot.destroy();
  const axis = { stroke: color("--faint"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
  const plot = new uPlot({
    width: box.clientWidth, height: box.clientHeight - 28,
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [{ ...axis, size: 28 }, { ...axis, size: 64, values: (_, values) => values.map((v) => (v === null ? "" : number(v))) }],
    series: [{ label: "round" }, ...series.map((s) => ({
      label: s.label, stroke: color(s.color), width: 1.5, dash: s.dash, points: { show: false },
      spanGaps: true, value: (_, v) => number(v),
    }))],
    hooks: { draw: [marks] },
  }, data, box);
  plots[id] = { plot, key };
}

function pair(label, hue, of) {
  const series = [{ label, color: hue, values: column(run.rounds, of) }];
  if (other) series.push({ label: other.name, color: "--b", dash: [6, 4], values: column(other.rounds, of) });
  return series;
}

// --- drawing -------------------------------------------------------------------------------------

function draw() {
  if (!run) return;
  const now = run.latest;
  $("state").textContent = run.state;
  $("state").className = run.state;
  document.title = now ? `${run.state} · ${number(now.loss)}` : run.state;
  drawControls();
  drawActions();
  if (!now) return;
  $("now").textContent = `round ${now.iteration} · loss ${number(now.loss)} · ${number(now.seconds)} s`;
  run.marks = run.actions.filter((a) => a.status !== "refused" && a.iteration !== undefined)
    .map((a) => a.place);
  const log = $("log").checked, measured = (r) => r.gradient_norm ?? r.step_size;
  chart("loss", pair("loss", "--a", (r) => r.loss), log);
  chart("gradient", pair("norm", "--a", measured), log);
  chart("time", [
    { label: "latency", color: "--b", values: column(run.rounds, (r) => r.latency) },
    { label: "compute", color: "--a", values: column(run.rounds, (r) => r.compute) },
    { label: "driver", color: "--c", values: column(run.rounds, (r) => r.driver) },
  ], false);
  chart("bytes", [
    { label: "down", color: "--a", values: column(run.rounds, (r) => r.bytes_down) },
    { label: "up", color: "--b", values: column(run.rounds, (r) => r.bytes_up) },
  ], false);
  const validation = Object.keys(now.state).find((name) => name.startsWith("validation"));
  $("validation-box").hidden = !validation;
  if (validation) chart("validation", pair(validation, "--a", (r) => r.state[validation]), false);
  const vectors = "n_support_vectors" in now.state;
  $("vectors-box").hidden = !vectors;
  if (vectors) {
    chart("vectors", [
      { label: "support vectors", color: "--a", values: column(run.rounds, (r) => r.state.n_support_vectors) },
      { label: "violators", color: "--b", values: column(run.rounds, (r) => r.state.n_violators) },
    ], log);
  }
  drawPartitions(now);
  drawClusters(now);
}

function drawPartitions(now) {
  if (!now.partitions) return;
  const { partition, rows, seconds } = now.partitions;
  const most = Math.max(...seconds, 1e-9), median = [...seconds].sort((a, b) => a - b)[seconds.length >> 1];
  const bars = seconds.map((s, i) => {
    const bar = document.createElement("i");
    bar.style.height = `${Math.max(1, 100 * s / most)}%`;
    bar.className = s > 2 * median ? "slow" : "";
    bar.title = `partition ${partition[i]}: ${rows[i]} rows, ${number(s)} s`;
    return bar;
  });
  $("partitions").replaceChildren(...bars);
  const slow = now.slowest;
  $("skew").textContent = `skew ${number(now.skew)} s; slowest: ${slow.partition} on ${slow.host}, ${number(slow.seconds)} s`;
}

function drawClusters(now) {
  const points = now.state.centers, sizes = now.state.sizes;
  const box = $("clusters-box");
  if (!Array.isArray(points) || !points.length || !Array.isArray(points[0])) {
    box.hidden = !Array.isArray(run.rounds.find((r) => r.state.centers)?.state.centers);
    return;
  }
  box.hidden = false;
  const far = Math.max(...points.flat().map(Math.abs), run.far ?? 0) || 1;
  run.far = far; // the scale only grows, so that centers move and not the picture
  const total = sizes.reduce((a, b) => a + b, 0) || 1, svg = $("clusters");
  while (svg.childElementCount > points.length) svg.lastChild.remove();
  while (svg.childElementCount < points.length) {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.append(document.createElementNS("http://www.w3.org/2000/svg", "title"));
    svg.append(circle);
  }
  points.forEach(([x, y], i) => {
    const circle = svg.children[i];
    circle.setAttribute("r", 0.03 + 0.25 * Math.sqrt(sizes[i] / total));
    circle.setAttribute("stroke-width", 0.01);
    circle.style.cx = 0.8 * x / far;
    circle.style.cy = -0.8 * y / far;
    circle.firstChild.textContent = `cluster ${i}: ${number(sizes[i])}`;
  });
}

function drawActions() {
  const list = $("actions");
  const known = `${run.actions.length} of ${run.name}`;
  if (list.dataset.known === known) return;
  list.dataset.known = known;
  // The newest: a callback may change settings in every round.
  list.replaceChildren(...run.actions.slice(-200).reverse().map((a) => {
    const item = document.createElement("li"), time = document.createElement("time");
    time.textContent = new Date(a.time * 1000).toLocaleTimeString();
    item.append(time, ` ${words(a)}`);
    if (a.status === "refused") item.className = "refused";
    return item;
  }));
}

function words(a) {
  if (a.event === "end") return a.error ?? `${a.state}: ${a.reason} after ${a.n_iter} iterations`;
  const values = Object.entries(a.values).map(([name, value]) => `${name} ${value}`).join(", ");
  const what = a.event === "change" ? `a callback changed ${values}` : `${a.command} ${values}`;
  const round = a.iteration === undefined ? "" : `round ${a.iteration}: `;
  const by = a.event === "command" ? ` (${a.origin}${a.status === "refused" ? `; refused: ${a.reason}` : ""})` : "";
  return round + what.trim() + by;
}

// --- controls ------------------------------------------------------------------------------------

const sent = new Map(); // commands that wait for their event, by key

function drawControls() {
  const over = ["finished", "stopped", "failed", "lost"].includes(run.state);
  for (const button of document.querySelectorAll("aside button")) button.disabled = over;
  const now = run.latest?.settings ?? {}, box = $("settings"), names = Object.keys(run.tunables);
  if (box.dataset.names !== run.name + names) {
    box.dataset.names = run.name + names;
    box.replaceChildren(...names.flatMap((name) => {
      const rule = run.tunables[name], label = document.createElement("label");
      const input = document.createElement(rule.choices.length ? "select" : "input");
      label.htmlFor = input.id = `set-${name}`;
      label.textContent = name;
      input.name = name;
      for (const choice of rule.choices) input.add(new Option(choice, choice));
      if (!rule.choices.length) {
        input.inputMode = "decimal";
        input.title = `${rule.type} from ${rule.low ?? "−∞"} to ${rule.high ?? "∞"}`;
      }
      return [label, input];
    }));
  }
  for (const input of box.querySelectorAll("input, select")) {
    const value = now[input.name.replace(/[A-Z]/g, (c) => "_" + c.toLowerCase())];
    input.disabled = over;
    if (value === undefined || input.dataset.touched) continue;
    if (input !== document.activeElement) input.value = value;
  }
  for (const a of run.actions.slice(-20)) {
    if (!sent.has(a.key)) continue;
    const took = ((Date.now() - sent.get(a.key)) / 1000).toFixed(1);
    sent.delete(a.key);
    answer(a.status === "refused" ? words(a) : `${words(a)}: applied, ${took} s after the click`, a.status === "refused");
  }
}

function answer(text, bad) {
  $("answer").textContent = text;
  $("answer").className = bad ? "bad" : "";
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = false;
}

async function send(command, values = {}) {
  const clicked = Date.now();
  answer(`${command}: sent, waiting for the end of the round`, false);
  try {
    const reply = await fetch(`api/command?run=${encodeURIComponent(run.name)}`, {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ command, values }),
    });
    const found = await reply.json();
    if (!reply.ok) return answer(`${command} is refused: ${found.error}`, true);
    sent.set(found.key, clicked);
    changed();
  } catch {
    answer(`${command} did not reach the run: its process does not answer`, true);
  }
}

for (const button of document.querySelectorAll("[data-command]")) {
  button.addEventListener("click", () => {
    const command = button.dataset.command;
    if (command === "stop" && !confirm("End the run after this round and keep the model?")) return;
    send(command);
  });
}
$("set").addEventListener("input", (event) => { event.target.dataset.touched = "yes"; });
$("set").addEventListener("submit", (event) => {
  event.preventDefault();
  const values = {};
  for (const input of $("settings").querySelectorAll("[data-touched]")) {
    const text = input.value.trim(), value = Number(text);
    values[input.name] = input.tagName === "SELECT" || text === "" || Number.isNaN(value) ? text : value;
    delete input.dataset.touched;
    input.blur();
  }
  if (Object.keys(values).length) send("set", values);
  else answer("Nothing to set: change a value first", true);
});
$("note").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = event.target.text.value.trim();
  if (text) send("note", { text });
  event.target.reset();
});

// --- which run -----------------------------------------------------------------------------------

function show(name) {
  if (run) run.leave();
  run = new Run(name);
  run.marks = [];
  grown++;
  $("now").textContent = $("skew").textContent = "";
  $("partitions").replaceChildren();
  answer("", false);
  describe(run);
  run.follow(changed);
  changed();
}

async function describe(of) {
  const reply = await fetch(`api/run?run=${encodeURIComponent(of.name)}&after=${Number.MAX_SAFE_INTEGER}`);
  if (!reply.ok) return;
  const found = await reply.json();
  if (of !== run) return;
  if (found.state === "lost") { run.lost = true; run.state = "lost"; changed(); }
  $("params").replaceChildren(...Object.entries(found.description.params ?? {}).flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = JSON.stringify(value);
    return [term, text];
  }));
}

async function list() {
  try {
    const reply = await fetch("api/runs");
    const found = await reply.json();
    if (!reply.ok) return trouble(found.error);
    for (const id of ["run", "other"]) {
      const select = $(id), known = new Set([...select.options].map((o) => o.value));
      for (const one of found) {
        const title = `${one.run === "." ? "" : one.run + " · "}${one.estimator.split(".").pop()} · ${new Date(1000 * one.started).toLocaleString()}`;
        if (!known.has(one.run)) select.add(new Option(title, one.run));
      }
    }
    $("other").parentElement.hidden = found.length < 2;
    if (!run && found.length) {
      const newest = found.reduce((a, b) => (b.started > a.started ? b : a));
      $("run").value = newest.run;
      show(newest.run);
    }
    const here = found.find((one) => run && one.run === run.name);
    if (here && here.state === "lost" && run.state !== "lost") { run.state = "lost"; changed(); }
  } catch {
    trouble("The server does not answer.");
  }
}

$("run").addEventListener("change", () => show($("run").value));
$("other").addEventListener("change", () => {
  if (other) other.leave();
  other = $("other").value ? new Run($("other").value) : null;
  if (other) other.follow(changed);
  grown++;
  changed();
});
$("log").addEventListener("change", changed);
addEventListener("resize", () => { grown++; changed(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { grown++; changed(); });
list();
setInterval(list, 5000);
