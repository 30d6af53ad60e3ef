"use strict";
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent);
  const n = data.text.length, names = data.names, PAGE = 50;
  const box = (id) => document.getElementById(id);
  const [search, answer, truth, kind, low, high, sort, table, told, pages] =
    ["x-search", "x-answer", "x-truth", "x-kind", "x-low", "x-high", "x-sort", "x-rows", "x-told", "x-pages"].map(box);
  const lower = data.text.map((text, i) => (text + "\n" + data.extra[i].join("\n")).toLowerCase());
  let found = [], page = 0;

  const node = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const label = (place) => (place < 0 ? "" : names.labels[place]);
  const percent = (p) => (p === null ? "" : p > 0.99949 && p < 1 ? ">99.9%" : (100 * p).toFixed(1) + "%");

  const fill = (select, places) => {
    if (!select) return;
    const counts = new Map();
    for (const place of places) if (place >= 0) counts.set(place, (counts.get(place) || 0) + 1);
    const order = [...counts].sort((a, b) => names.labels[a[0]].localeCompare(names.labels[b[0]]));
    for (const [place, count] of order) {
      const option = node("option", `${names.labels[place]} (${count.toLocaleString("en")})`);
      option.value = place;
      select.append(option);
    }
  };

  const keeps = {
    all: () => true,
    wrong: (i) => data.verdict[i] === 0,
    right: (i) => data.verdict[i] === 1,
    failed: (i) => data.error[i] >= 0,
  };
  const sorts = {
    input: null,
    unsure: (i) => (data.probability[i] === null ? 2 : data.probability[i]),
    sure: (i) => (data.probability[i] === null ? 2 : -data.probability[i]),
    long: (i) => -data.text[i].length,
  };

  const choose = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [least, most] = [low, high].map((input) => (!input || input.value === "" ? null : Number(input.value) / 100));
    const kept = keeps[kind.value];
    found = [];
    for (let i = 0; i < n; i++) {
      const p = data.probability[i];
      if (answer.value !== "" && data.answer[i] !== Number(answer.value)) continue;
      if (truth && truth.value !== "" && data.truth[i] !== Number(truth.value)) continue;
      if (least !== null && !(p !== null && p >= least)) continue;
      if (most !== null && !(p !== null && p <= most)) continue;
      if (kept(i) && words.every((word) => lower[i].includes(word))) found.push(i);
    }
    const key = sorts[sort.value];
    if (key) found.sort((a, b) => key(a) - key(b) || a - b);
    page = 0;
    show();
  };

  const cell = (name, text, kind) => {
    const made = node("td", text, kind);
    made.dataset.name = name;
    return made;
  };

  const row = (i) => {
    const made = node("tr");
    const where = cell("row", data.row[i].toLocaleString("en"), "n dim");
    where.title = names.files[data.file[i]];
    made.append(where);
    names.extra.forEach((name, k) => made.append(cell(name, data.extra[i][k], "id")));
    const text = cell("text", data.text[i]);
    if (data.reason[i] >= 0) text.append(node("div", names.errors[data.error[i]] + ": " + names.reasons[data.reason[i]], "warn"));
    made.append(text, cell("answer", label(data.answer[i]), data.verdict[i] === 0 ? "k warn" : "k"));
    if (truth) {
      const mark = data.verdict[i] === 0 ? "✗ " : data.verdict[i] === 1 ? "✓ " : "";
      made.append(cell("truth", mark + label(data.truth[i]), "k"));
    }
    if (low) made.append(cell("probability", percent(data.probability[i]), "n"));
    return made;
  };

  const show = () => {
    const last = Math.max(1, Math.ceil(found.length / PAGE));
    table.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(row));
    const count = (of) => of.toLocaleString("en");
    told.textContent = found.length
      ? `${count(found.length)} of ${count(n)} rows; these are ${count(page * PAGE + 1)} to ${count(Math.min(found.length, (page + 1) * PAGE))}`
      : `No row of ${count(n)} fits. Choose less, or search for something else.`;
    pages.replaceChildren();
    if (last === 1) return;
    for (const [text, to] of [["First", 0], ["Back", page - 1], ["Next", page + 1], ["Last", last - 1]]) {
      const button = node("button", text);
      button.type = "button";
      button.disabled = to < 0 || to >= last || to === page;
      button.addEventListener("click", () => { page = to; show(); });
      pages.append(button);
    }
  };

  fill(answer, data.answer);
  fill(truth, data.truth);
  let waiting;
  for (const input of [search, low, high]) {
    if (input) input.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(choose, 120); });
  }
  for (const select of [answer, truth, kind, sort]) if (select) select.addEventListener("change", choose);
  box("x-reset").addEventListener("click", () => { box("x-form").reset(); choose(); });
  box("x-form").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("button[data-truth]")) {
    button.addEventListener("click", () => {
      box("x-form").reset();
      truth.value = String(names.labels.indexOf(button.dataset.truth));
      if (button.dataset.answer) answer.value = String(names.labels.indexOf(button.dataset.answer));
      else kind.value = "failed";
      choose();
      box("explorer").scrollIntoView();
    });
  }
  box("x-body").hidden = false;
  choose();
})();
