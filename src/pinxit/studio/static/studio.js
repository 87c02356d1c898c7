"use strict";
// Everything can be read and done without this file; with it, pages follow what happens.

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- Parts of the page that the server renders anew

async function renderedPage(url, options) {
  const answer = await fetch(url, options);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

function replace(id, page) {
  const fresh = page.getElementById(id), old = document.getElementById(id);
  if (!fresh || !old || fresh.innerHTML === old.innerHTML) return;
  const open = all("details[open] summary", old).map((summary) => summary.textContent);
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  old.innerHTML = fresh.innerHTML;
  for (const details of all("details", old)) details.open = open.includes($("summary", details)?.textContent);
  if (focused) all("a[href]", old).find((link) => link.getAttribute("href") === focused)?.focus();
}

let refreshing = null;
function refresh() {
  refreshing ??= setTimeout(async () => {
    try { replace("live", await renderedPage(location.href)); } catch { /* the next event tries again */ }
    refreshing = null;
  }, 400);
}

// ---- Events of the job, or of the studio

let stream = null, version = null, lastId = "", lastRefresh = 0;
function follow() {
  const path = document.body.dataset.events;
  if (!path || stream) return;
  stream = new EventSource(lastId ? `${path.split("?")[0]}?after=${lastId}` : path);
  stream.onopen = () => { $("#offline").hidden = true; };
  stream.onerror = () => { $("#offline").hidden = false; };
  stream.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    $("#now").textContent = status.now || "nothing is running";
    if (version && version !== status.version) refresh();
    version = status.version;
  });
  stream.addEventListener("reset", (event) => { lastId = event.lastEventId; refresh(); });
  stream.onmessage = (message) => {
    lastId = message.lastEventId;
    const event = JSON.parse(message.data), bar = $("#live progress");
    if (event.type === "StepResult" && bar) {
      bar.max = event.total;
      bar.value = event.number;
    }
    const isOld = event.type === "StepResult" && Date.now() - lastRefresh < 3000;
    if (!isOld) { lastRefresh = Date.now(); refresh(); }
  };
}
// A hidden page holds no connection: a browser allows only six of them.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { stream?.close(); stream = null; } else { follow(); refresh(); }
});
if (!document.hidden) follow();

// ---- Images are checked as soon as they are chosen or dropped

function upload(input) {
  const target = document.getElementById(input.dataset.target);
  const form = new FormData();
  for (const file of input.files) form.append("files", file);
  const set = $("input[name=images]", target);
  if (set) form.append("images", set.value);
  form.append("page", input.dataset.page || "");
  target.textContent = `checking ${input.files.length} images …`;
  input.value = "";
  return renderedPage(input.dataset.upload, { method: "POST", body: form }).then((page) => {
    const error = $("[role=alert].error", page);
    if (error) target.replaceChildren(error); else target.innerHTML = $(`#${target.id}`, page).innerHTML;
  }, () => { target.textContent = "The studio does not answer: choose the images again."; });
}
let uploading = Promise.resolve();
for (const input of all("input[data-upload]")) {
  input.addEventListener("change", () => { if (input.files.length) uploading = upload(input); });
}
for (const drop of all(".drop")) {
  const input = $("input[type=file]", drop);
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
}
for (const form of all("form.main")) {
  form.addEventListener("submit", (event) => {  // not before the images are checked
    event.preventDefault();
    const action = event.submitter?.formAction;  // of the button that was pressed
    uploading.then(() => { if (action) form.action = action; form.submit(); });
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) form.requestSubmit();
  });
}

// ---- Only the settings of the chosen method or control

function showChosen() {
  for (const details of all("details[class^=only-]")) {
    const name = details.className.slice("only-".length);
    const chosen = all("input[type=radio]:checked").some((radio) => radio.value === name);
    details.hidden = !chosen;
  }
}
document.addEventListener("change", showChosen);
showChosen();

// ---- Prompts: ideas, and the tokens of the concepts after <

const prompt = $("[data-complete]"), words = $("#words");
for (const idea of all("[data-prompt]")) {
  idea.addEventListener("click", () => { prompt.value = idea.dataset.prompt; prompt.focus(); });
}
function insert(word) {
  const before = prompt.value.slice(0, prompt.selectionStart).replace(/<[^<>\s]*$/, word);
  prompt.value = before + prompt.value.slice(prompt.selectionEnd);
  prompt.setSelectionRange(before.length, before.length);
  words.hidden = true;
  prompt.focus();
  for (const box of all("[data-word]")) if (box.dataset.word === word) box.checked = true;
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
// The settings that AUTOMATIC1111 writes into its images, pasted as text.
const A1111 = { Steps: "steps", "CFG scale": "guidance_scale", Seed: "seed" };
function pasteParameters(event) {
  const parts = event.clipboardData.getData("text").match(/^([^]*?)(?:\nNegative prompt: ([^]*?))?\n(Steps: .*)$/);
  if (!parts) return;
  event.preventDefault();
  prompt.value = parts[1];
  const chosen = { negative_prompt: parts[2] || "" };
  for (const [name, field] of Object.entries(A1111)) {
    chosen[field] = parts[3].match(new RegExp(`${name}: ([\\d.]+)`))?.[1] || "";
  }
  [, chosen.width = "", chosen.height = ""] = parts[3].match(/Size: (\d+)x(\d+)/) || [];
  for (const [field, value] of Object.entries(chosen)) document.getElementById(field).value = value;
}
if (prompt) {
  prompt.addEventListener("paste", pasteParameters);
  prompt.addEventListener("input", complete);
  prompt.addEventListener("keydown", (event) => {
    if (words.hidden) return;
    if (event.key === "Escape") words.hidden = true;
    if (event.key === "ArrowDown") { event.preventDefault(); $("button", words)?.focus(); }
    if (event.key === "Tab" && !event.shiftKey) { event.preventDefault(); insert($("button", words).textContent); }
  });
}
