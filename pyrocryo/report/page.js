// Tables that sort, and where it all begins.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th:not(.nosort)").forEach(head => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex, rows = [...table.tBodies[0].rows];
      table.querySelectorAll("th").forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const of = row => { const v = row.cells[column].dataset.value; return v === undefined ? row.cells[column].textContent : v === "" ? NaN : Number(v); };
      rows.sort((a, b) => { const x = of(a), y = of(b);
        if (typeof x === "string") return (up ? 1 : -1) * x.localeCompare(y);
        return Number.isNaN(x) - Number.isNaN(y) || (up ? 1 : -1) * (x - y); });
      table.tBodies[0].append(...rows);
    };
    head.tabIndex = 0; head.addEventListener("click", sort);
    head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
  });
}
document.querySelectorAll("details.figures").forEach(d => { d.open = false; });
addEventListener("beforeprint", () => document.querySelectorAll("details.figures").forEach(d => { d.open = true; }));
if (run.points) scatter();
if (run.motions.length) motion();
