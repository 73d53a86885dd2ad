"use strict";
(function () {
  const root = document.getElementById("the-plan");
  if (!root) return;
  const marks = Array.from(root.querySelectorAll("[data-point]"));
  const cards = Array.from(root.querySelectorAll("[data-card]"));
  const show = (mark) => {
    const point = mark.dataset.point;
    for (const card of cards) card.hidden = card.dataset.card !== point;
    for (const other of marks) {
      const on = other.dataset.point === point;
      other.classList.toggle("on", on);
      // One stop of the Tab key for each plot; the arrows go on from there.
      other.setAttribute("tabindex", on ? "0" : "-1");
    }
  };
  const place = (mark) => parseFloat(mark.parentNode.getAttribute("x"));
  for (const plot of root.querySelectorAll(".view")) {
    const own = marks.filter((mark) => plot.contains(mark)).sort((a, b) => place(a) - place(b));
    const ends = { Home: 0, End: own.length - 1 };
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    own.forEach((mark, index) => {
      for (const event of ["pointerenter", "focus", "click"]) mark.addEventListener(event, () => show(mark));
      mark.addEventListener("keydown", (event) => {
        const next = event.key in ends ? ends[event.key] : index + (steps[event.key] || 0);
        if (next === index || !own[next]) return;
        event.preventDefault();
        own[next].focus();
      });
    });
  }
  const first = marks.find((mark) => mark.classList.contains("chosen")) || marks[0];
  if (first) show(first);
})();
