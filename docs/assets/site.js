// What the theme leaves out for people who use a keyboard or a screen reader: tables and formulas that scroll sideways
// can be reached (WCAG 2.1.1), and the search has a name (4.1.2).
function accessible() {
  for (const some of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset table, div.formula")) {
    if (some.scrollWidth > some.clientWidth) some.tabIndex = 0
    else some.removeAttribute("tabindex")
  }
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
}

document$.subscribe(() => requestAnimationFrame(accessible))
addEventListener("resize", accessible)
