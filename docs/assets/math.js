// Formulas are set by KaTeX; without it they are shown as they are written.
if (typeof renderMathInElement === "function") {
  document.querySelectorAll(".arithmatex").forEach((element) =>
    renderMathInElement(element, {
      delimiters: [
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
      ],
    }),
  );
}
