// Signing in, loading, and showing what came.

const KEY = "gateway-admin-key";
const THEME = "gateway-theme";
const REFRESH_MS = 5000;
const REFRESH_LONG_MS = 30000;
const WORDS = { caller: "All callers", team: "All teams", model: "All models", route: "All routes", status: "Any status" };

const filters = byId("filters");
let key = sessionStorage.getItem(KEY);
let timer = null;
let paused = false;
let asked = 0;
let last = null;
const colours = new Map();

const sumOf = (series) => series.values.reduce((sum, value) => sum + (value || 0), 0);
const callerColour = (series) => COLOURS[colours.get(series.name) % COLOURS.length];
const sectionOf = (name) => document.querySelector(`[data-chart="${name}"]`);
const charts = {
  spend: new Chart(sectionOf("spend"), { kind: "bars", format: money, sum: (one) => money(sumOf(one)), colour: callerColour, nothing: "Nothing was spent in this view." }),
  tokens: new Chart(sectionOf("tokens"), { kind: "bars", format: count, whole: true, axis: (value) => short.format(value), sum: (one) => brief(sumOf(one)), colour: callerColour, nothing: "No tokens were used in this view." }),
  latency: new Chart(sectionOf("latency"), { kind: "lines", format: duration, axis: (value) => duration(value).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " "), sum: (one) => duration(last.totals[one.name]), nothing: "Nothing was measured in this view." }),
  errors: new Chart(sectionOf("errors"), { kind: "bars", format: count, whole: true, axis: (value) => short.format(value), sum: (one) => count(sumOf(one)), nothing: "No errors in this view." }),
};

/** Fetch the present view. `aloud`: somebody asked for it and wants to hear that it is there. */
async function load(aloud) {
  clearTimeout(timer);
  const mine = ++asked;
  byId("main").setAttribute("aria-busy", "true");
  try {
    const response = await fetch("/dashboard/data" + location.search, { headers: { Authorization: "Bearer " + key }, cache: "no-store" });
    if (mine !== asked) return;
    if (response.status === 401 || response.status === 403) return leave("That key is not the admin key.");
    const data = await response.json().catch(() => ({}));
    if (mine !== asked) return;
    if (!response.ok) throw new Error(data.error ? `${data.error.message}${data.error.fix ? " – " + data.error.fix : ""}` : `The gateway answered ${response.status}.`);
    sessionStorage.setItem(KEY, key);
    show(data);
    byId("problem").hidden = true;
    if (aloud) say(`${count(data.totals.requests)} requests, ${money(data.totals.cost_usd)} spent, ${percent(shareOf(data.totals))} failed.`);
  } catch (error) {
    if (mine !== asked) return;
    byId("problem-text").textContent = (error instanceof TypeError ? "The gateway cannot be reached." : error.message) + (last ? " What is shown is older." : "");
    byId("problem").hidden = false;
    enter();
  } finally {
    if (mine === asked) byId("main").setAttribute("aria-busy", "false");
  }
  if (mine === asked && key) again();
}

function again() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  const long = last && last.until - last.since > 2 * 86400;
  timer = setTimeout(() => load(false), long ? REFRESH_LONG_MS : REFRESH_MS);
}

function show(data) {
  last = data;
  enter();
  for (const series of [...data.series.spend, ...data.series.tokens]) {
    if (series.name !== null && !colours.has(series.name)) colours.set(series.name, colours.size);
  }
  const empty = !data.totals.requests && !data.live.length;
  byId("empty").hidden = !empty;
  byId("empty").textContent = Object.values(data.filters).some(Boolean)
    ? "No request in this range is like that. Clear a filter, or choose a longer range."
    : "No request has come in this range yet.";
  byId("charts").hidden = !data.totals.requests;
  showUnpriced(data);
  refill(byId("tiles"), tiles(data));
  byId("live-tally").textContent = data.live.length ? count(data.live.length) : "";
  for (const [name, chart] of Object.entries(charts)) chart.draw(data, data.series[name]);
  for (const [name, made] of Object.entries(TABLES)) refill(document.querySelector(`[data-table="${name}"]`), made(data));
  showFilters(data);
  showUpdated();
  byId("fine-print").textContent =
    `Each bar is ${duration(data.bucket_seconds).replace(/ 0 (s|min)$/, "").replace(/\.0+ s/, " s")}; times are this device's. Percentiles are within 5 % of the true ones, and sums are rounded: usage_report.py adds to the last decimal.` +
    (data.totals.estimated ? ` The tokens of ${count(data.totals.estimated)} requests are estimates, because nobody reported them.` : "");
}

function showUpdated() {
  if (!last) return;
  const state = paused ? "Paused" : "Live";
  refill(byId("updated"), el("span", { class: "dot " + (paused ? "still" : "beats"), "aria-hidden": "true" }), `${state}, as of ${clockSeconds.format(last.now * 1000)}`);
}

function showFilters(data) {
  const view = viewOf();
  const custom = Boolean(view.since) || filters.elements.range.value === "custom";
  if (view.since || !custom) filters.elements.range.value = custom ? "custom" : view.range || "24h";
  for (const label of filters.querySelectorAll(".custom")) label.hidden = !custom;
  if (view.since && document.activeElement.type !== "datetime-local") {
    filters.elements.since.value = toLocal(view.since);
    filters.elements.until.value = view.until ? toLocal(view.until) : "";
  }
  for (const name of Object.keys(WORDS)) {
    const select = filters.elements[name];
    const chosen = view[name] || "";
    select.classList.toggle("set", Boolean(chosen));
    const words = name === "status" ? [["", WORDS.status], ["ok", "Answered"], ["error", "Failed"]] : [["", WORDS[name]]];
    const known = new Set(words.map(([value]) => value));
    const values = [...new Set([...data.choices[name], chosen])].filter((value) => !known.has(value)).sort();
    const options = [...words, ...values.map((value) => [value, value])];
    // Not while it is open: options that move under the hand are a wrong choice.
    if (JSON.stringify(options) !== select.dataset.options && !(select === document.activeElement && select.value === chosen)) {
      select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
      select.dataset.options = JSON.stringify(options);
    }
    select.value = chosen;
  }
  byId("latency").value = data.latency;
  byId("clear").hidden = !FIELDS.some((name) => view[name] && name !== "latency");
}

const say = (text) => { byId("said").textContent = text; };

function enter() {
  byId("entrance").hidden = true;
  byId("figures").hidden = byId("pause").hidden = byId("sign-out").hidden = false;
}

function leave(why) {
  clearTimeout(timer);
  asked++;
  key = last = null;
  sessionStorage.removeItem(KEY);
  byId("figures").hidden = byId("pause").hidden = byId("sign-out").hidden = true;
  byId("updated").textContent = "";
  byId("entrance").hidden = false;
  byId("entrance-error").textContent = why;
  byId("key").value = "";
  byId("key").focus();
}

byId("entrance-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  byId("key").value = "";
  load(true).then(() => last && byId("main").focus({ preventScroll: true }));
});
byId("sign-out").addEventListener("click", () => leave(""));
byId("retry").addEventListener("click", () => load(true));
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  showUpdated();
  if (paused) clearTimeout(timer);
  else load(false);
});
byId("clear").addEventListener("click", () => {
  go(Object.fromEntries(FIELDS.filter((name) => name !== "latency").map((name) => [name, ""])));
  filters.elements.range.value = "24h";
  filters.elements.range.focus();
  load(true);
});
byId("latency").addEventListener("change", (event) => {
  go({ latency: event.target.value === "total" ? "" : event.target.value });
  load(true);
});
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("change", (event) => {
  const { name, value } = event.target;
  if (name === "range" && value === "custom") {
    for (const label of filters.querySelectorAll(".custom")) label.hidden = false;
    filters.elements.since.value = toLocal(last ? last.since * 1000 : Date.now() - 86400000);
    filters.elements.since.focus();
    return;
  }
  if (name === "range") go({ range: value === "24h" ? "" : value, since: "", until: "" });
  else if (name === "since" || name === "until") go({ range: "", since: toUtc(filters.elements.since.value), until: toUtc(filters.elements.until.value) });
  else go({ [name]: value });
  load(true);
});
document.addEventListener("click", (event) => {
  const link = event.target.closest ? event.target.closest("a[data-narrow]") : null;
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  // Made when the table was: the view may have changed since.
  go(viewOf(new URL(link.href).search));
  load(true);
});
addEventListener("popstate", () => {
  if (!viewOf().since && filters.elements.range.value === "custom") filters.elements.range.value = "24h";
  if (key) load(true);
});
document.addEventListener("visibilitychange", () => key && !paused && (document.hidden ? clearTimeout(timer) : load(false)));
setInterval(() => {
  if (paused || document.hidden || !last) return;
  const now = Date.now() / 1000;
  for (const node of document.querySelectorAll("[data-begun]")) node.textContent = duration(now - Number(node.dataset.begun));
}, 1000);

function dress(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
}
byId("theme").addEventListener("change", (event) => {
  localStorage.setItem(THEME, event.target.value);
  dress(event.target.value);
});
dress(localStorage.getItem(THEME) || "auto");
if (key) load(true);
else leave("");
