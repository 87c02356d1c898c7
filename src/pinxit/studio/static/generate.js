"use strict";
// The prompt: ideas, completed tokens, unknown words, and the settings of an image or of a text.

const prompt = $("[data-complete]"), words = $("#words"), unknown = $("#unknown");
const TOKEN = /<[^<>\s]+>/g;
for (const idea of all("[data-prompt]")) {
  idea.addEventListener("click", () => { prompt.value = idea.dataset.prompt; markUnknown(); prompt.focus(); });
}
function insert(word) {
  const before = prompt.value.slice(0, prompt.selectionStart).replace(/<[^<>\s]*$/, word);
  prompt.value = before + prompt.value.slice(prompt.selectionEnd);
  prompt.setSelectionRange(before.length, before.length);
  words.hidden = true;
  prompt.focus();
  for (const box of all("[data-word]")) if (box.dataset.word === word) box.checked = true;
  markUnknown();
}
function complete() {
  const typed = prompt.value.slice(0, prompt.selectionStart).match(/<[^<>\s]*$/)?.[0];
  const known = new Set(all("[data-word]").map((box) => box.dataset.word).filter(Boolean));
  const fitting = typed ? [...known].filter((word) => word.startsWith(typed)) : [];
  words.hidden = !fitting.length;
  words.replaceChildren(...fitting.map((word) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.addEventListener("click", () => insert(word));
    item.append(button);
    return item;
  }));
}

// Words in < > that no chosen concept knows: the base model would read them as plain text.
function markUnknown() {
  const boxes = all("[data-word]"), problems = [];
  for (const word of new Set(prompt.value.match(TOKEN))) {
    const own = boxes.filter((box) => box.dataset.word === word);
    if (!own.length && !/^<(lora|lyco|hypernet):/.test(word)) problems.push(`${word} is not the token of a concept here: the base model reads it as plain text.`);
    else if (own.length && !own.some((box) => box.checked)) problems.push(`${word} belongs to a concept that is not chosen.`);
  }
  count(prompt);
  unknown.textContent = problems.join(" ");
  unknown.hidden = !problems.length;
}

// The settings that AUTOMATIC1111 and this program write into their images.
const NUMBERS = { Steps: "steps", "CFG scale": "guidance_scale", Seed: "seed", "Clip skip": "clip_skip" };
function applyParameters(text) {
  const parts = text.replace(/\r/g, "").match(/^([^]*?)(?:\nNegative prompt: ([^]*?))?\n(Steps: .*)\s*$/);
  if (!parts) return false;
  prompt.value = parts[1];
  const chosen = { negative_prompt: parts[2] || "" };
  for (const [name, field] of Object.entries(NUMBERS)) {
    chosen[field] = parts[3].match(new RegExp(`\\b${name}: ([\\d.]+)`))?.[1] || "";
  }
  [, chosen.width = "", chosen.height = ""] = parts[3].match(/Size: (\d+)x(\d+)/) || [];
  const sampler = parts[3].match(/Sampler: ([^,]+)/)?.[1], known = JSON.parse(prompt.dataset.samplers);
  chosen.scheduler = known[sampler] || (Object.values(known).includes(sampler) ? sampler : "");
  for (const [field, value] of Object.entries(chosen)) document.getElementById(field).value = value;
  for (const box of all("[data-word]")) box.checked = parts[1].includes(box.dataset.word || "\0");
  $("#settings-state").textContent = "The settings were filled in."
    + (sampler && !chosen.scheduler ? ` The sampler ${sampler} is not known here: the default is used.` : "");
  markUnknown();
  return true;
}
function pasteParameters(event) {
  if (applyParameters(event.clipboardData.getData("text"))) event.preventDefault();
}
// The text with a name in a PNG file; its chunks are length, type, data and checksum.
async function textInPng(file, name) {
  const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer);
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return "";
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), data = bytes.subarray(at + 8, at + 8 + length);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8)), end = data.indexOf(0);
    if (new TextDecoder().decode(data.subarray(0, end)) === name) {
      if (type === "tEXt") return new TextDecoder("latin1").decode(data.subarray(end + 1));
      const language = data.indexOf(0, end + 3), start = data.indexOf(0, language + 1) + 1;
      if (type === "iTXt" && !data[end + 1]) return new TextDecoder().decode(data.subarray(start));
    }
    at += 12 + length;
  }
  return "";
}
// The trainings of this studio that an own image names with their strengths, if the prompt has their tokens.
function chooseConcepts(text) {
  const strengths = new Map();
  for (const [, number, strength] of text.matchAll(/[\\/]runs[\\/](\d{6})[\\/][\w.]+?(?::([\d.]+))?"/g)) strengths.set(number, strength || "");
  const boxes = all("[data-word]"), isUsed = (box) => strengths.has(box.value) && prompt.value.includes(box.dataset.word);
  if (!boxes.some(isUsed)) return;
  for (const box of boxes) {
    const field = document.getElementById(`strength.${box.value}`);
    box.checked = isUsed(box);
    if (field) field.value = box.checked ? strengths.get(box.value) : "";
  }
}
async function restore(file) {
  if (applyParameters(await textInPng(file, "parameters"))) {
    chooseConcepts(await textInPng(file, "pinxit"));
    markUnknown();
  } else $("#settings-state").textContent = `There are no settings in ${file.name}.`;
}
$("#restore").addEventListener("change", (event) => { if (event.target.files.length) restore(event.target.files[0]); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.target.closest(".drop")) return;  // an image to transfer
  event.preventDefault();
  if (event.dataTransfer.files.length) restore(event.dataTransfer.files[0]);
});
document.addEventListener("change", markUnknown);
words.addEventListener("keydown", (event) => {
  const items = all("button", words), next = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") { words.hidden = true; prompt.focus(); }
  if (!next) return;
  event.preventDefault();
  (items[items.indexOf(document.activeElement) + next] || prompt).focus();
});
prompt.addEventListener("paste", pasteParameters);
prompt.addEventListener("input", () => { complete(); markUnknown(); });
prompt.addEventListener("keydown", (event) => {
  if (words.hidden) return;
  if (event.key === "Escape") words.hidden = true;
  if (event.key === "ArrowDown") { event.preventDefault(); $("button", words)?.focus(); }
  if (event.key === "Tab" && !event.shiftKey) { event.preventDefault(); insert($("button", words).textContent); }
});
markUnknown();
