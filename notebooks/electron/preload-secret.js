// A preload script with a secret, which it uses but does not give away; and with settings, which it takes from the page.
// Where the page is walled off it is given this by the bridge, else as a property of the window they share.

const { contextBridge, ipcRenderer } = require('electron');

const secret = 'the token of this session';
const settings = { theme: 'light' };

function merge(into, from) {
  for (const key in from) {
    if (typeof from[key] === 'object' && from[key] !== null) merge((into[key] ??= {}), from[key]);
    else into[key] = from[key];
  }
}

const api = {
  sign: (text) => ['signed', text, secret].join('|').length,
  configure: (wanted) => merge(settings, wanted), // everything that comes, however deep
  configureNarrowly: ({ theme }) => { settings.theme = theme === 'dark' ? 'dark' : 'light'; },
  mayErase: () => Boolean({}.admin), // somebody's "is this user an admin?"
};

if (process.contextIsolated) contextBridge.exposeInMainWorld('api', api);
else window.api = api;
