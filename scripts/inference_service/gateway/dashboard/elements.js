// Making elements. Callers' names, tags and models are anybody's text: they only ever become text.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

/** Replace what is in a container and leave the keyboard where it was. */
function refill(container, ...children) {
  const inside = container.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  const scrolled = [...container.querySelectorAll(".scroll")].map((node) => [node.scrollLeft, node.scrollTop]);
  container.replaceChildren(...children.flat().filter(Boolean));
  [...container.querySelectorAll(".scroll")].forEach((node, index) => {
    if (scrolled[index]) [node.scrollLeft, node.scrollTop] = scrolled[index];
  });
  if (inside === undefined) return;
  for (const node of container.querySelectorAll("[data-focus]")) {
    if (node.dataset.focus === inside) return node.focus({ preventScroll: true });
  }
}

/** A table of columns [{title, value(row), number, head}]; value gives text or a node. */
function table(label, columns, rows) {
  const cell = (column, row) =>
    el(column.head ? "th" : "td", { class: column.number ? "number" : null, scope: column.head ? "row" : null }, column.value(row));
  return el("table", { "aria-label": label },
    el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.title)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((column) => cell(column, row))))));
}

/** A table that may be wider than its place: the place scrolls, not the page, and the keyboard reaches it. */
const scrolling = (label, content) => el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label + ", scrolls sideways", "data-focus": "scroll " + label }, content);
