"use strict";
// The page has every figure without this script. It adds limits that move the recommendation, a table that sorts, and a
// list of the models that the reader points at.

// The rule of distill/report/choice.py (Budget.excess and choose); tests/test_page.py compares the two.
function excess(row, limits, shape, teacher) {
  const overruns = [0];
  if (limits.max_latency_ms !== null) overruns.push(row.latency_ms[shape] / limits.max_latency_ms - 1);
  if (limits.max_size_mb !== null) overruns.push(row.size_mb / limits.max_size_mb - 1);
  if (limits.max_drop !== null && teacher !== null) {
    overruns.push(Math.round((teacher - row.accuracy - limits.max_drop) * 1e9) / 1e9 / (limits.max_drop || 0.01));
  }
  return Math.max(...overruns);
}

// Returns the index of the row to ship, or of the one that is least over the limits, with `within` false; else null.
function choose(rows, limits, shape, teacher) {
  const isLimited = Object.values(limits).some((limit) => limit !== null);
  const able = [...rows.keys()].filter((i) => rows[i].may_ship && (isLimited || rows[i].role === "student"));
  const first = (indices, isBetter) =>
    indices.length ? indices.reduce((best, i) => (isBetter(rows[i], rows[best]) ? i : best)) : null;
  const over = (row) => excess(row, limits, shape, teacher);
  const faster = (one, best) => one.latency_ms[shape] < best.latency_ms[shape];
  const within = able.filter((i) => over(rows[i]) <= 0);
  if (!within.length) return { index: first(able, (one, best) => over(one) < over(best)), within: false };
  const accurate = (one, best) =>
    one.accuracy > best.accuracy || (one.accuracy === best.accuracy && faster(one, best));
  return { index: first(within, isLimited && limits.max_drop === null ? accurate : faster), within: true };
}

const shownMs = (ms) => (ms >= 0.1 ? ms.toFixed(1) : ms.toFixed(2));
const percent = (share) => `${(100 * share).toFixed(1)}%`;

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("models");
  const rows = [...table.tBodies[0].rows];
  const points = (index) => document.querySelectorAll(`[data-part="row-${index}"]`);
  pointAtModels(data, rows, points);
  sortable(table);
  if (data.shape !== null && data.rows.some((row) => row.may_ship)) limits(data, rows, points);
}

// Pointing at a model marks its point and its row, and a tip beside the pointer has its figures. A click keeps the model
// in a list under the picture. The list grows on a click only: if it did on hovering, rows would move under the pointer.
function pointAtModels(data, rows, points) {
  const list = document.getElementById("kept");
  const tip = document.getElementById("tip");
  const kept = new Set();
  let hovered = null;

  function mark() {
    for (const index of data.rows.keys()) {
      const isLit = index === hovered || kept.has(index);
      for (const marked of [rows[index], ...points(index)]) marked.classList.toggle("lit", isLit);
      rows[index].querySelector("button").setAttribute("aria-pressed", kept.has(index));
    }
  }
  function point(index, event = null) {
    if (index !== hovered) {
      hovered = index;
      mark();
    }
    tip.hidden = index === null || event === null;
    if (tip.hidden) return;
    const row = data.rows[index];
    const times = Object.entries(row.latency_ms).map(([shape, ms]) => `${shownMs(ms)} ms at ${shape}`);
    tip.replaceChildren(
      element("b", row.name),
      element("div", `${percent(row.accuracy)}, ${row.size_mb.toFixed(1)} MB`),
      element("div", [...times, `${Math.round(row.texts_per_second).toLocaleString("en")} texts/s`].join(", ")),
    );
    tip.style.left = `${Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 14}px`;
  }
  function keep(index) {
    if (!kept.delete(index)) kept.add(index);
    list.hidden = kept.size === 0;
    list.tBodies[0].replaceChildren(
      ...[...kept].map((index) => {
        const row = data.rows[index];
        const line = element("tr");
        line.append(element("th", row.name, { scope: "row", class: "name" }), element("td", percent(row.accuracy)));
        for (const shape of JSON.parse(list.dataset.shapes)) {
          const ms = row.latency_ms[shape];
          line.append(element("td", ms === undefined ? "-" : shownMs(ms)));
        }
        line.append(element("td", Math.round(row.texts_per_second).toLocaleString("en")));
        line.append(element("td", row.size_mb.toFixed(1)));
        return line;
      }),
    );
    mark();
  }

  rows.forEach((row, index) => {
    const cell = row.cells[0];
    const button = element("button", cell.textContent, { type: "button", "aria-pressed": false });
    button.title = "keep this model under the picture";
    cell.replaceChildren(button);
    button.addEventListener("click", () => keep(index));
    row.addEventListener("pointerenter", () => point(index));
    row.addEventListener("pointerleave", () => point(null));
  });
  for (const svg of document.querySelectorAll("#front svg")) {
    // A finger is wider than a point, so the nearest one within 24 pixels counts.
    const nearest = (event) => {
      let best = null;
      let least = 24;
      for (const index of data.rows.keys()) {
        const place = svg.querySelector(`[data-part="row-${index}"]`)?.getBoundingClientRect();
        if (!place) continue;
        const away = Math.hypot(
          event.clientX - (place.left + place.right) / 2, event.clientY - (place.top + place.bottom) / 2,
        );
        if (away < least) [best, least] = [index, away];
      }
      return best;
    };
    svg.addEventListener("pointermove", (event) => point(nearest(event), event));
    svg.addEventListener("pointerleave", () => point(null));
    svg.addEventListener("click", (event) => {
      const index = nearest(event);
      if (index !== null) keep(index);
    });
  }
}

function sortable(table) {
  const body = table.tBodies[0];
  const number = (row, column) => parseFloat(row.cells[column].textContent.replaceAll(",", ""));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = element("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        const [one, other] = [number(a, column), number(b, column)];
        if (column === 0) return a.cells[0].textContent.localeCompare(b.cells[0].textContent);
        if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other);
        return one - other;
      };
      const missing = (row) => column > 0 && Number.isNaN(number(row, column));
      const sorted = [...body.rows].sort((a, b) => (missing(a) || missing(b) || !down ? order(a, b) : order(b, a)));
      body.append(...sorted);
    });
  });
}

// Three sliders, each from the strictest limit that changes anything to "no limit".
function limits(data, rows, points) {
  const able = data.rows.filter((row) => row.may_ship);
  const form = document.getElementById("limits");
  const answer = form.querySelector("output");
  const chosen = { max_latency_ms: null, max_drop: null, max_size_mb: null, ...data.budget };

  function apply() {
    const found = choose(data.rows, chosen, data.shape, data.teacher);
    const isLimited = Object.values(chosen).some((limit) => limit !== null);
    for (const index of data.rows.keys()) {
      for (const marked of [rows[index], ...points(index)]) {
        marked.classList.toggle("picked", found.within && index === found.index);
      }
    }
    for (const [name, limit] of Object.entries(chosen)) {
      const slider = form.querySelector(`[name="${name}"]`);
      if (!slider) continue;
      slider.closest("label").querySelector("b").textContent = inWords[name](limit);
      slider.setAttribute("aria-valuetext", inWords[name](limit));
    }
    drawLimits(chosen, data);
    const row = found.index === null ? null : data.rows[found.index];
    if (row === null) answer.textContent = "No student is fit to ship.";
    else {
      const figures =
        `${row.name}: ${percent(row.accuracy)}, ${shownMs(row.latency_ms[data.shape])} ms at ${data.shape}, ` +
        `${row.size_mb.toFixed(1)} MB`;
      const options = Object.entries(chosen).filter(([, limit]) => limit !== null);
      const typed = options.map(([name, limit]) => `--${name.replaceAll("_", "-")} ${limit}`).join(" ");
      const subject = found.within ? "Chosen within these limits:" : "No model is within these limits; the nearest:";
      answer.textContent = `${isLimited ? subject : "Chosen without limits:"} ${figures}.`;
      if (typed) answer.append(element("br"), element("code", `distill report ... ${typed}`));
    }
  }

  const inWords = {
    max_latency_ms: (limit) => (limit === null ? "no limit" : `${limit} ms at ${data.shape}`),
    max_drop: (limit) => (limit === null ? "no limit" : `${+(100 * limit).toFixed(2)} points below the teacher`),
    max_size_mb: (limit) => (limit === null ? "no limit" : `${limit} MB`),
  };
  // A limit is a number of two significant digits between the least and the greatest figure, evenly on a log scale.
  const steps = 60;
  const between = (values) => {
    const [low, high] = [Math.min(...values) * 0.9, Math.max(...values) * 1.1];
    return (step) => +(low * (high / low) ** (step / steps)).toPrecision(2);
  };
  const scales = {
    max_latency_ms: between(able.map((row) => row.latency_ms[data.shape])),
    max_size_mb: between(able.map((row) => row.size_mb)),
  };
  if (data.teacher !== null) {
    const most = Math.max(0.01, ...able.map((row) => data.teacher - row.accuracy));
    scales.max_drop = (step) => +((most * step) / steps).toFixed(4);
  }
  for (const [name, scale] of Object.entries(scales)) {
    const slider = form.querySelector(`[name="${name}"]`);
    slider.max = steps + 1;
    // A limit that was given on the command line stays as it is until its slider is moved from the step next to it.
    const beyond = [...Array(steps + 1).keys()].find((step) => scale(step) >= chosen[name]);
    slider.value = chosen[name] === null ? steps + 1 : (beyond ?? steps);
    slider.addEventListener("input", () => {
      chosen[name] = +slider.value > steps ? null : scale(+slider.value);
      apply();
    });
  }
  for (const slider of form.querySelectorAll("input")) if (!(slider.name in scales)) slider.closest("label").remove();
  form.querySelector("button").addEventListener("click", () => {
    for (const slider of form.querySelectorAll("input")) slider.value = steps + 1;
    for (const name of Object.keys(chosen)) chosen[name] = null;
    apply();
  });
  for (const row of rows) row.classList.remove("chosen"); // `picked` says it from now on
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

// The limits as lines in the pictures, in place of those that were drawn: one of latency at the shape that it is for,
// one of accuracy in all of them.
function drawLimits(chosen, data) {
  for (const picture of document.querySelectorAll("#front [data-x]")) {
    const svg = picture.querySelector("svg");
    for (const old of svg.querySelectorAll('.limit, [data-part="limit"], [data-part="chosen"]')) old.remove();
    const corners = svg.querySelector('[data-part="area"] path').getAttribute("d").match(/-?[\d.]+/g).map(Number);
    const [xs, ys] = [corners.filter((_, i) => i % 2 === 0), corners.filter((_, i) => i % 2)];
    const area = { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
    const [x, y] = [JSON.parse(picture.dataset.x), JSON.parse(picture.dataset.y)];
    const draw = (x1, y1, x2, y2) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      line.setAttribute("class", "limit");
      for (const [key, value] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(key, value);
      svg.append(line);
    };
    const share = Math.log(chosen.max_latency_ms / x[0]) / Math.log(x[1] / x[0]);
    if (chosen.max_latency_ms !== null && picture.dataset.shape === data.shape && share >= 0 && share <= 1) {
      const at = area.left + share * (area.right - area.left);
      draw(at, area.top, at, area.bottom);
    }
    const height = (data.teacher - chosen.max_drop - y[0]) / (y[1] - y[0]);
    if (chosen.max_drop !== null && height >= 0 && height <= 1) {
      const at = area.bottom - height * (area.bottom - area.top);
      draw(area.left, at, area.right, at);
    }
  }
}

if (typeof document !== "undefined") start();
