// Of the theme's style sheets (Bootstrap and 2 000 icons) the pages use a quarter. Run in the folder of the built pages.
module.exports = {
  content: ["**/*.html", "_static/**/*.js"],
  css: ["_static/*.css", "_static/styles/*.css"],
  fontFace: true,
};
