"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const DASH = "-";
  const hidden = new Set();
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const byId = (id) => document.getElementById(id);

  // ----------------------------------------------------------------------------- numbers, worked out before, and charts

  /** Place of what is chosen among the texts of a number: with and without background under each convention. */
  const state = () => 2 * byId("convention").selectedIndex + (byId("background").checked ? 0 : 1);

  function fill() {
    const place = state();
    for (const cell of all("[data-texts]")) {
      cell.textContent = cell.dataset.texts.split("|")[place];
      const value = cell.dataset.values && cell.dataset.values.split("|")[place];
      if (value) cell.dataset.value = value; else delete cell.dataset.value;
    }
    for (const row of all("table.follows tr.published")) row.hidden = !DATA.comparable[place];
    for (const host of all("div.chart")) draw(host);
  }

  function draw(host) {
    const choice = byId(`${host.id}-what`), key = choice ? `${state()}-${choice.selectedIndex}` : state();
    host.replaceChildren(byId(`${host.id}-view${key}`).content.cloneNode(true));
    filter();
  }

  function filter() {
    for (const part of all("[data-column]")) part.toggleAttribute("hidden", hidden.has(part.dataset.column));
    byId("hidden-classes").hidden = !hidden.size;
  }

  // ---------------------------------------------------------------------------------------------------------- sorting

  /** What a row is sorted by: its cell's number where it has one, else its text; rows without either come last. */
  function keyOf(row, index) {
    const cell = row.cells[index], shown = cell.textContent.trim();
    const number = cell.dataset.value !== undefined ? Number(cell.dataset.value) : /^[≤ ]*[+-]?[\d.,]+(?![-\d])/.test(shown) ? parseFloat(shown.replace(/[≤ ,]/g, "")) : null;
    return { number, shown: shown === DASH ? "" : shown };
  }
  function compare(left, right) {
    if (left.number !== null && right.number !== null) return left.number - right.number;
    return left.shown.localeCompare(right.shown, "en", { numeric: true });
  }
  function sortable(table) {
    const heads = all("thead th", table), rows = all("tbody tr", table), body = table.tBodies[0];
    heads.forEach((head, index) => {
      const button = head.querySelector(".sort");
      if (!button) return;
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // A third click brings the order of the paper back.
        const order = before === null ? "descending" : before === "descending" ? "ascending" : null;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        let sorted = rows;
        if (order) {
          head.setAttribute("aria-sort", order);
          const keyed = rows.map((row) => ({ row, key: keyOf(row, index) }));
          const shown = keyed.filter(({ key }) => key.shown !== ""), rest = keyed.filter(({ key }) => key.shown === "");
          shown.sort((left, right) => compare(left.key, right.key) * (order === "ascending" ? 1 : -1));
          sorted = [...shown, ...rest].map(({ row }) => row);
        }
        body.append(...sorted);
      });
    });
  }

  // --------------------------------------------------------------------------------------------------------- pictures

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function pictures() {
    const book = DATA.gallery;
    if (!book) return;
    const trial = byId("trial"), name = byId("class-name"), slider = byId("class-slider");
    const groups = new Map();
    book.trials.forEach((each, index) => {
      if (!groups.has(each.label)) { groups.set(each.label, element("optgroup", { label: each.label })); trial.append(groups.get(each.label)); }
      groups.get(each.label).append(element("option", { value: index }, `${each.label}, seed ${each.seed}`));
    });
    const view = (caption, key, alt, exact) => element("figure", {}, element("img", { src: book.pictures[key], alt, class: exact ? "exact" : "" }), element("figcaption", {}, caption));
    function show() {
      const chosen = book.trials[Number(trial.value)], which = Number(slider.value), what = chosen.classes[which];
      name.value = String(which);
      slider.setAttribute("aria-valuetext", what);
      byId("gallery").replaceChildren(...chosen.items.map((item) => element("div", { class: "item" },
        element("h3", {}, item.id),
        element("div", { class: "views" },
          view("image", item.image, `Test image ${item.id}`, false),
          view("label", item.label, `Label of ${item.id}: ${chosen.classes.filter((_, index) => item.has[index]).join(", ")}`, true),
          view("prediction", item.prediction, `Prediction of ${chosen.label}, seed ${chosen.seed}, on ${item.id}`, true),
          view(`map: ${what}${item.has[which] ? "" : " (not in the label)"}`, item.maps[which], `Map of the class ${what} of ${chosen.label}, seed ${chosen.seed}, on ${item.id}`, false)))));
    }
    function choose() {
      const chosen = book.trials[Number(trial.value)];
      const before = name.value === "" ? Math.min(1, chosen.classes.length - 1) : Math.min(Number(name.value), chosen.classes.length - 1);
      name.replaceChildren(...chosen.classes.map((each, index) => element("option", { value: index }, each)));
      slider.max = String(chosen.classes.length - 1);
      slider.value = String(before);
      byId("gallery-legend").replaceChildren(...chosen.classes.map((each, index) => {
        const swatch = element("span", { class: "swatch" });
        swatch.style.background = book.colours[index];
        return element("li", {}, swatch, each);
      }));
      show();
    }
    trial.addEventListener("change", choose);
    slider.addEventListener("input", show);
    name.addEventListener("change", () => { slider.value = name.value; show(); });
    choose();
  }

  // ------------------------------------------------------------------------------------------------------------ start

  for (const id of ["convention", "background"]) byId(id).addEventListener("change", fill);
  for (const host of all("div.chart")) byId(`${host.id}-what`)?.addEventListener("change", () => draw(host));
  for (const box of all("#classes input"))
    box.addEventListener("change", () => { if (box.checked) hidden.delete(box.value); else hidden.add(box.value); filter(); });
  for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());
  all("table.numbers").forEach(sortable);
  const opened = new Set();
  addEventListener("beforeprint", () => all("details:not([open])").forEach((each) => { opened.add(each); each.open = true; }));
  addEventListener("afterprint", () => { opened.forEach((each) => { each.open = false; }); opened.clear(); });
  fill();
  pictures();
})();
