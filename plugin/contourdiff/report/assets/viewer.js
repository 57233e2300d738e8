// SPDX-License-Identifier: Apache-2.0
"use strict";

const data = JSON.parse(document.getElementById("viewer-data").textContent);
const byId = (name) => document.getElementById(name);
const LOOK = {
  ct: { colormap: "opaque", opacity: 1, cal_min: data.window?.[0], cal_max: data.window?.[1] },
  mr: { colormap: "opaque", opacity: 1, cal_min: 0, cal_max: 255 },
  label: { colormap: "opaque", opacity: 0.35 },
  fidelity: { colormap: "opaque", opacity: 0 },
  uncertainty: { colormap: "hot", opacity: 0 },
};
const FIDELITY = ["no contour", "contour given and found", "contour invented", "contour lost"];
const OPTIONS = {
  dragAndDropEnabled: false,
  show3Dcrosshair: true,
  crosshairColor: [1, 0.8, 0, 0.7],
  crosshairWidthUnit: "mm",
  logLevel: "error",
};
const [NEVER, IF_THERE_IS_ROOM] = [0, 2];  // to draw the volume in 3D: two canvases with slices alone lie alike
const position = (kind) => data.layers.findIndex((layer) => layer.kind === kind);

function load(script) {
  return new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = script;
    element.onload = done;
    element.onerror = () => failed(new Error(`${script} was not found`));
    document.head.append(element);
  });
}

function hue(step) {
  const angle = (step * 137.5) % 360;
  return [0, 8, 4].map((n) => {
    const k = (n + angle / 30) % 12;
    return Math.round(255 * (0.55 - 0.45 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

function colored(values, color) {
  const colors = values.map(color);
  const [R, G, B] = [0, 1, 2].map((channel) => colors.map((one) => one[channel]));
  return { R, G, B, A: values.map((value) => (value === 0 ? 0 : 255)), I: values };
}

function places() {
  const numbers = Object.keys(data.centers).map(Number).sort((a, b) => a - b);
  const [first, last] = [numbers[0], numbers.at(-1)];
  const step = data.centers[last].map((x, axis) => (x - data.centers[first][axis]) / Math.max(last - first, 1));
  const length = step.reduce((sum, x) => sum + x * x, 0) || 1;
  const number = (mm) => first + step.reduce((sum, x, axis) => sum + x * (mm[axis] - data.centers[first][axis]), 0) / length;
  return { first, last, step, number };
}

async function opened(canvas, layers, multiplanarShowRender = IF_THERE_IS_ROOM) {
  const viewer = new niivue.Niivue({ ...OPTIONS, multiplanarShowRender });
  viewer.addColormap("opaque", { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] });
  await viewer.attachToCanvas(byId(canvas));
  await viewer.loadVolumes(layers.map((layer) => ({ url: layer.url, name: decodeURIComponent(layer.url.split("/").at(-1)), ...LOOK[layer.kind] })));
  layers.forEach((layer, index) => {
    const volume = viewer.volumes[index];
    if (layer.kind === "label") volume.setColormapLabel(colored(valuesOf(volume), hue));
    if (layer.kind === "fidelity") volume.setColormapLabel(colored([0, 1, 2, 3], (code) => [[0, 0, 0], [0, 192, 80], [255, 48, 48], [48, 160, 255]][code]));
  });
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  viewer.updateGLVolume();
  return viewer;
}

function valuesOf(volume) {
  return [...new Set([0, ...volume.img])].sort((a, b) => a - b);
}

async function start() {
  await load("niivue.umd.js");
  byId("viewer").hidden = false;
  const viewer = await opened("canvas", data.layers);
  const pair = { viewer, beside: null };
  connectLayers(pair);
  showLegend(viewer);
  connectPair(pair);
  if (Object.keys(data.centers).length) connectSlices(pair);
  linkSlicer();
  byId("note").hidden = true;
  byId("viewer").dataset.ready = "true";
  if (byId("side") && window.innerWidth >= 1200) byId("side").click();
}

function className(value) {
  return value === 0 ? "no label" : (data.classes[value] ?? `label ${value}`);
}

function showLegend(viewer) {
  const index = position("label");
  if (index < 0) return;
  for (const value of valuesOf(viewer.volumes[index]).slice(1)) {
    const entry = document.createElement("span");
    const color = document.createElement("i");
    color.style.background = `rgb(${hue(value).join(" ")})`;
    entry.append(color, ` ${className(value)}`);
    byId("legend").append(entry);
  }
  byId("legend").hidden = false;
}

function described(values) {
  const texts = {
    ct: (value) => `CT ${Math.round(value)} HU`,
    mr: (value) => `MR ${Math.round(value)}`,
    label: (value) => className(value),
    fidelity: (value) => FIDELITY[value],
    uncertainty: (value) => `uncertainty ${Math.round(value * 100) / 100}`,
  };
  return values.map((item, index) => texts[data.layers[index].kind](item.value)).join(", ");
}

function connectPair(pair) {
  if (!byId("side")) return;
  const mr = position("mr");
  const slider = document.querySelector(`[data-layer="${mr}"] .opacity`);
  const flip = () => {
    slider.value = Number(slider.value) ? 0 : 1;
    slider.dispatchEvent(new Event("input"));
    byId("shown").textContent = Number(slider.value) ? "shown: MR" : "shown: CT";
  };
  byId("flip").addEventListener("click", flip);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=number], input[type=search]");
    if (event.key === "f" && !typing && !event.ctrlKey && !event.metaKey) flip();
  });
  byId("side").addEventListener("change", async () => {
    byId("beside").hidden = !byId("side").checked;
    pair.viewer.opts.multiplanarShowRender = byId("side").checked ? NEVER : IF_THERE_IS_ROOM;
    if (pair.beside === null && byId("side").checked) {
      const layers = data.layers.filter((layer) => layer.kind === "ct" || layer.kind === "label");
      pair.beside = await opened("canvas-ct", layers, NEVER);
      pair.beside.onLocationChange = (location) => follow(pair.viewer, location.mm);
      follow(pair.beside, pair.viewer.frac2mm(pair.viewer.scene.crosshairPos, 0, true));
      byId("beside").dataset.ready = "true";
    }
    window.dispatchEvent(new Event("resize"));
  });
}

let following = false;

function follow(other, mm) {
  if (following) return;  // the other one answers
  following = true;
  other.scene.crosshairPos = other.mm2frac([...mm].slice(0, 3), 0, true);
  other.drawScene();
  other.createOnLocationChange();
  following = false;
}

function linkSlicer() {
  const address = (layer) => encodeURIComponent(new URL(layer.url, location.href).href);
  const parts = data.layers.filter((layer) => LOOK[layer.kind].opacity > 0);
  const query = parts.map((layer) => `${layer.kind === "label" ? "segmentation" : "image"}=${address(layer)}`);
  byId("slicer").href = `slicer://viewer/?${query.join("&")}`;
  byId("slicer").hidden = byId("slicer-hint").hidden = false;
}

function connectLayers(pair) {
  for (const box of document.querySelectorAll("[data-layer]")) {
    const index = Number(box.dataset.layer);
    const kind = data.layers[index].kind;
    const volume = pair.viewer.volumes[index];
    const opacity = box.querySelector(".opacity");
    opacity.value = volume.opacity;
    opacity.addEventListener("input", () => {
      pair.viewer.setOpacity(index, Number(opacity.value));
      if (kind === "label" && pair.beside) pair.beside.setOpacity(1, Number(opacity.value));
    });
    for (const [name, key] of [["low", "cal_min"], ["high", "cal_max"]]) {
      const input = box.querySelector(`.${name}`);
      if (!input) continue;
      input.value = Math.round(volume[key] * 100) / 100;
      input.addEventListener("input", () => {
        if (input.value === "") return;
        volume[key] = Number(input.value);
        pair.viewer.updateGLVolume();
        if (kind !== "ct" || !pair.beside) return;
        pair.beside.volumes[0][key] = Number(input.value);
        pair.beside.updateGLVolume();
      });
    }
  }
}

function connectSlices(pair) {
  const viewer = pair.viewer;
  const { first, last, step, number } = places();
  const slider = byId("slice");
  [slider.min, slider.max] = [first, last];
  const show = (mm) => {
    viewer.scene.crosshairPos = viewer.mm2frac(mm, 0, true);  // also where the axes of the grid are oblique
    viewer.drawScene();
    viewer.createOnLocationChange();
  };
  let place = data.centers[Math.round((first + last) / 2)];
  viewer.onLocationChange = (location) => {
    place = [...location.mm].slice(0, 3);
    slider.value = Math.round(number(place));
    byId("place").textContent = `${slider.value}; ${place.map((x) => x.toFixed(1)).join(", ")} mm: ${described(location.values)}`;
    if (pair.beside) follow(pair.beside, place);
  };
  slider.addEventListener("input", () => {
    const move = Number(slider.value) - number(place);
    show(place.map((x, axis) => x + move * step[axis]));
  });
  const visit = (slice) => show(data.centers[slice]);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-slice]");
    if (!link) return;
    event.preventDefault();
    history.replaceState(null, "", `#slice-${link.dataset.slice}`);
    visit(link.dataset.slice);
    byId("canvas").scrollIntoView({ block: "nearest" });
  });
  const linked = location.hash.match(/^#slice-(\d+)$/);
  if (linked && data.centers[linked[1]]) visit(linked[1]);
  else show(place);
}

const below = document.querySelector(".picture") ? " The picture below shows some slices." : "";
if (location.protocol.startsWith("http")) {
  start().catch((error) => {
    byId("viewer").hidden = true;
    byId("note").textContent = `The volumes cannot be shown: ${error.message ?? error}.${below}`;
  });
} else {
  byId("note").append(` A browser does not read volumes of a page that was opened as a file.${below}`);
}
