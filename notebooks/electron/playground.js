// For trying things out: contextIsolation is off and nodeIntegration on, so that the page itself may call
// require('electron'), as everybody's did before 2020. Lab 19 is about why nobody does any more.

const { ipcRenderer } = require('electron');
const log = [];

/** How many round trips a second, one after the other or all at once, and how long one takes, in milliseconds. */
async function measure(channel, times) {
  const took = [];
  for (let i = 0; i < times; i++) {
    const begin = performance.now();
    await ipcRenderer.invoke(channel, i);
    took.push(performance.now() - begin);
  }
  took.sort((a, b) => a - b);
  const begin = performance.now();
  await Promise.all(took.map((_, i) => ipcRenderer.invoke(channel, i)));
  const atOnce = performance.now() - begin;
  return { p50: took[times >> 1], p99: took[Math.floor(times * 0.99)], alone: 1000 / took[times >> 1], atOnce: (1000 * times) / atOnce };
}
