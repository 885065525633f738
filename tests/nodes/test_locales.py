"""The translations against the nodes themselves."""

from __future__ import annotations

from translations import files, read_files, spoken


def test_the_english_files_say_what_the_nodes_say(pack):
    """And the tables what the English files say: `tests/test_translations.py`."""
    nodes = {node.define_schema().node_id: node for node in pack("nodes").NODES}
    said = list(spoken({node_id: node.GET_NODE_INFO_V1() for node_id, node in nodes.items()}))
    assert {place[1] for _, _, place in said if place[0] == "nodeDefs"} == nodes.keys()
    assert files(said) == read_files("en"), "run `python -m translations`"


def test_comfyui_reads_them(comfyui, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    from translations import LANGUAGES, LOCALES

    (tmp_path / "magicapture").symlink_to(LOCALES.parent, target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path)])
    shown = CustomNodeManager().build_translations.__wrapped__(CustomNodeManager())
    assert shown.keys() == {"en", *LANGUAGES}
    for language, words in shown.items():
        made = read_files(language)
        assert words == {**made["main"], "nodeDefs": made["nodeDefs"]}
