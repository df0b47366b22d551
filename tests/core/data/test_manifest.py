from __future__ import annotations

import pytest

from core.data.manifest import read_manifest, resolve_video
from core.errors import UserError


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "video_caption.csv"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def test_rows_keep_their_order_and_the_captions_every_character(tmp_path):
    long = "word " * 2000
    captions = ['a "quoted", horse', "two\nlines", "emoji 🐎👩‍🚀", long, "größe"]
    rows = "".join(f'b/{9 - i}.mp4,"{c.replace(chr(34), chr(34) * 2)}"\n' for i, c in enumerate(captions))
    manifest = read_manifest(write(tmp_path, "video,caption\n" + rows))
    assert [row.caption for row in manifest] == captions
    assert len(long) == 10_000
    assert [row.video for row in manifest] == [f"b/{9 - i}.mp4" for i in range(5)]
    # The second caption takes two lines of the file.
    assert [(row.row, row.line) for row in manifest] == [(1, 2), (2, 3), (3, 5), (4, 6), (5, 7)]


def test_bom_crlf_blank_lines_other_columns_and_their_order(tmp_path):
    path = write(tmp_path, "\ufeffid,text,path\r\n7,a cat,./x/a.mp4\r\n\r\n8,a dog,x\\b.mp4\r\n")
    manifest = read_manifest(path, video_column="path", caption_column="text")
    assert [(row.video, row.caption, row.extra) for row in manifest] == [
        ("x/a.mp4", "a cat", {"id": "7"}),
        ("x/b.mp4", "a dog", {"id": "8"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file; needs a header"),
        ("video,caption\n", "a header but no rows"),
        ("file,caption\na.mp4,x\n", ":1: no column 'video'; the file has 'file', 'caption'"),
        ("video,caption,video\na.mp4,x,y\n", ":1: column 'video' appears twice"),
        ("video,caption\na.mp4,ok\nb.mp4,a horse, running\n", ":3 (row 2): 3 fields where the header has 2"),
        ("video,caption\na.mp4\n", ":2 (row 1): 1 fields where the header has 2"),
        ("video,caption\na.mp4,  \n", ":2 (row 1): empty caption for a.mp4"),
        ("video,caption\n,\n", ":2 (row 1): empty video path"),
        ('video,caption\na.mp4,"never closed\nb.mp4,x\n', ":2: not valid CSV"),
        ("video,caption\na.mp4,x\nb.mp4,y\n./a.mp4,z\n", ":4 (row 3): a.mp4 would be cached as a.npz, as row 1 is"),
        ("video,caption\na.mp4,x\na.mov,z\n", ":3 (row 2): a.mov would be cached as a.npz, as row 1 is"),
        ("video,caption\n/etc/passwd,x\n", ":2 (row 1): absolute video path '/etc/passwd'"),
        ("video,caption\nC:\\a.mp4,x\n", ":2 (row 1): absolute video path"),
        ("video,caption\n~/a.mp4,x\n", ":2 (row 1): absolute video path"),
        ("video,caption\na/../../b.mp4,x\n", ":2 (row 1): video path 'a/../../b.mp4' leaves the video folder"),
        ("video,caption\n.,x\n", ":2 (row 1): video path '.' names no file"),
        ('video,caption\n"a\nb.mp4",x\n', ":2 (row 1): control character in the video path"),
        (b"video,caption\na.mp4,\xff\xfe\n", "not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_file_and_row(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv: can't be read: No such file"):
        read_manifest(tmp_path / "nothing.csv")


def test_bad_rows_can_be_collected_while_the_good_ones_are_read(tmp_path):
    path = write(tmp_path, "video,caption\na.mp4,x\n../b.mp4,y\nc.mp4,\nd.mp4,z\n")
    failed = []
    manifest = read_manifest(path, on_row_error=lambda *args: failed.append(args))
    assert [row.row for row in manifest] == [1, 4]
    assert [(row, item) for row, item, _ in failed] == [(2, "../b.mp4"), (3, "c.mp4")]
    with pytest.raises(UserError, match=r"row 2.*\(and 1 more rows with problems\)"):
        read_manifest(path)


def test_captions_need_not_be_there_when_nobody_reads_them(tmp_path):
    manifest = read_manifest(write(tmp_path, "video\na.mp4\n"), caption_column=None)
    assert manifest.rows[0].caption == ""


def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "videos"
    outside.mkdir()
    folder.mkdir()
    (outside / "a.mp4").write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    path = write(tmp_path, "video,caption\nlink/a.mp4,x\n")
    with pytest.raises(UserError, match=r"row 1.*leaves .*videos by a symbolic link"):
        read_manifest(path, video_folder=folder)
    row = read_manifest(path).rows[0]
    with pytest.raises(UserError, match=r"leaves .*videos through a symbolic link"):
        resolve_video(row, folder)


def test_the_video_folder_may_be_the_one_in_the_csv_or_the_one_above(tmp_path):
    clip = tmp_path / "video_folder" / "part01" / "a.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"x")
    row = read_manifest(write(tmp_path, "video,caption\nvideo_folder/part01/a.mp4,x\n")).rows[0]
    assert resolve_video(row, tmp_path) == clip
    assert resolve_video(row, tmp_path / "video_folder") == clip
    with pytest.raises(UserError, match=r"video_folder/part01/a\.mp4: no such file"):
        resolve_video(row, tmp_path / "video_folder" / "part01")
