/**
 * A colour of its own for every socket of the pack, in the classic and in the newer node design.
 */

import { app } from "../../../scripts/app.js";

const COLOURS = {
  MAGICAPTURE_REFERENCES: "#e3a857",
  MAGICAPTURE_CONCEPT: "#e8743b",
  MAGICAPTURE_RECIPE: "#9bb85c",
  MAGICAPTURE_ADAPTER: "#d16ba5",
  MAGICAPTURE_FACE_MODEL: "#4fb8a8",
  MAGICAPTURE_DETECTOR: "#5aa9e6",
  MAGICAPTURE_PARSER: "#7f8fe0",
  MAGICAPTURE_REGIONS: "#b98ee0",
  MAGICAPTURE_MAGICFACE: "#e05c6e",
  MAGICAPTURE_DINO: "#3fa36b",
  MAGICAPTURE_KEEP: "#c9c35a",
  MAGICAPTURE_CHECKPOINTS: "#a8896c",
};

/** Give a map of colours one of ours, which stays where a palette says "" for what it lacks. */
function colour(map, type) {
  let given = "";
  Object.defineProperty(map, type, {
    get: () => given || COLOURS[type],
    set: (value) => (given = value),
    configurable: true,
    enumerable: true,
  });
}

app.registerExtension({
  name: "MagiCapture.Colours",

  setup() {
    for (const type of Object.keys(COLOURS)) {
      colour(app.canvas.default_connection_color_byType, type);
      colour(LGraphCanvas.link_type_colors, type);
    }
    // The newer design's; a palette sets and removes them on the root element itself.
    const rules = Object.entries(COLOURS).map(([type, each]) => `--color-datatype-${type}: ${each};`);
    const sheet = document.createElement("style");
    sheet.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(sheet);
  },
});
