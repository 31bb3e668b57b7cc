// Charts in SVG: stacked bars and lines over the same buckets, each with a legend, a tip and a table behind it.

const COLOURS = ["var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)"];
const REST = "var(--s0)";
const DASHES = [null, "7 4", "2 4"];
const HEIGHT = 208;
const MARGIN = { left: 54, right: 6, top: 10, bottom: 22 };

const CLOCK_STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400, 172800, 604800, 1209600];

const nameOf = (series) => (series.name === null ? series.count + " others" : series.name || "(no key)");

/** Round steps for an axis from 0 that holds the largest value: [0, step, …]; `whole`: of things that are counted. */
function steps(largest, whole) {
  if (!(largest > 0)) return [0, 1];
  const raw = whole ? Math.max(1, largest / 4) : largest / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999 && !(whole && size % 1));
  const marks = [];
  for (let at = 0; at < largest + step * 0.999; at += step) marks.push(at);
  return marks;
}

/** One chart in its section. `draw` may be called again and again; what the reader opened or reached stays. */
class Chart {
  constructor(section, { kind, format, axis, whole, sum, colour, nothing }) {
    Object.assign(this, { kind, format, axis: axis || format, whole, sum, colour, nothing });
    this.title = section.querySelector("h2").textContent;
    this.at = null;
    this.svg = svg("svg", { role: "img", tabindex: 0, "aria-roledescription": "chart" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.spoken = el("p", { class: "hidden", role: "status", "aria-live": "polite" });
    this.legend = el("ul", { class: "legend" });
    this.none = el("p", { class: "none", hidden: true }, nothing);
    this.body = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": this.title + ", as a table" });
    this.details = el("details", { ontoggle: () => this.tabulate() }, el("summary", {}, "Show as a table"), this.body);
    this.figure = el("div", { class: "chart" }, this.svg, this.tip);
    section.append(this.figure, this.none, this.legend, this.details, this.spoken);
    this.svg.addEventListener("pointermove", (event) => this.point(this.bucketAt(event)));
    this.svg.addEventListener("pointerdown", (event) => this.point(this.bucketAt(event)));
    // A finger leaves when it is lifted, and then the tip is to be read.
    this.svg.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.data && this.paint()).observe(this.figure);
  }

  draw(data, series) {
    this.data = data;
    this.series = series;
    this.times = [];
    for (let at = data.since; at < data.until; at += data.bucket_seconds) this.times.push(at);
    const empty = !series.some((one) => one.values.some((value) => value));
    this.figure.hidden = this.legend.hidden = this.details.hidden = empty;
    this.none.hidden = !empty;
    if (empty) return;
    this.paint();
    this.tabulate();
    refill(this.legend, series.map((one, index) => this.entry(one, index)));
  }

  colourOf(series, index) {
    return series.name === null ? REST : this.colour ? this.colour(series, index) : COLOURS[index % COLOURS.length];
  }

  entry(series, index) {
    const mark = this.kind === "lines"
      ? svg("svg", { class: "dashes", "aria-hidden": "true" },
          svg("line", { x1: 1, x2: 23, y1: 6, y2: 6, stroke: this.colourOf(series, index), "stroke-width": 2.5, "stroke-dasharray": DASHES[index] }))
      : el("span", { class: "swatch", style: { background: this.colourOf(series, index) } });
    return el("li", {}, mark, el("span", {}, nameOf(series)), el("span", { class: "sum" }, this.sum(series)));
  }

  paint() {
    const width = this.figure.clientWidth;
    if (!width) return;
    const inner = width - MARGIN.left - MARGIN.right;
    const floor = HEIGHT - MARGIN.bottom;
    const stacks = this.times.map((_, at) => this.series.reduce((sum, one) => sum + (one.values[at] || 0), 0));
    const largest = this.kind === "bars" ? Math.max(...stacks) : Math.max(...this.series.flatMap((one) => one.values.map((value) => value || 0)));
    const marks = steps(largest, this.whole);
    const y = (value) => floor - (value / marks[marks.length - 1]) * (floor - MARGIN.top);
    this.slot = inner / this.times.length;
    const x = (at) => MARGIN.left + at * this.slot;
    const parts = marks.flatMap((mark) => [
      svg("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: Math.round(y(mark)), y2: Math.round(y(mark)) }),
      svg("text", { x: MARGIN.left - 8, y: y(mark) + 4, "text-anchor": "end" }, mark === 0 ? "0" : this.axis(mark)),
    ]);
    parts.push(...this.hours(width));
    parts.push(...(this.kind === "bars" ? this.bars(x, y) : this.lines(x, y)));
    this.cursor = svg("rect", { class: "at", y: MARGIN.top, height: floor - MARGIN.top, width: Math.max(this.slot, 2), visibility: "hidden" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", this.summary());
    this.svg.replaceChildren(...parts, this.cursor);
    this.point(this.at, false);
  }

  hours(width) {
    const { since, until, bucket_seconds } = this.data;
    const span = until - since;
    const step = CLOCK_STEPS.find((seconds) => span / seconds <= Math.max(2, width / 78)) || span;
    const offset = new Date(since * 1000).getTimezoneOffset() * 60;
    const labels = [];
    // Where a clock of this device is round, not where a bucket happens to begin.
    for (let at = Math.ceil((since - offset) / step) * step + offset; at < until; at += step) {
      const place = MARGIN.left + ((at - since) / bucket_seconds) * this.slot;
      if (place > width - 18) break;
      labels.push(svg("text", { x: Math.max(place, MARGIN.left + 14), y: HEIGHT - 5, "text-anchor": "middle" }, tick(at, span)));
    }
    return labels;
  }

  bars(x, y) {
    const heights = this.times.map(() => 0);
    const gap = this.slot > 5 ? 1.5 : this.slot > 3 ? 0.75 : 0;
    return this.series.map((one, index) => {
      const path = one.values.map((value, at) => {
        if (!value) return "";
        const bottom = y(heights[at]);
        heights[at] += value;
        const top = y(heights[at]);
        return `M${(x(at) + gap / 2).toFixed(2)} ${bottom.toFixed(2)}V${top.toFixed(2)}h${(this.slot - gap).toFixed(2)}V${bottom.toFixed(2)}z`;
      });
      return svg("path", { d: path.join(""), fill: this.colourOf(one, index) });
    });
  }

  lines(x, y) {
    return this.series.flatMap((one, index) => {
      const path = [];
      const alone = [];
      one.values.forEach((value, at) => {
        if (value === null) return;
        const place = `${(x(at) + this.slot / 2).toFixed(2)} ${y(value).toFixed(2)}`;
        const before = at > 0 && one.values[at - 1] !== null;
        const after = at + 1 < one.values.length && one.values[at + 1] !== null;
        path.push((before ? "L" : "M") + place);
        // A value without neighbours would be a line of no length.
        if (!before && !after) alone.push(place);
      });
      const stroke = this.colourOf(one, index);
      return [
        svg("path", { class: "line", d: path.join(""), stroke, "stroke-dasharray": DASHES[index] }),
        ...alone.map((place) => svg("circle", { cx: place.split(" ")[0], cy: place.split(" ")[1], r: 2.5, fill: stroke })),
      ];
    });
  }

  summary() {
    return `${this.title}: ${this.series.map((one) => `${nameOf(one)} ${this.sum(one)}`).join(", ")}. Arrow keys read single values; a table follows.`;
  }

  tabulate() {
    if (!this.details.open || !this.data) return;
    const columns = [
      { title: "Time", head: true, value: (at) => spanOf(this.times[at], this.data.bucket_seconds) },
      ...this.series.map((one) => ({ title: nameOf(one), number: true, value: (at) => this.format(one.values[at]) })),
    ];
    const rows = this.times.map((_, at) => at).filter((at) => this.series.some((one) => one.values[at])).reverse();
    refill(this.body, table(this.title, columns, rows));
  }

  bucketAt(event) {
    const place = event.clientX - this.svg.getBoundingClientRect().left - MARGIN.left;
    return Math.min(this.times.length - 1, Math.max(0, Math.floor(place / this.slot)));
  }

  key(event) {
    const last = this.times.length - 1;
    const now = this.at === null ? last + 1 : this.at;
    const to = { ArrowLeft: Math.max(0, now - 1), ArrowRight: Math.min(last, now + 1), Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.point(to, true);
  }

  /** Show the values of a bucket beside it; `aloud` says them, too. */
  point(at, aloud = false) {
    this.at = at;
    this.tip.hidden = at === null || !this.cursor;
    if (this.tip.hidden) {
      if (this.cursor) this.cursor.setAttribute("visibility", "hidden");
      return;
    }
    const here = this.series.map((one, index) => [one, index]).filter(([one]) => one.values[at]);
    const when = spanOf(this.times[at], this.data.bucket_seconds);
    const rows = here.map(([one, index]) =>
      el("div", {}, el("span", { class: "swatch", style: { background: this.colourOf(one, index) } }), el("span", {}, nameOf(one)), el("span", {}, this.format(one.values[at]))));
    this.tip.replaceChildren(el("b", {}, when), ...(rows.length ? rows : ["nothing"]));
    const place = MARGIN.left + at * this.slot;
    this.cursor.setAttribute("x", place);
    this.cursor.setAttribute("visibility", "visible");
    const beyond = place > this.figure.clientWidth / 2;
    this.tip.style.left = beyond ? "auto" : place + this.slot + 8 + "px";
    this.tip.style.right = beyond ? this.figure.clientWidth - place + 8 + "px" : "auto";
    if (aloud) this.spoken.textContent = `${when}: ${here.map(([one]) => `${nameOf(one)} ${this.format(one.values[at])}`).join(", ") || "nothing"}`;
  }
}
