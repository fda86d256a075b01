// One function for one message. The page cannot name a channel, and never sees ipcRenderer or an event.

const { contextBridge, ipcRenderer } = require('electron');

contextBridge.exposeInMainWorld('notes', {
  read: (name) => ipcRenderer.invoke('app:read-note', name),
  log: (line) => ipcRenderer.send('app:log', String(line)),
});
