// A view of the playground that is shown and hidden again, as every framework does. Each time it listens anew.

let painted = 0;

function showLeaky() {
  ipcRenderer.on('price', (_event, price) => (painted += 1));
  return () => {}; // what hides the view: it forgets to stop listening
}

function showTidy() {
  const paint = (_event, price) => (painted += 1);
  ipcRenderer.on('price', paint);
  return () => ipcRenderer.removeListener('price', paint);
}

function showTenTimes(show) {
  for (let i = 0; i < 10; i++) {
    const hide = show();
    if (i < 9) hide(); // the tenth stays
  }
}
