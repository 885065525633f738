"""The drawing of dolls: who and what, seen how, as pixels, labels and landmarks."""
