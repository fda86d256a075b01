// Runs before the page, in a world of its own. What it exposes is all of Electron that the page ever sees.

const { contextBridge, ipcRenderer } = require('electron');

contextBridge.exposeInMainWorld('api', {
  openNewWindow: (data) => ipcRenderer.send('open-new-window', data),
  readFile: (name) => ipcRenderer.invoke('read-file', name),
  onNotification: (callback) => ipcRenderer.on('show-notification', (_event, note) => callback(note)),
  onWindowData: (callback) => ipcRenderer.on('window-data', (_event, data) => callback(data)),
});
