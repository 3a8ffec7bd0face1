// Boxes that scroll can be reached and scrolled by keyboard; others are passed over.

const BOXES = "pre, .table-wrapper, .formula, .cell_output > div";

function mark() {
  for (const box of document.querySelectorAll(BOXES)) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

mark();
addEventListener("resize", mark);
