// The main process as an Electron programmer writes it: npx electron main.js. Lab 18 has the same in Python.

const { app, BrowserWindow, ipcMain } = require('electron');
const fs = require('node:fs/promises');
const path = require('node:path');

const webPreferences = { preload: path.join(__dirname, 'preload.js') };

app.whenReady().then(() => {
  const main = new BrowserWindow({ webPreferences });
  main.loadFile('index.html');

  // Scenario 1: a message. Nobody waits for an answer.
  ipcMain.on('open-new-window', (event, data) => {
    const win = new BrowserWindow({ title: data.title, webPreferences });
    win.loadFile('new-window.html');
    win.webContents.send('window-data', data);
  });

  // Scenario 2: a question and its answer, or its error.
  ipcMain.handle('read-file', (event, name) => fs.readFile(name, 'utf8'));

  // Scenario 3: main speaks first.
  setTimeout(() => main.webContents.send('show-notification', { title: 'Five seconds', body: 'have passed' }), 5000);
});
