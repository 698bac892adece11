(() => {
"use strict";
const root = document.documentElement, say = document.querySelector(".announce");
const make = (tag, props, ...kids) => { const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e; };
root.classList.add("js");

// pages: the one that the address names is shown
const pages = [...document.querySelectorAll(".page")], links = [...document.querySelectorAll(".contents a")], title = document.title;
function show(first) {
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { /* not an address of ours */ }
  const target = name && name !== "main" ? document.getElementById(name) : null;
  if (name === "main") { document.getElementById("main").focus(); return; }
  const page = (target && target.closest(".page")) || pages[0];
  for (const p of pages) p.hidden = p !== page;
  for (const a of links) if (a.hash === "#" + page.id) { a.setAttribute("aria-current", "page"); a.closest("ul").scrollLeft = a.offsetLeft - 24; } else a.removeAttribute("aria-current");
  document.title = page === pages[0] ? title : page.querySelector("h2").textContent + " \u2013 " + title;
  for (let e = target; e && e !== page; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (first && page === pages[0] && (!target || target === page)) scrollTo(0, 0);
  else if (target && target !== page) { target.setAttribute("tabindex", "-1"); target.focus({ preventScroll: true }); target.scrollIntoView(); }
  else if (!first) { page.querySelector("h2").focus({ preventScroll: true }); scrollTo(0, Math.min(scrollY, document.querySelector(".frame").offsetTop)); }
}
// a box that scrolls is reached by keyboard, one that does not is passed over
let asked = 0;
function reach() {
  asked = 0;
  for (const e of document.querySelectorAll(".page:not([hidden]) :is(.scroll, .plate, pre)"))
    if (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight) e.tabIndex = 0; else e.removeAttribute("tabindex");
}
const ask = () => { asked = asked || requestAnimationFrame(reach); };
addEventListener("hashchange", () => { show(false); ask(); });
addEventListener("resize", ask);
document.addEventListener("toggle", ask, true);
show(true);
ask();

// numbers are rounded as in the rows that are there from the start
function shown(text, decimals) {
  if (decimals !== undefined && text && Math.abs(Number(text)) < 1e15) return Number(text).toFixed(decimals);
  if (text.length <= 6 || !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) || /^[+-]?\d+$/.test(text)) return text;
  const x = Number(text), size = Math.abs(x);
  if (x === 0) return "0";
  if (size < 1e-4 || size >= 1e6) return x.toExponential(3);
  return x.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
}
function parse(text) {
  const rows = []; let row = [], field = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) { if (c !== '"') field += c; else if (text[i + 1] === '"') { field += c; i++; } else quoted = false; }
    else if (c === '"') quoted = true;
    else if (c === ",") { row.push(field); field = ""; }
    else if (c === "\n" || c === "\r") { if (c === "\r" && text[i + 1] === "\n") i++; row.push(field); rows.push(row); row = []; field = ""; }
    else field += c;
  }
  if (field || row.length) { row.push(field); rows.push(row); }
  return rows.filter(r => r.length > 1 || r[0]);
}
async function unpack(link) {
  const bytes = Uint8Array.from(atob(link.href.split(",")[1]), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

for (const box of document.querySelectorAll(".data")) {
  const table = box.querySelector("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], name = table.getAttribute("aria-label") || "the table";
  let rows = [...body.rows], order = rows.slice(), sorted = null, sign = 0;
  const value = (row, i) => { const c = row.cells[i]; return c ? (c.dataset.v ?? c.textContent).trim() : ""; };
  const numeric = i => heads[i].dataset.type === "number";
  const words = new Intl.Collator("en", { numeric: true });

  function sort(i) {
    sign = sorted === i ? (sign === 1 ? -1 : sign === -1 ? 0 : 1) : 1; sorted = i;
    order = rows.slice();
    // what is empty stands last whichever way
    if (sign) order = rows.map(r => [value(r, i), r]).sort(([a], [b]) => a === "" || b === "" ? (a === "") - (b === "") : sign * (numeric(i) ? parseFloat(a) - parseFloat(b) : words.compare(a, b))).map(x => x[1]);
    body.append(...order);
    const way = sign > 0 ? "ascending" : sign < 0 ? "descending" : "none";
    heads.forEach((h, j) => h.setAttribute("aria-sort", j === i ? way : "none"));
    say.textContent = sign ? `${name}: sorted by ${heads[i].textContent}, ${way}` : `${name}: in its own order`;
  }
  heads.forEach((h, i) => {
    const button = make("button", { type: "button" }, ...h.childNodes);
    button.addEventListener("click", () => sort(i));
    h.setAttribute("aria-sort", "none"); h.append(button);
  });

  const count = make("span", { className: "count" }), filter = make("input", { type: "search", autocomplete: "off", spellcheck: false });
  const apply = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const r of rows) { const text = r.textContent.toLowerCase(); r.hidden = !wanted.every(w => text.includes(w)); left += !r.hidden; }
    count.textContent = wanted.length ? `${left} of ${rows.length} rows` : "";
    if (wanted.length) say.textContent = `${name}: ${count.textContent}`;
  };
  filter.addEventListener("input", apply);
  if (rows.length > 7) box.prepend(make("div", { className: "tools" }, make("label", {}, "Filter rows", filter), count));
  filter.setAttribute("aria-label", `Filter rows of ${name}`);

  const more = box.querySelector(".more"), link = box.querySelector("a[download]");
  if (!more || !more.dataset.rows || !link || typeof DecompressionStream === "undefined") continue;
  const all = make("button", { type: "button" }, `Show all ${Number(more.dataset.rows).toLocaleString("en")} rows`);
  all.addEventListener("click", async () => {
    all.disabled = true;
    const [columns, ...found] = parse(await unpack(link)), keep = heads.map(h => columns.indexOf(h.textContent.trim())), looks = heads.map((h, i) => (rows[0] && rows[0].cells[i].className) || "");
    rows = found.map(r => {
      const tr = document.createElement("tr");
      keep.forEach((k, i) => { const raw = r[k] ?? "", text = looks[i] === "n" ? shown(raw, heads[i].dataset.decimals) : raw, td = make("td", { className: looks[i], textContent: text }); if (text !== raw) td.dataset.v = raw; tr.append(td); });
      return tr;
    });
    body.replaceChildren(...rows);
    heads.forEach(h => h.setAttribute("aria-sort", "none")); sorted = null; sign = 0;
    apply(); all.remove(); more.firstChild.textContent = `All ${rows.length.toLocaleString("en")} rows. `;
    say.textContent = `${name}: all ${rows.length} rows are shown`;
    heads[0].querySelector("button").focus();
  });
  more.append(" ", all);
}
})();
