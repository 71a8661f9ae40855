// Mends what axe-core finds in the markup of the theme and its extensions, which no setting of theirs changes.
document.addEventListener("DOMContentLoaded", () => {
  // A label that hides the visible text from speech input.
  for (const e of document.querySelectorAll(".search-button-field[aria-label], summary[aria-label]")) {
    e.removeAttribute("aria-label");
  }
  for (const e of document.querySelectorAll(".theme-switch-button")) {
    e.setAttribute("aria-label", "Color mode: Light, Dark or System Settings");
  }
  // The bibliography: a deprecated role, in a list that has other children too.
  for (const e of document.querySelectorAll(".citation-list, [role=doc-biblioentry]")) e.removeAttribute("role");
});
