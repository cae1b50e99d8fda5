// One page for all runs of a server. Only relative addresses, so that it works behind a proxy.
import { Run, View } from "./view.js";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
// The cookie has the key from here on; the address bar and the history need not.
query.delete("key");

const PATIENCE = 10000; // milliseconds until a command is given up that does not reach the server
const AGAIN = 2000; // milliseconds until a connection that the server refused is tried again
const followed = new Map(); // streams by the run that they bring the events of
let known = []; // the server's list of runs
let run = null, other = null;

const view = new View($("view"), async (of, command, values) => {
  let reply;
  try {
    reply = await fetch(`api/command?run=${encodeURIComponent(of.name)}`, {
      // One that waits for a connection must not arrive when nobody watches any more.
      signal: AbortSignal.timeout(PATIENCE), method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ command, values }),
    });
  } catch {
    throw new Error("it did not reach the run: its process does not answer");
  }
  const found = await reply.json();
  if (!reply.ok) throw new Error(`refused: ${found.error}`);
  return found.key;
});

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

/** What a run that does not answer was last is not what it is. */
function answers(of, does) {
  of.unknown = !does;
  changed();
}

function changed() {
  view.changed();
  const now = run?.latest;
  if (run) document.title = now ? `${run.state} · ${+now.loss?.toPrecision(5)} · ${run.name}` : run.state;
}

// --- the events of a run -------------------------------------------------------------------------

function follow(of) {
  followed.get(of)?.close();
  const source = new EventSource(`api/stream?run=${encodeURIComponent(of.name)}&after=${of.last}`);
  followed.set(of, source);
  source.onopen = () => { trouble(""); answers(of, true); };
  source.onmessage = (message) => {
    for (const event of JSON.parse(message.data)) of.take(event);
    if (of.over) leave(of); // there is nothing to come
    changed();
  };
  source.onerror = () => {
    trouble("The run does not answer. Its process may have ended; trying again.");
    answers(of, false);
    if (source.readyState !== EventSource.CLOSED || followed.get(of) !== source) return;
    setTimeout(() => { if (followed.get(of) === source) follow(of); }, AGAIN);
  };
}

// A browser has six connections to a server, for all its tabs: one that nobody sees leaves its own.
document.addEventListener("visibilitychange", () => {
  for (const of of followed.keys()) document.hidden ? followed.get(of).close() : follow(of);
});

function leave(of) {
  followed.get(of)?.close();
  followed.delete(of);
}

async function describe(of) {
  const reply = await fetch(`api/run?run=${encodeURIComponent(of.name)}&after=${Number.MAX_SAFE_INTEGER}`);
  if (!reply.ok) return;
  const found = await reply.json();
  of.description = found.description;
  if (found.state === "lost") of.state = "lost";
  changed();
}

// --- which run -----------------------------------------------------------------------------------

function opened(of) {
  follow(of);
  describe(of).catch(() => {});
  return of;
}

function show(name, over) {
  for (const of of [...followed.keys()]) if (of !== run || of.name !== name) leave(of);
  if (run?.name !== name) run = opened(new Run(name));
  other = over && over !== name ? opened(new Run(over)) : null;
  $("run").value = name;
  $("other").value = other ? over : "";
  query.set("run", name);
  other ? query.set("over", over) : query.delete("over");
  remember();
  view.show(run, other);
  changed();
}

function remember() {
  history.replaceState(null, "", location.pathname + (query.size ? `?${query}` : ""));
}

function titled(one) {
  const name = one.run === "." ? "" : `${one.run} · `;
  const when = new Date(1000 * one.started).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return `${name}${one.estimator.split(".").pop()} · ${when}`;
}

async function list() {
  let found;
  try {
    const reply = await fetch("api/runs");
    found = await reply.json();
    if (!reply.ok) return trouble(found.error);
  } catch {
    return trouble(run?.over
      ? "The process that served this page has ended, and the run before it: this is how it ended."
      : "The server does not answer; trying again.");
  }
  if ([...followed.values()].every((source) => source.readyState === EventSource.OPEN)) trouble("");
  const names = found.map((one) => one.run);
  const listed = (runs) => runs.map((one) => `${one.run} ${one.started}`).sort().join("\n");
  const begun = (of, runs) => runs.find((one) => one.run === of?.name)?.started;
  for (const of of [run, other]) {
    const before = begun(of, known), now = begun(of, found);
    if (before && now && before !== now) { // another fit was recorded at its place
      opened(Object.assign(of, new Run(of.name)));
      view.renew();
    }
  }
  if (listed(found) !== listed(known)) {
    found.sort((a, b) => b.started - a.started);
    const options = () => found.map((one) => new Option(titled(one), one.run));
    $("run").replaceChildren(...options());
    $("other").replaceChildren(new Option("nothing", ""), ...options());
    if (run) { $("run").value = run.name; $("other").value = other?.name ?? ""; }
    known = found;
  }
  $("over").hidden = found.length < 2;
  $("none").hidden = found.length > 0;
  $("view").hidden = $("which").hidden = !found.length;
  if (!run && found.length) {
    const asked = query.get("run");
    show(names.includes(asked) ? asked : found[0].run, names.includes(query.get("over")) ? query.get("over") : "");
  }
  const here = found.find((one) => run && one.run === run.name);
  if (here && document.hidden) document.title = `${here.state} · ${run.name}`;
  if (here?.state === "lost" && run.state !== "lost") { run.state = "lost"; changed(); }
}

$("run").addEventListener("change", () => show($("run").value, $("other").value));
$("other").addEventListener("change", () => show(run.name, $("other").value));
remember();
list();
setInterval(list, 5000);
