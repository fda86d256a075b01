// What the page before has sent came by way of main, and is a copy: its Date is a Date of this page.

window.api.onWindowData((data) => {
  document.title = data.title;
  document.getElementById('title').textContent = data.title;
  const isDate = data.opened instanceof Date;
  document.getElementById('details').textContent =
    `opened by ${data.by} on ${isDate ? data.opened.toDateString() : 'no Date'}`;
});
