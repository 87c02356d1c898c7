"use strict";
// Everything can be read and done without this file; with it, pages follow what happens.

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- Parts of the page that the server renders anew

async function renderedPage(url, options) {
  const answer = await fetch(url, options);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

function problemIn(page) {  // what the server refuses before a page is made is plain text
  const problem = $(".error", page) || document.createElement("p");
  problem.textContent ||= page.body.textContent;
  problem.className = "error";
  return problem;
}

let rendered = $("#live")?.innerHTML;
function replace(page) {
  for (const cost of all(".cost")) cost.innerHTML = page.getElementById(cost.id)?.innerHTML ?? "";
  const fresh = $("#live", page), old = $("#live");
  if (!fresh || !old || fresh.innerHTML === rendered) return;
  rendered = fresh.innerHTML;
  const open = all("details[open] summary", old).map((summary) => summary.textContent);
  const ranges = all("input[type=range]", old), focus = document.activeElement;
  const isInside = old.contains(focus);
  old.innerHTML = fresh.innerHTML;
  for (const details of all("details", old)) details.open = open.includes($("summary", details)?.textContent);
  for (const range of ranges) {
    const fresh = document.getElementById(range.id);
    if (fresh) { fresh.value = range.value; showValue(fresh); }
  }
  const isSame = (element) => element.id === focus.id && element.getAttribute("href") === focus.getAttribute("href");
  if (isInside) all("a[href], input", old).find(isSame)?.focus();
}

// A slider shows its value in its output, or divides the two images that it lies over.
function showValue(range) {
  const output = $(`output[for="${range.id}"]`);
  if (output) output.textContent = range.value; else range.parentElement.style.setProperty("--at", `${range.value}%`);
}
document.addEventListener("input", (event) => { if (event.target.type === "range") showValue(event.target); });
for (const range of all("input[type=range]")) showValue(range);
document.documentElement.classList.add("js");

let refreshing = null;
function refresh() {
  refreshing ??= setTimeout(async () => {
    try {
      const page = await renderedPage(location.href);
      if (!$("#no-worker", page)) $("#no-worker")?.remove();
      replace(page);
    } catch { /* the next event tries again */ }
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

function sentPage(url, body, progress) {  // like renderedPage; fetch does not say how much was sent
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onload = () => resolve(new DOMParser().parseFromString(request.responseText, "text/html"));
    request.onerror = reject;
    request.send(body);
  });
}
function upload(input, files) {
  const target = document.getElementById(input.dataset.target);
  const form = new FormData();
  for (const file of files) form.append("files", file);
  const set = $("input[name=images]", target);
  if (set) form.append("images", set.value);
  form.append("page", input.dataset.page || "");
  const count = files.length;
  all(".error", target).forEach((error) => error.remove());
  const before = target.innerHTML;
  let tenth = -1;  // each is said once to screen readers
  const progress = (share) => {
    if (Math.floor(10 * share) === tenth) return;
    tenth = Math.floor(10 * share);
    target.textContent = share < 1 ? `Sending the images: ${10 * tenth}%` : `Checking ${count} image${count === 1 ? "" : "s"} …`;
  };
  progress(0);
  return sentPage(input.dataset.upload, form, progress).then((page) => {
    const fresh = $(`#${target.id}`, page);
    const failed = $(".error", page) || !fresh;
    target.innerHTML = failed ? before : fresh.innerHTML;
    if (failed) target.prepend(problemIn(page));
    saveDraft(input.form);
  }, () => { target.innerHTML = `<p class="error">The studio does not answer: choose the images again.</p>${before}`; });
}
let uploading = Promise.resolve(), pending = 0;
for (const input of all("input[data-upload]")) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    if (!files.length) return;
    input.value = "";
    pending += 1;
    // One after the other: the next ones are added to the set that the first ones have made.
    uploading = uploading.then(() => upload(input, files)).finally(() => { pending -= 1; });
  });
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
// What was filled in stays in the address: it survives a reload and the back button.
function saveDraft(form) {
  const filled = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value);
  if (form.matches(".draft")) history.replaceState(null, "", `?${new URLSearchParams(filled)}`);
}
for (const form of all("form.draft")) form.addEventListener("change", () => saveDraft(form));
for (const form of all("form.main")) {
  form.addEventListener("submit", (event) => {  // not before the images are checked
    if (!pending) return;
    event.preventDefault();
    uploading.then(() => form.requestSubmit(event.submitter));
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) form.requestSubmit();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "?" || event.target.matches("input, textarea, select")) return;
  $("#keys-list").open = true;
  $("#keys-list summary").focus();
});

// ---- The tokens of a text are counted while it is typed

const timers = new Map();
function count(field) {
  clearTimeout(timers.get(field));
  timers.set(field, setTimeout(async () => {
    const text = field.value.slice(0, 2000), base = $("#base")?.value || "";
    const values = new URLSearchParams({ text, base, kind: field.dataset.count });
    for (const box of all("[data-word]:checked")) values.append("concepts", box.value);
    try {
      const answer = await fetch(`/tokens?${values}`), sentence = await answer.text();
      if (answer.ok && field.value.startsWith(text)) document.getElementById(`${field.id}-tokens`).textContent = sentence;
    } catch { /* the next letter tries again */ }
  }, 150));
}
for (const name of ["input", "focusin"]) {
  document.addEventListener(name, (event) => { if (event.target.dataset.count) count(event.target); });
}

// ---- Only the settings of the chosen method or control

function showChosen() {
  for (const settings of all("[class^=only-]")) {
    const name = settings.className.slice("only-".length);
    const chosen = all("input[type=radio]:checked").some((radio) => radio.value === name);
    settings.hidden = !chosen;
  }
}
document.addEventListener("change", showChosen);
showChosen();

// ---- Two images in one place

const pairs = $("#pairs"), flip = $("#flip");
if (flip) {
  flip.hidden = false;
  flip.addEventListener("click", () => {  // the left ones, then the right ones, then both again
    const shows = { "": "left", left: "right", right: "" }[pairs.dataset.shows];
    pairs.dataset.shows = shows;
    flip.textContent = { "": "Show in one place", left: "Flip", right: "Show side by side" }[shows];
  });
}
