"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (text) => {
    tip.textContent = text;
    tip.hidden = !text;
  };

  // The maps: one tab stop each, arrow keys inside, as grids of the ARIA practices do.
  const cellsOf = (row) => [...row.querySelectorAll("td.cell, td.none")];
  for (const grid of document.querySelectorAll('table[role="grid"]')) {
    const rows = [...grid.tBodies[0].rows].map(cellsOf);
    const place = (cell) => {
      const row = rows.findIndex((cells) => cells.includes(cell));
      return [row, rows[row].indexOf(cell)];
    };
    const go = (from, row, column) => {
      const target = rows[row]?.[column];
      if (!target) return;
      if (!target.classList.contains("cell")) {
        const [before, beside] = place(from);
        go(target, row + Math.sign(row - before), column + Math.sign(column - beside));
        return;
      }
      grid.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
      target.setAttribute("tabindex", "0");
      target.focus();
    };
    grid.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td.cell");
      if (!cell) return;
      const [row, column] = place(cell);
      const last = rows[row].length - 1;
      const moves = {
        ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1],
        ArrowDown: [row + 1, column], ArrowUp: [row - 1, column],
        Home: [row, 0], End: [row, last],
      };
      if (event.key === "Escape") show("");
      if (!moves[event.key]) return;
      event.preventDefault();
      go(cell, ...moves[event.key]);
    });
    const label = (event) => event.target.closest("td.cell")?.getAttribute("aria-label") ?? "";
    grid.addEventListener("focusin", (event) => show(label(event)));
    grid.addEventListener("focusout", () => show(""));
    grid.addEventListener("pointerover", (event) => show(label(event)));
    grid.addEventListener("pointerleave", () => show(""));
  }

  // Flips: by any words of an entry, by what was lost or won, by class.
  for (const box of document.querySelectorAll(".flipped:has(.filter)")) {
    const filter = box.querySelector(".filter");
    const [words, side, kind] = ["words", "side", "class"].map((n) => filter.querySelector(`[name=${n}]`));
    const entries = [...box.querySelectorAll(".lost, .won")];
    const sift = () => {
      const wanted = words.value.toLowerCase().split(/\s+/);
      for (const entry of entries) {
        const text = entry.textContent.toLowerCase();
        entry.hidden = (side.value && !entry.classList.contains(side.value))
          || (kind?.value && entry.closest("[data-class]").dataset.class !== kind.value)
          || !wanted.every((word) => text.includes(word));
      }
      for (const body of box.querySelectorAll("tbody[data-class]")) {
        body.hidden = !body.querySelector("tr:is(.lost, .won):not([hidden])");
      }
      box.querySelectorAll("details:has(.lost, .won)").forEach((fold) => { fold.open = true; });
      filter.querySelector("output").value = `${entries.filter((e) => !e.hidden).length} of ${entries.length}`;
    };
    filter.addEventListener("input", sift);
    filter.hidden = false;
  }

  // Commands: beside each a button that copies it; what cannot be copied is selected.
  for (const command of document.querySelectorAll("code.command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${command.textContent}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        show("Copied");
      } catch {
        getSelection().selectAllChildren(command);
        show("Selected: copy it with the keyboard");
      }
      setTimeout(() => show(""), 2000);
    });
    command.after(" ", button);
  }

  // On a phone what does not decide is folded; what a link leads to opens.
  const sections = [...document.querySelectorAll("details.section")];
  if (matchMedia("(max-width: 40rem)").matches) {
    for (const section of sections) section.open = false;
  }
  const unfold = () => {
    const name = location.hash.slice(1);
    const target = document.getElementById(name) ?? document.getElementById(decodeURIComponent(name));
    const section = target?.closest("details.section");
    if (section) section.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
})();
