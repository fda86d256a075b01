// Plays the widget model for the views of a report, where there is no kernel. Inlined by labkit/page.py.
const { modules, models, data, views } = JSON.parse(document.getElementById("labkit-views").textContent);
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
/** What a widget's JavaScript needs of a model when there is no kernel: state, and nothing ever changes from outside. */
class Model {
  constructor({ state, buffers }) {
    this.state = state;
    this.listeners = {};
    this.alone = true; // there is no kernel
    for (const { path, data: key } of buffers) {
      const last = path.pop();
      path.reduce((object, name) => object[name], state)[last] = bytes(data[key]);
    }
  }
  get(key) { return this.state[key]; }
  set(key, value) {
    this.state[key] = value;
    for (const listener of this.listeners[`change:${key}`] ?? []) listener();
  }
  on(event, listener) { (this.listeners[event] ??= new Set()).add(listener); }
  off(event, listener) { this.listeners[event]?.delete(listener); }
  save_changes() {}
  send() {}
}
const load = (source) => import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
const loaded = Object.fromEntries(Object.entries(modules).map(([name, source]) => [name, load(source)]));
const standing = {};
for (const { place, module, model } of views) {
  const el = document.getElementById(place);
  try {
    const widget = (await loaded[module]).default;
    if (!standing[model]) {
      standing[model] = new Model(models[model]);
      await widget.initialize?.({ model: standing[model] });
    }
    await widget.render({ model: standing[model], el });
  } catch (error) { // the others are shown all the same
    el.textContent = `This view could not be drawn: ${error.message}`;
    console.error(error);
  }
}
