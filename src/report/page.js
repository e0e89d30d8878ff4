"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const views = {};
const byId = (id) => document.getElementById(id);
const figures = (prefix) => Object.keys(views).filter((id) => id.startsWith(prefix));

// An exponential moving average of the training curves; validations stay as they are.
function smooth(rows, weight) {
  const before = {};
  // Vega marks the rows that it draws; a copy without the mark is another row to it.
  return structuredClone(rows).map((row) => {
    // A loss that was not finite is left out of the row.
    if (row.kind !== "training" || row.loss === undefined) return row;
    const last = before[row.run] ?? row;
    const mix = (key) => weight * last[key] + (1 - weight) * row[key];
    return (before[row.run] = { ...row, loss: mix("loss"), top1: mix("top1") });
  });
}

function layersOf(network) {
  const { options, rest } = data.layers[network.layers];
  const rows = network.choices
    .split(" ")
    .map((choice, layer) => ({ layer: String(layer), choice, ...options[layer][choice] }));
  return [...rows, { layer: "rest", choice: "", kernel: 0, ratio: 0, cost: rest }];
}

function show(index) {
  const network = data.networks[index];
  for (const button of document.querySelectorAll("[data-network]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.network) === index));
  }
  for (const id of figures("networks-")) views[id].signal("chosen", index).runAsync();
  if (network.layers === undefined) return;
  const { unit } = data.layers[network.layers];
  const rows = layersOf(network);
  byId("network-name").textContent = `${network.name} (${network.run})`;
  byId("network-facts").textContent = [
    ["top-1", network.top1, "%"],
    ["predicted", network.predicted_ms, "ms"],
    ["measured", network.measured_ms, "ms"],
    ["", network.macs, "M multiply-adds"],
    ["", network.params, "M parameters"],
  ]
    .filter(([, value]) => value !== undefined)
    .map(([name, value, what]) => `${name} ${Number(value.toPrecision(4))} ${what}`.trim())
    .join(", ");
  byId("network-command").textContent = network.command ?? "";
  byId("network-layers").textContent = `Layers: ${network.choices}`;
  for (const id of figures("layers-")) {
    const own = id === `layers-${unit}`;
    document.querySelector(`[data-chart="${id}"]`).hidden = !own;
    if (own) views[id].data("layers", rows).runAsync();
  }
}

async function draw(figure) {
  const id = figure.dataset.chart;
  const { view } = await vegaEmbed(figure, data.charts[id], {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  views[id] = view;
  if (id === "curves") {
    const rows = data.charts.curves.datasets.curves;
    // Data cannot change while the chart is computed, which is when a listener is called.
    view.addSignalListener("smoothing", (_, weight) =>
      setTimeout(() => view.data("curves", smooth(rows, weight)).runAsync()),
    );
  }
  if (id.startsWith("networks-")) {
    view.addEventListener("click", (_, item) => {
      if (item?.datum?.i !== undefined) show(item.datum.i);
    });
  }
}

for (const button of document.querySelectorAll("[data-network]")) {
  button.addEventListener("click", () => show(Number(button.dataset.network)));
}
Promise.all([...document.querySelectorAll("[data-chart]")].map(draw))
  .then(() => {
    const first = data.networks.findIndex((network) => network.kind !== "evaluated");
    if (data.networks.length) show(Math.max(first, 0));
    document.body.dataset.ready = "true";
  })
  .catch((error) => console.error(error));
