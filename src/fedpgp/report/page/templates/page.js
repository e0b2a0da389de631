const ROWS = {{ rows }};
const say = text => { document.getElementById("said").textContent = text; };

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {  // the browser refuses the clipboard
    const dialog = document.getElementById("copy"), area = dialog.querySelector("textarea");
    area.value = text;
    dialog.showModal();
    area.select();
  }
}

const words = cell => cell.textContent.trim().replace(/\s*\n\s*/g, " ");
// A name that a spreadsheet would read as a formula begins with an apostrophe, as in the files that fedpgp writes.
const plain = text => /^[=+\-@＝＋－＠]/.test(text) && !/^[-+][-+\d.,%\s()=]*$/.test(text) ? `'${text}` : text;
const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const asCsv = rows => rows.map(row => row.map(cell => quoted(plain(words(cell)))).join(",")).join("\n") + "\n";

const SPECIAL = {"\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "±": "$\\pm$", "α": "$\\alpha$", "−": "$-$"};
const escaped = text => text.replace(/[\\^~±α−%&_#{}$]/g, found => SPECIAL[found] ?? "\\" + found);
function asLatex(table, [head, ...rows]) {
  const cell = one => { const text = escaped(words(one)).replace(/ ([=+])$/, "$^{$1}$$"); return one.classList.contains("best") ? `\\textbf{${text}}` : text; };
  const line = row => `    ${row.map(cell).join(" & ")} \\\\`;
  const caption = table.caption ? `  \\caption{${escaped(words(table.caption))}}\n` : "";
  return `\\begin{table}\n${caption}  \\begin{tabular}{l${"r".repeat(head.length - 1)}}\n    \\toprule\n${line(head)}\n    \\midrule\n${rows.map(line).join("\n")}\n    \\bottomrule\n  \\end{tabular}\n\\end{table}\n`;
}

// The value by which a column is sorted: a number, the middle of an interval, or text.
function value(cell) {
  const text = words(cell), numbers = (text.match(/[-+−]?\d[\d,]*\.?\d*/g) ?? []).map(one => Number(one.replace("−", "-").replaceAll(",", "")));
  if (/^no difference/.test(text)) return (numbers[0] + numbers[1]) / 2;
  return /^[-+−]?\d/.test(text) ? numbers[0] : text;
}
function compare(first, second) {
  if (first === "" || second === "") return (first === "") - (second === "");
  return typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(String(second), "en", {numeric: true});
}

function arrange(box) {
  const table = box.querySelector("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const count = box.querySelector(".count"), filter = box.querySelector("input"), [before, after] = box.querySelectorAll(".turn");
  let rows = [...body.rows], first = 0;
  function show() {
    const found = rows.filter(row => !row.dataset.out);
    first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / ROWS) * ROWS));
    for (const row of rows) row.hidden = true;
    for (const row of found.slice(first, first + ROWS)) row.hidden = false;
    if (!count) return;
    count.textContent = found.length ? `${first + 1} to ${Math.min(first + ROWS, found.length)} of ${found.length.toLocaleString("en")} rows` : "no row";
    before.disabled = first === 0;
    after.disabled = first + ROWS >= found.length;
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "ascending";
    for (const other of heads) other.ariaSort = other === head ? (down ? "descending" : "ascending") : "none";
    const keys = new Map(rows.map(row => [row, value(row.cells[column])]));
    rows.sort((one, other) => {
      const [a, b] = [keys.get(one), keys.get(other)];
      return a === "" || b === "" ? compare(a, b) : (down ? -1 : 1) * compare(a, b);
    });
    body.append(...rows);
    first = 0;
    show();
  }));
  filter?.addEventListener("input", () => {
    const sought = filter.value.toLowerCase();
    for (const row of rows) row.textContent.toLowerCase().includes(sought) ? delete row.dataset.out : row.dataset.out = "yes";
    first = 0;
    show();
  });
  before?.addEventListener("click", () => { first -= ROWS; show(); });
  after?.addEventListener("click", () => { first += ROWS; show(); });
  const chosen = () => [heads, ...rows.filter(row => !row.dataset.out).map(row => [...row.cells])];
  box.querySelector(".csv").addEventListener("click", () => copy(asCsv(chosen())));
  box.querySelector(".latex").addEventListener("click", () => copy(asLatex(table, chosen())));
}
document.querySelectorAll(".table").forEach(arrange);
document.querySelectorAll("button.save").forEach(button => button.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([button.nextElementSibling.content.textContent], {type: "text/plain"}));
  link.download = button.dataset.name;
  link.click();
}));

// A group of marks that draws nothing has a role without a label, which a screen reader cannot announce.
const label = place => place.querySelectorAll("g[role=graphics-symbol]:not([aria-label])").forEach(group => group.removeAttribute("role"));
document.querySelectorAll(".chart").forEach(label);

function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const spec = JSON.parse(place.nextElementSibling.textContent);
  const width = place.clientWidth;
  if (spec.columns) spec.columns = Math.max(1, Math.min(spec.columns, Math.floor((width - 30) / ((spec.spec?.width ?? 240) + 20))));
  if (width < 640) spec.config.legend = {...spec.config.legend, orient: "bottom", columns: 2};
  vegaEmbed(place, spec, {renderer: "svg", actions: {export: true, source: false, compiled: false, editor: false}})
    .then(() => { label(place); place.querySelector("summary")?.setAttribute("aria-label", "Save this figure"); });
}
const places = document.querySelectorAll("[data-chart]");
const seen = new IntersectionObserver(entries => entries.forEach(entry => { if (entry.isIntersecting) draw(entry.target); }), {rootMargin: "300px"});
places.forEach(place => seen.observe(place));
addEventListener("beforeprint", () => places.forEach(draw));
