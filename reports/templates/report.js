"use strict";
// Sorting and filtering of every table. The state of one table can be given in the address, so that it can be shared:
// #t=summary&sort=3&dir=desc&q=train&rows=all   (sort counts columns from 0)
(function () {
  const tables = {};

  function sortKey(row, column) {
    const cell = row.cells[column];
    if (!cell || cell.classList.contains("missing")) return null;
    if (cell.hasAttribute("data-s")) return cell.dataset.s === "" ? null : Number(cell.dataset.s);
    return cell.textContent.trim().toLowerCase();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a < b ? -1 : a > b ? 1 : 0;
  }

  // A missing value is neither small nor large: it stays at the end in both directions.
  function sortBy(state, column, direction) {
    const sign = direction === "desc" ? -1 : 1;
    const keyed = state.rows.map((row, place) => [sortKey(row, column), place, row]);
    keyed.sort((x, y) => {
      if (x[0] === null || y[0] === null) return (x[0] === null) - (y[0] === null) || x[1] - y[1];
      return sign * compare(x[0], y[0]) || x[1] - y[1];
    });
    state.body.append(...keyed.map((entry) => entry[2]));
    state.heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    state.sort = column;
    state.dir = direction;
  }

  function contains(state, row, words) {
    if (!state.texts.has(row)) {
      // A space between cells, so that the end of one and the start of the next don't make a word.
      state.texts.set(row, Array.from(row.cells, (cell) => cell.textContent.toLowerCase()).join(" "));
    }
    return words.every((word) => state.texts.get(row).includes(word));
  }

  function filter(state) {
    const words = state.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = !state.select || state.select.value === "all";
    let shown = 0;
    let possible = 0;
    for (const row of state.rows) {
      const allowed = all || !row.classList.contains("more");
      const hit = allowed && (!words.length || contains(state, row, words));
      row.hidden = !hit;
      possible += allowed;
      shown += hit;
    }
    state.count.textContent = shown === possible ? possible + " rows" : shown + " of " + possible + " rows";
  }

  function remember(id) {
    const state = tables[id];
    const wanted = new URLSearchParams({ t: id });
    if (state.sort !== null) { wanted.set("sort", state.sort); wanted.set("dir", state.dir); }
    if (state.input.value) wanted.set("q", state.input.value);
    if (state.select && state.select.value === "all") wanted.set("rows", "all");
    try { history.replaceState(null, "", "#" + wanted); } catch (error) { /* a page inside a viewer may not */ }
  }

  function addTools(id, state, table) {
    const tools = document.querySelector('.tools[data-for="' + id + '"]');
    state.input = document.createElement("input");
    state.input.type = "search";
    state.input.placeholder = "filter rows";
    state.input.setAttribute("aria-label", "filter rows");
    state.input.addEventListener("input", () => { filter(state); remember(id); });
    state.count = document.createElement("span");
    state.count.setAttribute("aria-live", "polite");
    if (state.rows.length > 3) tools.append(state.input);
    if (table.dataset.more) {
      state.select = document.createElement("select");
      state.select.setAttribute("aria-label", "which rows");
      state.select.append(new Option(table.dataset.rows, "some"), new Option(table.dataset.more, "all"));
      state.select.addEventListener("change", () => { filter(state); remember(id); });
      tools.append(state.select);
    }
    if (state.rows.length > 3) tools.append(state.count);
  }

  for (const table of document.querySelectorAll("table.data")) {
    const id = table.id.replace(/^table-/, "");
    const body = table.tBodies[0];
    const state = { body, texts: new Map(), rows: Array.from(body.rows), heads: Array.from(table.tHead.rows[0].cells), sort: null, dir: "asc" };
    tables[id] = state;
    if (state.rows.length > 40) table.parentElement.classList.add("tall");
    addTools(id, state, table);
    state.heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "sort by this column";
      button.append(...head.childNodes);
      button.addEventListener("click", () => {
        sortBy(state, column, state.sort === column && state.dir === "asc" ? "desc" : "asc");
        remember(id);
      });
      head.append(button);
    });
    filter(state);
  }

  const asked = new URLSearchParams(location.hash.slice(1));
  const state = tables[asked.get("t")];
  if (state) {
    state.input.value = asked.get("q") || "";
    if (state.select && asked.get("rows") === "all") state.select.value = "all";
    filter(state);
    const column = Number(asked.get("sort"));
    if (asked.has("sort") && state.heads[column]) sortBy(state, column, asked.get("dir") === "desc" ? "desc" : "asc");
    document.getElementById(asked.get("t")).scrollIntoView();
  }
})();
