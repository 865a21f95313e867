"use strict";
// Outlines are the shapes of a LabelMe file, edited in place: what this page does not know of a shape stays as it was.

const at = (id) => document.getElementById(id);
const view = at("view"), layer = at("shapes"), handles = at("handles"), pending = at("pending");
const NAMESPACE = "http://www.w3.org/2000/svg";

let images = [];      // {name, certainty, state}, the least certain first
let current = null;   // name of the open image
let content = null;   // its LabelMe file
let selected = -1;    // index of a shape
let drawing = null;   // corners of a polygon that is being drawn, or null
let drag = null;      // what the pointer has hold of
let frame = null;     // the part of the image that is seen: {x, y, width, height}
let past = [];        // earlier contents, as text
let saved = "";       // the content that is on disk, as text
let lastLabel = "";
let finished = -1e9;  // when a polygon was closed: the same double click adds no corner to it

function say(text, fault = false) {
  at("message").textContent = text;
  at("message").className = fault ? "fault" : "";
}

async function request(address, options) {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// Every action ends here when the server refuses it.
function guarded(action) {
  return async (...given) => {
    try { await action(...given); } catch (error) { say(error.message, true); }
  };
}

const isChanged = () => content !== null && JSON.stringify(content.shapes) !== saved;

async function refresh() {
  const overview = await request("images");
  images = overview.images;
  at("classes").replaceChildren(...overview.classes.map((name) => {
    const option = document.createElement("option");
    option.value = name;
    return option;
  }));
  if (!lastLabel && overview.classes.length) lastLabel = overview.classes[0];
  at("list").replaceChildren(...images.map((entry) => {
    const item = document.createElement("li");
    item.className = entry.state + (entry.name === current ? " current" : "");
    item.dataset.name = entry.name;
    const name = document.createElement("span");
    const certainty = document.createElement("small");
    name.textContent = entry.name;
    certainty.textContent = entry.certainty === null ? "" : entry.certainty.toFixed(3);
    item.append(name, certainty);
    item.addEventListener("click", guarded(() => open(entry.name)));
    return item;
  }));
  at("count").textContent = `${images.filter((entry) => entry.state === "saved").length} of ${images.length} saved`;
}

async function open(name) {
  if (isChanged() && !confirm(`${current} is not saved. Leave it?`)) return;
  const found = await request(`annotation/${encodeURIComponent(name)}`);
  current = name;
  content = found;
  saved = JSON.stringify(content.shapes);
  past = [];
  selected = -1;
  drawing = null;
  frame = {x: 0, y: 0, width: content.imageWidth, height: content.imageHeight};
  at("name").textContent = name;
  const picture = at("picture");
  picture.setAttribute("href", `image/${encodeURIComponent(name)}`);
  picture.setAttribute("width", content.imageWidth);
  picture.setAttribute("height", content.imageHeight);
  for (const item of at("list").children) item.classList.toggle("current", item.dataset.name === name);
  say(`${content.shapes.length} shapes`);
  show();
}

async function save() {
  if (content === null) return;
  const shapes = JSON.stringify(content.shapes);
  await request(`annotation/${encodeURIComponent(current)}`, {
    method: "PUT", headers: {"Content-Type": "application/json"}, body: JSON.stringify(content),
  });
  saved = shapes;
  await refresh();
  say(`saved ${current}`);
}

async function saveAndNext() {
  await save();
  const here = images.findIndex((entry) => entry.name === current);
  const order = [...images.slice(here + 1), ...images.slice(0, here)];
  const next = order.find((entry) => entry.state !== "saved");
  if (next) await open(next.name);
  else say("all images are saved");
}

function remember() { past.push(JSON.stringify(content.shapes)); }

function undo() {
  if (!past.length) return;
  content.shapes = JSON.parse(past.pop());
  selected = Math.min(selected, content.shapes.length - 1);
  show();
}

// A colour that a class always has.
function colour(label) {
  let hash = 0;
  for (const letter of label) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return `hsl(${(hash * 137) % 360} 90% 60%)`;
}

function element(tag, attributes) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function outline(shape) {
  const [first, second] = shape.points;
  if (shape.shape_type === "circle") {
    return element("circle", {cx: first[0], cy: first[1], r: Math.hypot(second[0] - first[0], second[1] - first[1])});
  }
  if (shape.shape_type === "rectangle" && shape.points.length === 2) {
    return element("rect", {
      x: Math.min(first[0], second[0]), y: Math.min(first[1], second[1]),
      width: Math.abs(second[0] - first[0]), height: Math.abs(second[1] - first[1]),
    });
  }
  return element("polygon", {points: shape.points.join(" ")});
}

// Pixels of the image for one of the screen.
function pixel() {
  const matrix = view.getScreenCTM();
  return matrix ? 1 / matrix.a : 1;
}

function show() {
  view.setAttribute("viewBox", `${frame.x} ${frame.y} ${frame.width} ${frame.height}`);
  view.classList.toggle("drawing", drawing !== null);
  at("draw").classList.toggle("on", drawing !== null);
  layer.replaceChildren(...content.shapes.map((shape, index) => {
    const made = outline(shape);
    made.setAttribute("stroke", colour(shape.label));
    made.setAttribute("fill", colour(shape.label));
    made.dataset.index = index;
    made.classList.toggle("selected", index === selected);
    const title = element("title", {});
    title.textContent = shape.label + (shape.score === undefined ? "" : ` ${shape.score}`);
    made.append(title);
    return made;
  }));
  const shape = content.shapes[selected];
  handles.replaceChildren(...(shape ? shape.points : []).map((point, corner) => {
    const made = element("circle", {cx: point[0], cy: point[1], r: 5 * pixel()});
    made.dataset.corner = corner;
    return made;
  }));
  pending.setAttribute("points", (drawing || []).join(" "));
  if (document.activeElement !== at("label")) at("label").value = shape ? shape.label : lastLabel;
  if (document.activeElement !== at("group")) at("group").value = shape ? shape.group_id ?? "" : "";
}

function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(view.getScreenCTM().inverse());
  const clamp = (value, high) => Math.round(100 * Math.min(Math.max(value, 0), high)) / 100;
  return [clamp(point.x, content.imageWidth), clamp(point.y, content.imageHeight)];
}

function finish() {
  const points = drawing;
  drawing = null;
  finished = performance.now();
  if (points && points.length >= 3) {
    remember();
    content.shapes.push({
      label: lastLabel || "object", points, group_id: null, description: "", shape_type: "polygon", flags: {},
    });
    selected = content.shapes.length - 1;
  }
  show();
}

function remove() {
  if (selected < 0) return;
  remember();
  content.shapes.splice(selected, 1);
  selected = -1;
  show();
}

function near(one, other, screen) {
  return Math.hypot(one[0] - other[0], one[1] - other[1]) < screen * pixel();
}

// The edge of the selected polygon that a point is near to, as the index of its first corner, or null.
function edgeNear(point) {
  const shape = content.shapes[selected];
  if (!shape || (shape.shape_type || "polygon") !== "polygon") return null;
  let best = {distance: 10 * pixel(), edge: null};
  shape.points.forEach((start, edge) => {
    const end = shape.points[(edge + 1) % shape.points.length];
    const along = [end[0] - start[0], end[1] - start[1]];
    const length = along[0] ** 2 + along[1] ** 2 || 1;
    const share = ((point[0] - start[0]) * along[0] + (point[1] - start[1]) * along[1]) / length;
    const inside = Math.min(Math.max(share, 0), 1);
    const distance = Math.hypot(point[0] - start[0] - inside * along[0], point[1] - start[1] - inside * along[1]);
    if (distance < best.distance) best = {distance, edge};
  });
  return best.edge;
}

view.addEventListener("pointerdown", (event) => {
  if (content === null || event.button !== 0) return;
  view.focus();
  const point = place(event);
  if (drawing) {
    if (drawing.length >= 3 && near(drawing[0], point, 8)) finish();
    else {
      const last = drawing.at(-1);
      if (!last || last[0] !== point[0] || last[1] !== point[1]) drawing.push(point);
      show();
    }
    return;
  }
  const {index, corner} = event.target.dataset;
  if (corner !== undefined) drag = {kind: "corner", corner: Number(corner), before: JSON.stringify(content.shapes)};
  else if (index !== undefined) {
    selected = Number(index);
    drag = {
      kind: "shape", from: point, before: JSON.stringify(content.shapes),
      points: content.shapes[selected].points.map((pair) => [...pair]),
    };
  } else {
    if (edgeNear(point) === null) selected = -1;  // a double click on an edge may begin just outside
    drag = {kind: "ground", x: event.clientX, y: event.clientY, frame: {...frame}, scale: pixel()};
  }
  view.setPointerCapture(event.pointerId);
  show();
});

view.addEventListener("pointermove", (event) => {
  if (drag === null) return;
  const point = place(event);
  if (drag.kind === "ground") {
    frame.x = drag.frame.x - (event.clientX - drag.x) * drag.scale;
    frame.y = drag.frame.y - (event.clientY - drag.y) * drag.scale;
  } else if (drag.kind === "corner") content.shapes[selected].points[drag.corner] = point;
  else {
    content.shapes[selected].points = drag.points.map(([x, y]) => [
      Math.round(100 * (x + point[0] - drag.from[0])) / 100, Math.round(100 * (y + point[1] - drag.from[1])) / 100,
    ]);
  }
  show();
});

view.addEventListener("pointerup", () => {
  if (drag && drag.before && drag.before !== JSON.stringify(content.shapes)) past.push(drag.before);
  drag = null;
});

// The second press of a double click. "dblclick" would not come: what was pressed first has been drawn anew since.
view.addEventListener("mousedown", (event) => {
  if (content === null || event.button !== 0 || event.detail !== 2) return;
  if (drawing) { finish(); return; }
  if (performance.now() - finished < 600) return;
  const point = place(event);
  const edge = edgeNear(point);
  if (edge === null) return;
  remember();
  content.shapes[selected].points.splice(edge + 1, 0, point);
  drag = {kind: "corner", corner: edge + 1, before: ""};
  show();
});

view.addEventListener("contextmenu", (event) => {
  event.preventDefault();
  const shape = content && content.shapes[selected];
  const corner = event.target.dataset.corner;
  if (corner === undefined || (shape.shape_type || "polygon") !== "polygon" || shape.points.length <= 3) return;
  remember();
  shape.points.splice(Number(corner), 1);
  show();
});

view.addEventListener("wheel", (event) => {
  if (content === null) return;
  event.preventDefault();
  const factor = event.deltaY < 0 ? 0.8 : 1.25;
  const width = Math.min(Math.max(frame.width * factor, 4), 4 * content.imageWidth);
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(view.getScreenCTM().inverse());
  const change = width / frame.width;
  frame = {
    x: point.x - (point.x - frame.x) * change, y: point.y - (point.y - frame.y) * change,
    width, height: frame.height * change,
  };
  show();
}, {passive: false});

at("label").addEventListener("input", () => {
  const label = at("label").value.trim();
  if (!label) return;
  lastLabel = label;
  if (content && content.shapes[selected]) {
    remember();
    content.shapes[selected].label = label;
    show();
  }
});

at("group").addEventListener("input", () => {
  if (!content || !content.shapes[selected]) return;
  const text = at("group").value;
  remember();
  content.shapes[selected].group_id = text === "" ? null : Math.trunc(Number(text));
  show();
});

function toggleDrawing() {
  if (content === null) return;
  drawing = drawing ? null : [];
  selected = -1;
  show();
}

at("draw").addEventListener("click", () => { toggleDrawing(); view.focus(); });
at("remove").addEventListener("click", remove);
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", guarded(save));
at("next").addEventListener("click", guarded(saveAndNext));

document.addEventListener("keydown", (event) => {
  if (content === null) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key === "s") { event.preventDefault(); guarded(save)(); return; }
  if (event.target instanceof HTMLInputElement) return;
  if (command && event.key === "z") { event.preventDefault(); undo(); }
  else if (command) return;
  else if (event.key === "d") toggleDrawing();
  else if (event.key === "n") guarded(saveAndNext)();
  else if (event.key === "Enter" && drawing) { event.preventDefault(); finish(); }
  else if (event.key === "Escape") { drawing = null; selected = -1; show(); }
  else if (event.key === "Delete" || event.key === "Backspace") remove();
});

window.addEventListener("beforeunload", (event) => { if (isChanged()) event.preventDefault(); });

guarded(async () => {
  await refresh();
  const first = images.find((entry) => entry.state !== "saved") || images[0];
  await open(first.name);
})();
