// Sorts the rows of a table by the column whose name is pressed, and unfolds all before printing.
"use strict";

function key(row, column) {
  const cell = row.cells[column];
  const number = cell.querySelector("data");
  return number ? Number(number.value) : cell.textContent.trim().toLowerCase();
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  // A dash, where there is no number, comes after all numbers.
  return typeof a === "number" ? -1 : 1;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const names = [...table.tHead.rows[0].cells];
  names.forEach((name, column) => {
    name.querySelector("button").addEventListener("click", () => {
      const down = name.getAttribute("aria-sort") === "ascending";
      for (const other of names) other.removeAttribute("aria-sort");
      name.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
      table.tBodies[0].append(...rows);
    });
  });
}

window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
