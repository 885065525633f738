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
};

app.registerExtension({
  name: "MagiCapture.Colours",

  setup() {
    for (const [type, colour] of Object.entries(COLOURS)) {
      app.canvas.default_connection_color_byType[type] = colour;
      LGraphCanvas.link_type_colors[type] = colour;
      document.documentElement.style.setProperty(`--color-datatype-${type}`, colour);
    }
  },
});
