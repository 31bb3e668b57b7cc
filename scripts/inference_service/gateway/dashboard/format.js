"use strict";
// Numbers and times as people read them. Nothing here touches the page.

const whole = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

const count = (value) => whole.format(value);
const brief = (value) => (value < 10000 ? whole.format(value) : short.format(value));

/** US dollars. What is less than a cent keeps two digits that say something: most requests cost less. */
function money(value) {
  if (value === null || value === undefined) return "unknown";
  if (value === 0) return "$0";
  const size = Math.abs(value);
  if (size >= 1e6) return "$" + short.format(value);
  const digits = size >= 100 ? 0 : size >= 0.1 ? 2 : Math.min(9, 1 - Math.floor(Math.log10(size)));
  const exact = size >= 1 ? 2 : digits;
  return "$" + value.toLocaleString("en-US", { minimumFractionDigits: Math.min(exact, 2), maximumFractionDigits: exact });
}

const bytes = (size) => (size < 1000 ? size + " B" : size < 1e6 ? (size / 1000).toFixed(1) + " kB" : (size / 1e6).toFixed(1) + " MB");

/** A duration in seconds, with three digits or fewer. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  if (seconds < 0.1) return (seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0) + " ms";
  if (seconds < 1) return (seconds * 1000).toFixed(0) + " ms";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 2 : 1) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min " + Math.round(seconds % 60) + " s";
  return Math.floor(seconds / 3600) + " h " + Math.round((seconds % 3600) / 60) + " min";
}

function percent(share) {
  if (!share) return "0 %";
  const value = share * 100;
  return (value < 0.01 ? "< 0.01" : value.toFixed(value < 1 ? 2 : value < 99.95 && value > 9.95 ? 1 : value < 10 ? 2 : 0)) + " %";
}

/** When something ends, from now: "in 3 h". */
function until(seconds) {
  if (seconds < 3600) return "in " + Math.max(1, Math.round(seconds / 60)) + " min";
  if (seconds < 2 * 86400) return "in " + Math.round(seconds / 3600) + " h";
  return "in " + Math.round(seconds / 86400) + " days";
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const clockSeconds = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayOnly = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** A bucket's time on an axis, no longer than its span needs. */
function tick(seconds, span) {
  return (span > 3 * 86400 ? dayOnly : clock).format(seconds * 1000);
}

/** A bucket's span in words. */
function spanOf(start, size) {
  const begun = size < 60 ? clockSeconds.format(start * 1000) : dayAndClock.format(start * 1000);
  if (size >= 86400) return dayOnly.format(start * 1000) + " – " + dayOnly.format((start + size - 1) * 1000);
  return begun + " – " + (size < 60 ? clockSeconds : clock).format((start + size) * 1000);
}
