/**
 * A new Train node is tall enough for its live picture: the classic design shows a preview in the
 * height that is left below the widgets, at first 220 pixels. A saved workflow keeps its own sizes.
 */

import { app } from "../../../scripts/app.js";

const SIZE = [400, 880]; // 390 of them for sockets, widgets and text

app.registerExtension({
  name: "MagiCapture.Train",
  nodeCreated(node) {
    if (node.comfyClass === "MagiCaptureTrain")
      node.setSize(node.size.map((side, axis) => Math.max(side, SIZE[axis])));
  },
});
