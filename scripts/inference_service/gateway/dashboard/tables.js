// The tables below the charts, and the tiles above them.

const LIVE_SHOWN = 20;

const shareOf = (row) => (row.requests ? row.errors / row.requests : 0);
const nothing = (text) => el("p", { class: "none" }, text);

/** A name that narrows the view to itself. */
function narrowing(field, value, shown) {
  if (!value) return el("span", {}, shown || "–");
  return el("a", { href: address({ [field]: value }), "data-narrow": "", "data-focus": field + " " + value, title: "Show only " + value }, value);
}

const cost = (row) => [row.unpriced && !row.cost_usd ? "unknown" : money(row.cost_usd), row.unpriced ? el("small", { class: "flag" }, "+ " + count(row.unpriced) + " unpriced") : null];
const cells = (...parts) => { const node = document.createDocumentFragment(); node.append(...parts.flat().filter(Boolean)); return node; };
const failing = (row) => el("span", { class: shareOf(row) >= 0.05 ? "bad-text" : null }, percent(shareOf(row)));

function usageColumns(first) {
  return [
    first,
    { title: "Requests", number: true, value: (row) => brief(row.requests) },
    { title: "Errors", number: true, value: failing },
    { title: "Tokens in", number: true, value: (row) => brief(row.input_tokens) },
    { title: "Tokens out", number: true, value: (row) => brief(row.output_tokens) },
    { title: "Spend", number: true, value: (row) => cells(cost(row)) },
  ];
}

const TABLES = {
  callers: (data) => data.callers.length
    ? scrolling("Callers", table("Callers", usageColumns({
        title: "Caller", head: true,
        value: (row) => cells(narrowing("caller", row.caller, "(no key)"), row.team ? el("small", {}, row.team) : null),
      }), data.callers))
    : nothing("No caller in this view."),

  models: (data) => data.models.length
    ? scrolling("Models", table("Models", usageColumns({
        title: "Model", head: true, value: (row) => narrowing("model", row.model, "(not routed)"),
      }), data.models))
    : nothing("No model in this view."),

  routes: (data) => data.routes.length
    ? scrolling("Routes", table("Routes", [
        { title: "Route", head: true, value: (row) => narrowing("route", row.route, "(none)") },
        { title: "Requests", number: true, value: (row) => brief(row.requests) },
        { title: "Errors", number: true, value: failing },
        { title: "p50", number: true, value: (row) => duration(row.p50) },
        { title: "p95", number: true, value: (row) => duration(row.p95) },
        { title: "p99", number: true, value: (row) => duration(row.p99) },
      ], data.routes))
    : nothing("No route in this view."),

  errors: (data) => data.errors.length
    ? scrolling("Errors", table("Errors", [
        { title: "Type", head: true, value: (row) => narrowing("status", row.error) },
        { title: "Status", number: true, value: (row) => (row.http_status === null ? "none sent" : String(row.http_status)) },
        { title: "Requests", number: true, value: (row) => brief(row.requests) },
        { title: "Share", number: true, value: (row) => percent(row.share) },
      ], data.errors))
    : nothing("No errors in this view."),

  budgets: (data) => data.budgets.length
    ? scrolling("Budgets", table("Budgets", [
        { title: "Caller", head: true, value: (row) => cells(narrowing("caller", row.caller), el("small", {}, "per " + row.window + (row.disabled ? ", disabled" : ""))) },
        { title: "Used", value: (row) => cells(meter(row), el("small", {}, percent(row.used_share) + " of " + money(row.limit_usd))) },
        { title: "Left", number: true, value: (row) => el("span", { class: row.used_share >= 1 ? "bad-text" : null }, row.used_share >= 1 ? "none" : money(row.left_usd)) },
        { title: "Starts anew", number: true, value: (row) => until(row.resets_at - data.now) },
      ], data.budgets))
    : nothing("No caller in this view has a budget: callers.py limits sets one."),

  live: (data) => data.live.length
    ? [scrolling("Live requests", table("Live requests", [
        { title: "Caller", head: true, value: (row) => narrowing("caller", row.caller, "–") },
        { title: "Model", value: (row) => cells(row.model || "–", el("small", {}, (row.route || "") + (row.stream ? ", streamed" : ""))) },
        { title: "State", value: (row) => (row.response_bytes ? cells("answering", el("small", {}, bytes(row.response_bytes) + " so far")) : "waiting") },
        { title: "For", number: true, value: (row) => el("span", { "data-begun": Date.now() / 1000 - row.seconds }, duration(row.seconds)) },
      ], data.live.slice().sort((one, other) => other.seconds - one.seconds).slice(0, LIVE_SHOWN))),
      data.live.length > LIVE_SHOWN ? el("p", { class: "more-rows" }, `and ${count(data.live.length - LIVE_SHOWN)} more`) : null]
    : nothing("Nothing is being answered at the moment."),
};

function meter(row) {
  const full = Math.min(1, row.used_share);
  const state = full >= 0.9 ? "meter full" : full >= 0.75 ? "meter near" : "meter";
  return el("div", {
    class: state, role: "meter", "aria-label": `${row.caller}, budget per ${row.window}`, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": Math.round(full * 100), "aria-valuetext": `${money(row.used_usd)} of ${money(row.limit_usd)} used`,
  }, el("i", { style: { width: (full * 100).toFixed(1) + "%" } }));
}

function tiles(data) {
  const sums = data.totals;
  const tile = (title, value, more, state) =>
    el("div", {}, el("dt", {}, title), el("dd", {}, el("div", { class: "value" + (state ? " " + state : "") }, value), el("div", { class: "more" }, more)));
  const rate = sums.requests / Math.max(1, Math.min(data.until, data.now) - data.since);
  return [
    tile("Spend", money(sums.cost_usd), sums.requests ? money(sums.cost_usd / sums.requests) + " per request" : "nothing asked"),
    tile("Requests", brief(sums.requests), rate >= 1 ? brief(Math.round(rate)) + " per second" : brief(Math.round(rate * 3600)) + " per hour"),
    tile("Errors", percent(shareOf(sums)), count(sums.errors) + " failed", shareOf(sums) >= 0.05 ? "is-bad" : ""),
    tile("Tokens", brief(sums.input_tokens + sums.output_tokens), brief(sums.input_tokens) + " in, " + brief(sums.output_tokens) + " out"),
    tile("Latency p95", duration(sums.p95), `p50 ${duration(sums.p50)}, p99 ${duration(sums.p99)}`),
    tile("Without a price", brief(sums.unpriced), sums.unpriced ? "not in the spend" : "all spend is known", sums.unpriced ? "is-loud" : ""),
  ];
}

function showUnpriced(data) {
  const total = data.totals.unpriced;
  byId("unpriced").hidden = !total;
  const title = total ? `${count(total)} ${total === 1 ? "request has" : "requests have"} no price` : "";
  if (byId("unpriced-title").textContent !== title) byId("unpriced-title").textContent = title;
  const columns = [
    { title: "Model", head: true, value: (row) => narrowing("model", row.model, "(not routed)") },
    { title: "Without a price", number: true, value: (row) => count(row.unpriced) },
    { title: "Share", number: true, value: (row) => percent(row.unpriced / row.requests) },
  ];
  const made = table("Requests without a price", columns, data.unpriced);
  refill(byId("unpriced-table"), ...made.children);
}
