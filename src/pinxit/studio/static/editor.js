"use strict";
// The editor of one image: a rectangle, which crops or changes the mask, and a brush for the mask.

const canvas = $("#canvas"), context = canvas.getContext("2d"), form = $("#edit");
const image = new Image(), mask = document.createElement("canvas");
const pencil = mask.getContext("2d", { willReadFrequently: true });
const MAX_SIDE = 1024, EDGES = ["left", "top", "right", "bottom"];
const undone = [];
let changed = false, shown = Boolean(canvas.dataset.mask), start = null, last = null;

const fields = EDGES.map((edge) => document.getElementById(edge));
const scale = () => mask.width / image.naturalWidth;  // the mask may be smaller than the image

function box() {  // in pixels of the whole image; null for the whole image
  const values = fields.map((field) => parseInt(field.value, 10));
  return values.some(Number.isNaN) ? null : values;
}
function setBox(values) {
  const limits = [image.naturalWidth, image.naturalHeight];
  values.forEach((value, index) => {
    fields[index].value = Math.round(Math.min(Math.max(value, 0), limits[index % 2]));
  });
  draw();
}
function draw() {
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (shown) {  // what is not in the mask is dark
    const dark = document.createElement("canvas");
    [dark.width, dark.height] = [mask.width, mask.height];
    const shade = dark.getContext("2d"), pixels = pencil.getImageData(0, 0, mask.width, mask.height);
    for (let index = 0; index < pixels.data.length; index += 4) {
      pixels.data[index + 3] = (255 - pixels.data[index]) * 0.75;
      pixels.data.fill(0, index, index + 3);
    }
    shade.putImageData(pixels, 0, 0);
    context.drawImage(dark, 0, 0, canvas.width, canvas.height);
  }
  const values = box();
  if (!values) return;
  const [left, top, right, bottom] = values.map((value) => value * canvas.width / image.naturalWidth);
  for (const [color, width] of [["black", 4], ["white", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}
function remember() {
  undone.push([shown, pencil.getImageData(0, 0, mask.width, mask.height)]);
  if (undone.length > 20) undone.shift();
  changed = true;
}
function say() {
  const data = pencil.getImageData(0, 0, mask.width, mask.height).data;
  let white = 0;
  for (let index = 0; index < data.length; index += 4) white += data[index] > 127;
  const share = Math.round(100 * white / (data.length / 4));
  $("#mask-state").textContent = shown && share ? `The mask shows ${share}% of the image.`
    : "No mask: the whole image is trained on.";
  return shown && white > 0;
}
function fillBox(color) {
  const values = box();
  if (!values) { $("#mask-state").textContent = "Draw a rectangle first, or write its four numbers."; return; }
  remember();
  shown = true;
  const [left, top, right, bottom] = values.map((value) => value * scale());
  pencil.fillStyle = color;
  pencil.fillRect(left, top, right - left, bottom - top);
  say();
  draw();
}
function clear() {
  remember();
  shown = false;
  pencil.fillStyle = "black";
  pencil.fillRect(0, 0, mask.width, mask.height);
  say();
  draw();
}
$("#add").addEventListener("click", () => fillBox("white"));
$("#remove").addEventListener("click", () => fillBox("black"));
$("#clear").addEventListener("click", clear);
$("#undo").addEventListener("click", () => {
  if (!undone.length) return;
  let pixels;
  [shown, pixels] = undone.pop();
  pencil.putImageData(pixels, 0, 0);
  say();
  draw();
});
for (const field of fields) field.addEventListener("input", draw);

const tool = () => $("input[name=tool]:checked").value;
function place(event) {
  const area = canvas.getBoundingClientRect(), size = mask.width / area.width;
  return [(event.clientX - area.left) * size, (event.clientY - area.top) * size];
}
function stroke(from, to) {
  pencil.strokeStyle = tool() === "add" ? "white" : "black";
  pencil.lineCap = "round";
  pencil.lineWidth = Math.max(mask.width, mask.height) * ($("#brush").valueAsNumber || 8) / 100;
  pencil.beginPath();
  pencil.moveTo(...from);
  pencil.lineTo(...to);
  pencil.stroke();
}
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  start = last = place(event);
  if (tool() !== "rectangle") { remember(); shown = true; stroke(start, start); draw(); }
});
canvas.addEventListener("pointermove", (event) => {
  if (!start) return;
  const here = place(event);
  if (tool() === "rectangle") {
    const across = [start[0], here[0]].sort((a, b) => a - b), down = [start[1], here[1]].sort((a, b) => a - b);
    setBox([across[0], down[0], across[1], down[1]].map((value) => value / scale()));
  } else {
    stroke(last, here);
    draw();
  }
  last = here;
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => { if (start) say(); start = null; });
}
canvas.addEventListener("keydown", (event) => {
  const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [];
  if (event.key === "Enter") fillBox("white");
  else if (event.key === "Delete" || event.key === "Backspace") fillBox("black");
  else if (across === undefined) return;
  else {
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const step = Math.max(1, Math.round(Math.max(width, height) / 50));
    const old = box() || [width / 4, height / 4, 3 * width / 4, 3 * height / 4];
    const moved = old.map((value, index) => (event.shiftKey && index < 2 ? value
      : value + step * (index % 2 ? down : across)));
    const fits = moved[0] >= 0 && moved[1] >= 0 && moved[2] <= width && moved[3] <= height
      && moved[0] < moved[2] && moved[1] < moved[3];
    if (fits || !box()) setBox(fits ? moved : old);
  }
  event.preventDefault();
});
form.addEventListener("submit", async (event) => {
  if (!changed) return;
  event.preventDefault();
  const data = new FormData(form);
  if (say()) data.set("mask", await new Promise((done) => mask.toBlob(done, "image/png")), "mask.png");
  else data.set("mask", "none");
  const answer = await fetch(form.action, { method: "POST", body: data }).catch(() => null);
  if (answer?.ok) { location.assign(answer.url); return; }
  const page = new DOMParser().parseFromString(answer ? await answer.text() : "", "text/html");
  $("#mask-state").replaceChildren(answer ? problemIn(page) : "The studio does not answer: press Save again.");
});

function load(source) {
  return new Promise((done) => {
    const loaded = source === canvas.dataset.image ? image : new Image();
    loaded.onload = () => done(loaded);
    loaded.src = source;
  });
}
load(canvas.dataset.image).then(async () => {
  const fitting = MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight);
  for (const [target, factor] of [[canvas, fitting], [mask, Math.min(1, fitting)]]) {
    target.width = Math.max(1, Math.round(image.naturalWidth * factor));
    target.height = Math.max(1, Math.round(image.naturalHeight * factor));
  }
  pencil.fillStyle = "black";
  pencil.fillRect(0, 0, mask.width, mask.height);
  if (shown) pencil.drawImage(await load(canvas.dataset.mask), 0, 0, mask.width, mask.height);
  draw();
  canvas.dataset.ready = "true";
});
