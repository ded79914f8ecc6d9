// The comparison page: search, and only the numbers in which one side is better.

function filterNumbers() {
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean), strict = find("significant").checked;
  let shown = 0;
  for (const body of document.querySelectorAll("#table tbody")) {
    const domain = body.rows[0].textContent.toLowerCase();
    for (const row of [...body.rows].slice(1)) {
      const text = `${domain} ${row.cells[0].textContent.toLowerCase()}`;
      row.hidden = !words.every((word) => text.includes(word)) || (strict && !row.dataset.better);
      shown += !row.hidden;
    }
    body.hidden = [...body.rows].slice(1).every((row) => row.hidden);
  }
  find("count").textContent = `${shown} number${shown === 1 ? "" : "s"}`;
}

startTheme();
find("search").addEventListener("input", filterNumbers);
find("significant").addEventListener("change", filterNumbers);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest?.("input")) {
    event.preventDefault();
    find("search").focus();
  }
});
filterNumbers();
