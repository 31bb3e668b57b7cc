// The view is in the page's address, and nowhere else: a link shows the same, and Back goes back. The key never is.

const FIELDS = ["range", "since", "until", "caller", "team", "model", "route", "status", "latency"];

/** The view of the address, as the fields that are set. */
function viewOf(query = location.search) {
  const given = new URLSearchParams(query);
  return Object.fromEntries(FIELDS.filter((name) => given.get(name)).map((name) => [name, given.get(name)]));
}

/** The address of the present view with some fields changed; an empty value takes one away. */
function address(changes) {
  const view = { ...viewOf(), ...changes };
  const query = new URLSearchParams(FIELDS.filter((name) => view[name]).map((name) => [name, view[name]]));
  return location.pathname + (query.size ? "?" + query : "");
}

function go(changes) {
  const to = address(changes);
  if (to !== location.pathname + location.search) history.pushState(null, "", to);
}

const toLocal = (iso) => {
  const time = new Date(iso);
  return isNaN(time) ? "" : new Date(time - time.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
};
const toUtc = (local) => (local ? new Date(local).toISOString().slice(0, 16) + "Z" : "");
