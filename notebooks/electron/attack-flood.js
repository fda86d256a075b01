// More messages than anybody wants to read: main's memory, and everybody's time.

let sent = 0;
let refused = '';

globalThis.flood = (times) => {
  try {
    for (let i = 0; i < times; i++, sent++) window.notes.log(`line ${i} ${'x'.repeat(100)}`);
  } catch (error) {
    refused = error.message;
  }
  return [sent, refused];
};
