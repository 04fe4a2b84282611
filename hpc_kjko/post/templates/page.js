// Draws the figures of a page: what hpc_kjko/post/interactive.py has made, with plotly.js.
"use strict";

const isDark = window.matchMedia("(prefers-color-scheme: dark)");
const byFinger = window.matchMedia("(pointer: coarse)").matches;
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The text that interactive.packed has compressed. */
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** Numbers that interactive.numbers has written. */
function numbers(packed) {
  const bytes = Uint8Array.from(atob(packed.f4 || packed.u2), letter => letter.charCodeAt(0));
  return packed.f4 ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}

/** Values of a curve. On a logarithmic axis those that it cannot show leave gaps. */
const onAxis = (values, log) => log ? values.map(value => value > 0 ? value : NaN) : values;

/** A trace with its numbers. The values of a curve, or the colours of an image, are on a logarithmic scale or not. */
function trace(packed, log) {
  const found = {...packed};
  for (const name of ["x", "y"]) if (packed[name].f4) found[name] = numbers(packed[name]);
  if (!packed.z) found.y = onAxis(found.y, log);
  if (packed.error_y) found.error_y = {...packed.error_y, array: numbers(packed.error_y.array)};
  if (packed.z) {
    const {across, low, step} = packed.z, cells = numbers(packed.z), rows = [], shown = [];
    const read = packed.z.f4 ? n => Number.isFinite(n) ? n : null : n => n === 65535 ? null : low + step * n;
    for (let first = 0; first < cells.length; first += across) {
      const row = Array.from(cells.subarray(first, first + across), read);
      rows.push(row);
      shown.push(log ? row.map(value => value === null ? null : value > 0 ? Math.log10(value) : -300) : row);
    }
    Object.assign(found, {z: shown, customdata: rows});
    found.hovertemplate = "(%{x:.4~g}, %{y:.4~g})<br><b>%{customdata:.4~g}</b><extra></extra>";
    found.colorbar = {...packed.colorbar, tickcolor: colour("line"), exponentformat: "power"};
    if (log) {
      found.zmin = Math.log10(Math.max(packed.zmin, packed.faintest));
      found.zmax = Math.log10(packed.zmax);
      const powers = [];
      for (let n = Math.ceil(found.zmin); n <= found.zmax; n++) powers.push(n);
      const title = {...packed.colorbar.title, text: `${packed.colorbar.title.text} (log)`};
      Object.assign(found.colorbar, {title, tickvals: powers, ticktext: powers.map(n => `10<sup>${String(n).replace("-", "−")}</sup>`)});
    }
  }
  return inked(found);
}

/** The same with the colour of the page's text where one is meant. */
function inked(found) {
  for (const part of ["line", "marker"]) {
    if (found[part] && found[part].color === "ink") found[part] = {...found[part], color: colour("ink")};
  }
  return found;
}

/** What all figures of a page look like. */
function themed(layout) {
  const axis = {gridcolor: colour("line"), linecolor: colour("soft"), tickcolor: colour("line")};
  const found = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: colour("ink"), family: "system-ui, sans-serif", size: 12},
    margin: {l: 8, r: 8, t: 26, b: 8},
    legend: {orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", font: {size: 11}},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent")},
    hoverlabel: {bgcolor: colour("card"), bordercolor: colour("line"), font: {color: colour("ink")}, namelength: -1},
    dragmode: byFinger ? false : "zoom",  // a finger must be able to scroll the page
    uirevision: "same",  // a new theme or time leaves the zoom as it is
  };
  for (const name of Object.keys(layout).filter(name => /^[xy]axis/.test(name))) found[name] = {...layout[name], ...axis};
  if (layout.shapes) found.shapes = layout.shapes.map(shape => ({...shape, fillcolor: colour("ink")}));
  return found;
}

const CONFIG = {
  responsive: true, displaylogo: false, displayModeBar: byFinger ? true : "hover",
  modeBarButtons: [byFinger ? ["zoomIn2d", "zoomOut2d", "resetScale2d"] : ["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

/** Draw one figure into its place, and make its switch and its slider work. */
function draw(place, figure) {
  const plot = place.querySelector(".plot"), button = place.querySelector(".log"), slider = place.querySelector("input");
  const isImage = figure.data.some(packed => packed.z);
  let log = isImage ? figure.data[0].log : figure.layout.yaxis.type === "log";
  let frame = figure.frames ? figure.frames.length - 1 : 0;
  const names = figure.data.filter(packed => packed.showlegend && packed.name).length;
  const rows = Math.ceil(names / Math.max(1, Math.floor(plot.clientWidth / 190)));  // rows of the legend, which take space from the plot
  if (rows > 2) plot.style.height = `${plot.clientHeight + 20 * (rows - 2)}px`;

  function show() {
    const data = figure.frames ? figure.frames[frame] : figure.data;
    const layout = themed(figure.layout);
    if (!isImage && log !== (figure.layout.yaxis.type === "log")) {
      layout.yaxis = {...layout.yaxis, type: log ? "log" : "linear", range: undefined, dtick: undefined, nticks: log ? 7 : 0};
      layout.uirevision = log;
    }
    const isLog = packed => packed.z ? log : layout[packed.yaxis ? "yaxis2" : "yaxis"].type === "log";  // y2: the part below
    return Plotly.react(plot, data.map(packed => trace(packed, isLog(packed))), layout, CONFIG);
  }

  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      log = !log;
      button.setAttribute("aria-pressed", log);
      show();
    });
  }
  if (slider) {
    const output = place.querySelector("output"), note = place.querySelector(".note"), player = place.querySelector(".play");
    const at = number => {
      frame = slider.value = number;
      output.textContent = figure.labels[number];
      if (note) note.innerHTML = figure.notes[number];
      return show();
    };
    slider.addEventListener("input", () => at(Number(slider.value)));
    let playing = null;
    const stop = () => { clearTimeout(playing); playing = null; player.textContent = "▶"; player.ariaLabel = "play"; };
    const next = async () => {
      await at(frame + 1);
      if (playing !== null) frame + 1 < figure.labels.length ? playing = setTimeout(next, 150) : stop();
    };
    player.addEventListener("click", () => {
      if (playing !== null) return stop();
      if (frame + 1 === figure.labels.length) frame = -1;
      Object.assign(player, {textContent: "❚❚", ariaLabel: "pause"});
      playing = setTimeout(next, 0);
    });
  }
  isDark.addEventListener("change", show);
  return show();
}

/** Bring the library and the figures, draw them one after the other, and say on the page when all are there. */
async function drawAll() {
  if (!window.DecompressionStream) {
    document.body.classList.add("old");
    return;
  }
  const script = document.createElement("script");
  script.textContent = await unpacked("library");
  document.head.append(script);
  const content = JSON.parse(await unpacked("content"));
  for (const place of document.querySelectorAll("[data-figure]")) {
    await draw(place, content.figures[place.dataset.figure]);
    await new Promise(resolve => setTimeout(resolve));  // the page stays usable meanwhile
  }
  if (window.start) await window.start(content);
  document.body.classList.add("drawn");
}

drawAll();
