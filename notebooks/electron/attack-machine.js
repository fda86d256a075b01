// A script that got into the page, from an advertisement or a pasted comment, looks for a way out of it.

const KERNELS = 'http://127.0.0.1:8888/api/kernels'; // where a Jupyter server would be

globalThis.results = attack({
  'read a file': () => `${require('fs').readFileSync('/etc/passwd', 'utf8').length} characters of /etc/passwd`,
  'start a program': () => require('child_process').execFileSync('id', ['-un'], { encoding: 'utf8' }).trim().length + ' characters of id(1)',
  'import a module of Node': async () => Object.keys(await import('node:fs')).length + ' functions',
  'the process, by a constructor': () => there({}.constructor.constructor('return process')().binding),
  'ipcRenderer': () => there(require('electron').ipcRenderer) && 'ipcRenderer itself',
  'the page around this one': () => parent === window ? there(null) : parent.document.title,
  'JupyterLab itself': () => there(top.jupyterapp),
  'what the browser keeps': () => parent === window ? there(null) : localStorage.length + document.cookie,
  'the server, by fetch': async () => (await fetch(KERNELS)).status,
  'the server, by a WebSocket': () => new Promise((done, fail) => {
    const socket = new WebSocket(KERNELS.replace('http', 'ws'));
    socket.onopen = () => done('connected');
    socket.onerror = () => fail(new Error('refused'));
  }),
  'a window without walls': () => there(window.open?.('http://127.0.0.1:8888/')),
});
