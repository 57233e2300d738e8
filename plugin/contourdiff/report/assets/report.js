// SPDX-License-Identifier: Apache-2.0
"use strict";

const list = document.getElementById("cards");
const cards = [...list.children];
const find = document.getElementById("find");
const sort = document.getElementById("sort");
const descending = document.getElementById("descending");
const marked = document.getElementById("marked");

function compare(one, other) {
  const key = sort.value;
  const [a, b] = [one.dataset[key], other.dataset[key]];
  if (key === "name" || key === "status") return a.localeCompare(b, undefined, { numeric: true });
  return Number(a) - Number(b);
}

function arrange() {
  const known = (card) => card.dataset[sort.value] !== "";
  const sign = descending.checked ? -1 : 1;
  const sorted = cards.filter(known).sort((one, other) => sign * compare(one, other));
  list.append(...sorted, ...cards.filter((card) => !known(card)));  // what is unknown comes last
}

function filter() {
  const show = document.querySelector("input[name=show]:checked").value;
  const text = find.value.toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = (show === "all" || card.classList.contains(show)) && card.dataset.name.toLowerCase().includes(text);
    card.hidden = !fits;
    count += fits;
  }
  document.getElementById("count").textContent = `${count} of ${cards.length} cases`;
}

function mark(card) {
  for (const other of document.querySelectorAll(".card.marked")) other.classList.remove("marked");
  for (const line of document.querySelectorAll(".mark")) line.remove();
  card.classList.add("marked");
  for (const figure of document.querySelectorAll(".distribution")) {
    const value = card.dataset[figure.dataset.measure];
    if (value === "") continue;
    const [low, high, left, right] = ["low", "high", "left", "right"].map((name) => Number(figure.dataset[name]));
    const line = document.createElement("div");
    line.className = "mark";
    line.style.left = `${100 * (left + ((value - low) / (high - low)) * (right - left))}%`;
    figure.append(line);
  }
  if (marked) marked.textContent = `Marked: ${card.dataset.name}`;
}

function marking(event) {
  const card = event.target.closest(".card");
  if (card && !card.classList.contains("marked")) mark(card);
}

sort.addEventListener("change", arrange);
descending.addEventListener("change", arrange);
find.addEventListener("input", filter);
for (const option of document.querySelectorAll("input[name=show]")) option.addEventListener("change", filter);
list.addEventListener("mouseover", marking);
list.addEventListener("focusin", marking);
const linked = document.querySelector(location.hash.match(/^#case-\d+$/) ? location.hash : "#none");
if (linked) mark(linked);

const copy = document.getElementById("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById("methods-text").innerText);
    document.getElementById("copied").textContent = "copied";
  });
}
