"use strict";
(function () {
  const root = document.getElementById("the-plan");
  if (!root) return;
  const marks = Array.from(root.querySelectorAll("[data-point]"));
  const cards = Array.from(root.querySelectorAll("[data-card]"));
  const place = (mark) => parseFloat(mark.parentNode.getAttribute("x"));
  const plots = Array.from(root.querySelectorAll(".view"), (view) =>
    marks.filter((mark) => view.contains(mark)).sort((a, b) => place(a) - place(b)));
  const show = (mark) => {
    const point = mark.dataset.point;
    for (const card of cards) card.hidden = card.dataset.card !== point;
    for (const own of plots) {
      // One stop of the Tab key for each plot; the arrows go on from there.
      const stop = own.find((other) => other.dataset.point === point) || own[0];
      for (const other of own) {
        other.classList.toggle("on", other.dataset.point === point);
        other.setAttribute("tabindex", other === stop ? "0" : "-1");
      }
    }
  };
  for (const own of plots) {
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
