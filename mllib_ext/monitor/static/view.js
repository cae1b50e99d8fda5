"use strict";
// A run as far as it is known, and the view of it: curves, partitions, clusters, controls, the log.
// The page and the notebooks' widget share it; they bring the events here, and the commands away.

const OVER = ["finished", "stopped", "failed", "lost"];
const WHOLE = 100; // of the newest rounds partitions and clusters stay known
const TRAIL = 30; // rounds that a center's way is drawn for

/** The columns of numbers that curves are drawn of: what each is, of the event of a round. */
const COLUMNS = {
  loss: (r) => r.loss,
  norm: (r) => r.gradient_norm ?? r.step_size,
  validation: (r) => r.state.validation_loss,
  driver: (r) => r.driver,
  compute: (r) => r.compute,
  latency: (r) => r.latency,
  computed: (r) => r.driver + r.compute, // stacked: what lies below it included
  waited: (r) => r.driver + r.compute + r.latency,
  down: (r) => r.bytes_down,
  up: (r) => r.bytes_up,
  skew: (r) => r.skew,
  vectors: (r) => r.state.n_support_vectors,
  violators: (r) => r.state.n_violators,
  staleness: (r) => r.state.mean_staleness,
};

export class Run {
  constructor(name) {
    this.name = name;
    this.description = {};
    this.last = 0; // id of the newest event
    this.rounds = [];
    this.first = 0; // iteration of the oldest round: a fit may go on, and the newest are kept
    this.columns = Object.fromEntries(Object.keys(COLUMNS).map((name) => [name, []]));
    this.actions = [];
    this.checkpoints = new Set();
    this.tunables = {};
    this.changes = {}; // of settings, since the newest round
    this.end = null;
    this.unknown = false; // whether nobody answers for it
    this.bounds = null; // of the picture of its centers
    this.state = "starting";
    this.marks = 0;
  }

  get over() { return OVER.includes(this.state); }
  get latest() { return this.rounds[this.rounds.length - 1]; }

  take(event) {
    if (event.id <= this.last) return; // a connection that came again
    this.last = event.id;
    this.began ??= event.time;
    this.time = event.time;
    switch (event.event) {
      case "round": return this.takeRound(event);
      case "tunables": this.tunables = event.tunables; return;
      case "state": this.state = event.state; return;
      case "end": this.state = event.state; this.unknown = false; this.end = event; break;
      case "change": Object.assign(this.changes, event.values); break;
      case "command":
        if (event.status === "applied" && event.command === "checkpoint") this.checkpoints.add(event.values.name);
        if (event.status === "applied" && event.command === "set") Object.assign(this.changes, event.values);
    }
    event.place = Math.max(0, this.rounds.length - 1); // the round it followed, over all starts
    if (event.iteration !== undefined && event.status !== "refused") event.mark = ++this.marks;
    this.actions.push(event);
  }

  takeRound(event) {
    if (!this.rounds.length) this.first = event.iteration;
    if (event.iteration === 0) this.checkpoints.clear(); // those of another start
    this.changes = {};
    for (const [name, of] of Object.entries(COLUMNS)) {
      const value = of(event);
      this.columns[name].push(Number.isFinite(value) ? value : null);
    }
    this.rounds.push(event);
    const old = this.rounds[this.rounds.length - 1 - WHOLE];
    if (old) { delete old.partitions; delete old.state.centers; delete old.state.sizes; }
  }

  has(name) { return this.columns[name].some((value) => value !== null); }
}

// --- numbers and words ---------------------------------------------------------------------------

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(5));
}

function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 100) {
    const s = Math.round(value), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
    const two = (n) => String(n).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
  }
  if (value >= 1 || value === 0) return `${+value.toPrecision(3)} s`;
  return value >= 1e-3 ? `${+(1000 * value).toPrecision(3)} ms` : `${+(1e6 * value).toPrecision(3)} µs`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const unit = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  for (; value >= 1000 && power < 4; power++) value /= 1000;
  return `${+value.toPrecision(3)} ${unit[power]}`;
}

function words(a) {
  if (a.event === "end") return a.error ?? `${a.state}: ${a.reason} after ${a.n_iter} iterations`;
  const named = a.event === "change" || a.command === "set"; // the others' values speak for themselves
  const values = Object.entries(a.values).map(([name, value]) => (named ? `${name} ${value}` : value)).join(", ");
  const what = a.event === "change" ? `a callback changed ${values}` : `${a.command} ${values}`;
  const round = a.iteration === undefined ? "" : `round ${a.iteration}: `;
  const by = a.event === "command" ? ` (${a.origin}${a.status === "refused" ? `; refused: ${a.reason}` : ""})` : "";
  return round + what.trim() + by;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** As many children of a box as there are values, made where they are missing. */
function children(box, count, make) {
  while (box.childElementCount > count) box.lastChild.remove();
  while (box.childElementCount < count) box.append(make());
  return box.children;
}

// --- the view ------------------------------------------------------------------------------------

const card = (name, title, note, inside, more = "") =>
  `<section class="card ${more}" data-card="${name}"${more.includes("rare") ? " hidden" : ""}>
    <h2><span>${title}</span> <small data-note="${name}">${note}</small></h2>${inside}</section>`;
const plot = (name) => `<div class="plot" data-plot="${name}"></div>`;
const tile = (name, label) => `<div><dt>${label}</dt><dd data-tile="${name}">–</dd></div>`;

const HTML = `
<div class="bar">
  <output class="state" data-part="state">starting</output>
  <dl class="tiles">${tile("round", "round")}${tile("loss", "loss")}${tile("norm", "gradient norm")}
  ${tile("rate", "rounds a second")}${tile("skew", "skew")}${tile("elapsed", "elapsed")}</dl>
</div>
<div class="columns">
  <div class="main">
    ${card("loss", "Loss", "waiting for the first round",
      `<label class="corner"><input type="checkbox" data-part="log"> log scale</label>${plot("loss")}`, "wide first")}
    ${card("clusters", "Clusters", "centers on the two principal axes of the first ones, area by size",
      `<div class="clusters"><svg data-part="centers" role="img" aria-label="Centers of the clusters"></svg>
       <div class="strip" data-part="sizes" role="img"></div></div>`, "wide rare")}
    ${card("validation", "Validation loss", "", plot("validation"), "rare")}
    ${card("norm", "Gradient norm", "", plot("norm"))}
    ${card("vectors", "Support vectors", "and violators of a KKT condition", plot("vectors"), "rare")}
    ${card("staleness", "Staleness", "steps taken while a share was under way, the mean", plot("staleness"), "rare")}
    ${card("time", "Time a round", "", plot("time"))}
    ${card("bytes", "Bytes a round", "", plot("bytes"))}
    ${card("partitions", "Partitions", "",
      `<div class="strip up" data-part="seconds" role="img"></div>
       <div class="strip rows" data-part="rows" role="img"></div>`)}
  </div>
  <div class="side">
    <section class="card controls">
      <h2>Controls</h2>
      <div class="pair"><button data-command="pause">Pause</button><button data-command="resume">Resume</button></div>
      <form data-form="set"><div class="settings"></div><button>Set</button></form>
      <form class="line" data-form="checkpoint"><input name="name" value="checkpoint" maxlength="1000" required aria-label="Name of a checkpoint"><button>Checkpoint</button></form>
      <form class="line" data-form="restore"><select name="name" aria-label="Checkpoint to go back to"></select><button>Go back</button></form>
      <form class="line" data-form="note"><input name="text" maxlength="1000" required placeholder="A note" aria-label="A note"><button>Add</button></form>
      <button class="grave" data-command="stop">Stop and keep the model</button>
      <p class="answer" data-part="answer" role="status"></p>
    </section>
    <section class="card log"><h2>What was done</h2><ol data-part="actions" tabindex="0" aria-label="What was done"></ol></section>
    <section class="card params"><h2>Parameters <small>as they were at the start</small></h2><dl data-part="params" tabindex="0" aria-label="Parameters"></dl></section>
  </div>
</div>`;

export class View {
  /**
   * root: an element to fill. send(run, command, values): brings a command to a run, and promises
   * its key, or an error that says why it is refused.
   */
  constructor(root, send) {
    this.root = root;
    this.sendTo = send;
    this.run = new Run("");
    this.other = null;
    this.plots = {};
    this.sent = new Map(); // commands that wait for their event: when they were sent, by key
    root.classList.add("runview");
    root.innerHTML = HTML;
    this.parts = {};
    for (const kind of ["part", "card", "note", "plot", "tile", "form"]) {
      for (const found of root.querySelectorAll(`[data-${kind}]`)) this.parts[`${kind} ${found.dataset[kind]}`] = found;
    }
    this.settings = root.querySelector(".settings");
    this.listen();
    this.watcher = new ResizeObserver(() => this.grown());
    this.watcher.observe(root);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.repaint = () => this.restyle();
    this.scheme.addEventListener("change", this.repaint);
    this.restyle();
  }

  /** Show a run and, over it, another one or null. */
  show(run, other = null) {
    const same = run === this.run;
    this.run = run;
    this.other = other;
    same ? this.restyle() : this.renew();
  }

  /** Show another run, or the same one from the start. */
  renew() {
    this.answer("", false);
    this.sent.clear();
    this.settings.replaceChildren();
    for (const part of ["actions", "seconds", "rows", "centers"]) this.parts[`part ${part}`].replaceChildren();
    delete this.parts["part actions"].dataset.known;
    this.disarm();
    this.restyle();
  }

  /** Draw soon: once a frame, however many events come. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  /** Colors or the kind of curves have changed: draw them anew. */
  restyle() {
    this.colors = {};
    for (const { plot } of Object.values(this.plots)) plot.destroy();
    this.plots = {};
    this.changed();
  }

  grown() {
    for (const [name, { plot }] of Object.entries(this.plots)) {
      const size = this.size(this.parts[`plot ${name}`]);
      if (size.width !== plot.width || size.height !== plot.height) plot.setSize(size);
    }
    this.changed();
  }

  close() {
    this.watcher.disconnect();
    this.scheme.removeEventListener("change", this.repaint);
    for (const { plot } of Object.values(this.plots)) plot.destroy();
  }

  // --- curves ---

  /** A color of the style sheet, as a canvas understands it. */
  color(name) {
    if (!this.colors[name]) {
      this.root.style.outlineColor = `var(--${name})`;
      this.colors[name] = getComputedStyle(this.root).outlineColor;
      this.root.style.outlineColor = "";
    }
    return this.colors[name];
  }

  size(box) { return { width: box.clientWidth, height: box.clientHeight - 22 }; }

  /** Dashed lines where somebody interfered, with the numbers that the log has for them. */
  drawMarks(plot) {
    const { ctx, bbox } = plot, scale = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = this.color("mark");
    ctx.setLineDash([4 * scale, 4 * scale]);
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.beginPath();
    let free = -Infinity;
    for (const action of this.run.actions) {
      if (!action.mark) continue;
      const at = plot.valToPos(this.from + action.place, "x", true);
      if (at < bbox.left - 1 || at > bbox.left + bbox.width + 1) continue;
      ctx.moveTo(at, bbox.top);
      ctx.lineTo(at, bbox.top + bbox.height);
      if (at > free) {
        ctx.fillText(String(action.mark), at, bbox.top - 4 * scale);
        free = at + 16 * scale;
      }
    }
    ctx.stroke();
    ctx.restore();
  }

  /**
   * Curves of columns: { column, label, color } each; `of` a stacked one is the column that its
   * legend tells of. One value a round: rounds count on over the starts of an algorithm, so that
   * curves never go back.
   */
  curves(name, series, format, { log = false, fill = false } = {}) {
    let data = series.map((s) => (s.other ? this.other : this.run).columns[s.column]);
    const length = Math.max(...data.map((values) => values.length));
    const key = series.map((s) => s.label).join() + log;
    data = data.map((values) => (values.length === length ? values : [...values, ...Array(length - values.length).fill(null)]));
    // A logarithm has no place for 0 and below.
    if (log) data = data.map((values) => values.map((v) => (v > 0 ? v : null)));
    data.unshift(numbers(this.from, length));
    if (this.plots[name]?.key === key) return this.plots[name].plot.setData(data);
    this.plots[name]?.plot.destroy();
    const box = this.parts[`plot ${name}`];
    const axis = { stroke: this.color("faint"), grid: { stroke: this.color("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const integers = [1, 2, 5].flatMap((n) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].map((power) => n * power)).sort((a, b) => a - b);
    const shown = (s) => (plot, _, __, i) => {
      const values = (s.other ? this.other : this.run)?.columns[s.of ?? s.column] ?? [];
      return format(values[i ?? values.length - 1]); // without a pointer the newest
    };
    const made = new uPlot({
      ...this.size(box),
      padding: [16, 20, 0, 0],
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: log ? undefined : (_, low, high) => nice(low, high, fill) } },
      axes: [
        { ...axis, size: 24, incrs: integers },
        { ...axis, size: 62, space: 32, values: (_, values) => values.map((v) => (v === null ? "" : format(v))) },
      ],
      cursor: { drag: { x: true, y: false } },
      legend: { isolate: false },
      series: [
        { label: "round", value: (_, v) => (v === null ? length && whole(this.from + this.columns().loss.length - 1) : whole(v)) },
        ...series.map((s) => ({
          label: s.label, stroke: this.color(s.color), width: fill ? 1 : 2, dash: s.other ? [6, 4] : undefined,
          fill: fill ? this.color(s.color) : undefined, points: { show: length < 2 }, spanGaps: true, value: shown(s),
        })),
      ],
      hooks: { draw: [(plot) => this.drawMarks(plot)] },
    }, data, box);
    this.plots[name] = { plot: made, key: length < 2 ? "" : key };
  }

  columns() { return this.run.columns; }

  /** Where the axis of rounds begins. */
  get from() { return !this.other || this.other.first === this.run.first ? this.run.first : 0; }

  /** The same column of both runs. */
  both(column, label, color) {
    if (!this.other) return [{ column, label, color }];
    return [{ column, label: this.run.name, color }, { column, label: this.other.name, color: "b", other: true }];
  }

  rare(name, shown) {
    this.parts[`card ${name}`].hidden = !shown;
    return shown;
  }

  // --- drawing ---

  draw() {
    const { run, parts } = this, now = run.latest;
    const state = run.unknown ? "no answer" : run.state;
    parts["part state"].textContent = state;
    this.root.dataset.state = state;
    this.drawControls();
    this.drawActions();
    this.drawParams();
    if (!now) {
      parts["note loss"].textContent = run.over ? "it ended without a round" : "waiting for the first round";
      return;
    }
    this.drawTiles(now);
    const log = parts["part log"].checked;
    parts["note loss"].textContent = "";
    if (this.rare("clusters", run.rounds.some((r) => Array.isArray(r.state.sizes)) || run.bounds)) this.drawClusters(now);
    this.curves("loss", this.both("loss", "loss", "a"), number, { log });
    this.curves("norm", this.both("norm", this.measure(now), "a"), number, { log });
    if (this.rare("validation", run.has("validation"))) this.curves("validation", this.both("validation", "loss", "c"), number, { log });
    if (this.rare("vectors", run.has("vectors"))) {
      this.curves("vectors", [
        { column: "vectors", label: "support vectors", color: "a" }, { column: "violators", label: "violators", color: "b" },
      ], whole, { log });
    }
    if (this.rare("staleness", run.has("staleness"))) this.curves("staleness", this.both("staleness", "mean", "a"), number);
    this.curves("time", [
      { column: "waited", of: "latency", label: "latency", color: "b" },
      { column: "computed", of: "compute", label: "compute", color: "a" },
      { column: "driver", label: "driver", color: "c" },
    ], seconds, { fill: true });
    this.curves("bytes", [{ column: "down", label: "down", color: "a" }, { column: "up", label: "up", color: "b" }], bytes);
    const { compression } = now.settings;
    parts["note bytes"].textContent = compression && compression !== "none" ? `compressed: ${compression}` : "";
    this.drawPartitions(now);
    // No gap at the end: the last card takes the row if it is alone in it.
    const half = [...this.root.querySelectorAll(".main > .card:not(.wide)")].filter((one) => !one.hidden);
    parts["card partitions"].classList.toggle("alone", half.length % 2 === 1);
  }

  /** What the second curve is of: an algorithm without a gradient has steps, or centers that move. */
  measure(now) {
    if (now.gradient_norm !== null) return "gradient norm";
    return "sizes" in now.state || this.run.has("vectors") || "shift" in now.state ? "movement" : "step size";
  }

  drawTiles(now) {
    const { run, parts } = this, last = run.rounds.slice(-20), first = last[0];
    const set = (name, text) => { parts[`tile ${name}`].textContent = text; };
    const most = now.settings.max_iter;
    set("round", whole(now.iteration));
    if (most < 1e6) parts["tile round"].append(element("small", {}, ` of ${whole(most)}`));
    set("loss", number(run.end?.loss ?? now.loss));
    const measure = this.measure(now);
    parts["tile norm"].previousSibling.textContent = measure;
    parts["card norm"].querySelector("span").textContent = measure[0].toUpperCase() + measure.slice(1);
    set("norm", number(now.gradient_norm ?? now.step_size));
    set("rate", now.time > first.time ? number(+((last.length - 1) / (now.time - first.time)).toPrecision(3)) : "–");
    set("skew", seconds(now.skew));
    set("elapsed", seconds(run.time - (run.description.started ?? run.began)));
  }

  drawPartitions(now) {
    if (!now.partitions) return;
    const { partition, rows, seconds: spent } = now.partitions, { parts } = this;
    const ranked = [...spent].sort((a, b) => a - b), n = ranked.length;
    const median = (ranked[n >> 1] + ranked[(n - 1) >> 1]) / 2, most = Math.max(ranked[n - 1], 1e-9);
    const mostRows = Math.max(...rows, 1), bar = () => document.createElement("i");
    const up = children(parts["part seconds"], n, bar), down = children(parts["part rows"], n, bar);
    const slow = [];
    for (let i = 0; i < n; i++) {
      const late = n > 1 && spent[i] > 2 * median;
      if (late) slow.push(i);
      up[i].style.height = `${Math.max(1, (100 * spent[i]) / most)}%`;
      up[i].className = down[i].className = late ? "slow" : "";
      down[i].style.height = `${Math.max(1, (100 * rows[i]) / mostRows)}%`;
      up[i].title = down[i].title = `partition ${partition[i]}: ${whole(rows[i])} rows, ${seconds(spent[i])}`;
    }
    slow.sort((a, b) => spent[b] - spent[a]);
    const named = slow.slice(0, 3).map((i) => `${partition[i]} (${seconds(spent[i])})`).join(", ");
    const more = slow.length > 3 ? ` and ${slow.length - 3} more` : "";
    parts["note partitions"].textContent = `skew ${seconds(now.skew)} (max − median); ` + (slow.length
      ? `slow: ${named}${more}; ${now.slowest.partition} ran on ${now.slowest.host}`
      : `none took twice the median of ${seconds(median)}`);
    parts["part seconds"].setAttribute("aria-label", `Seconds of ${n} partitions in the last round, at most ${seconds(most)}`);
    parts["part rows"].setAttribute("aria-label", `Rows of ${n} partitions, at most ${whole(mostRows)}`);
    parts["part seconds"].dataset.most = seconds(most);
    parts["part rows"].dataset.most = `${whole(mostRows)} rows`;
  }

  drawClusters(now) {
    const { centers: points, sizes } = now.state, { run, parts } = this;
    if (!Array.isArray(sizes)) return;
    const total = sizes.reduce((a, b) => a + b, 0) || 1, most = Math.max(...sizes, 1e-300);
    const hue = (i) => `hsl(${(i * 137.5) % 360} 60% 52%)`;
    const bars = children(parts["part sizes"], sizes.length, () => document.createElement("i"));
    sizes.forEach((size, i) => {
      bars[i].style.height = `${Math.max(1, (100 * size) / most)}%`;
      bars[i].style.background = hue(i);
      bars[i].title = `cluster ${i}: ${whole(size)}`;
    });
    parts["part sizes"].dataset.most = whole(most);
    parts["part sizes"].setAttribute("aria-label", `Sizes of ${sizes.length} clusters, at most ${whole(most)}`);
    if (!Array.isArray(points)) return;
    // The picture's bounds only grow, so that centers move and not the picture.
    const svg = parts["part centers"], width = svg.clientWidth, height = svg.clientHeight;
    const way = run.rounds.slice(-TRAIL).filter((r) => r.start === now.start && r.state.centers?.length === points.length);
    const bounds = (run.bounds ??= [Infinity, -Infinity, Infinity, -Infinity]);
    for (const [x, y] of way.flatMap((r) => r.state.centers)) {
      bounds[0] = Math.min(bounds[0], x); bounds[1] = Math.max(bounds[1], x);
      bounds[2] = Math.min(bounds[2], y); bounds[3] = Math.max(bounds[3], y);
    }
    const margin = 26, [left, right, low, high] = bounds;
    const scale = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (high - low || 1));
    const at = ([x, y]) => [width / 2 + scale * (x - (left + right) / 2), height / 2 - scale * (y - (low + high) / 2)];
    const svgs = "http://www.w3.org/2000/svg";
    const shapes = children(svg, points.length, () => {
      const group = document.createElementNS(svgs, "g");
      for (const tag of ["polyline", "circle", "text"]) group.append(document.createElementNS(svgs, tag));
      group.children[1].append(document.createElementNS(svgs, "title"));
      return group;
    });
    points.forEach((point, i) => {
      const [trail, circle, label] = shapes[i].children, [x, y] = at(point);
      trail.setAttribute("points", way.map((r) => at(r.state.centers[i]).map((v) => v.toFixed(1)).join()).join(" "));
      trail.style.stroke = circle.style.fill = hue(i);
      circle.setAttribute("r", (4 + 60 * Math.sqrt(sizes[i] / total / Math.PI / 2)).toFixed(1));
      circle.style.transform = label.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
      label.textContent = points.length <= 40 ? i : "";
      circle.firstChild.textContent = `cluster ${i}: ${whole(sizes[i])}`;
    });
  }

  drawActions() {
    const list = this.parts["part actions"], known = `${this.run.actions.length} of ${this.run.name}`;
    if (list.dataset.known === known) return;
    list.dataset.known = known;
    // The newest: a callback may change settings in every round.
    list.replaceChildren(...this.run.actions.slice(-200).reverse().map((a) => {
      const item = element("li", a.status === "refused" ? { class: "refused" } : {});
      if (a.mark) item.append(element("b", { title: "its mark on the curves" }, String(a.mark)), " ");
      item.append(element("time", {}, new Date(a.time * 1000).toLocaleTimeString()), ` ${words(a)}`);
      return item;
    }));
  }

  drawParams() {
    const { description } = this.run, list = this.parts["part params"];
    if (list.known === description) return;
    list.known = description;
    const shown = { ...description.params, ...description.versions };
    list.replaceChildren(...Object.entries(shown).flatMap(([name, value]) =>
      [element("dt", {}, name), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));
  }

  // --- controls ---

  drawControls() {
    const { run, root, settings } = this, over = run.over, now = run.latest?.settings ?? {};
    const able = (selector, can) => { for (const one of root.querySelectorAll(selector)) one.disabled = !can; };
    able(".controls button, .controls input, .controls select", !over && !run.unknown && run.state !== "starting");
    if (run.state === "paused") able("[data-command=pause]", false);
    else able("[data-command=resume]", false);
    const names = Object.keys(run.tunables);
    if (settings.childElementCount !== names.length) this.makeSettings(names);
    for (const input of settings.querySelectorAll("input, select")) {
      const value = run.changes[input.name] ?? now[input.name.replace(/[A-Z]/g, (c) => "_" + c.toLowerCase())];
      if (value === undefined || input.dataset.touched) continue;
      if (input !== document.activeElement && input.value !== String(value)) input.value = value;
    }
    const back = root.querySelector("[data-form=restore] select"), checkpoints = [...run.checkpoints];
    if (back.dataset.known !== checkpoints.join("\n")) {
      back.dataset.known = checkpoints.join("\n");
      back.replaceChildren(...checkpoints.map((name) => new Option(name, name)));
    }
    if (!checkpoints.length) {
      if (!back.length) back.add(new Option("no checkpoint yet", ""));
      able("[data-form=restore] *", false);
    }
    for (const a of run.actions.slice(-20)) {
      if (!this.sent.has(a.key)) continue;
      const took = ((Date.now() - this.sent.get(a.key)) / 1000).toFixed(1);
      this.sent.delete(a.key);
      const refused = a.status === "refused";
      this.answer(refused ? words(a) : `${words(a)}: applied at ${new Date(a.time * 1000).toLocaleTimeString()}, ${took} s after the click`, refused);
    }
  }

  makeSettings(names) {
    this.settings.replaceChildren(...names.map((name) => {
      const rule = this.run.tunables[name];
      const input = element(rule.choices.length ? "select" : "input", { name, autocomplete: "off" });
      for (const choice of rule.choices) input.add(new Option(choice, choice));
      if (!rule.choices.length) {
        input.inputMode = "decimal";
        const kind = rule.type === "int" ? "an integer" : "a number";
        input.title = rule.high === null ? `${kind} ${rule.low_open ? "above" : "from"} ${rule.low ?? "−∞"}`
          : `${kind} ${rule.low_open ? "above" : "from"} ${rule.low ?? "−∞"} to ${rule.high}`;
      }
      return element("label", {}, name, input);
    }));
  }

  answer(text, bad) {
    this.parts["part answer"].textContent = text;
    this.parts["part answer"].classList.toggle("bad", bad);
  }

  /** True if the run has the command, though it may refuse it later. */
  async send(command, values = {}) {
    const clicked = Date.now();
    this.answer(`${command}: sent, waiting for the end of the round`, false);
    try {
      this.sent.set(await this.sendTo(this.run, command, values), clicked);
      this.changed();
      return true;
    } catch (error) {
      this.answer(`${command}: ${error.message}`, true);
      return false;
    }
  }

  /** The button that ends a run asks again, in its own place. */
  arm(button) {
    if (button.dataset.armed) {
      this.disarm();
      this.send("stop");
      return;
    }
    button.dataset.armed = "yes";
    button.textContent = "Stop after this round? Press again";
    this.armed = setTimeout(() => this.disarm(), 5000);
  }

  disarm() {
    clearTimeout(this.armed);
    const button = this.root.querySelector("[data-command=stop]");
    delete button.dataset.armed;
    button.textContent = "Stop and keep the model";
  }

  listen() {
    const { root, settings, parts } = this;
    for (const button of root.querySelectorAll("[data-command]")) {
      const { command } = button.dataset;
      button.addEventListener("click", () => (command === "stop" ? this.arm(button) : this.send(command)));
    }
    parts["part log"].addEventListener("change", () => this.restyle());
    settings.addEventListener("input", (event) => { event.target.dataset.touched = "yes"; });
    settings.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      delete event.target.dataset.touched; // what was typed is taken back
      event.target.blur();
      this.changed();
    });
    // JupyterLab takes from Enter that it sends a form.
    root.addEventListener("keydown", (event) => {
      const { key, target, isComposing } = event;
      if (key !== "Enter" || isComposing || target.tagName !== "INPUT" || !target.form) return;
      event.preventDefault();
      target.form.requestSubmit();
    });
    const submits = (name, act) => parts[`form ${name}`].addEventListener("submit", (event) => {
      event.preventDefault();
      act(event.target);
    });
    submits("set", () => this.set());
    submits("checkpoint", (form) => this.send("checkpoint", { name: form.elements.name.value }));
    submits("restore", (form) => this.send("restore", { name: form.elements.name.value }));
    submits("note", async (form) => {
      const text = form.elements.text.value.trim();
      if (text && await this.send("note", { text })) form.reset();
    });
  }

  async set() {
    const touched = [...this.settings.querySelectorAll("[data-touched]")], values = {};
    for (const input of touched) {
      const text = input.value.trim(), value = Number(text);
      const decimal = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) && Number.isFinite(value);
      values[input.name] = input.tagName !== "SELECT" && decimal ? value : text;
    }
    if (!touched.length) return this.answer("Nothing to set: change a value first", true);
    // What is refused stays, to be mended.
    if (await this.send("set", values)) for (const input of touched) { delete input.dataset.touched; input.blur(); }
  }
}

const counted = [];

/** first, first + 1, ... */
function numbers(first, length) {
  while (counted.length < first + length) counted.push(counted.length);
  return counted.slice(first, first + length);
}

/** The range of an axis: a little more than the values, from 0 where an area is filled. */
function nice(low, high, fill) {
  if (low === null || high === null) return [0, 1];
  const pad = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [fill || (low >= 0 && low < pad) ? Math.min(0, low) : low - pad, high + pad];
}
