"use strict";
// Tables: a click on a heading sorts by it, a second click turns the order round.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b, turn) => {
    if (typeof a === "number" && typeof b === "number") return turn * (a - b);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what has no number stands last
    return turn * a.localeCompare(b, undefined, { numeric: true });
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const now = head.getAttribute("aria-sort");
    const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const turn = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort((a, b) => compare(a[0], b[0], turn)).forEach(([, row]) => body.append(row));
  }));
}
// Charts: what a mark says, at once and beside the pointer. Without this script its <title> is shown by the browser.
const told = document.createElement("div");
told.id = "told";
told.hidden = true;
document.body.append(told);
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentNode;
  mark.dataset.told = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest && event.target.closest("[data-told]");
  told.hidden = !mark;
  if (!mark) return;
  told.textContent = mark.dataset.told;
  told.style.left = `${Math.min(event.clientX + 14, innerWidth - told.offsetWidth - 8)}px`;
  told.style.top = `${Math.max(4, event.clientY - told.offsetHeight - 12)}px`;
});
// Paper shows everything.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
