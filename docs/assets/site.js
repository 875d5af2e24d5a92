// What scrolls sideways can be reached, and then scrolled, with the keyboard (WCAG 2.1.1).
function reachable() {
  for (const some of document.querySelectorAll(".md-typeset pre > code, .md-typeset table, div.formula")) {
    if (some.scrollWidth > some.clientWidth) some.tabIndex = 0
    else some.removeAttribute("tabindex")
  }
}

document$.subscribe(reachable)
addEventListener("resize", reachable)
