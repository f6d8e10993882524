"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const DASH = "-";
  const state = { convention: DATA.convention, background: DATA.background, hidden: new Set() };
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const byId = (id) => document.getElementById(id);

  // ---------------------------------------------------------------- numbers, as slime_bench.results.result and .report.aggregate

  /** Counts of one trial, image by image, class by class; see numbers.py for the encoding. */
  function decode(text, classes, images) {
    const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
    let place = 0;
    const next = () => {
      let value = 0, factor = 1, byte;
      do { byte = bytes[place++]; value += (byte & 127) * factor; factor *= 128; } while (byte > 127);
      return value;
    };
    const cells = [];
    for (let index = 0; index < classes * images; index++) {
      const word = next(), union = Math.floor(word / 2);
      cells.push({ union, present: word % 2 === 1, inside: union ? next() : 0 });
    }
    return cells;
  }

  /** IoU of each class in 0..1 under a convention, null where undefined: a ratio of two sums over images. */
  function reduce(cells, classes, convention) {
    const above = new Array(classes).fill(0), below = new Array(classes).fill(0);
    for (let start = 0; start < cells.length; start += classes) {
      const row = cells.slice(start, start + classes);
      const anything = row.some((cell, index) => index > 0 && cell.present);
      row.forEach((cell, index) => {
        if (convention === "dataset") { above[index] += cell.inside; below[index] += cell.union; return; }
        const counts = convention === "slime" ? cell.present && anything : cell.union > 0;
        if (counts) { above[index] += cell.inside / Math.max(cell.union, 1); below[index] += 1; }
      });
    }
    return above.map((value, index) => below[index] ? value / below[index] : null);
  }

  const memory = new Map();
  function perClass(series, trial) {
    const entry = DATA.series[series], key = `${series} ${trial.seed} ${state.convention}`;
    if (!memory.has(key)) {
      if (trial.counts && !trial.cells) trial.cells = decode(trial.counts, entry.classes.length, trial.images);
      memory.set(key, trial.cells ? reduce(trial.cells, entry.classes.length, state.convention) : trial.stored[state.convention]);
    }
    return memory.get(key);
  }
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  function average(series, trial) {
    const values = perClass(series, trial).slice(state.background ? 0 : 1).filter((value) => value !== null);
    return values.length ? mean(values) : null;
  }
  /** Mean and sample standard deviation of fractions, in percent. */
  function stat(fractions) {
    const values = fractions.filter((value) => value !== null).map((value) => 100 * value);
    if (!values.length) return { mean: null, std: null };
    const middle = mean(values);
    const squares = values.reduce((sum, value) => sum + (value - middle) ** 2, 0);
    return { mean: middle, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null };
  }
  const averageStat = (series) => stat(DATA.series[series].trials.map((trial) => average(series, trial)));
  function classStat(series, name) {
    const index = DATA.series[series].classes.indexOf(name);
    return index < 0 ? { mean: null, std: null } : stat(DATA.series[series].trials.map((trial) => perClass(series, trial)[index]));
  }
  const columnStat = (series, name) => name === "" ? averageStat(series) : classStat(series, name);
  /** Difference of the averages to another series', over the seeds that both have. */
  function deltaStat(series, reference) {
    const other = new Map(DATA.series[reference].trials.map((trial) => [trial.seed, average(reference, trial)]));
    const gaps = DATA.series[series].trials.map((trial) => {
      const ours = average(series, trial), theirs = other.get(trial.seed);
      return ours === null || theirs === null || theirs === undefined ? null : ours - theirs;
    });
    return stat(gaps);
  }
  const comparable = () => state.convention === DATA.paper && state.background;

  // ---------------------------------------------------------------------------------------------------------- as text

  /** One decimal, a tie to the even digit, as Python writes it: only quarters can be ties in binary. */
  function fixed(value, sign = "") {
    const tie = Number.isInteger(value * 4) && Math.abs(value * 4) % 2 === 1;
    let text = value.toFixed(1);
    if (tie) {
      const down = Math.floor(Math.abs(value) * 10), digit = down % 2 === 0 ? down : down + 1;
      text = (Math.sign(value) * digit / 10).toFixed(1);
    }
    return sign && !text.startsWith("-") ? sign + text : text;
  }
  function text(found, sign = "") {
    if (found.mean === null) return DASH;
    return fixed(found.mean, sign) + (found.std === null ? "" : `±${fixed(found.std)}`);
  }

  // ----------------------------------------------------------------------------------------------------------- tables

  function put(cell, found, sign = "") {
    cell.textContent = text(found, sign);
    if (found.mean === null) delete cell.dataset.value; else cell.dataset.value = String(found.mean);
  }

  function fill() {
    for (const row of all("table.follows tr[data-series]")) {
      const series = row.dataset.series;
      for (const cell of all("td[data-kind]", row)) {
        const kind = cell.dataset.kind;
        if (kind === "class") put(cell, classStat(series, cell.dataset.column));
        else if (kind === "average") put(cell, averageStat(series));
        else if (kind === "delta") put(cell, deltaStat(series, row.dataset.reference), "+");
        else if (kind === "paper") {
          const ours = averageStat(series).mean;
          const known = comparable() && ours !== null && cell.dataset.published !== undefined;
          put(cell, { mean: known ? ours - Number(cell.dataset.published) : null, std: null }, "+");
        }
      }
    }
    for (const row of all("tr[data-trial]")) {
      const trial = DATA.series[row.dataset.trial].trials.find((each) => String(each.seed) === row.dataset.seed);
      for (const cell of all("td[data-kind=trial]", row)) {
        const value = trial ? average(row.dataset.trial, trial) : null;
        put(cell, { mean: value === null ? null : 100 * value, std: null });
      }
    }
    for (const row of all("table.follows tr.published")) row.hidden = !comparable();
    const how = `convention ${state.convention}: ${DATA.rules[state.convention]}; average over the classes ${state.background ? "with" : "without"} background`;
    for (const line of all("li.metric")) line.textContent = how;
    const trials = Object.values(DATA.series).flatMap((each) => each.trials);
    const counted = trials.filter((trial) => trial.counts).length;
    const parts = [`${how.charAt(0).toUpperCase()}${how.slice(1)}.`];
    if (state.convention !== DATA.convention || state.background !== DATA.background)
      parts.push(`Reduced here from the counts of ${counted} of ${trials.length} trials${counted < trials.length ? "; of the others from what their result files say" : ""}.`);
    if (!comparable()) parts.push("Published numbers follow another rule and are not shown.");
    if (state.hidden.size) parts.push("The average is still over all classes.");
    byId("status").textContent = parts.join(" ");
  }

  function filter() {
    for (const cell of all("th[data-column], td[data-column]")) cell.hidden = state.hidden.has(cell.dataset.column);
  }

  /** What a row is sorted by: its cell's number where it has one, else its text; rows without either come last. */
  function keyOf(row, index) {
    const cell = row.cells[index], shown = cell.textContent.trim();
    const number = cell.dataset.value !== undefined ? Number(cell.dataset.value) : /^[+-]?[\d.,]+(?![-\d])/.test(shown) ? parseFloat(shown.replace(/,/g, "")) : null;
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
          const known = keyed.filter(({ key }) => key.shown !== ""), rest = keyed.filter(({ key }) => key.shown === "");
          known.sort((left, right) => compare(left.key, right.key) * (order === "ascending" ? 1 : -1));
          sorted = [...known, ...rest].map(({ row }) => row);
        }
        body.append(...sorted);
      });
    });
  }

  // ----------------------------------------------------------------------------------------------------------- charts

  const STYLES = 7;
  function shape(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** An SVG with a title and a description, for those who do not see it. */
  function canvas(id, width, height, title, description) {
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-t ${id}-d` });
    svg.append(shape("title", { id: `${id}-t` }, title), shape("desc", { id: `${id}-d` }, description));
    return svg;
  }
  function scale(svg, top, bottom, left, right, low, high, step) {
    const place = (value) => bottom - (value - low) / (high - low) * (bottom - top);
    for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9; tick += step) {
      svg.append(shape("line", { class: "grid", x1: left, x2: right, y1: place(tick), y2: place(tick) }));
      svg.append(shape("text", { class: "end", x: left - 5, y: place(tick) + 4 }, String(Math.round(tick * 10) / 10)));
    }
    return place;
  }
  function errorBar(svg, x, place, found, low, high, half = 3) {
    if (found.mean === null || found.std === null) return;
    const upper = place(Math.min(high, found.mean + found.std)), lower = place(Math.max(low, found.mean - found.std));
    svg.append(shape("path", { class: "error", d: `M${x - half} ${upper}H${x + half}M${x} ${upper}V${lower}M${x - half} ${lower}H${x + half}` }));
  }
  function hatch(id, style) {
    const line = shape("path", { d: "M-1 1l2-2M0 6l6-6M5 7l2-2", class: `c${style}`, "stroke-width": 1.6 });
    return shape("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, line);
  }
  const published = (row, name) => {
    const found = name === "" ? row.published.average : row.published.classes[name];
    return found ? { mean: found[0], std: found[1] } : { mean: null, std: null };
  };

  function drawBars(id, spec) {
    const rows = spec.rows.filter((row) => row.series || comparable());
    const names = [...spec.columns.filter((name) => !state.hidden.has(name)), ""];
    // A published row has the colour of the row of ours before it, and hatching.
    let last = -1;
    const styles = new Map(spec.rows.map((row) => [row.key, row.series ? ++last % STYLES : Math.max(last, 0) % STYLES]));
    const host = byId(id), left = 34, gap = 18, top = 12, bottom = 232, height = 268;
    const room = Math.max(host.clientWidth, 300) - left - 4;
    const bar = Math.max(11, Math.min(40, (room / names.length - gap) / rows.length));
    const longest = Math.max(...names.map((name) => name.length), 7);
    const group = Math.max(bar * rows.length + gap, longest * 7 + 6), width = Math.ceil(left + group * names.length + 4);
    const found = names.map((name) => rows.map((row) => row.series ? columnStat(row.series, name) : published(row, name)));
    const words = rows.map((row, index) => `${row.key} ${row.label}: average ${text(found[names.length - 1][index])}`).join("; ");
    const svg = canvas(id + "-svg", width, height, "IoU in percent for each class", `${words}. The table has every number.`);
    const defs = shape("defs", {});
    for (let style = 0; style < STYLES; style++) defs.append(hatch(`${id}-hatch${style}`, style));
    svg.append(defs);
    const place = scale(svg, top, bottom, left, width, 0, 100, 20);
    names.forEach((name, column) => {
      const start = left + column * group + (group - bar * rows.length) / 2;
      if (name === "") svg.append(shape("line", { class: "axis", x1: left + column * group, x2: left + column * group, y1: top, y2: bottom + 30, "stroke-dasharray": "2 3" }));
      rows.forEach((row, index) => {
        const value = found[column][index], x = start + index * bar, middle = x + bar / 2;
        svg.append(shape("text", { class: "mid", x: middle, y: bottom + 12, "font-size": 9 }, row.key));
        if (value.mean === null) return;
        const rect = shape("rect", { class: row.series ? `bar b${styles.get(row.key)}` : "bar paper", x: x + 1, y: place(value.mean), width: bar - 2, height: Math.max(0.5, bottom - place(value.mean)) });
        if (!row.series) rect.setAttribute("fill", `url(#${id}-hatch${styles.get(row.key)})`);
        rect.append(shape("title", {}, `${row.label}, ${name || "average"}: ${text(value)}`));
        svg.append(rect);
        errorBar(svg, middle, place, value, 0, 100);
      });
      const label = shape("text", { class: "mid strong", x: start + bar * rows.length / 2, y: bottom + 28 }, name === "" ? "average" : name);
      svg.append(label);
    });
    svg.append(shape("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }));
    host.replaceChildren(svg);
    byId(`${id}-legend`).replaceChildren(...rows.map((row) => {
      const key = shape("svg", { width: 14, height: 14, class: "key", "aria-hidden": "true" });
      const box = shape("rect", { class: row.series ? `bar b${styles.get(row.key)}` : "bar paper", x: 1, y: 1, width: 12, height: 12 });
      if (!row.series) box.setAttribute("fill", `url(#${id}-hatch${styles.get(row.key)})`);
      key.append(box);
      return element("span", {}, key, `${row.key}  ${row.label}`);
    }), element("span", {}, "error bars: ± sample standard deviation over the seeds"));
  }

  function drawPoints(id, spec) {
    const tools = byId(`${id}-tools`);
    if (!tools.firstChild) {
      const select = element("select", { id: `${id}-what`, autocomplete: "off" }, element("option", { value: "" }, "average"));
      for (const name of spec.columns) select.append(element("option", { value: name }, name));
      select.addEventListener("change", () => drawPoints(id, spec));
      tools.append(element("label", { for: `${id}-what` }, "Shown: "), select);
    }
    const name = byId(`${id}-what`).value, host = byId(id);
    const ours = spec.rows.map((row) => row.series ? columnStat(row.series, name) : { mean: null, std: null });
    const theirs = spec.rows.map((row) => row.published && comparable() ? published(row, name) : { mean: null, std: null });
    const ends = [...ours, ...theirs].filter((each) => each.mean !== null).flatMap((each) => [each.mean - (each.std || 0), each.mean + (each.std || 0)]);
    const span = Math.max(...ends, 1) - Math.min(...ends, 99);
    const step = span > 50 ? 20 : span > 22 ? 10 : span > 9 ? 5 : span > 4 ? 2 : 1;
    const low = Math.max(0, Math.floor((Math.min(...ends) - 0.5) / step) * step), high = Math.min(100, Math.ceil((Math.max(...ends) + 0.5) / step) * step);
    const longest = Math.max(...spec.rows.map((row) => row.label.length)), tilted = longest * 6.4 > 120 || spec.rows.length > 8;
    const left = 40, top = 12, bottom = 232, height = bottom + (tilted ? Math.min(30 + longest * 3.4, 130) : 26);
    const each = Math.max(tilted ? 62 : Math.min(longest * 6.4 + 16, 140), Math.min(130, (host.clientWidth - left - 24) / spec.rows.length));
    const width = Math.ceil(left + each * spec.rows.length + 24);
    const words = spec.rows.map((row, index) => `${row.label}: ours ${text(ours[index])}, paper ${text(theirs[index])}`).join("; ");
    const svg = canvas(id + "-svg", width, height, `IoU in percent by setting: ${name || "average"}`, `${words}.`);
    const place = scale(svg, top, bottom, left, width, low, high, step);
    spec.rows.forEach((row, index) => {
      const x = left + each * (index + 0.5);
      if (ours[index].mean !== null) {
        errorBar(svg, x - 7, place, ours[index], low, high, 4);
        svg.append(shape("circle", { class: "dot", cx: x - 7, cy: place(ours[index].mean), r: 5 }, shape("title", {}, `ours, ${row.label}: ${text(ours[index])}`)));
      }
      if (theirs[index].mean !== null) {
        const y = place(theirs[index].mean);
        errorBar(svg, x + 7, place, theirs[index], low, high, 4);
        svg.append(shape("path", { class: "diamond", d: `M${x + 7} ${y - 6}l6 6l-6 6l-6-6z` }, shape("title", {}, `paper, ${row.label}: ${text(theirs[index])}`)));
      }
      const label = shape("text", { class: row.default ? "strong" : "", x, y: bottom + 16 }, row.label + (row.default ? " (default)" : ""));
      if (tilted) { label.setAttribute("transform", `rotate(-30 ${x} ${bottom + 14})`); label.classList.add("end"); } else label.classList.add("mid");
      svg.append(label);
    });
    svg.append(shape("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }));
    host.replaceChildren(svg);
    const dot = shape("svg", { width: 14, height: 14, class: "key", "aria-hidden": "true" }, shape("circle", { class: "dot", cx: 7, cy: 7, r: 5 }));
    const diamond = shape("svg", { width: 14, height: 14, class: "key", "aria-hidden": "true" }, shape("path", { class: "diamond", d: "M7 1l6 6l-6 6l-6-6z" }));
    const legend = [element("span", {}, dot, "ours, ± sample standard deviation over the seeds")];
    if (spec.rows.some((row) => row.published) && comparable()) legend.push(element("span", {}, diamond, `the paper${spec.source ? `, ${spec.source}` : ""}${spec.other ? " (other data)" : ""}`));
    byId(`${id}-legend`).replaceChildren(...legend);
  }

  function draw() {
    for (const [id, spec] of Object.entries(DATA.charts)) (spec.kind === "bars" ? drawBars : drawPoints)(id, spec);
  }

  // --------------------------------------------------------------------------------------------------------- pictures

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

  function update() { fill(); draw(); }
  byId("convention").addEventListener("change", (event) => { state.convention = event.target.value; update(); });
  byId("background").addEventListener("change", (event) => { state.background = event.target.checked; update(); });
  for (const box of all("#classes input"))
    box.addEventListener("change", () => { if (box.checked) state.hidden.delete(box.value); else state.hidden.add(box.value); filter(); update(); });
  for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());
  all("table.numbers").forEach(sortable);
  let wait = 0;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(draw, 100); });
  const opened = new Set();
  addEventListener("beforeprint", () => all("details:not([open])").forEach((each) => { opened.add(each); each.open = true; }));
  addEventListener("afterprint", () => { opened.forEach((each) => { each.open = false; }); opened.clear(); });
  update();
  pictures();
})();
