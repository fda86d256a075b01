// What every attack page uses: run each attempt, and write down whether it came through.

async function attack(attempts) {
  const results = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    try {
      results[name] = `REACHED: ${await attempt()}`;
    } catch (error) {
      results[name] = `stopped: ${error?.message ?? error}`;
    }
    const line = document.createElement('li');
    line.textContent = `${name}: ${results[name]}`;
    document.getElementById('results').append(line);
  }
  return results;
}

/** What is there, or an error that says that nothing is. */
function there(value) {
  if (value === undefined || value === null) throw new Error('there is no such thing here');
  return value;
}
