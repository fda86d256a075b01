// The page's script. It has a document and window.api, see preload.js; no files, no processes, no ipcRenderer.

const byId = (id) => document.getElementById(id);

function show(list, text) {
  const item = document.createElement(list.id === 'log' ? 'li' : 'p');
  item.textContent = text;
  list.append(item);
}

let count = 0;

byId('open').addEventListener('click', () => {
  count += 1;
  window.api.openNewWindow({ title: `Window ${count}`, opened: new Date(), by: 'the main window' });
  show(byId('log'), `asked for window ${count}`);
});

byId('read').addEventListener('click', async () => {
  try {
    const text = await window.api.readFile(byId('name').value);
    show(byId('log'), `read ${text.length} characters: ${text.trim().split('\n')[0]} ...`);
  } catch (error) {
    show(byId('log'), error.message);
  }
});

window.api.onNotification((note) => show(byId('notifications'), `${note.title}: ${note.body}`));
