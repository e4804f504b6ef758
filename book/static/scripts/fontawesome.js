// The theme would load all of Font Awesome here; the icons in use are in icons.css.
