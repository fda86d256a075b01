// The explorer: one column a process, and the reader chooses who runs next. The whole graph of states comes as a table
// (labkit/explore/__init__.py, table()), so that nothing here needs a kernel.
//
//   graph   processes and where they can stand, states, and for each state and process the state after its step
//   path    the states the reader has gone through and the processes chosen; everything shown follows from it

import { View, button, calm, darkPage, element, gunzip, parse, setText } from "./shared.js";

const LABEL = 0, ACQUIRE = 1, RELEASE = 2, UNTIL = 3; // what a process asks for at its yield
const BEAT = 800; // ms between the steps of the shortest interleaving

const CSS = `
.labkit-steps:focus-visible { outline: 2px solid var(--lk-waiting); outline-offset: -2px; }
.labkit-steps .bar { border-bottom: 1px solid var(--lk-faint); }
.labkit-steps .bar .count { flex: 1 1 auto; text-align: right; color: var(--lk-weak); }
.labkit-steps .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)); gap: 10px; padding: 10px 12px; }
.labkit-steps .process { border: 1px solid var(--lk-faint); border-radius: 8px; background: var(--lk-card); min-width: 0; display: flex; flex-direction: column; }
.labkit-steps .process.last { border-color: var(--lk-waiting); }
.labkit-steps .process header { padding: 7px 10px 0; overflow-wrap: anywhere; }
.labkit-steps .process header b { font-size: 14px; }
.labkit-steps .process header code { color: var(--lk-weak); }
.labkit-steps code, .labkit-steps pre { font: 12px/1.5 var(--jp-code-font-family, ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace); background: none; padding: 0; }
.labkit-steps pre { margin: 6px 0 0; padding: 4px 0; overflow: auto; max-height: 330px; flex: 1; white-space: pre; color: var(--lk-strong); position: relative; border-radius: 0; overflow-wrap: normal; }
.labkit-steps pre > div { padding: 0 8px 0 20px; position: relative; min-width: max-content; border-left: 3px solid transparent; }
.labkit-steps pre > .here { background: var(--lk-waitingground); border-left-color: var(--lk-waiting); font-weight: 600; }
.labkit-steps pre > .here::before { content: "▶"; position: absolute; left: 4px; color: var(--lk-waiting); font-size: 10px; }
.labkit-steps .own, .labkit-steps .what { padding: 3px 10px 0; color: var(--lk-weak); min-height: 1.6em; overflow-wrap: anywhere; }
.labkit-steps .what.waits { color: var(--lk-blocked); font-weight: 600; } .labkit-steps .what.ended { color: var(--lk-running); } .labkit-steps .what.raised { color: var(--lk-killed); font-weight: 600; }
.labkit-steps .process > button { margin: 6px 10px 10px; border-color: var(--lk-waiting); font-weight: 600; }
.labkit-steps .process > button:disabled { border-color: var(--lk-line); font-weight: 400; }
.labkit-steps kbd { font: inherit; font-size: 11px; border: 1px solid var(--lk-line); border-radius: 4px; padding: 0 4px; margin-left: 6px; color: var(--lk-weak); background: none; box-shadow: none; }
.labkit-steps .memory { display: flex; flex-wrap: wrap; gap: 6px; padding: 2px 12px 8px; align-items: baseline; }
.labkit-steps .memory .title, .labkit-steps .past .title { color: var(--lk-weak); min-width: 6.2em; }
.labkit-steps .item { border: 1px solid var(--lk-line); border-radius: 6px; padding: 1px 8px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.labkit-steps .item.changed { border-color: var(--lk-waiting); background: var(--lk-waitingground); font-weight: 600; } .labkit-steps .item small { color: var(--lk-weak); font-size: 12px; font-weight: 400; }
.labkit-steps .past { display: flex; flex-wrap: wrap; gap: 4px; padding: 0 12px 8px; align-items: center; }
.labkit-steps .past ol { display: contents; list-style: none; } .labkit-steps .past li { display: contents; }
.labkit-steps .past button { min-height: 24px; padding: 0 7px; font-size: 12px; }
@media print { .labkit-steps .process > button { display: none; } }
.labkit-steps .verdict { min-height: 2.8em; }
`;

// ---------------------------------------------------------------- graph

class Graph {
  constructor(table) {
    Object.assign(this, table);
    this.cells = this.variables.reduce((n, [, , length]) => n + (length ?? 1), 0);
  }
  place(state, process) { return this.processes[process].places[this.states[state][this.cells + this.semaphores.length + process]]; }
  semaphore(state, number) { return this.states[state][this.cells + number]; }
  shared(state) {
    const cells = this.states[state];
    return this.variables.map(([name, at, length]) => [name, length == null ? String(cells[at]) : `[${cells.slice(at, at + length).join(", ")}]`]);
  }
  ends(state) { return this.next[state].every((there) => there < 0); }

  /** For each state how many steps it is from something wrong, Infinity when nothing can go wrong any more. */
  get far() {
    if (this.distances) return this.distances;
    const before = this.states.map(() => []);
    this.next.forEach((row, at) => row.forEach((there) => there >= 0 && before[there].push(at)));
    const far = this.states.map(() => Infinity), todo = Object.keys(this.wrong).map(Number);
    for (const at of todo) far[at] = 0;
    for (let i = 0; i < todo.length; i++) for (const at of before[todo[i]]) if (far[at] === Infinity) (far[at] = far[todo[i]] + 1), todo.push(at);
    return (this.distances = far);
  }

  /** Who has taken each semaphore and not given it back, on this path. */
  holders(states, chosen) {
    const held = this.semaphores.map(() => []);
    chosen.forEach((process, i) => {
      const [, action, semaphore] = this.place(states[i], process), { name } = this.processes[process];
      if (action === ACQUIRE) held[semaphore].push(name);
      else if (action === RELEASE && held[semaphore].includes(name)) held[semaphore].splice(held[semaphore].indexOf(name), 1);
    });
    return held;
  }
}

// ---------------------------------------------------------------- view

class Steps extends View {
  constructor(graph, el) {
    super(el, "steps", "Choose who runs next", CSS);
    this.root.tabIndex = 0;
    Object.assign(this, { graph, states: [0], chosen: [], hint: false });
    this.build();
    this.on(this.root, "keydown", (event) => this.key(event));
    this.follow();
  }

  get now() { return this.states.at(-1); }
  get over() { return this.graph.wrong[this.now] !== undefined || this.graph.ends(this.now); }

  // -- building

  build() {
    const { graph } = this;
    const keyed = (text, key, f) => {
      const made = button(text, f);
      made.removeAttribute("title");
      made.removeAttribute("aria-label"); // the words on it are enough
      made.setAttribute("aria-keyshortcuts", key);
      made.append(element("kbd", { "aria-hidden": "true" }, key));
      return made;
    };
    this.undoing = keyed("Undo", "u", () => this.back(this.chosen.length - 1));
    this.restarting = keyed("Restart", "r", () => this.back(0));
    this.shortest = keyed("Show the shortest that breaks", "s", () => this.play());
    this.hinting = keyed("Hint", "h", () => this.toggleHint());
    this.shortest.disabled = !graph.shortest;
    const many = graph.interleavings === null ? "Interleavings without end" : `${graph.interleavings} interleaving${graph.interleavings === "1" ? "" : "s"}`;
    const few = !graph.shortest ? "none breaks" : graph.breaking === null ? "some break" : `${graph.breaking} break${graph.breaking === "1" ? "s" : ""}`;
    const count = element("span", { class: "count" }, `${many} through ${graph.states.length.toLocaleString("en-US")} states: ${few}`);
    const bar = element("div", { class: "bar", role: "group", "aria-label": "The run" }, this.undoing, this.restarting, this.shortest, this.hinting, count);
    this.columns = graph.processes.map((process, number) => this.column(process, number));
    this.memory = element("div", { class: "memory", role: "group", "aria-label": "Shared memory" });
    this.locks = element("div", { class: "memory", role: "group", "aria-label": "Semaphores" });
    this.list = element("ol");
    this.past = element("div", { class: "past", role: "group", "aria-label": "Who ran" }, element("span", { class: "title" }, "Who ran"), this.list);
    this.verdict = element("div", { class: "verdict" });
    this.spoken = element("div", { class: "spoken", role: "status", "aria-live": "polite" });
    this.root.append(bar, element("div", { class: "columns" }, ...this.columns.map((column) => column.node)), this.memory, this.locks, this.past, this.verdict, this.spoken);
  }

  column(process, number) {
    const { first, text } = this.graph.sources[process.source], key = number < 9 ? String(number + 1) : "";
    const lines = text.split("\n").map((line) => element("div", {}, line || " "));
    const code = element("pre", { class: "scrolls", tabindex: "-1", role: "group", "aria-label": `The program of ${process.name}` }, ...lines);
    const own = element("div", { class: "own" }), what = element("div", { class: "what" });
    const run = element("button", { type: "button" }, `Run ${process.name} one step`);
    if (key) run.append(element("kbd", { "aria-hidden": "true" }, key)), run.setAttribute("aria-keyshortcuts", key);
    run.addEventListener("click", () => this.choose(number));
    const node = element("div", { class: "process", role: "group", "aria-label": process.name }, element("header", {}, element("b", {}, process.name), " ", element("code", {}, process.call)), code, own, what, run);
    return { node, first, lines, code, own, what, run };
  }

  close() {
    this.stop();
    super.close();
  }

  // -- the reader's hands

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase(), { processes } = this.graph;
    const named = processes.map((process, i) => [process.name[0].toLowerCase(), i]).filter(([letter]) => letter === key);
    if (/^[1-9]$/.test(key) && +key <= processes.length) this.choose(+key - 1);
    else if (key === "u" || key === "backspace") this.back(this.chosen.length - 1);
    else if (key === "r") this.back(0);
    else if (key === "s") this.play();
    else if (key === "h") this.toggleHint();
    else if (named.length === 1) this.choose(named[0][1]);
    else return;
    event.preventDefault();
  }

  choose(process, byHand = true) {
    if (byHand) this.stop();
    const there = this.graph.next[this.now][process];
    if (there < 0 || this.over) return;
    this.states.push(there);
    this.chosen.push(process);
    this.paint();
    this.speak();
  }

  back(length) {
    this.stop();
    this.states.length = Math.max(0, length) + 1;
    this.chosen.length = Math.max(0, length);
    this.paint();
    this.speak();
  }

  play() {
    if (!this.graph.shortest) return;
    this.back(0);
    const still = calm(), todo = [...this.graph.shortest];
    if (still) return todo.forEach((process) => this.choose(process, false));
    const beat = () => {
      this.choose(todo.shift(), false);
      this.timer = todo.length ? setTimeout(beat, BEAT) : 0;
    };
    if (todo.length) this.timer = setTimeout(beat, BEAT / 2);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
  }

  toggleHint() {
    this.hint = !this.hint;
    this.paint();
    this.speak();
  }

  /** The picture for paper: the end of the shortest interleaving that breaks. */
  still() {
    if (this.chosen.length || !this.graph.shortest) return;
    this.graph.shortest.forEach((process) => this.choose(process, false));
  }

  // -- what is shown

  judgement() {
    const { graph, now } = this, wrong = graph.wrong[now];
    if (wrong) return ["wrong", `✘ Broken. ${wrong[0] === "deadlock" ? this.deadlock() : sentence(wrong[1])}`];
    if (graph.ends(now)) return ["right", `✔ All have ended${graph.conditions.length ? `, and this holds: ${graph.conditions.map((words) => `“${words}”`).join(", ")}` : ""}.`];
    const far = graph.far[now], steps = `${far} step${far === 1 ? "" : "s"}`;
    if (this.hint) return ["", far < Infinity ? `From here it can break in ${steps}. ${this.advice()}` : "From here nothing can go wrong any more, whoever runs."];
    return ["", this.chosen.length ? "Choose who runs next." : graph.shortest ? "Choose who runs next. Can you break it?" : "Choose who runs next. You cannot break this one: all interleavings have been tried."];
  }

  advice() {
    const { graph, now } = this, nearer = graph.processes.filter((_, p) => graph.next[now][p] >= 0 && graph.far[graph.next[now][p]] < graph.far[now]);
    return `Try ${nearer.map((process) => process.name).join(" or ")}.`;
  }

  deadlock() {
    const parts = this.graph.processes.map((process, p) => this.waiting(p) && `${process.name} ${this.waiting(p)}`).filter(Boolean);
    return `Deadlock: ${parts.join("; ")}.`;
  }

  /** What a process waits for in vain, "" when it could go on. */
  waiting(process) {
    const [line, action, semaphore, words] = this.graph.place(this.now, process);
    if (line === null || this.graph.next[this.now][process] >= 0) return "";
    if (action === UNTIL) return `waits until ${words}`;
    const name = this.graph.processes[process].name, held = this.graph.holders(this.states, this.chosen)[semaphore].map((who) => (who === name ? "itself" : who));
    return `waits for ${words}${held.length ? `, which ${held.join(" and ")} hold${held.length === 1 ? "s" : ""}` : ""}`;
  }

  paint() {
    const { graph, now, over } = this, before = this.states.at(-2);
    const [kind, text] = this.judgement();
    this.verdict.className = `verdict ${kind}`;
    setText(this.verdict, text);
    this.columns.forEach((column, p) => this.paintColumn(column, p, over));
    const old = before === undefined ? null : graph.shared(before);
    const cells = graph.shared(now).map(([name, value], i) => item(`${name} = ${value}`, old && old[i][1] !== value ? `was ${old[i][1]}` : ""));
    this.memory.replaceChildren(element("span", { class: "title" }, "Shared"), ...cells);
    this.memory.hidden = !cells.length;
    const held = graph.holders(this.states, this.chosen);
    const locks = graph.semaphores.map((name, i) => {
      const value = graph.semaphore(now, i), changed = before !== undefined && graph.semaphore(before, i) !== value;
      return item(`${name}: ${value}`, held[i].length ? `held by ${held[i].join(", ")}` : "", changed);
    });
    this.locks.replaceChildren(element("span", { class: "title" }, "Semaphores"), ...locks);
    this.locks.hidden = !locks.length;
    const chips = this.chosen.map((process, i) => {
      const name = graph.processes[process].name, chip = element("button", { type: "button", title: "Back to the moment after this step", "aria-label": `Step ${i + 1}: ${name}. Go back to the moment after it` }, `${i + 1} ${name}`);
      chip.addEventListener("click", () => (this.back(i + 1), this.root.focus()));
      return element("li", {}, chip);
    });
    this.list.replaceChildren(...chips);
    this.undoing.disabled = this.restarting.disabled = !this.chosen.length;
    this.hinting.setAttribute("aria-pressed", String(this.hint));
    if (this.root.contains(document.activeElement) && document.activeElement.disabled) this.root.focus(); // keys still work
  }

  paintColumn(column, p, over) {
    const { graph, now } = this, [line, action, , words, own, error] = graph.place(now, p), waits = this.waiting(p);
    column.node.classList.toggle("last", this.chosen.at(-1) === p);
    column.lines.forEach((node, i) => {
      const here = line !== null && column.first + i === line;
      node.className = here ? "here" : "";
      here ? node.setAttribute("aria-current", "step") : node.removeAttribute("aria-current");
      if (here && column.code.scrollHeight > column.code.clientHeight) column.code.scrollTop = node.offsetTop - column.code.clientHeight / 2;
    });
    column.code.tabIndex = column.code.scrollHeight > column.code.clientHeight || column.code.scrollWidth > column.code.clientWidth ? 0 : -1; // to scroll it by keys
    setText(column.own, own);
    const wants = { [ACQUIRE]: `wants ${words}`, [RELEASE]: `releases ${words} next`, [UNTIL]: `until ${words}`, [LABEL]: words ? `“${words}”` : "" }[action] ?? "has not begun";
    const [kind, text] = error ? ["raised", `✘ ${error}`] : line === null ? ["ended", "✔ has ended"] : waits ? ["waits", `■ ${waits}`] : ["", wants];
    column.what.className = `what ${kind}`;
    setText(column.what, text);
    column.run.disabled = over || graph.next[now][p] < 0;
    column.run.title = over ? "this run is over: undo or restart" : waits || (line === null ? "it has ended" : "");
  }

  speak() {
    const last = this.chosen.at(-1), shared = this.graph.shared(this.now).map(([name, value]) => `${name} = ${value}`).join(", ");
    setText(this.spoken, `${last === undefined ? "At the start." : `Step ${this.chosen.length}: ${this.graph.processes[last].name} ran.`} ${shared ? `${shared}.` : ""} ${this.judgement()[1]}`);
  }

  /** For tests: what is shown, read-only. */
  state() {
    const { graph, now } = this, [kind, text] = this.judgement();
    return {
      chosen: this.chosen.map((p) => graph.processes[p].name), verdict: kind, text, playing: Boolean(this.timer), states: graph.states.length,
      shared: Object.fromEntries(graph.shared(now)), semaphores: Object.fromEntries(graph.semaphores.map((name, i) => [name, graph.semaphore(now, i)])),
      lines: graph.processes.map((_, p) => graph.place(now, p)[0]), dark: darkPage(),
    };
  }
}

function item(text, note, changed = Boolean(note)) {
  const node = element("span", { class: changed ? "item changed" : "item" }, text);
  if (note) node.append(element("small", {}, ` ${note}`));
  return node;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

// ---------------------------------------------------------------- anywidget

async function render({ model, el }) {
  let view, closed = false;
  const show = async () => {
    const packed = model.get("table");
    if (!packed?.byteLength) return;
    try {
      const graph = new Graph(parse(await gunzip(packed), "processes", "sources", "states", "next"));
      view?.close();
      view = closed ? null : new Steps(graph, el);
    } catch (reason) {
      el.textContent = `This explorer cannot be read (${reason.message ?? reason}).`;
    }
  };
  model.on("change:table", show);
  await show();
  return () => {
    closed = true;
    model.off("change:table", show);
    view?.close();
  };
}

export default { render };
