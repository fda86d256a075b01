// This page should read notes. It would like to erase them.

const functions = Object.values(window.notes ?? window.electron ?? {});

globalThis.results = attack({
  'name the channel': () => there(window.electron).invoke('app:erase-notes'),
  'name it to every function': async () => {
    const answers = await Promise.allSettled(functions.map(async (each) => each('app:erase-notes', 'app:erase-notes')));
    return there(answers.map((each) => each.value).find((value) => /erased/.test(value)));
  },
  'the event, and from it its sender': () => new Promise((done, fail) => {
    there(window.electron).on('app:news', (event) => (event.sender?.invoke ? done('ipcRenderer') : fail(new Error('the bridge left {} of it'))));
    window.electron.send('app:tell-me-news');
  }),
  'the preload script, by a function of it': () => there(functions[0].constructor('return typeof require === "function" ? require : null')()),
  'put a function of its own there': () => {
    const api = window.notes ?? window.electron;
    const name = Object.keys(api)[0];
    api[name] = () => 'forged';
    return there(api[name]() === 'forged' ? 'forged' : null);
  },
});
